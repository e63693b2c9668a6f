"""The definition of every result: one short NumPy function per operation, no cleverness.

Integer results are exact and every backend equals them bit for bit; float32 backends agree to 1e-5 of each layer's
scale. All tensors carry the batch first and are NHWC: `[B, H, W, C]` or `[B, n]`.

A packed layer runs the paper's steps by name. **Combine** happened offline (`csengine.packing.pack`); then, for each
vector x of inputs:

    select    the row blocks of x that hold an active (non-zero) value
    multiply  each with the packed weights stored in its row, T sets at once
    route     each product to the kernel that the kernel id names
    sum       one total per kernel
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csengine.graph import (
    KWTA,
    Activation,
    Add,
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv2d,
    Dequantize,
    Gelu,
    Graph,
    Input,
    LayerNorm,
    Linear,
    LocalResponseNorm,
    MatMul,
    MaxPool,
    Node,
    Product,
    Quantize,
    Relu,
    Requantization,
    Reshape,
    Softmax,
    Transpose,
)
from csengine.packing import NOBODY, PackedMatrix

Array = NDArray[Any]


def run(graph: Graph, x: Array) -> Array:
    """The network's result for a batch `[B, ...]` in NHWC."""
    return trace(graph, x)[graph.output.name]


def trace(graph: Graph, x: Array) -> dict[str, Array]:
    """Every tensor of the network by name, for a batch `[B, ...]` in NHWC."""
    tensors: dict[str, Array] = {}
    for node in graph.nodes:
        operands = [x] if isinstance(node, Input) else [tensors[name] for name in node.inputs]
        tensors[node.name] = apply(node, operands)
    return tensors


def apply(node: Node, operands: list[Array]) -> Array:
    """One operation on a batch; the result is C-contiguous."""
    return np.ascontiguousarray(_FUNCTIONS[type(node)](node, *operands))


# --- numbers ---------------------------------------------------------------------------------------------------------


def quantize(x: Array, inv_scale: np.float32, dtype: str) -> Array:
    """`clamp(rint(x * inv_scale))`: one float32 multiply, round half to even; NaN gives the least."""
    limits = np.iinfo(dtype)
    with np.errstate(over="ignore"):
        scaled = x.astype(np.float32) * inv_scale
    return np.asarray(np.fmin(np.fmax(np.rint(scaled), limits.min), limits.max).astype(dtype))


def requantize(acc: Array, multiplier: Array, shift: Array, dtype: str) -> Array:
    """`clamp((acc * M + 2**(s - 1)) >> s)` in 64 bits: round half up; M and s broadcast over the last axis."""
    return _round_shift(acc.astype(np.int64) * multiplier.astype(np.int64), shift, dtype)


def _round_shift(product: Array, shift: Array, dtype: str) -> Array:
    shift = shift.astype(np.int64)
    limits = np.iinfo(dtype)
    rounded = (product + (np.int64(1) << (shift - 1))) >> shift
    return np.asarray(np.clip(rounded, limits.min, limits.max).astype(dtype))


def _leave_accumulator(acc: Array, requantization: Requantization | None) -> Array:
    if requantization is None:
        return acc
    return requantize(acc, requantization.multiplier, requantization.shift, requantization.dtype)


# --- the five steps --------------------------------------------------------------------------------------------------


def select(x: Array, packed: PackedMatrix) -> tuple[Array, Array, Array]:
    """The active row blocks of vectors x `[P, R]`: which vector `[n]`, which row block `[n]`, their values `[n, U]`."""
    u, _ = packed.block
    padded = np.pad(x, ((0, 0), (0, packed.row_blocks * u - packed.rows)))
    blocks = padded.reshape(len(x), packed.row_blocks, u)
    vector, row = np.nonzero(blocks.any(axis=2))
    return vector, row, blocks[vector, row]


