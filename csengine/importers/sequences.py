"""What is done to sequences: attention, layer normalization, means over positions; and parts of any tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csengine.graph import (
    Activation,
    Affine,
    Clip,
    Conv2d,
    Gelu,
    LayerNorm,
    Linear,
    MatMul,
    MaxPool,
    Node,
    Packing,
    Relu,
    Softmax,
)
from csengine.importers.builder import Builder, UnsupportedError, Value

Array = NDArray[Any]


def layer_norm(builder: Builder, name: str, value: Value, scale: Array, shift: Array, epsilon: float) -> Value:
    """Over the last axis; scale and shift broadcast to it."""
    value = builder.channels_last(value, name) if len(value.shape) > 1 else value
    factors = {"scale": builder.per_channel(value, scale), "shift": builder.per_channel(value, shift)}
    return builder.elementwise(LayerNorm, name, value, **factors, epsilon=float(epsilon))


def matmul(builder: Builder, name: str, a: Value, b: Value) -> Value:
    """Product of activations `(..., M, K) @ (..., K, N)`; leading axes have to be the same."""
    first, second = builder.whole_shape(a), builder.whole_shape(b)
    if min(len(first), len(second)) < 3 or prod(first[:-2]) != prod(second[:-2]) or first[-1] != second[-2]:
        raise UnsupportedError(
            f"multiplies activations of shapes {first} and {second}; expected as many matrices of each"
        )
    matrices = prod(a.shape) // (first[-2] * first[-1])
    a = builder.arranged(a, _in_order((matrices, *first[-2:])), f"{name}.first")
    in_rows = _in_order((matrices, *second[-2:]))
    in_columns = in_rows.transpose(0, 2, 1)
    is_transposed = np.array_equal(b.places.ravel(), in_columns.ravel()) and min(second[-2:]) > 1
    b = builder.arranged(b, in_columns if is_transposed else in_rows, f"{name}.second")
    result = builder.emit(MatMul, name, a.name, b.name, transposed=is_transposed)
    places = _in_order((matrices, first[-2], second[-1]))
    return builder.with_whole_shape(Value(result, (), places), (*first[:-1], second[-1]))


def product_from_left(builder: Builder, name: str, weight: Array, value: Value) -> Value:
    """A constant matrix `(M, K)` times activations `(..., K, N)`: a layer over columns."""
    rank = len(builder.whole_shape(value))
    if rank < 3:
        raise UnsupportedError(f"multiplies a matrix by activations of shape {value.shape}; expected (..., K, N)")
    order = [*range(rank - 2), rank - 1, rank - 2]
    columns = builder.linear(name, builder.transpose_batch(value, order), weight.T, None)
    return builder.transpose_batch(columns, order)


def attention(builder: Builder, name: str, q: Value, k: Value, v: Value, scale: float | None) -> Value:
    """`softmax(q @ k.T * scale) @ v` of `(..., positions, channels)`; scale: 1 / sqrt(channels) by default."""
    axes = list(range(len(builder.whole_shape(k))))
    turned = builder.transpose_batch(k, [*axes[:-2], axes[-1], axes[-2]])
    factor = np.asarray(q.shape[-1] ** -0.5 if scale is None else scale)
    scaled = builder.affine(f"{name}.scaled", q, factor, np.zeros(()))
    scores = matmul(builder, f"{name}.scores", scaled, turned)
    shares = builder.elementwise(Softmax, f"{name}.shares", scores)
    return matmul(builder, name, shares, v)


def reduced(builder: Builder, name: str, value: Value, kind: type[Node], axes: Sequence[int], keeps: bool) -> Value:
    """The mean or maximum over height, width or both, or over the positions of a signal (C, W) or a sequence (W, C).

    kind: AveragePool or MaxPool. keeps: whether the axes stay, with an extent of 1.
    """
    is_sequence = len(value.shape) == 2 and list(axes) == [0]
    if not is_sequence and (len(value.shape) not in (2, 3) or not axes or 0 in axes):
        raise UnsupportedError(
            f"reduces axes {list(axes)} of {value.shape}; only height and width, or positions, are supported"
        )
    pooled = pool_positions(builder, name, value, kind) if is_sequence else builder.pool_axes(kind, name, value, axes)
    return pooled if keeps else builder.reshape(pooled, tuple(n for i, n in enumerate(value.shape) if i not in axes))


def pool_positions(builder: Builder, name: str, value: Value, kind: type[Node]) -> Value:
    """The mean or maximum of a sequence (W, C): `(1, C)`."""
    sequence = builder.channels_last(value, name)
    height, width, channels = builder.types[sequence.name].shape
    size = (height, width)
    pooled = builder.emit(kind, name, sequence.name, kernel=size, stride=size)
    return Value(pooled, (1, channels), _in_order((1, 1, channels)))


def concat(builder: Builder, name: str, parts: Sequence[Value | Array], axis: int) -> Value:
    """Tensors joined along an axis of a sample; constants among them (class tokens, coordinates) as activations."""
    like = next(part for part in parts if isinstance(part, Value))
    values = [
        part if isinstance(part, Value) else _constant(builder, f"{name}.{i}", like, axis, part)
        for i, part in enumerate(parts)
    ]
    return builder.concat(name, values, axis)


def _constant(builder: Builder, name: str, like: Value, axis: int, constant: Array) -> Value:
    """The constant, as 0 times a part of some activations, plus the constant."""
    extent = constant.shape[axis] if constant.ndim == len(like.shape) else 0
    wanted = (*like.shape[:axis], extent, *like.shape[axis + 1 :])
    if constant.shape != wanted or extent > like.shape[axis]:
        raise UnsupportedError(f"joins a constant of shape {constant.shape} and activations of shape {like.shape}")
    part = take(builder, f"{name}.part", like, axis, range(extent))
    return builder.affine(f"{name}.constant", part, np.zeros(()), constant)


def take(builder: Builder, name: str, value: Value, axis: int, chosen: Sequence[int]) -> Value:
    """The elements at some places of an axis of a sample: whole channels, or positions at equal steps."""
    if not chosen or len(set(chosen)) < len(chosen):
        raise UnsupportedError(
            f"takes {list(chosen)} of axis {axis}; expected every place once at most, and one at least"
        )
    flat = np.arange(prod(value.shape), dtype=np.int32).reshape(value.shape).take(chosen, axis=axis)
    place_of = np.full(prod(value.shape), -1, np.int32)
    place_of[flat.ravel()] = np.arange(flat.size, dtype=np.int32)
    left = place_of[value.places]
    rows = left.reshape(-1, left.shape[-1])
    kept = rows[0] >= 0
    if ((rows >= 0) == kept).all():
        places = np.ascontiguousarray(left[..., kept])
        return replace(value, name=_narrowed(builder, name, value.name, kept), shape=flat.shape, places=places)
    window = _window_of(left[..., 0] >= 0) if left.ndim == 3 and ((rows >= 0) == (rows[:, :1] >= 0)).all() else None
    if window is None:
        raise UnsupportedError(
            f"takes a part of axis {axis} of {value.shape}; supported are whole channels, and positions at equal steps",
            "average over the positions",
        )
    places = left[window[0].start :: window[0].step, window[1].start :: window[1].step]
    places = np.ascontiguousarray(places[: len(window[0]), : len(window[1])])
    return replace(value, name=_cropped(builder, name, value.name, window), shape=flat.shape, places=places)


def _window_of(kept: Array) -> tuple[range, range] | None:
    """Rows and columns, at equal steps, of an image `[H, W]` of which these positions are kept."""
    axes = []
    for axis in (0, 1):
        chosen = np.flatnonzero(kept.any(axis=1 - axis)).tolist()
        step = chosen[1] - chosen[0] if len(chosen) > 1 else kept.shape[axis]
        axes.append(range(chosen[0], chosen[-1] + 1, step))
        if list(axes[-1]) != chosen:
            return None
    rows, columns = axes
    return (rows, columns) if kept.sum() == len(rows) * len(columns) else None


def _cropped(builder: Builder, name: str, tensor: str, window: tuple[range, range]) -> str:
    """Some positions of an image: a layer with less padding, and what follows it, or a choice among positions."""
    node = builder.made(tensor)
    label, shape = f"{name}.{tensor}", builder.types[tensor].shape
    match node:
        case Affine() | Relu() | Clip() | Gelu() | Activation():
            return _emit_like(builder, label, node, _cropped(builder, name, node.inputs[0], window))
        case Conv2d():
            ends = [(kept.start, size - kept[-1] - 1) for kept, size in zip(window, shape[:2], strict=True)]
            (top, bottom), (left, right) = ((a * s, b * s) for (a, b), s in zip(ends, node.stride, strict=True))
            padding = tuple(n - m for n, m in zip(node.padding, (top, left, bottom, right), strict=True))
            if min(padding) >= 0 and all(kept[-1] - kept.start + 1 == len(kept) for kept in window):
                return _emit_like(builder, label, node, node.inputs[0], padding=padding)
    starts, steps = tuple(kept.start for kept in window), tuple(kept.step for kept in window)
    if starts == (0, 0) and all(len(range(0, n, s)) == len(k) for n, s, k in zip(shape, steps, window, strict=False)):
        return builder.emit(MaxPool, label, tensor, kernel=(1, 1), stride=steps)
    size = [n - (len(kept) - 1) * kept.step for n, kept in zip(shape, window, strict=False)]
    weight = np.zeros((*size, shape[2]), np.float32)
    weight[starts] = 1.0
    chosen = {"weight": weight.reshape(-1, shape[2]), "kernel": tuple(size), "groups": shape[2]}
    return builder.emit(Conv2d, label, tensor, stride=steps, **chosen)


def _narrowed(builder: Builder, name: str, tensor: str, kept: Array) -> str:
    """Some channels of a tensor: a layer with fewer kernels, and what follows it, or a choice among the channels."""
    if kept.all():
        return tensor
    node = builder.made(tensor)
    label = f"{name}.{tensor}"
    match node:
        case Conv2d(groups=1) | Linear():
            return _emit_like(builder, label, node, node.inputs[0], **_fewer_kernels(node, kept))
        case Affine():
            source = _narrowed(builder, name, node.inputs[0], kept)
            return _emit_like(builder, label, node, source, scale=node.scale[kept], shift=node.shift[kept])
        case Relu() | Clip() | Gelu() | Activation():
            return _emit_like(builder, label, node, _narrowed(builder, name, node.inputs[0], kept))
    weight = np.eye(len(kept), dtype=np.float32)[:, kept]
    if len(builder.types[tensor].shape) == 1:
        return builder.emit(Linear, label, tensor, weight=weight)
    return builder.emit(Conv2d, label, tensor, weight=weight, kernel=(1, 1))


def _fewer_kernels(node: Conv2d | Linear, kept: Array) -> dict[str, Any]:
    packing = node.packing and Packing(node.packing.block, node.packing.set_size)
    bias = None if node.bias is None else node.bias[kept]
    return {"weight": np.ascontiguousarray(node.dense_weight[:, kept]), "bias": bias, "packing": packing}


def _emit_like(builder: Builder, name: str, node: Node, source: str, **changes: Any) -> str:
    """A node as another is, but for its name, its input and some attributes."""
    known = {key: value for key, value in vars(node).items() if key not in ("name", "inputs")}
    return builder.emit(type(node), name, source, **{**known, **changes})


def _in_order(shape: tuple[int, ...]) -> Array:
    return np.arange(prod(shape), dtype=np.int32).reshape(shape)
