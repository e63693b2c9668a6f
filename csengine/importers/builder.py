"""Builds a graph from operations on tensors in their source's order.

A source tensor of one sample is a graph tensor and, for every element of that, its place in the source's flat order.
Reshaping and transposing only change places; whoever needs the elements in an order of their own asks `arranged`.
An image that is only padded waits as `Padded` for the window that reads it. Of two axes, a sequence (positions,
channels) and a signal (channels, positions) are images of height 1: the same to whoever does not ask for an order. What
is done to sequences only is in `sequences.py`; convolutions and pools of one axis slide over signals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from csengine.errors import GraphError
from csengine.graph import (
    KWTA,
    MAX_ELEMENTS,
    Activation,
    Add,
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv2d,
    Function,
    Graph,
    Input,
    Linear,
    MaxPool,
    Node,
    Packing,
    Product,
    Relu,
    Reshape,
    Scope,
    Softmax,
    TensorType,
    Transpose,
)

Array = NDArray[Any]
Padding: TypeAlias = tuple[int, int, int, int]
_MAX_PERMUTED = 2048  # features of a vector that a matrix of ones and zeros may put in order


class UnsupportedError(Exception):
    """Why one operation cannot be imported, and what to do about it."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


class Problems(list[str]):
    """What cannot be imported, a line each."""

    def add(self, label: str, error: UnsupportedError) -> None:
        """Say what, why, and what to do about it, unless that has been said: it may list everything that is known."""
        is_new = error.remedy and not any(line.endswith(error.remedy) for line in self)
        self.append(f"{label}: {error}" + (f"; {error.remedy}" if is_new else ""))


@dataclass(frozen=True, eq=False)
class Value:
    """A source tensor: shape of one sample in the source's order, and the places `[*graph shape]` in that order.

    is_whole: the shape is that of a batch of one, whose axis of the batch is not in front.
    """

    name: str
    shape: tuple[int, ...]
    places: Array
    is_whole: bool = False


@dataclass(frozen=True, eq=False)
class Padded:
    """An image (C, H, W) or signal (C, W) that whoever reads it has to pad.

    padding: (top, left, bottom, right); fill: the value there.
    """

    value: Value
    padding: Padding
    fill: float = 0.0


@dataclass(frozen=True, eq=False)
class Repeated:
    """A factor per channel that is repeated over an image of this shape: only a product reads it."""

    value: Value
    shape: tuple[int, ...]

    def factor_of(self, other: Any) -> Value:
        """The factor itself, for a product with what it is repeated for. Raises UnsupportedError."""
        if not isinstance(other, Value) or other.shape != self.shape:
            raise UnsupportedError(f"repeats {self.value.shape} to {self.shape}; only products with such do so")
        return self.value


@lru_cache(maxsize=64)
def standard_places(shape: tuple[int, ...]) -> Array:
    """Images (C, H, W) lie as (H, W, C), sequences (W, C) as (1, W, C); everything else as it is."""
    order = np.arange(prod(shape), dtype=np.int32)
    if len(shape) == 2:
        return order.reshape(1, *shape)
    return order.reshape(shape).transpose(1, 2, 0) if len(shape) == 3 else order


def image_places(shape: tuple[int, ...]) -> Array:
    """Images (C, H, W) lie as (H, W, C), signals (C, W) as (1, W, C)."""
    return standard_places((shape[0], 1, shape[1]) if len(shape) == 2 else shape)


