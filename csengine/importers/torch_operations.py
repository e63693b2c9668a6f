"""What each PyTorch module, function and method is in the engine's graph.

Each takes the builder, a name for the result, and the operation's own arguments, in which activations are `Value` or
`Padded`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from csengine.graph import AveragePool, Clip, Function, Gelu, LocalResponseNorm, MaxPool, Node, Packing, Relu
from csengine.importers import sequences
from csengine.importers.builder import Builder, Padded, Repeated, UnsupportedError, Value, sample_axis, with_dilation
from csengine.torch.kwinners import KWinners
from csengine.torch.layers import mask_of

Array = NDArray[Any]


# --- modules ---------------------------------------------------------------------------------------------------------


def _conv_module(builder: Builder, name: str, x: Any, layer: nn.Conv1d | nn.Conv2d) -> Any:
    _require(layer.padding_mode == "zeros", f"padding mode {layer.padding_mode!r} is not supported; expected zeros")
    packing = _packing(layer)
    if packing and set(layer.dilation) != {1} and layer.in_channels % packing.block[0]:
        packing = None  # a block would reach into the zeros between taps
    window = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return _conv(builder, name, x, layer.weight, layer.bias, *window, packing=packing)


def _same_padding(mode: str, weight: Array) -> tuple[int, ...]:
    """What `padding="same"` or "valid" means for kernels `[O, C, *taps]`: before every axis, then after it."""
    total = [0 if mode == "valid" else extent - 1 for extent in weight.shape[2:]]
    return *(n // 2 for n in total), *(n - n // 2 for n in total)


def _linear(builder: Builder, name: str, x: Any, layer: nn.Linear) -> Any:
    bias = None if layer.bias is None else _numpy(layer.bias)
    return builder.linear(name, builder.padded(name, x), _numpy(layer.weight).T, bias, _packing(layer))


def _batch_norm(builder: Builder, name: str, x: Any, layer: nn.BatchNorm1d | nn.BatchNorm2d) -> Any:
    if layer.running_mean is None or layer.running_var is None:
        raise UnsupportedError("batch normalization without running statistics has no form at inference")
    scale = 1.0 / np.sqrt(_numpy(layer.running_var).astype(np.float64) + layer.eps)
    shift = -_numpy(layer.running_mean) * scale
    if layer.affine:
        gain = _numpy(layer.weight).astype(np.float64)
        scale, shift = scale * gain, shift * gain + _numpy(layer.bias)
    value = builder.padded(name, x)
    form = (-1, *(1 for _ in value.shape[1:]))
    return builder.affine(name, value, scale.reshape(form), shift.reshape(form))


def _k_winners(builder: Builder, name: str, x: Any, layer: KWinners) -> Any:
    value = builder.padded(name, x)
    channels = len(value.shape) - 1 if len(value.shape) == 2 else 0
    axes = (channels,) if layer.scope == "local" else tuple(range(len(value.shape)))
    form = [-1 if axis == channels else 1 for axis in range(len(value.shape))]
    factor = None if layer.factor is None else _numpy(layer.factor).reshape(form)
    return builder.k_winners(name, value, layer.k_inference, axes, factor)


def _layer_norm_module(builder: Builder, name: str, x: Any, layer: nn.LayerNorm) -> Any:
    return _layer_norm(builder, name, x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def _attention_module(
    builder: Builder,
    name: str,
    query: Any,
    key: Any,
    value: Any,
    layer: nn.MultiheadAttention,
    **options: Any,
) -> Any:
    plain = not options.keys() - {"need_weights", "average_attn_weights"}
    _require(layer.batch_first, "takes (positions, batch, channels)", "build it with batch_first=True")
    plain = plain and layer.bias_k is None and not layer.add_zero_attn and layer.in_proj_weight is not None
    _require(plain, "has a mask or other options; only plain attention is supported")
    weights, biases = (
        [None] * 3 if tensor is None else np.split(_numpy(tensor), 3)
        for tensor in (layer.in_proj_weight, layer.in_proj_bias)
    )
    heads = []
    for part, x, weight, bias in zip("qkv", (query, key, value), weights, biases, strict=True):
        projected = builder.linear(f"{name}.{part}", x, weight.T, bias)
        split = builder.reshape(projected, (x.shape[0], layer.num_heads, layer.head_dim))
        heads.append(builder.transpose_batch(split, (0, 2, 1, 3)))
    q, k, v = heads
    mixed = builder.transpose_batch(sequences.attention(builder, name, q, k, v, None), (0, 2, 1, 3))
    joined = builder.reshape(mixed, (query.shape[0], layer.embed_dim))
    return _linear(builder, f"{name}.out", joined, layer.out_proj), None


def _encoder_layer(builder: Builder, name: str, x: Any, layer: nn.TransformerEncoderLayer, **options: Any) -> Any:
    """A layer as PyTorch has it, whose own code torch.fx cannot trace."""
    _require(not options, f"has {', '.join(options)}; only plain attention is supported")

    def attend(value: Any) -> Any:
        return _attention_module(builder, f"{name}.self_attn", value, value, value, layer.self_attn)[0]

    def feed(value: Any) -> Any:
        hidden = _linear(builder, f"{name}.linear1", value, layer.linear1)
        hidden = _part(builder, f"{name}.activation", hidden, layer.activation)
        return _linear(builder, f"{name}.linear2", hidden, layer.linear2)

    for number, step in ((1, attend), (2, feed)):
        norm: nn.LayerNorm = getattr(layer, f"norm{number}")
        inner = _layer_norm_module(builder, f"{name}.norm{number}", x, norm) if layer.norm_first else x
        x = builder.add(f"{name}.sum{number}", x, step(inner))
        x = x if layer.norm_first else _layer_norm_module(builder, f"{name}.norm{number}", x, norm)
    return x


def _part(builder: Builder, name: str, x: Any, part: Any) -> Any:
    """A part of an encoder that may be a function or a module."""
    if part in FUNCTIONS:
        return FUNCTIONS[part](builder, name, x)
    if (operation := operation_of(part)) is None:
        raise UnsupportedError(f"has {part}, which has no counterpart")
    return operation(builder, name, x, part)


def _encoder(builder: Builder, name: str, x: Any, encoder: nn.TransformerEncoder, **options: Any) -> Any:
    _require(not options, f"has {', '.join(options)}; only plain attention is supported")
    for i, layer in enumerate(encoder.layers):
        x = _encoder_layer(builder, f"{name}.layers.{i}", x, layer)
    return x if encoder.norm is None else _part(builder, f"{name}.norm", x, encoder.norm)


def _max_pool_module(builder: Builder, name: str, x: Any, layer: nn.MaxPool1d | nn.MaxPool2d) -> Any:
    window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode, layer.return_indices)
    return _max_pool(builder, name, x, *window, axes=_axes(layer))


def _average_pool_module(builder: Builder, name: str, x: Any, layer: nn.AvgPool1d | nn.AvgPool2d) -> Any:
    window = (layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad)
    return _average_pool(builder, name, x, *window, getattr(layer, "divisor_override", None), axes=_axes(layer))


def _adaptive_average_pool_module(builder: Builder, name: str, x: Any, layer: Any) -> Any:
    return _adaptive_average_pool(builder, name, x, layer.output_size, axes=_axes(layer))


def _adaptive_max_pool_module(builder: Builder, name: str, x: Any, layer: Any) -> Any:
    return _adaptive_max_pool(builder, name, x, layer.output_size, layer.return_indices, axes=_axes(layer))


def _axes(layer: nn.Module) -> int:
    """Over how many axes a pool slides: 1 over signals, 2 over images."""
    return 1 if isinstance(layer, (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d)) else 2


# --- functions -------------------------------------------------------------------------------------------------------


def _conv(
    builder: Builder,
    name: str,
    x: Any,
    weight: Any,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    packing: Packing | None = None,
) -> Any:
    _require(isinstance(weight, Tensor), "computes its weight at run time; only constants are supported")
    axes = weight.ndim - 2
    kernels = with_dilation(_numpy(weight), _each(dilation, axes))
    pads = _same_padding(padding, kernels) if isinstance(padding, str) else _each(padding, axes) * 2
    shift = None if bias is None else _numpy(bias)
    return builder.conv(name, x, kernels, shift, _each(stride, axes), pads, groups, packing)


def _relu(builder: Builder, name: str, x: Any, inplace: bool = False) -> Any:
    return builder.elementwise(Relu, name, builder.padded(name, x))


def _clamp(builder: Builder, name: str, x: Any, min: Any = None, max: Any = None, inplace: bool = False) -> Any:
    bounds = {"minimum": None if min is None else float(min), "maximum": None if max is None else float(max)}
    if bounds == {"minimum": 0.0, "maximum": None}:
        return _relu(builder, name, x)
    return builder.elementwise(Clip, name, builder.padded(name, x), **bounds)


def _relu6(builder: Builder, name: str, x: Any, inplace: bool = False) -> Any:
    return _clamp(builder, name, x, 0.0, 6.0)


def _hardtanh(
    builder: Builder, name: str, x: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Any:
    return _clamp(builder, name, x, min_val, max_val)


def _leaky_relu(builder: Builder, name: str, x: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    value = builder.padded(name, x)
    return builder.leaky_relu(name, value, np.asarray(negative_slope, np.float64))


def _prelu(builder: Builder, name: str, x: Any, weight: Tensor) -> Any:
    value = builder.padded(name, x)
    return builder.leaky_relu(name, value, _numpy(weight).reshape(-1, *(1 for _ in value.shape[1:])))


def _activation(function: Function, alpha: float = 1.0) -> Callable[..., Any]:
    """A function or module that has no parameters, or that of a name."""

    def apply(builder: Builder, name: str, x: Any, *layer: nn.Module, inplace: bool = False) -> Any:
        return builder.activation(name, builder.padded(name, x), function, alpha)

    return apply


def _elu(builder: Builder, name: str, x: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    return builder.activation(name, builder.padded(name, x), "elu", alpha)


def _gelu(builder: Builder, name: str, x: Any, approximate: str = "none") -> Any:
    return builder.elementwise(Gelu, name, builder.padded(name, x), approximate=approximate)


def _layer_norm(
    builder: Builder,
    name: str,
    x: Any,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    value, size = builder.padded(name, x), tuple(normalized_shape)
    _require(size == value.shape[-1:], f"normalizes over {size} of {value.shape}; only the last axis is supported")
    scale = np.ones(size) if weight is None else _numpy(weight)
    shift = np.zeros(size) if bias is None else _numpy(bias)
    return sequences.layer_norm(builder, name, value, scale, shift, eps)


def _local_response_norm(
    builder: Builder, name: str, x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Any:
    image = builder.image(builder.padded(name, x), name)
    return builder.elementwise(LocalResponseNorm, name, image, size=size, alpha=alpha, beta=beta, bias=float(k))


def _local_response_norm_module(builder: Builder, name: str, x: Any, layer: nn.LocalResponseNorm) -> Any:
    return _local_response_norm(builder, name, x, layer.size, layer.alpha, layer.beta, layer.k)


def _attention(
    builder: Builder,
    name: str,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    _require(attn_mask is None and not is_causal, "has a mask; only plain attention is supported")
    return sequences.attention(builder, name, query, key, value, scale)


def _matmul(builder: Builder, name: str, a: Any, b: Any) -> Any:
    a, b = (builder.padded(name, item) if isinstance(item, Padded) else item for item in (a, b))
    if isinstance(a, Value) and isinstance(b, Value):
        return sequences.matmul(builder, name, a, b)
    weight = b if isinstance(a, Value) else a
    _require(weight.ndim == 2, f"has a weight of shape {tuple(weight.shape)}; only matrices are supported")
    if isinstance(a, Value):
        return builder.linear(name, a, _numpy(weight), None)
    return sequences.product_from_left(builder, name, _numpy(weight), b)


def _linear_function(builder: Builder, name: str, x: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
    return builder.linear(name, builder.padded(name, x), _numpy(weight).T, None if bias is None else _numpy(bias))


def _max_pool(
    builder: Builder,
    name: str,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    axes: int = 2,
) -> Any:
    plain = not return_indices and set(_each(dilation, axes)) == {1}
    _require(plain, "dilation and return_indices are not supported")
    kernel, steps, before = (_each(item, axes) for item in (kernel_size, stride or kernel_size, padding))
    return builder.max_pool(name, x, kernel, steps, (*before, *before), ceil_mode)


def _average_pool(
    builder: Builder,
    name: str,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    axes: int = 2,
) -> Any:
    _require(divisor_override is None, "divisor_override is not supported")
    kernel, steps, before = (_each(item, axes) for item in (kernel_size, stride or kernel_size, padding))
    return builder.average_pool(name, x, kernel, steps, (*before, *before), count_include_pad, ceil_mode)


def _adaptive_average_pool(builder: Builder, name: str, x: Any, output_size: Any, *, axes: int = 2) -> Any:
    value = builder.padded(name, x)
    window = _adaptive_window(value, output_size, axes)
    return value if set(window) == {1} else builder.average_pool(name, value, window, window, (0, 0) * axes, True)


def _adaptive_max_pool(
    builder: Builder, name: str, x: Any, output_size: Any, return_indices: bool = False, *, axes: int = 2
) -> Any:
    _require(not return_indices, "return_indices is not supported")
    value = builder.padded(name, x)
    window = _adaptive_window(value, output_size, axes)
    return value if set(window) == {1} else builder.max_pool(name, value, window, window, (0, 0) * axes)


def _adaptive_window(value: Value, output_size: Any, axes: int) -> tuple[int, ...]:
    """The window, which is the stride too, of an adaptive pooling whose windows are all alike."""
    sizes = value.shape[1:]
    _require(len(sizes) == axes, f"pools over {axes} axes of shape {value.shape}; expected {axes + 1} axes of a sample")
    wanted = [given or size for given, size in zip(_each(output_size, axes), sizes, strict=True)]
    _require(
        all(size % given == 0 for size, given in zip(sizes, wanted, strict=True)),
        f"adaptive pooling to {output_size} of an image of {' x '.join(map(str, sizes))} is not supported",
        "choose sizes that divide the image's",
    )
    return tuple(size // given for size, given in zip(sizes, wanted, strict=True))


def _mean(builder: Builder, name: str, x: Any, dim: Any, keepdim: bool = False) -> Any:
    return _reduced(builder, name, x, AveragePool, dim, keepdim)


def _maximum(builder: Builder, name: str, x: Any, dim: Any, keepdim: bool = False) -> Any:
    return _reduced(builder, name, x, MaxPool, dim, keepdim)


def _max_of_axis(builder: Builder, name: str, x: Any, dim: int, keepdim: bool = False) -> Any:
    """The values; nobody may use their indices."""
    return _maximum(builder, name, x, dim, keepdim), None


def _reduced(builder: Builder, name: str, x: Any, kind: type[Node], dim: Any, keepdim: bool) -> Any:
    value = builder.padded(name, x)
    axes = sorted(sample_axis(axis, value) for axis in ((dim,) if isinstance(dim, int) else dim))
    return sequences.reduced(builder, name, value, kind, axes, keepdim)


def _pad(builder: Builder, name: str, x: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    _require(mode == "constant", f"padding mode {mode!r} is not supported; expected constant")
    source = builder.padded(name, x)
    fits = len(pad) in (2, 4) and len(pad) < 2 * len(source.shape) and min(pad) >= 0
    _require(fits, f"pads {pad}; only height and width, or positions, can be padded")
    left, right, top, bottom = (*pad, 0, 0)[:4]
    return Padded(source, (top, left, bottom, right), float(value or 0.0))


def _add(builder: Builder, name: str, a: Any, b: Any, alpha: float = 1) -> Any:
    _require(alpha == 1, "adds with alpha; only 1 is supported")
    a, b = (builder.padded(name, item) if isinstance(item, (Padded, Repeated)) else item for item in (a, b))
    if isinstance(a, Value) and isinstance(b, Value):
        return builder.add(name, a, b)
    value, constant = (a, b) if isinstance(a, Value) else (b, a)
    if not isinstance(value, Value):
        return a + b
    return builder.affine(name, value, np.ones(()), _constant(constant, value))


def _multiply(builder: Builder, name: str, a: Any, b: Any) -> Any:
    a, b = (builder.padded(name, item) if isinstance(item, Padded) else item for item in (a, b))
    a, b = _factor(a, b), _factor(b, a)
    value, constant = (a, b) if isinstance(a, Value) else (b, a)
    if not isinstance(value, Value):
        return a * b
    if isinstance(constant, Value):
        return builder.multiply(name, value, constant)
    return builder.affine(name, value, _constant(constant, value), np.zeros(()))


def _factor(item: Any, other: Any) -> Any:
    return item.factor_of(other) if isinstance(item, Repeated) else item


def _subtract(builder: Builder, name: str, a: Any, b: Any) -> Any:
    return _add(builder, name, a, _multiply(builder, f"{name}.negative", b, -1.0))


def _divide(builder: Builder, name: str, a: Any, b: Any) -> Any:
    _require(not isinstance(b, Value), "divides by an activation; only constants are supported")
    return _multiply(builder, name, a, 1.0 / b)


def _concat(builder: Builder, name: str, tensors: Sequence[Any], dim: int = 0) -> Any:
    known = [item if isinstance(item, Tensor) else builder.padded(name, item) for item in tensors]
    like = next(item for item in known if isinstance(item, Value))
    values = [_constant(item, like) if isinstance(item, Tensor) else item for item in known]
    return sequences.concat(builder, name, values, sample_axis(dim, like))


def _flatten(builder: Builder, name: str, x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    value = builder.padded(name, x)
    full = list(builder.whole_shape(value))
    start, end = start_dim % len(full), end_dim % len(full)
    full[start : end + 1] = [prod(full[start : end + 1])]
    result = builder.with_whole_shape(value, full)
    return builder.vector(result, name) if len(result.shape) == 1 else result


def _reshape(builder: Builder, name: str, x: Any, *shape: Any) -> Any:
    value = builder.padded(name, x)
    extents = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    result = builder.reshape_batch(value, [int(extent) for extent in extents])
    return builder.vector(result, name) if len(result.shape) == 1 else result


def _permute(builder: Builder, name: str, x: Any, *axes: Any) -> Any:
    order = axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes
    value = builder.padded(name, x)
    return builder.transpose_batch(value, [axis % len(order) for axis in order])


def _transpose(builder: Builder, name: str, x: Any, dim0: int, dim1: int) -> Any:
    value = builder.padded(name, x)
    order = list(range(len(builder.whole_shape(value))))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return builder.transpose_batch(value, order)


def _unsqueeze(builder: Builder, name: str, x: Any, dim: int) -> Any:
    value = builder.padded(name, x)
    full = list(builder.whole_shape(value))
    full.insert(dim % (len(full) + 1), 1)
    return builder.with_whole_shape(value, full)


def _squeeze(builder: Builder, name: str, x: Any, dim: int) -> Any:
    value = builder.padded(name, x)
    full = list(builder.whole_shape(value))
    if full[dim] == 1:
        del full[dim]
    return builder.with_whole_shape(value, full)


def _unflatten(builder: Builder, name: str, x: Any, dim: int, sizes: Sequence[int]) -> Any:
    value = builder.padded(name, x)
    full = list(builder.whole_shape(value))
    full[dim : dim + 1 or None] = sizes
    return builder.reshape_batch(value, full)


def _chunk(builder: Builder, name: str, x: Any, chunks: int, dim: int = 0) -> Any:
    value = builder.padded(name, x)
    return _split(builder, name, value, -(-value.shape[sample_axis(dim, value)] // chunks), dim)


def _split(builder: Builder, name: str, x: Any, split_size_or_sections: Any, dim: int = 0) -> Any:
    value = builder.padded(name, x)
    axis, sizes = sample_axis(dim, value), split_size_or_sections
    size = value.shape[axis]
    parts = [min(sizes, size - i) for i in range(0, size, sizes)] if isinstance(sizes, int) else list(sizes)
    ends = np.cumsum(parts).tolist()
    ranges = [range(end - part, end) for part, end in zip(parts, ends, strict=True)]
    return tuple(sequences.take(builder, f"{name}.{i}", value, axis, chosen) for i, chosen in enumerate(ranges))


def _softmax(builder: Builder, name: str, x: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    value = builder.padded(name, x)
    _require(isinstance(dim, int), "softmax needs its dimension")
    return builder.softmax(name, value, (sample_axis(dim, value),))


def _same(builder: Builder, name: str, x: Any, *ignored: Any, **options: Any) -> Any:
    return x


def _expand(builder: Builder, name: str, x: Any, *sizes: Any) -> Any:
    value, extents = builder.padded(name, x), sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    _require(len(extents) == len(value.shape) + 1, f"expands {value.shape} to {tuple(extents)}")
    return Repeated(value, tuple(n if m == -1 else m for n, m in zip(value.shape, extents[1:], strict=True)))


def _expand_as(builder: Builder, name: str, x: Any, other: Any) -> Any:
    return Repeated(builder.padded(name, x), builder.padded(name, other).shape)


def _getattr(builder: Builder, name: str, x: Any, attribute: str) -> Any:
    if isinstance(x, tuple) and attribute == "values":  # of a maximum
        return x[0]
    _require(attribute == "shape" and isinstance(x, Value), f"reads the attribute {attribute}")
    return builder.whole_shape(x)


def _size(builder: Builder, name: str, x: Any, dim: int | None = None) -> Any:
    shape = builder.whole_shape(builder.padded(name, x))
    return shape if dim is None else shape[dim]


def _item(builder: Builder, name: str, x: Any, index: Any) -> Any:
    if isinstance(x, tuple):
        return x[index]
    value = builder.padded(name, x)
    full, whole = builder.whole_shape(value), value
    parts = list(index if isinstance(index, tuple) else (index,))
    plain = all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in parts)
    _require(plain, f"indexes an activation with {index}; only numbers, slices and None are known")
    unnamed = len(full) - sum(part is not None and part is not Ellipsis for part in parts)
    gap = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    parts[gap : gap + 1] = [slice(None)] * unnamed
    axis, extents = 0, []
    for part in parts:
        if part is None:
            extents.append(1)
            continue
        chosen = range(full[axis])[part] if isinstance(part, slice) else [range(full[axis])[part]]
        if part != slice(None):
            whole = sequences.take(builder, f"{name}.{axis}", whole, sample_axis(axis, value), chosen)
        extents += [len(chosen)] if isinstance(part, slice) else []
        axis += 1
    return builder.with_whole_shape(whole, extents)


MODULES: Mapping[type[nn.Module], Callable[..., Any]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d), _conv_module),
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    KWinners: _k_winners,
    nn.ReLU6: lambda builder, name, x, layer: _relu6(builder, name, x),
    nn.ReLU: lambda builder, name, x, layer: _relu(builder, name, x),
    nn.Hardtanh: lambda builder, name, x, layer: _clamp(builder, name, x, layer.min_val, layer.max_val),
    nn.LeakyReLU: lambda builder, name, x, layer: _leaky_relu(builder, name, x, layer.negative_slope),
    nn.ELU: lambda builder, name, x, layer: _elu(builder, name, x, layer.alpha),
    nn.Sigmoid: _activation("sigmoid"),
    nn.Tanh: _activation("tanh"),
    nn.SiLU: _activation("silu"),
    nn.Hardsigmoid: _activation("hard_sigmoid", 1 / 6),
    nn.Hardswish: _activation("hard_swish"),
    nn.PReLU: lambda builder, name, x, layer: _prelu(builder, name, x, layer.weight),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d), _max_pool_module),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d), _average_pool_module),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d), _adaptive_average_pool_module),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d), _adaptive_max_pool_module),
    **dict.fromkeys(
        (nn.ZeroPad1d, nn.ZeroPad2d), lambda builder, name, x, layer: _pad(builder, name, x, layer.padding)
    ),
    **dict.fromkeys(
        (nn.ConstantPad1d, nn.ConstantPad2d),
        lambda builder, name, x, layer: _pad(builder, name, x, layer.padding, "constant", layer.value),
    ),
    nn.Flatten: lambda builder, name, x, layer: _flatten(builder, name, x, layer.start_dim, layer.end_dim),
    nn.Unflatten: lambda builder, name, x, layer: _unflatten(builder, name, x, layer.dim, layer.unflattened_size),
    nn.Softmax2d: lambda builder, name, x, layer: _softmax(builder, name, x, 1),
    nn.Softmax: lambda builder, name, x, layer: _softmax(builder, name, x, layer.dim),
    nn.Identity: lambda builder, name, x, layer: x,
    nn.Dropout: lambda builder, name, x, layer: x,
    nn.Dropout1d: lambda builder, name, x, layer: x,
    nn.Dropout2d: lambda builder, name, x, layer: x,
    nn.LayerNorm: _layer_norm_module,
    nn.LocalResponseNorm: _local_response_norm_module,
    nn.GELU: lambda builder, name, x, layer: _gelu(builder, name, x, layer.approximate),
    nn.MultiheadAttention: _attention_module,
    nn.TransformerEncoderLayer: _encoder_layer,
    nn.TransformerEncoder: _encoder,
}


def operation_of(layer: nn.Module) -> Callable[..., Any] | None:
    """What a module is in the graph; None for those without counterpart, and for those that override `forward`."""
    operations = (made for kind, made in MODULES.items() if isinstance(layer, kind) and _runs_as(layer, kind))
    return next(operations, None)


def _runs_as(layer: nn.Module, kind: type[nn.Module]) -> bool:
    return type(layer).forward is kind.forward


#: Modules over signals (C, W), not sequences (W, C).
SIGNAL_MODULES = (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d, nn.ZeroPad1d, nn.ConstantPad1d)
FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    **dict.fromkeys((functional.relu, torch.relu), _relu),
    functional.relu6: _relu6,
    **dict.fromkeys((torch.clamp, torch.clip), _clamp),
    functional.hardtanh: _hardtanh,
    functional.leaky_relu: _leaky_relu,
    functional.elu: _elu,
    **dict.fromkeys((functional.sigmoid, torch.sigmoid), _activation("sigmoid")),
    **dict.fromkeys((functional.tanh, torch.tanh), _activation("tanh")),
    functional.silu: _activation("silu"),
    functional.hardsigmoid: _activation("hard_sigmoid", 1 / 6),
    functional.hardswish: _activation("hard_swish"),
    functional.max_pool1d: partial(_max_pool, axes=1),
    functional.max_pool2d: _max_pool,
    functional.avg_pool1d: partial(_average_pool, axes=1),
    functional.avg_pool2d: _average_pool,
    functional.adaptive_avg_pool1d: partial(_adaptive_average_pool, axes=1),
    functional.adaptive_avg_pool2d: _adaptive_average_pool,
    functional.adaptive_max_pool1d: partial(_adaptive_max_pool, axes=1),
    functional.adaptive_max_pool2d: _adaptive_max_pool,
    functional.pad: _pad,
    functional.dropout: _same,
    **dict.fromkeys((functional.softmax, torch.softmax), _softmax),
    functional.gelu: _gelu,
    functional.layer_norm: _layer_norm,
    functional.local_response_norm: _local_response_norm,
    functional.scaled_dot_product_attention: _attention,
    **dict.fromkeys((functional.conv1d, functional.conv2d), _conv),
    functional.linear: _linear_function,
    **dict.fromkeys((operator.matmul, torch.matmul, torch.bmm), _matmul),
    torch.transpose: _transpose,
    torch.unsqueeze: _unsqueeze,
    torch.squeeze: _squeeze,
    torch.unflatten: _unflatten,
    torch.chunk: _chunk,
    torch.split: _split,
    torch.mean: _mean,
    torch.amax: _maximum,
    torch.max: _max_of_axis,
    torch.flatten: _flatten,
    torch.reshape: _reshape,
    torch.permute: _permute,
    **dict.fromkeys((torch.cat, torch.concat), _concat),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _add),
    **dict.fromkeys((operator.sub, torch.sub), _subtract),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), _multiply),
    **dict.fromkeys((operator.truediv, torch.div), _divide),
    getattr: _getattr,
    operator.getitem: _item,
}
METHODS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("relu", "relu_"), _relu),
    **dict.fromkeys(("clamp", "clip"), _clamp),
    **dict.fromkeys(("sigmoid", "sigmoid_"), _activation("sigmoid")),
    **dict.fromkeys(("tanh", "tanh_"), _activation("tanh")),
    "mean": _mean,
    "amax": _maximum,
    "max": _max_of_axis,
    "flatten": _flatten,
    **dict.fromkeys(("view", "reshape"), _reshape),
    "permute": _permute,
    "transpose": _transpose,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "unflatten": _unflatten,
    "chunk": _chunk,
    "split": _split,
    **dict.fromkeys(("matmul", "bmm"), _matmul),
    "softmax": _softmax,
    **dict.fromkeys(("add", "add_"), _add),
    "sub": _subtract,
    **dict.fromkeys(("mul", "mul_"), _multiply),
    "div": _divide,
    **dict.fromkeys(("contiguous", "clone", "detach"), _same),
    "expand": _expand,
    "expand_as": _expand_as,
    "size": _size,
}

_OTHER_PARTS = "import the parts of the network around it, and run it in PyTorch"
REMEDIES: Mapping[str, str] = {
    **dict.fromkeys(
        ("mish", "selu", "celu", "softplus", "softsign", "threshold"),
        "train with ReLU, LeakyReLU, ELU, SiLU, Hardswish or GELU instead",
    ),
    **dict.fromkeys(
        ("logsigmoid", "logsoftmax"),
        "if it is last, leave it out and apply it to the result; elsewhere train with ReLU instead",
    ),
    **dict.fromkeys(
        ("groupnorm", "instancenorm", "instancenorm1d", "instancenorm2d"),
        "train with batch normalization, or LayerNorm, instead",
    ),
    **dict.fromkeys(
        ("convtranspose1d", "convtranspose2d", "upsample", "interpolate", "pixelshuffle"),
        f"networks with upsampling are not supported; {_OTHER_PARTS}",
    ),
    **dict.fromkeys(("lstm", "gru", "rnn"), f"networks with memory are not supported; {_OTHER_PARTS}"),
    "embedding": "look the rows up in PyTorch, and import what reads them: sequences are (positions, features)",
    "conv3d": "only images (C, H, W), signals (C, W) and sequences (positions, features) are supported",
}
"""What to do about modules and functions without counterpart, by their names in lower case, without underscores."""


def _require(condition: bool, message: str, remedy: str = "") -> None:
    if not condition:
        raise UnsupportedError(message, remedy)


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().cpu().float().numpy()
    return array


def _constant(constant: Any, value: Value) -> Array:
    """A number or tensor that broadcasts to a batch, as one that broadcasts to a sample."""
    array = _numpy(constant) if isinstance(constant, Tensor) else np.asarray(constant, np.float64)
    full = not value.is_whole and array.ndim == len(value.shape) + 1
    _require(not full or len(array) == 1, "has a constant that differs between samples")
    return array[0] if full else array


def _packing(layer: nn.Module) -> Packing | None:
    mask = mask_of(layer)
    return None if mask is None else Packing(mask.block, mask.members.shape[1], mask.members)


def _each(value: Any, axes: int) -> tuple[Any, ...]:
    """A number or one for each axis, for each axis."""
    return (value,) * axes if isinstance(value, int) else tuple(value) * (axes if len(value) == 1 else 1)