def multiply(values: Array, row: Array, packed: PackedMatrix) -> Array:
    """Products `[n, T, V]` of active values `[n, U]` with the packed weights of their rows."""
    exact = np.int32 if packed.dtype == np.int8 else np.float32
    weights = packed.weights[row].astype(exact)
    return np.asarray(np.einsum("ntvu,nu->ntv", weights, values.astype(exact)))


def route(row: Array, packed: PackedMatrix) -> Array:
    """The kernel block `[n, T]` that each product belongs to; -1 where nobody owns the row."""
    kid = packed.kid[row]
    owned = kid != NOBODY
    kernel = packed.members[np.arange(packed.sets), np.where(owned, kid, 0)]
    return np.where(owned, kernel, -1)


def sum_products(vectors: int, vector: Array, kernel: Array, products: Array, packed: PackedMatrix) -> Array:
    """One total per vector and kernel `[P, O]`."""
    _, v = packed.block
    totals = np.zeros((vectors, packed.kernel_blocks, v), products.dtype)
    owned = kernel >= 0
    np.add.at(totals, (np.broadcast_to(vector[:, None], kernel.shape)[owned], kernel[owned]), products[owned])
    return totals.reshape(vectors, packed.kernel_blocks * v)[:, : packed.kernels]


def packed_product(x: Array, packed: PackedMatrix) -> Array:
    """`x @ W` for vectors x `[P, R]`, by select, multiply, route and sum; int32 or float32 `[P, O]`."""
    vector, row, values = select(x, packed)
    products = multiply(values, row, packed)
    return sum_products(len(x), vector, route(row, packed), products, packed)


def dense_product(x: Array, weight: Array) -> Array:
    """`x @ W` for vectors x `[P, R]`; int32 or float32 `[P, O]`. Doubles hold every 32-bit sum exactly."""
    if weight.dtype == np.int8:
        return np.asarray((x.astype(np.float64) @ weight.astype(np.float64)).astype(np.int32))
    return np.asarray(x @ weight)


# --- operations ------------------------------------------------------------------------------------------------------

#: Products that a packed layer makes at a time; bounds its temporary arrays.
_CHUNK = 2**24


def _product(x: Array, node: Conv2d | Linear) -> Array:
    """Accumulators `[P, O]` of vectors x `[P, R]`, bias included."""
    if isinstance(node.weight, PackedMatrix):
        step = max(1, _CHUNK // max(1, node.weight.weights.size))
        parts = [packed_product(x[i : i + step], node.weight) for i in range(0, max(1, len(x)), step)]
        acc = np.concatenate(parts)
    else:
        acc = dense_product(x, node.weight)
    return acc if node.bias is None else acc + node.bias


def input_values(node: Input, x: Array) -> Array:
    """Quantize float32; integers of the model's own type pass."""
    if node.dtype == "float32" or x.dtype == node.dtype:
        return x.astype(node.dtype)
    return quantize(x, node.inv_scale, node.dtype)


def linear(node: Linear, x: Array) -> Array:
    """`[B, R]` to `[B, O]`."""
    return _leave_accumulator(_product(x, node), node.requantization)


def conv2d(node: Conv2d, x: Array) -> Array:
    """`[B, H, W, C]` to `[B, H', W', O]`: each window is a vector in (ky, kx, channel) order."""
    groups, depth = node.groups, x.shape[3] // node.groups
    patches = windows(x, node.kernel, node.stride, node.padding, 0)
    places = patches.shape[:3]
    if groups == 1:
        acc = _product(patches.reshape(-1, node.rows), node)
    else:
        split = patches.reshape(-1, node.kernel[0] * node.kernel[1], groups, depth)
        vectors = split.transpose(2, 0, 1, 3).reshape(groups, -1, node.rows)
        weights = np.split(node.dense_weight, groups, axis=1)
        acc = np.concatenate([dense_product(v, w) for v, w in zip(vectors, weights, strict=True)], axis=1)
        acc = acc if node.bias is None else acc + node.bias
    return _leave_accumulator(acc, node.requantization).reshape(*places, node.kernels)


def windows(
    x: Array, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int, int, int], fill: float
) -> Array:
    """Windows `[B, H', W', kh, kw, C]` of an image, padded with `fill`."""
    top, left, bottom, right = padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    views = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))
    return np.asarray(views[:, :: stride[0], :: stride[1]].transpose(0, 1, 2, 4, 5, 3))


