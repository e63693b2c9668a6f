"""Builds a graph from operations on tensors in their source's order.

A source tensor of one sample is a graph tensor and, for every element of that, its place in the source's flat order.
Reshaping and transposing only change places; whoever needs the elements in an order of their own asks `arranged`.
An image that is only padded waits as `Padded` for the window that reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from csengine.errors import GraphError
from csengine.graph import (
    KWTA,
    Add,
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv2d,
    Graph,
    Input,
    Linear,
    MaxPool,
    Node,
    Packing,
    Relu,
    Reshape,
    Scope,
    Softmax,
    TensorType,
)

Array = NDArray[Any]
Padding: TypeAlias = tuple[int, int, int, int]
_MAX_PERMUTED = 2048  # features of a vector that a matrix of ones and zeros may put in order


class UnsupportedError(Exception):
    """Why one operation cannot be imported, and what to do about it."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


@dataclass(frozen=True, eq=False)
class Value:
    """A source tensor: shape of one sample in the source's order, and the places `[*graph shape]` in that order."""

    name: str
    shape: tuple[int, ...]
    places: Array


@dataclass(frozen=True, eq=False)
class Padded:
    """An image (C, H, W) that whoever reads it has to pad.

    padding: (top, left, bottom, right); fill: the value there.
    """

    value: Value
    padding: Padding
    fill: float = 0.0


@lru_cache(maxsize=64)
def standard_places(shape: tuple[int, ...]) -> Array:
    """Images (C, H, W) lie as (H, W, C); everything else as it is."""
    order = np.arange(prod(shape), dtype=np.int32)
    return order.reshape(shape).transpose(1, 2, 0) if len(shape) == 3 else order