class Builder:
    """Appends checked nodes. Raises UnsupportedError, or GraphError where a node does not fit.

    layout: of the source. batch: the size that the source's shapes have.
    """

    def __init__(self, layout: Any = "NCHW", batch: int = 1) -> None:
        self.layout = layout
        self.batch = batch
        self.nodes: list[Node] = []
        self.types: dict[str, TensorType] = {}

    def emit(self, kind: type[Node], name: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; its name, which is made printable and unique."""
        base = "".join(letter if letter.isprintable() else "?" for letter in name) or "tensor"
        unique, count = base, 1
        while unique in self.types:
            count += 1
            unique = f"{base}.{count}"
        node = kind(name=unique, inputs=inputs, **attributes)
        self.types[unique] = node.infer([self.types[source] for source in inputs])
        self.nodes.append(node)
        return unique

    def input(self, name: str, shape: tuple[int, ...]) -> Value:
        """The network's input: (C, H, W), (H, W, C), (W, C), (C, W) or (features,), as the layout says."""
        if not 1 <= len(shape) <= 3:
            raise UnsupportedError(
                f"the input has {len(shape)} axes after the batch", "give it 1 to 3, those of one sample"
            )
        places = standard_places(shape)
        if self.layout == "NHWC" and len(shape) == 3:
            places = np.arange(prod(shape), dtype=np.int32).reshape(shape)
        elif self.layout == "NCW":
            places = image_places(shape)
        return Value(self.emit(Input, name, shape=places.shape), shape, places)

    def finish(self, value: Value) -> tuple[Graph, Value]:
        """The graph whose result is this value, in the usual order, without what it does not need; and the result.

        What has other axes than the layout is a vector in the source's order.
        """
        if value.is_whole:
            raise UnsupportedError(
                f"has shape {value.shape} of a batch of one, which does not begin with the batch, or has nothing after "
                "it; leave out the transpose or squeeze that makes it so"
            )
        wanted: Array = np.arange(prod(value.shape), dtype=np.int32)
        if self.layout == "NHWC" and len(value.shape) == 3:
            wanted = wanted.reshape(value.shape)
        elif self.layout == "NCW" and len(value.shape) == 2:
            wanted = image_places(value.shape)
        elif len(value.shape) == (2 if self.layout == "NWC" else 3) and self.layout != "NCW":
            wanted = standard_places(value.shape)
        result = self.arranged(value, wanted, "result")
        needed = {self.nodes[0].name, result.name}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        nodes = [node for node in self.nodes if node.name in needed and node.name != result.name]
        last = next(node for node in self.nodes if node.name == result.name)
        return Graph((*nodes, last), self.layout), result

    # --- order -------------------------------------------------------------------------------------------------------

    def arranged(self, value: Value, wanted: Array, name: str) -> Value:
        """The same values with these places."""
        if value.places.shape == wanted.shape and np.array_equal(value.places, wanted):
            return value
        value = self.vector(value, f"{name}.flat") if wanted.ndim == 1 else value
        flat, target = value.places.ravel(), wanted.ravel()
        if not np.array_equal(flat, target):
            value = self._permuted(value, flat, target, name)
        made = self._shaped(f"{name}.shaped", value.name, wanted.shape)
        return replace(value, name=made, places=wanted)

    def _shaped(self, name: str, source: str, shape: tuple[int, ...]) -> str:
        """A tensor in this shape."""
        return source if self.types[source].shape == shape else self.emit(Reshape, name, source, shape=shape)

    def _permuted(self, value: Value, flat: Array, target: Array, name: str) -> Value:
        """The same values in another order: of axes, of channels at every position, or of a short vector."""
        source_of = np.empty(flat.size, np.int64)
        source_of[flat] = np.arange(flat.size)
        moves = source_of[target]
        shape = self.types[value.name].shape
        size = shape[-1]
        rows = moves.reshape(-1, size)
        at_home = np.array_equal(rows // size, np.broadcast_to(np.arange(len(rows))[:, None], rows.shape))
        if not at_home or not (rows % size == rows[0] % size).all() or (len(shape) == 1 and size > _MAX_PERMUTED):
            return self._transposed(value, moves, target, name)
        weight = np.zeros((size, size), np.float32)
        weight[rows[0] % size, np.arange(size)] = 1.0
        label, places = f"{name}.ordered", target.reshape(shape)
        if len(shape) == 1:
            return replace(value, name=self.emit(Linear, label, value.name, weight=weight), places=places)
        return replace(value, name=self.emit(Conv2d, label, value.name, weight=weight, kernel=(1, 1)), places=places)

    def _transposed(self, value: Value, moves: Array, target: Array, name: str) -> Value:
        """The same values with up to three axes in another order. moves: whence each element comes."""
        axes = _axes_of(moves)
        if axes is None or len(axes) > 3:
            raise UnsupportedError("needs its input in another order of axes", "remove the transpose or reshape before")
        axes = [(1, moves.size)] * (3 - len(axes)) + axes
        order = sorted(range(3), key=lambda i: (-axes[i][1], i))  # source axis -> result axis
        source = self._shaped(f"{name}.axes", value.name, tuple(axes[i][0] for i in order))
        turned = self.emit(Transpose, f"{name}.turned", source, axes=tuple(order.index(i) for i in range(3)))
        return replace(value, name=turned, places=target.reshape(self.types[turned].shape))

    def image(self, value: Value, name: str) -> Value:
        """The value as an image (C, H, W), which has a height of 1 if it is a signal (C, W)."""
        if len(value.shape) not in (2, 3) or value.is_whole:
            raise UnsupportedError(f"reads shape {value.shape}; expected an image (C, H, W) or a signal (C, W)")
        return self.arranged(value, image_places(value.shape), name)

    def vector(self, value: Value, name: str) -> Value:
        """The value as a vector, in whatever order; name: of the node that flattens it."""
        if value.places.ndim == 1:
            return value
        flat = self.emit(Reshape, name, value.name, shape=(value.places.size,))
        return replace(value, name=flat, places=value.places.ravel())

    def reshape(self, value: Value, shape: tuple[int, ...]) -> Value:
        """Another shape of a sample over the same flat order."""
        return replace(value, shape=shape)

    def whole_shape(self, value: Value) -> tuple[int, ...]:
        """The shape of a batch."""
        return value.shape if value.is_whole else (self.batch, *value.shape)

    def with_whole_shape(self, value: Value, shape: Sequence[int]) -> Value:
        """The same values as a batch of this shape."""
        if len(shape) > 1 and shape[0] == self.batch:
            return replace(value, shape=tuple(shape[1:]), is_whole=False)
        if self.batch != 1 or not shape:
            raise UnsupportedError(f"has the shape {tuple(shape)}, which moves the batch axis", "export a batch of one")
        return replace(value, shape=tuple(shape), is_whole=True)

    def reshape_batch(self, value: Value, shape: Sequence[int]) -> Value:
        """Another shape of a whole batch, in which one extent may be -1."""
        full, extents = self.whole_shape(value), list(shape)
        if -1 in extents:
            extents[extents.index(-1)] = prod(full) // max(1, -prod(extents))
        if prod(extents) != prod(full):
            raise UnsupportedError(f"reshapes {full} to {extents}, which has another number of elements")
        return self.with_whole_shape(value, extents)

    def transpose_batch(self, value: Value, axes: Sequence[int]) -> Value:
        """The axes of a whole batch in another order."""
        full = self.whole_shape(value)
        if self.batch != 1 and axes[0] != 0:
            raise UnsupportedError("moves the batch axis", "export a batch of one")
        one = full if self.batch == 1 else (1, *full[1:])
        order = np.arange(prod(one), dtype=np.int32).reshape(one).transpose(axes)
        inverse = np.empty(order.size, np.int32)
        inverse[order.ravel()] = np.arange(order.size, dtype=np.int32)
        turned = replace(value, places=inverse[value.places])
        return self.with_whole_shape(turned, [full[axis] for axis in axes])

    # --- operations --------------------------------------------------------------------------------------------------

    def elementwise(self, kind: type[Node], name: str, value: Value, **attributes: Any) -> Value:
        """An operation on every element."""
        return replace(value, name=self.emit(kind, name, value.name, **attributes))

    def affine(self, name: str, value: Value, scale: Array, shift: Array) -> Value:
        """`x * scale + shift` for constants that broadcast to a sample's shape."""
        if np.allclose(scale, 1 / 6, rtol=1e-6) and not np.any(shift):
            if source := self._six_shares_of(value.name):
                return self.activation(name, replace(value, name=source), "hard_sigmoid", 1 / 6)
            if source := self._six_swishes_of(value.name):
                return self.activation(name, replace(value, name=source), "hard_swish")
        if len(value.shape) == 1 and np.size(scale) * np.size(shift) > 1:  # one of each per element
            value = self.vector(value, f"{name}.flat")
        full = [self._per_element(value, constant) for constant in (scale, shift)]
        shape = self.types[value.name].shape
        if not all(_is_per_channel(constant) for constant in full):  # every element is a channel of a vector
            value, full = self.vector(value, f"{name}.flat"), [constant.ravel() for constant in full]
        attributes = {"scale": _first(full[0]), "shift": _first(full[1])}
        made = self._shaped(f"{name}.shaped", self.emit(Affine, name, value.name, **attributes), shape)
        return replace(value, name=made, places=value.places.reshape(shape))

    def activation(self, name: str, value: Value, function: Function, alpha: float = 1.0) -> Value:
        """A function of every element."""
        return self.elementwise(Activation, name, value, function=function, alpha=float(alpha))

    def _six_shares_of(self, name: str) -> str | None:
        """x, if a tensor is `clip(x + 3, 0, 6)`: a hard sigmoid, written out, before it is divided."""
        clip = self.made(name)
        if not isinstance(clip, Clip) or (clip.minimum, clip.maximum) != (0.0, 6.0):
            return None
        shifted = self.made(clip.inputs[0])
        is_three = isinstance(shifted, Affine) and bool((shifted.scale == 1).all() and (shifted.shift == 3).all())
        return shifted.inputs[0] if is_three else None

    def _six_swishes_of(self, name: str) -> str | None:
        """x, if a tensor is `x * clip(x + 3, 0, 6)`."""
        product = self.made(name)
        if not isinstance(product, Product):
            return None
        return next((x for x, gate in permutations(product.inputs) if self._six_shares_of(gate) == x), None)

    def made(self, name: str) -> Node:
        """The node that gives a tensor."""
        return next(node for node in self.nodes if node.name == name)

    def gated(self, name: str, a: Value, b: Value) -> Value | None:
        """`x * sigmoid(x)` and `x * hard_sigmoid(x)` as one activation; None for other products."""
        for x, gate in ((a, b), (b, a)):
            made = self.made(gate.name)
            if isinstance(made, Activation) and made.inputs == (x.name,) and np.array_equal(x.places, gate.places):
                if made.function == "sigmoid":
                    return self.activation(name, x, "silu")
                if made.function == "hard_sigmoid" and np.isclose(made.alpha, 1 / 6, rtol=1e-6):
                    return self.activation(name, x, "hard_swish")
        return None

    def leaky_relu(self, name: str, value: Value, slope: Array) -> Value:
        """`max(x, 0) + slope * min(x, 0)`; of slopes that differ, as `slope * x + (1 - slope) * max(x, 0)`."""
        if np.size(slope) == 1:
            return self.activation(name, value, "leaky_relu", np.asarray(slope).item())
        none = np.zeros(())
        straight = self.affine(f"{name}.slope", value, slope, none)
        positive = self.elementwise(Relu, f"{name}.positive", value)
        return self.add(name, straight, self.affine(f"{name}.rest", positive, 1.0 - slope, none))

    @staticmethod
    def _per_element(value: Value, constant: Array) -> NDArray[np.float32]:
        """A constant that broadcasts to a sample's shape, for every element of the graph tensor."""
        try:
            full: Array = np.broadcast_to(np.asarray(constant, np.float32), value.shape).ravel()[value.places]
        except ValueError as error:
            raise UnsupportedError(f"has a constant of shape {np.shape(constant)} for {value.shape}") from error
        return full

    def per_channel(self, value: Value, constant: Array) -> NDArray[np.float32]:
        """A constant that broadcasts to a sample's shape, for every channel of the graph tensor."""
        full = self._per_element(value, constant)
        if not _is_per_channel(full):
            raise UnsupportedError("has a constant that differs between positions", "use one value per channel")
        return _first(full)

    def conv(
        self,
        name: str,
        source: Value | Padded,
        weight: Array,
        bias: Array | None,
        stride: Sequence[int],
        padding: Sequence[int],
        groups: int,
        packing: Packing | None = None,
    ) -> Value:
        """Convolution; weight `[O, C / groups, kh, kw]`, padding (top, left, bottom, right).

        Over a signal weight `[O, C / groups, k]`, padding (left, right).
        """
        kernel, stride, padding = _window(source, weight.shape[2:], stride, padding)
        if isinstance(source, Padded) and source.fill == 0:
            padding, source = _sum(source.padding, padding), source.value
        image = self.image(self.padded(name, source), name)
        matrix = weight.transpose(*range(2, weight.ndim), 1, 0).reshape(-1, len(weight))
        result = self.emit(
            Conv2d,
            name,
            image.name,
            weight=np.ascontiguousarray(matrix, np.float32),
            bias=None if bias is None else np.ascontiguousarray(bias, np.float32),
            kernel=kernel,
            stride=stride,
            padding=padding,
            groups=groups,
            packing=packing,
        )
        return self._standard(result, image)

    def padded(self, name: str, source: Value | Padded | Repeated) -> Value:
        """The padded image itself: a convolution with the identity pads with zeros."""
        if isinstance(source, Value):
            return source
        if isinstance(source, Repeated):
            return source.factor_of(None)
        if not isinstance(source, Padded):
            raise UnsupportedError(f"reads a {type(source).__name__}; expected an activation")
        if source.fill != 0:
            raise UnsupportedError(f"is padded with {source.fill}; only zeros are supported here")
        image, axes = source.value, len(source.value.shape) - 1
        one = np.ones((image.shape[0], 1, *((1,) * axes)))
        padding = source.padding if axes == 2 else source.padding[1::2]
        return self.conv(f"{name}.padded", image, one, None, (1,) * axes, padding, len(one))

    def _standard(self, name: str, source: Value) -> Value:
        """What a window gave: an image, or a signal as its source."""
        height, width, channels = self.types[name].shape
        shape = (channels, height, width) if len(source.shape) == 3 else (channels, width)
        return Value(name, shape, image_places(shape))

    def max_pool(
        self,
        name: str,
        source: Value | Padded,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        ceils: bool = False,
    ) -> Value:
        """Largest value of each window; what `padding` adds never wins. ceils: windows may reach beyond the end."""
        kernel, stride, padding = _window(source, kernel, stride, padding)
        if isinstance(source, Padded) and (source.fill == -np.inf or self._is_never_negative(source)):
            source, padding = _joined(source, kernel, padding)
        image = self.image(self.padded(name, source), name)
        if ceils:
            padding = _with_last_windows(self.types[image.name].shape, kernel, stride, padding)
        result = self.emit(MaxPool, name, image.name, kernel=kernel, stride=stride, padding=padding)
        return self._standard(result, image)

    def _is_never_negative(self, source: Padded) -> bool:
        made = self.made(source.value.name)
        is_clipped = isinstance(made, Clip) and made.minimum is not None and made.minimum >= 0
        return source.fill == 0 and (isinstance(made, Relu) or is_clipped)

    def average_pool(
        self,
        name: str,
        source: Value | Padded,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        counts: bool,
        ceils: bool = False,
    ) -> Value:
        """Mean of each window. counts: whether `padding` counts as zeros, or not at all.

        ceils: windows may reach beyond the end; what lies there never counts.
        """
        kernel, stride, padding = _window(source, kernel, stride, padding)
        counts = counts or not any(padding)
        if isinstance(source, Padded) and source.fill == 0 and counts and not ceils:
            source, padding = _joined(source, kernel, padding)
        image = self.image(self.padded(name, source), name)
        whole = _with_last_windows(self.types[image.name].shape, kernel, stride, padding) if ceils else padding
        if whole != padding:
            if counts and any(padding):
                raise UnsupportedError("has ceil_mode and counts its padding", "count_include_pad=False is supported")
            padding, counts = whole, False
        window = {"kernel": kernel, "stride": stride, "padding": padding, "count_padding": counts}
        return self._standard(self.emit(AveragePool, name, image.name, **window), image)

    def global_pool(self, kind: type[Node], name: str, value: Value) -> Value:
        """The mean or maximum of every channel: `(C, 1, 1)`, of a signal `(C, 1)`."""
        return self.pool_axes(kind, name, value, range(1, len(value.shape)))

    def pool_axes(self, kind: type[Node], name: str, value: Value, axes: Sequence[int]) -> Value:
        """The mean or maximum over some axes, but channels, of an image or signal: these have an extent of 1 then."""
        image = self.image(value, name)
        size = tuple(n if axis in axes else 1 for axis, n in enumerate(value.shape))[1:]
        window = (1, *size)[-2:]
        return self._standard(self.emit(kind, name, image.name, kernel=window, stride=window), image)

    def linear(
        self, name: str, value: Value, weight: Array, bias: Array | None, packing: Packing | None = None
    ) -> Value:
        """Matrix product `[..., features] @ [features, O]`; over several positions a 1 x 1 convolution."""
        inputs, outputs = weight.shape
        if inputs != value.shape[-1]:
            raise UnsupportedError(f"multiplies {value.shape} by a matrix of {inputs} x {outputs}, which does not fit")
        bias = None if bias is None else np.ascontiguousarray(np.broadcast_to(bias, outputs), np.float32)
        if len(value.shape) > 1:
            return self._linear_of_positions(name, value, np.ascontiguousarray(weight, np.float32), bias, packing)
        vector = self.vector(value, f"{name}.flat")
        matrix = np.ascontiguousarray(weight[vector.places], np.float32)
        result = self.emit(Linear, name, vector.name, weight=matrix, bias=bias, packing=packing)
        return Value(result, (outputs,), standard_places((outputs,)))

    def _linear_of_positions(
        self, name: str, value: Value, weight: Array, bias: Array | None, packing: Packing | None
    ) -> Value:
        value = self.channels_last(value, name)
        attributes = {"weight": weight, "bias": bias, "kernel": (1, 1), "packing": packing}
        result = self.emit(Conv2d, name, value.name, **attributes)
        shape = self.types[result].shape
        places = np.arange(prod(shape), dtype=np.int32).reshape(shape)
        return replace(value, name=result, shape=(*value.shape[:-1], weight.shape[1]), places=places)

    def channels_last(self, value: Value, name: str) -> Value:
        """The value in its flat order, as an image whose channels are its last axis."""
        wanted = np.arange(prod(value.shape), dtype=np.int32)
        shape = self.types[value.name].shape
        in_order = len(shape) == 3 and shape[-1] == value.shape[-1] and np.array_equal(value.places.ravel(), wanted)
        return self.arranged(value, wanted.reshape(shape if in_order else (1, -1, value.shape[-1])), name)

    def add(self, name: str, a: Value, b: Value) -> Value:
        """Element-wise sum of tensors of one shape."""
        if a.shape != b.shape:
            raise UnsupportedError(f"adds shapes {a.shape} and {b.shape}; only one shape is supported")
        return replace(a, name=self.emit(Add, name, a.name, self.arranged(b, a.places, name).name))

    def multiply(self, name: str, a: Value, b: Value) -> Value:
        """Element-wise product of tensors of one shape, or of an image or signal by one factor per channel."""
        a, b = (a, b) if prod(a.shape) >= prod(b.shape) else (b, a)
        if (gated := self.gated(name, a, b)) is not None:
            return gated
        if a.shape == b.shape:
            return replace(a, name=self.emit(Product, name, a.name, self.arranged(b, a.places, name).name))
        if a.is_whole or b.shape != (a.shape[0], *(1 for _ in a.shape[1:])):
            raise UnsupportedError(
                f"multiplies activations of shapes {a.shape} and {b.shape}; expected one shape, or a factor per channel"
            )
        image = self.image(a, name)
        factors = self.arranged(
            b, np.arange(len(b.places.ravel()), dtype=np.int32).reshape(1, 1, -1), f"{name}.factors"
        )
        return replace(image, name=self.emit(Product, name, image.name, factors.name))

    def concat(self, name: str, values: Sequence[Value], axis: int) -> Value:
        """Tensors joined along an axis of a sample."""
        joined = np.concatenate([self._tags(v, i) for i, v in enumerate(values)], axis=axis)
        place_of: list[Array] = [np.empty(prod(v.shape), np.int32) for v in values]
        flat = joined.reshape(-1, 2)
        for i, places in enumerate(place_of):
            mine = np.flatnonzero(flat[:, 0] == i)
            places[flat[mine, 1]] = mine
        parts = [places[v.places] for places, v in zip(place_of, values, strict=True)]
        if len({part.shape[:-1] for part in parts}) > 1:  # the graph joins along its last axis only
            return self.concat(name, [self._innermost(value, axis, name) for value in values], axis)
        together = np.concatenate(parts, axis=-1)
        return Value(self.emit(Concat, name, *(v.name for v in values)), joined.shape[:-1], together)

    def _innermost(self, value: Value, axis: int, name: str) -> Value:
        """The value with one axis of its sample as its channels."""
        order = np.moveaxis(np.arange(prod(value.shape), dtype=np.int32).reshape(value.shape), axis, -1)
        return self.arranged(value, order.reshape(1, -1, value.shape[axis]), name)

    @staticmethod
    def _tags(value: Value, number: int) -> Array:
        """For every element `[*shape, 2]`: whose it is, and its place there."""
        place = np.arange(prod(value.shape), dtype=np.int32).reshape(value.shape)
        return np.stack([np.full_like(place, number), place], axis=-1)

    def softmax(self, name: str, value: Value, axes: Sequence[int]) -> Value:
        """Softmax over the axes of a sample, which have to be channels, or the last."""
        if tuple(axes) == (len(value.shape) - 1,) and self._scope(value, axes) is None:
            value = self.channels_last(value, name)
        scope, is_one_position = self._scope(value, axes), value.places.size == value.places.shape[-1]
        if scope is None or (scope == "global" and not is_one_position):
            raise UnsupportedError(
                "is a softmax over other axes than the channels", "move the softmax out of the model"
            )
        return self.elementwise(Softmax, name, value)

    def k_winners(self, name: str, value: Value, k: int, axes: Sequence[int], factor: Array | None = None) -> Value:
        """k winners among the elements along the axes of a sample, ranked by value x factor (of a sample's shape)."""
        scope = self._scope(value, axes)
        if scope is None:
            raise UnsupportedError(
                f"chooses winners along axes {tuple(axes)} of {value.shape}; only channels or whole samples compete",
                "transpose a signal (C, W) to (W, C) before k-winners, and back",
            )
        if factor is not None and scope == "local":
            factor = self.per_channel(value, factor)
        elif factor is not None:
            factor = np.broadcast_to(factor, value.shape).ravel()[value.places].ravel().astype(np.float32)
        return self.elementwise(KWTA, name, value, k=k, scope=scope, factor=factor)

    @staticmethod
    def _scope(value: Value, axes: Sequence[int]) -> Scope | None:
        """What the elements along some axes of a sample are in the graph tensor; None for neither."""
        index = np.arange(prod(value.shape)).reshape(value.shape)
        group = np.broadcast_to(index.min(axis=tuple(axes), keepdims=True), value.shape).ravel()[value.places]
        rows = group.reshape(-1, group.shape[-1])
        size = prod(value.shape[axis] for axis in axes)
        if size == group.size:
            return "global"
        return "local" if size == rows.shape[1] and bool((rows == rows[:, :1]).all()) else None


def _is_per_channel(full: Array) -> bool:
    rows = full.reshape(-1, full.shape[-1])
    return bool((rows == rows[0]).all())


def _first(full: Array) -> NDArray[np.float32]:
    """The values of the channels at the first position."""
    return np.ascontiguousarray(full.reshape(-1, full.shape[-1])[0])


def _axes_of(moves: Array) -> list[tuple[int, int]] | None:
    """The axes of a transposition, outermost first: extent and step; None if this is no transposition of axes."""
    axes: list[tuple[int, int]] = []
    block = 1
    while block < moves.size:
        starts, step = moves[::block], int(moves[block])
        differs = np.flatnonzero(starts != np.arange(len(starts)) * step)
        count = int(differs[0]) if differs.size else len(starts)
        axes.insert(0, (count, step))
        block *= count
        if count < 2 or moves.size % block:
            return None
    rebuilt = np.zeros(1, np.int64)
    for count, step in axes:
        rebuilt = np.add.outer(rebuilt, np.arange(count) * step).ravel()
    return axes if np.array_equal(rebuilt, moves) else None


def sample_axis(axis: int, value: Value) -> int:
    """An axis of a batch as one of a sample (or of the batch, if its axis is not in front). Raises UnsupportedError."""
    if value.is_whole:
        return axis % len(value.shape)
    axis += len(value.shape) + 1 if axis < 0 else 0
    if not 1 <= axis <= len(value.shape):
        raise UnsupportedError("works along the batch axis")
    return axis - 1


def with_dilation(weight: Array, dilation: Sequence[int]) -> Array:
    """Kernels `[O, C, kh, kw]` or `[O, C, k]` with zeros between their taps; packed, these cost nothing."""
    extents = [(taps - 1) * step + 1 for taps, step in zip(weight.shape[2:], dilation, strict=True)]
    if prod(extents) * prod(weight.shape[:2]) > MAX_ELEMENTS:
        raise UnsupportedError(f"has a dilation of {tuple(dilation)}, which makes kernels of {extents} taps")
    wide = np.zeros((*weight.shape[:2], *extents), weight.dtype)
    taps = (slice(None), slice(None), *(slice(None, None, step) for step in dilation))
    wide[taps] = weight
    return wide


def _window(
    source: Value | Padded, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[tuple[int, int], tuple[int, int], Padding]:
    """Kernel, stride and padding over an image; of a signal, which is one of height 1, they have one axis."""
    shape = (source.value if isinstance(source, Padded) else source).shape
    if len(kernel) not in (1, 2) or len(shape) != len(kernel) + 1:
        raise UnsupportedError(
            f"slides {len(kernel)}-D windows over shape {shape}; expected 2-D ones over an image (C, H, W), or "
            "1-D ones over a signal (C, W)"
        )
    (down, right), (height, width) = (1, *stride)[-2:], (1, *kernel)[-2:]
    top, left, bottom, after = padding if len(kernel) == 2 else (0, padding[0], 0, padding[1])
    return (height, width), (down, right), (top, left, bottom, after)


def _with_last_windows(
    size: Sequence[int], kernel: tuple[int, int], stride: tuple[int, int], padding: Padding
) -> Padding:
    """The padding with which the last windows fit; windows that would see only padding do not count."""
    after = list(padding[2:])
    for i in range(2):
        count = -(-(size[i] + padding[i] + padding[i + 2] - kernel[i]) // stride[i]) + 1
        count -= (count - 1) * stride[i] >= size[i] + padding[i]
        after[i] = max(after[i], (count - 1) * stride[i] + kernel[i] - size[i] - padding[i])
    return padding[0], padding[1], after[0], after[1]


def _sum(a: Padding, b: Padding) -> Padding:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


def _joined(source: Padded, kernel: tuple[int, int], padding: Padding) -> tuple[Value | Padded, Padding]:
    """An image and its whole padding, if every window keeps an element of the image."""
    total = _sum(source.padding, padding)
    is_partial = max(total[0], total[2]) < kernel[0] and max(total[1], total[3]) < kernel[1]
    return (source.value, total) if is_partial else (source, padding)


__all__ = [
    "Builder",
    "GraphError",
    "Padded",
    "Padding",
    "Repeated",
    "UnsupportedError",
    "Value",
    "sample_axis",
    "standard_places",
    "with_dilation",
]