def affine(node: Affine, x: Array) -> Array:
    """`x * scale + shift` per channel."""
    return np.asarray(x * node.scale + node.shift)


def relu(node: Relu, x: Array) -> Array:
    """`max(x, 0)`."""
    return np.asarray(np.maximum(x, x.dtype.type(0)))


def clip(node: Clip, x: Array) -> Array:
    """`min(max(x, minimum), maximum)`."""
    low, high = (None if bound is None else x.dtype.type(bound) for bound in (node.minimum, node.maximum))
    return np.asarray(np.clip(x, low, high))


def activation(node: Activation, x: Array) -> Array:
    """A function in double, rounded once; of integers, the table's entry at the byte of each."""
    if node.table is not None:
        return node.table[x.view(np.uint8)]
    with np.errstate(over="ignore"):
        return activate(node, x.astype(np.float64)).astype(np.float32)


def activate(node: Activation, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The function itself."""
    from scipy.special import expit

    match node.function:
        case "sigmoid":
            return np.asarray(expit(x))
        case "tanh":
            return np.tanh(x)
        case "silu":
            return np.asarray(x * expit(node.alpha * x))
        case "hard_sigmoid":
            return np.clip(node.alpha * x + 0.5, 0.0, 1.0)
        case "hard_swish":
            return np.asarray(x * np.clip(x / 6.0 + 0.5, 0.0, 1.0))
        case "elu":
            return np.where(x > 0, x, node.alpha * np.expm1(np.minimum(x, 0.0)))
        case "leaky_relu":
            return np.where(x > 0, x, node.alpha * x)


def kwta(node: KWTA, x: Array) -> Array:
    """Keep the k largest of each scope, ties to the lower index; losers become 0."""
    scopes = x if node.scope == "local" else x.reshape(len(x), prod(x.shape[1:]))
    # int64 keys, because -(-128) leaves int8; a stable sort ranks equal keys by index.
    keys = scopes.astype(np.float32) * node.factor if node.factor is not None else scopes
    keys = keys.astype(np.int64) if keys.dtype != np.float32 else keys
    winners = np.argsort(-keys, axis=-1, kind="stable")[..., : node.k]
    result = np.zeros_like(scopes)
    np.put_along_axis(result, winners, np.take_along_axis(scopes, winners, axis=-1), axis=-1)
    return result.reshape(x.shape)


def max_pool(node: MaxPool, x: Array) -> Array:
    """Largest of each window; padding never wins."""
    lowest = -np.inf if x.dtype == np.float32 else np.iinfo(x.dtype).min
    return np.asarray(windows(x, node.kernel, node.stride, node.padding, lowest).max(axis=(3, 4)))


def average_pool(node: AveragePool, x: Array) -> Array:
    """Mean of each window, with its padding or without; integers requantize the exact sum."""
    patches = windows(x, node.kernel, node.stride, node.padding, 0)
    inside = windows(np.ones_like(x[:1, ..., :1]), node.kernel, node.stride, node.padding, node.count_padding)
    count = inside.astype(np.int64).sum(axis=(3, 4))
    q = node.requantization
    if q is None:
        return np.asarray(patches.sum(axis=(3, 4), dtype=np.float64) / count).astype(np.float32)
    divisor = 0 if node.count_padding else count - 1
    return requantize(patches.sum(axis=(3, 4), dtype=np.int64), q.multiplier[divisor], q.shift[divisor], q.dtype)


def add(node: Add, a: Array, b: Array) -> Array:
    """`a + b`; integers by two multipliers and one shift."""
    if node.requantization is None:
        return np.asarray(a + b)
    first, second = node.requantization.multiplier.astype(np.int64)
    product = a.astype(np.int64) * first + b.astype(np.int64) * second
    return _round_shift(product, node.requantization.shift, node.requantization.dtype)


def product(node: Product, a: Array, b: Array) -> Array:
    """`a * b`, of which b may have one position only; integers by one multiplier and shift."""
    q = node.requantization
    if q is None:
        return np.asarray(a * b)
    return requantize(a.astype(np.int64) * b, q.multiplier, q.shift, q.dtype)


def concat(node: Concat, *inputs: Array) -> Array:
    """Join channels; integers are brought to the common scale first."""
    q = node.requantization
    if q is None:
        return np.concatenate(inputs, axis=-1)
    parts = [requantize(x, q.multiplier[i], q.shift[i], q.dtype) for i, x in enumerate(inputs)]
    return np.concatenate(parts, axis=-1)


def reshape(node: Reshape, x: Array) -> Array:
    """The same elements in NHWC order."""
    return x.reshape(len(x), *node.shape)


def dequantize(node: Dequantize, x: Array) -> Array:
    """`float32(x * scale)` in double, rounded once."""
    return (x.astype(np.float64) * node.scale).astype(np.float32)


def quantize_within(node: Quantize, x: Array) -> Array:
    """Integers, as the input's."""
    return quantize(x, node.inv_scale, node.dtype)


def softmax(node: Softmax, x: Array) -> Array:
    """Softmax over the last axis."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def gelu(node: Gelu, x: Array) -> Array:
    """`x * Phi(x)`, in double and rounded once; exact, too, where Phi is nearly 0."""
    from scipy.special import erfc, expit

    exact = x.astype(np.float64)
    if node.approximate == "tanh":
        return np.asarray(exact * expit(np.sqrt(8 / np.pi) * (exact + 0.044715 * exact**3)), np.float32)
    return np.asarray(0.5 * exact * erfc(-exact / np.sqrt(2)), np.float32)


def layer_norm(node: LayerNorm, x: Array) -> Array:
    """Mean 0 and variance 1 over the channels of each position, in double and rounded once."""
    centred = x - x.mean(axis=-1, keepdims=True, dtype=np.float64)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + node.epsilon) * node.scale + node.shift, np.float32)


def local_response_norm(node: LocalResponseNorm, x: Array) -> Array:
    """Each value over a power of the squares around it, in double and rounded once."""
    exact, half = x.astype(np.float64), node.size // 2
    padded = np.pad(np.square(exact), [(0, 0)] * (x.ndim - 1) + [(half, half)])
    squares = np.lib.stride_tricks.sliding_window_view(padded, node.size, axis=-1).sum(axis=-1)
    return np.asarray(exact / (node.bias + node.alpha / node.size * squares) ** node.beta, np.float32)


def matmul(node: MatMul, a: Array, b: Array) -> Array:
    """`[B, H, W, C]` times `[B, H, C, O]`, or the transpose of `[B, H, O, C]`."""
    return np.asarray(a @ (b.swapaxes(-1, -2) if node.transposed else b))


def transpose(node: Transpose, x: Array) -> Array:
    """The axes of each image in another order."""
    return np.asarray(x.transpose(0, *(axis + 1 for axis in node.axes)))


_FUNCTIONS: Mapping[type[Node], Callable[..., Array]] = {
    Input: input_values,
    Conv2d: conv2d,
    Linear: linear,
    Affine: affine,
    Relu: relu,
    Clip: clip,
    Activation: activation,
    KWTA: kwta,
    MaxPool: max_pool,
    AveragePool: average_pool,
    Add: add,
    Product: product,
    Concat: concat,
    Reshape: reshape,
    Dequantize: dequantize,
    Softmax: softmax,
    Gelu: gelu,
    LayerNorm: layer_norm,
    LocalResponseNorm: local_response_norm,
    MatMul: matmul,
    Transpose: transpose,
    Quantize: quantize_within,
}