class Builder:
    """Appends checked nodes. Raises UnsupportedError, or GraphError where a node does not fit."""

    def __init__(self, layout: Any = "NCHW") -> None:
        self.layout = layout
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
        """The network's input, (C, H, W) or (features,); (H, W, C) if the layout is NHWC."""
        places = standard_places(shape)
        if self.layout == "NHWC" and len(shape) == 3:
            places = np.arange(prod(shape), dtype=np.int32).reshape(shape)
        if len(shape) not in (1, 3):
            raise UnsupportedError(f"the input has {len(shape)} axes after the batch", "give it 1 or 3")
        return Value(self.emit(Input, name, shape=places.shape), shape, places)

    def finish(self, value: Value) -> tuple[Graph, Value]:
        """The graph whose result is this value, in the usual order, without what it does not need; and the result."""
        channels_last = self.layout == "NHWC" and len(value.shape) == 3
        wanted = np.arange(prod(value.shape)).reshape(value.shape) if channels_last else standard_places(value.shape)
        result = self.arranged(value, wanted.astype(np.int32), "result")
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
        if self.types[value.name].shape != wanted.shape:
            value = Value(self.emit(Reshape, f"{name}.shaped", value.name, shape=wanted.shape), value.shape, wanted)
        return Value(value.name, value.shape, wanted)

    def _permuted(self, value: Value, flat: Array, target: Array, name: str) -> Value:
        """The same values in another order: of channels at every position, or of a vector."""
        source_of = np.empty(flat.size, np.int64)
        source_of[flat] = np.arange(flat.size)
        moves = source_of[target]
        shape = self.types[value.name].shape
        size = shape[-1]
        rows = moves.reshape(-1, size)
        at_home = np.array_equal(rows // size, np.broadcast_to(np.arange(len(rows))[:, None], rows.shape))
        if not at_home or not (rows % size == rows[0] % size).all() or (len(shape) == 1 and size > _MAX_PERMUTED):
            raise UnsupportedError("needs its input in another order of axes", "remove the transpose or reshape before")
        weight = np.zeros((size, size), np.float32)
        weight[rows[0] % size, np.arange(size)] = 1.0
        label, places = f"{name}.ordered", target.reshape(shape)
        if len(shape) == 1:
            return Value(self.emit(Linear, label, value.name, weight=weight), value.shape, places)
        return Value(self.emit(Conv2d, label, value.name, weight=weight, kernel=(1, 1)), value.shape, places)

    def image(self, value: Value, name: str) -> Value:
        """The value as an image (C, H, W)."""
        if len(value.shape) != 3:
            remedy = "give the signal a height of 1 (Unsqueeze)" if len(value.shape) == 2 else ""
            raise UnsupportedError(f"reads shape {value.shape}; only images (C, H, W) are supported", remedy)
        return self.arranged(value, standard_places(value.shape), name)

    def vector(self, value: Value, name: str) -> Value:
        """The value as a vector, in whatever order; name: of the node that flattens it."""
        if value.places.ndim == 1:
            return value
        flat = self.emit(Reshape, name, value.name, shape=(value.places.size,))
        return Value(flat, value.shape, value.places.ravel())

    def reshape(self, value: Value, shape: tuple[int, ...]) -> Value:
        """Another shape over the same flat order."""
        return Value(value.name, shape, value.places)

    def reshape_batch(self, value: Value, shape: Sequence[int], batch: int) -> Value:
        """Another shape of a whole batch, in which one extent may be -1."""
        full, extents = (batch, *value.shape), list(shape)
        if -1 in extents:
            extents[extents.index(-1)] = prod(full) // max(1, -prod(extents))
        if len(extents) < 2 or extents[0] != batch:
            raise UnsupportedError(f"reshapes to {extents}, which moves the batch axis")
        if prod(extents) != prod(full):
            raise UnsupportedError(f"reshapes {full} to {extents}, which has another number of elements")
        return self.reshape(value, tuple(extents[1:]))

    def transpose(self, value: Value, axes: Sequence[int]) -> Value:
        """The axes of a sample in another order."""
        order = np.arange(prod(value.shape), dtype=np.int32).reshape(value.shape).transpose(axes)
        inverse = np.empty(order.size, np.int32)
        inverse[order.ravel()] = np.arange(order.size, dtype=np.int32)
        return Value(value.name, order.shape, inverse[value.places])

    # --- operations --------------------------------------------------------------------------------------------------

    def elementwise(self, kind: type[Node], name: str, value: Value, **attributes: Any) -> Value:
        """An operation on every element."""
        return Value(self.emit(kind, name, value.name, **attributes), value.shape, value.places)

    def affine(self, name: str, value: Value, scale: Array, shift: Array) -> Value:
        """`x * scale + shift` for constants that broadcast to a sample's shape."""
        if len(value.shape) == 1 and np.size(scale) * np.size(shift) > 1:  # one of each per element
            value = self.vector(value, f"{name}.flat")
        per_channel = [self._per_channel(value, constant) for constant in (scale, shift)]
        return self.elementwise(Affine, name, value, scale=per_channel[0], shift=per_channel[1])

    def leaky_relu(self, name: str, value: Value, slope: Array) -> Value:
        """`max(x, 0) + slope * min(x, 0)` as `slope * x + (1 - slope) * max(x, 0)`."""
        none = np.zeros(())
        straight = self.affine(f"{name}.slope", value, slope, none)
        positive = self.elementwise(Relu, f"{name}.positive", value)
        return self.add(name, straight, self.affine(f"{name}.rest", positive, 1.0 - slope, none))

    def _per_channel(self, value: Value, constant: Array) -> NDArray[np.float32]:
        try:
            full = np.broadcast_to(np.asarray(constant, np.float32), value.shape).ravel()[value.places]
        except ValueError as error:
            raise UnsupportedError(f"has a constant of shape {np.shape(constant)} for {value.shape}") from error
        rows = full.reshape(-1, full.shape[-1])
        if not (rows == rows[0]).all():
            raise UnsupportedError("has a constant that differs between positions", "use one value per channel")
        return np.ascontiguousarray(rows[0])

    def conv(
        self,
        name: str,
        source: Value | Padded,
        weight: Array,
        bias: Array | None,
        stride: tuple[int, int],
        padding: Padding,
        groups: int,
        packing: Packing | None = None,
    ) -> Value:
        """Convolution; weight `[O, C / groups, kh, kw]`, padding (top, left, bottom, right)."""
        if isinstance(source, Padded) and source.fill == 0:
            padding, source = _sum(source.padding, padding), source.value
        image = self.image(self.padded(name, source), name)
        matrix = weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))
        result = self.emit(
            Conv2d,
            name,
            image.name,
            weight=np.ascontiguousarray(matrix, np.float32),
            bias=None if bias is None else np.ascontiguousarray(bias, np.float32),
            kernel=(weight.shape[2], weight.shape[3]),
            stride=stride,
            padding=padding,
            groups=groups,
            packing=packing,
        )
        return self._standard(result)

    def padded(self, name: str, source: Value | Padded) -> Value:
        """The padded image itself: a convolution with the identity pads with zeros."""
        if isinstance(source, Value):
            return source
        if source.fill != 0:
            raise UnsupportedError(f"is padded with {source.fill}; only zeros are supported here")
        one = np.ones((source.value.shape[0], 1, 1, 1))
        return self.conv(f"{name}.padded", source.value, one, None, (1, 1), source.padding, len(one))

    def _standard(self, name: str) -> Value:
        height, width, channels = self.types[name].shape
        shape = (channels, height, width)
        return Value(name, shape, standard_places(shape))

    def max_pool(
        self, name: str, source: Value | Padded, kernel: tuple[int, int], stride: tuple[int, int], padding: Padding
    ) -> Value:
        """Largest value of each window; what `padding` adds never wins."""
        if isinstance(source, Padded) and (source.fill == -np.inf or self._is_never_negative(source)):
            source, padding = _joined(source, kernel, padding)
        image = self.image(self.padded(name, source), name)
        return self._standard(self.emit(MaxPool, name, image.name, kernel=kernel, stride=stride, padding=padding))

    def _is_never_negative(self, source: Padded) -> bool:
        made = next(node for node in self.nodes if node.name == source.value.name)
        is_clipped = isinstance(made, Clip) and made.minimum is not None and made.minimum >= 0
        return source.fill == 0 and (isinstance(made, Relu) or is_clipped)

    def average_pool(
        self,
        name: str,
        source: Value | Padded,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: Padding,
        counts: bool,
    ) -> Value:
        """Mean of each window. counts: whether `padding` counts as zeros, or not at all."""
        counts = counts or not any(padding)
        if isinstance(source, Padded) and source.fill == 0 and counts:
            source, padding = _joined(source, kernel, padding)
        image = self.image(self.padded(name, source), name)
        window = {"kernel": kernel, "stride": stride, "padding": padding, "count_padding": counts}
        return self._standard(self.emit(AveragePool, name, image.name, **window))

    def global_pool(self, kind: type[Node], name: str, value: Value) -> Value:
        """The mean or maximum of every channel: `(C, 1, 1)`."""
        image = self.image(value, name)
        size = image.shape[1:]
        return self._standard(self.emit(kind, name, image.name, kernel=size, stride=size))

    def linear(
        self, name: str, value: Value, weight: Array, bias: Array | None, packing: Packing | None = None
    ) -> Value:
        """Matrix product `[features] @ [features, O]`."""
        if len(value.shape) != 1:
            raise UnsupportedError(f"multiplies shape {value.shape}; only vectors are supported", "flatten it first")
        vector = self.vector(value, f"{name}.flat")
        matrix = np.ascontiguousarray(weight[vector.places], np.float32)
        bias = None if bias is None else np.ascontiguousarray(np.broadcast_to(bias, matrix.shape[1:]), np.float32)
        result = self.emit(Linear, name, vector.name, weight=matrix, bias=bias, packing=packing)
        return Value(result, (matrix.shape[1],), standard_places((matrix.shape[1],)))

    def add(self, name: str, a: Value, b: Value) -> Value:
        """Element-wise sum of tensors of one shape."""
        if a.shape != b.shape:
            raise UnsupportedError(f"adds shapes {a.shape} and {b.shape}; only one shape is supported")
        return Value(self.emit(Add, name, a.name, self.arranged(b, a.places, name).name), a.shape, a.places)

    def concat(self, name: str, values: Sequence[Value], axis: int) -> Value:
        """Tensors joined along an axis of a sample."""
        joined = np.concatenate([self._tags(v, i) for i, v in enumerate(values)], axis=axis)
        place_of: list[Array] = [np.empty(prod(v.shape), np.int32) for v in values]
        flat = joined.reshape(-1, 2)
        for i, places in enumerate(place_of):
            mine = np.flatnonzero(flat[:, 0] == i)
            places[flat[mine, 1]] = mine
        parts = [places[v.places] for places, v in zip(place_of, values, strict=True)]
        try:
            together = np.concatenate(parts, axis=-1)
        except ValueError as error:
            raise UnsupportedError("joins tensors in different orders of axes") from error
        return Value(self.emit(Concat, name, *(v.name for v in values)), joined.shape[:-1], together)

    @staticmethod
    def _tags(value: Value, number: int) -> Array:
        """For every element `[*shape, 2]`: whose it is, and its place there."""
        place = np.arange(prod(value.shape), dtype=np.int32).reshape(value.shape)
        return np.stack([np.full_like(place, number), place], axis=-1)

    def softmax(self, name: str, value: Value, axes: Sequence[int]) -> Value:
        """Softmax over the axes of a sample, which have to be the graph tensor's last one."""
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
                f"chooses winners along axes {tuple(axes)} of {value.shape}; only channels or whole samples compete"
            )
        if factor is not None and scope == "local":
            factor = self._per_channel(value, factor)
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


def sample_axis(axis: int, value: Value) -> int:
    """An axis of a batch as one of a sample. Raises UnsupportedError."""
    axis += len(value.shape) + 1 if axis < 0 else 0
    if not 1 <= axis <= len(value.shape):
        raise UnsupportedError("works along the batch axis")
    return axis - 1


def _sum(a: Padding, b: Padding) -> Padding:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


def _joined(source: Padded, kernel: tuple[int, int], padding: Padding) -> tuple[Value | Padded, Padding]:
    """An image and its whole padding, if every window keeps an element of the image."""
    total = _sum(source.padding, padding)
    is_partial = max(total[0], total[2]) < kernel[0] and max(total[1], total[3]) < kernel[1]
    return (source.value, total) if is_partial else (source, padding)


__all__ = ["Builder", "GraphError", "Padded", "Padding", "UnsupportedError", "Value", "sample_axis", "standard_places"]
