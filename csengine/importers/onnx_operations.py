"""What each ONNX operation is in the engine's graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from csengine.graph import AveragePool, Clip, Function, Gelu, LocalResponseNorm, MaxPool, Node, Relu
from csengine.importers import onnx_winners as winners
from csengine.importers import sequences
from csengine.importers.builder import (
    Builder,
    Padded,
    Repeated,
    UnsupportedError,
    Value,
    sample_axis,
    with_dilation,
)
from csengine.quantization import KnownScale

Array = NDArray[Any]
Result: TypeAlias = "Value | Padded | Repeated | Array | winners.Symbol | tuple[Value, ...]"
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


@dataclass(frozen=True, eq=False)
class NormalShare:
    """A part of GELU written out: `factor * (erf(source / sqrt(2)) + shift)`."""

    source: Value
    shift: float = 0.0
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class Nowhere:
    """Where activations are not numbers: nowhere, for inputs and weights that are finite. `source`: the activations."""

    source: Value


@dataclass
class State:
    """What is known while the nodes are walked.

    known: tensors, constants and parts of k-winners by their ONNX names. scales: of quantized tensors, by graph tensor.
    weight_scales: of quantized weights, `[O]` or one, by ONNX name until a layer takes them, then by layer.
    scaled: by graph tensor, the value that was multiplied by positive constants to give it, and these.
    """

    builder: Builder
    opset: int
    known: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, KnownScale] = field(default_factory=dict)
    constant_scales: dict[str, Array] = field(default_factory=dict)
    weight_scales: dict[str, Array] = field(default_factory=dict)
    scaled: dict[str, tuple[Value, Array]] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One node: what it reads, and its attributes. name: of its first result; results: how many it has."""

    state: State
    name: str
    names: Sequence[str]
    attributes: Mapping[str, Any]
    results: int = 1

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(attribute, default)

    def operand(self, i: int) -> Any:
        """Whatever operand i is; None if it is missing."""
        return self.state.known[self.names[i]] if i < len(self.names) and self.names[i] else None

    @property
    def operands(self) -> list[Any]:
        """All operands."""
        return [self.operand(i) for i in range(len(self.names))]

    def tensor(self, i: int) -> Value:
        """Operand i as an activation."""
        return self.state.builder.padded(self.name, self.image(i))

    def image(self, i: int) -> Value | Padded:
        """Operand i as an activation that may still have to be padded."""
        value = self.operand(i)
        if isinstance(value, NormalShare):
            raise UnsupportedError("reads an error function, which is supported only as a part of GELU")
        if isinstance(value, Nowhere):
            raise UnsupportedError("reads an IsNaN, which is supported only to choose between what it is of and others")
        if isinstance(value, winners.Symbol):
            raise UnsupportedError(f"reads {value.what}, which is supported only as a part of k-winners", winners.FORMS)
        if isinstance(value, Repeated):
            return value.factor_of(None)
        if not isinstance(value, (Value, Padded)):
            raise UnsupportedError(f"has a constant as operand {i}; expected an activation")
        return value

    def constant(self, i: int) -> Array:
        """Operand i as a constant."""
        value = self.operand(i)
        if not isinstance(value, np.ndarray):
            raise UnsupportedError(f"computes operand {i} at run time; only constants are supported")
        return value

    def optional(self, i: int) -> Array | None:
        """Operand i as a constant, if it is there."""
        return None if self.operand(i) is None else self.constant(i)

    def numbers(self, attribute: str, i: int) -> list[int] | None:
        """Whole numbers that older operation sets give as an attribute and newer ones as operand i."""
        given = self.optional(i)
        return self.get(attribute) if given is None else [int(number) for number in given.ravel()]


def require(condition: bool, message: str, remedy: str = "") -> None:
    """Raise UnsupportedError unless the condition holds."""
    if not condition:
        raise UnsupportedError(message, remedy)


# --- layers ----------------------------------------------------------------------------------------------------------


def conv(call: Call) -> Result:
    x, weight, bias = call.image(0), call.constant(1), call.optional(2)
    axes = weight.ndim - 2
    require(axes in (1, 2), f"is a {axes}-D convolution; only 1-D and 2-D ones are supported")
    weight = with_dilation(weight, call.get("dilations", (1,) * axes))
    kernel, stride = weight.shape[2:], tuple(call.get("strides", (1,) * axes))
    padding = _padding(call, x, kernel, stride)
    result = call.state.builder.conv(call.name, x, weight, bias, stride, padding, call.get("group", 1))
    return _remember_weight_scale(call, result, len(weight))


def gemm(call: Call) -> Result:
    x, weight, bias = call.tensor(0), call.constant(1), call.optional(2)
    require(not call.get("transA"), "transposes its activations")
    require(weight.ndim == 2, f"has a weight of shape {weight.shape}; only matrices are supported")
    weight = weight.T if call.get("transB") else weight
    bias = None if bias is None else np.squeeze(bias, 0) if bias.ndim == 2 and len(bias) == 1 else bias
    bias = None if bias is None else bias * call.get("beta", 1.0)
    result = call.state.builder.linear(call.name, x, weight * call.get("alpha", 1.0), bias)
    return _remember_weight_scale(call, result, weight.shape[1])


def matmul(call: Call) -> Result:
    if not any(isinstance(operand, np.ndarray) for operand in call.operands):
        return sequences.matmul(call.state.builder, call.name, call.tensor(0), call.tensor(1))
    is_left = isinstance(call.operand(0), np.ndarray)
    weight = call.constant(0 if is_left else 1)
    require(weight.ndim == 2, f"has a weight of shape {weight.shape}; only matrices are supported")
    if is_left:
        return sequences.product_from_left(call.state.builder, call.name, weight, call.tensor(1))
    result = call.state.builder.linear(call.name, call.tensor(0), weight, None)
    return _remember_weight_scale(call, result, weight.shape[1])


def _remember_weight_scale(call: Call, result: Value, kernels: int) -> Value:
    """Let the scale of a quantized weight be that of the layer."""
    scale = call.state.constant_scales.get(call.names[1])
    if scale is not None and scale.size in (1, kernels) and (scale > 0).all():
        call.state.weight_scales[result.name] = np.broadcast_to(scale.astype(np.float64).ravel(), (kernels,))
    return result


def batch_norm(call: Call) -> Result:
    require(not call.get("training_mode"), "is in training mode", "export the model in evaluation mode")
    x = call.tensor(0)
    gain, shift, mean, variance = (call.constant(i).astype(np.float64) for i in range(1, 5))
    variance = variance + call.get("epsilon", 1e-5)
    require(bool((variance > 0).all()), "has a variance below 0")
    scale = gain / np.sqrt(variance)
    form = (-1, *(1 for _ in x.shape[1:]))
    return call.state.builder.affine(call.name, x, scale.reshape(form), (shift - mean * scale).reshape(form))


# --- element by element ----------------------------------------------------------------------------------------------


def relu(call: Call) -> Result:
    return call.state.builder.elementwise(Relu, call.name, call.tensor(0))


def clip(call: Call) -> Result:
    bounds = [call.get(key) for key in ("min", "max")]
    for i in (1, 2):
        if (given := call.optional(i)) is not None:
            bounds[i - 1] = float(given.item())
    limit = float(np.finfo(np.float32).max)
    low, high = (None if b is None or abs(b) >= limit else float(b) for b in bounds)
    if low == 0 and high is None:
        return relu(call)
    return call.state.builder.elementwise(Clip, call.name, call.tensor(0), minimum=low, maximum=high)


def leaky_relu(call: Call) -> Result:
    x, given = call.tensor(0), call.optional(1)
    slope = np.asarray(call.get("alpha", 0.01) if given is None else _per_sample(given, x), np.float64)
    return call.state.builder.leaky_relu(call.name, x, slope)


def activation(function: Function, alpha: float = 1.0) -> Callable[[Call], Result]:
    """A function of every element; alpha: where the node has none."""

    def apply(call: Call) -> Result:
        return call.state.builder.activation(call.name, call.tensor(0), function, call.get("alpha", alpha))

    return apply


def hard_sigmoid(call: Call) -> Result:
    beta = call.get("beta", 0.5)
    require(beta == 0.5, f"has beta {beta}; only 0.5 is supported")
    return activation("hard_sigmoid", 0.2)(call)


def erf(call: Call) -> NormalShare:
    x = call.tensor(0)
    source, factor = call.state.scaled.get(x.name, (x, np.ones(())))
    require(np.allclose(factor, 0.5**0.5), "has no counterpart but as a part of GELU, x * (1 + erf(x / sqrt(2))) / 2")
    return NormalShare(source)


def _shifted(share: NormalShare, constant: Any) -> NormalShare:
    is_one = isinstance(constant, np.ndarray) and bool((constant == 1).all()) and share.shift == 0
    require(is_one and share.factor == 1, "adds something else than 1 to an error function", "only GELU is supported")
    return replace(share, shift=1.0)


def _times_share(call: Call, share: NormalShare, other: Any) -> Any:
    """A share times a constant, or times its source: GELU."""
    if isinstance(other, np.ndarray) and other.size == 1:
        return replace(share, factor=share.factor * float(other.item()))
    source, factor = _source_of(call, share, other)
    is_gelu = share.shift == 1 and source is not None and source.name == share.source.name
    require(is_gelu, "multiplies an error function by something else than GELU does", "only GELU is supported")
    result = call.state.builder.elementwise(Gelu, f"{call.name}.gelu", share.source)
    return _scale(call, result, 2.0 * share.factor * factor)


def _source_of(call: Call, share: NormalShare, other: Any) -> tuple[Value | None, Array]:
    """What `other` is scaled from, and by what; itself if it is the share's source."""
    if not isinstance(other, Value) or other.name == share.source.name:
        return other if isinstance(other, Value) else None, np.ones(())
    return call.state.scaled.get(other.name, (other, np.ones(())))


def add(call: Call) -> Any:
    shares = [operand for operand in call.operands if isinstance(operand, NormalShare)]
    if shares:
        return _shifted(shares[0], next(operand for operand in call.operands if operand is not shares[0]))
    values = [call.tensor(i) for i, x in enumerate(call.operands) if not isinstance(x, np.ndarray)]
    total, builder = values[0], call.state.builder
    for value in values[1:]:
        total = builder.add(call.name, total, value)
    for x in call.operands:
        if isinstance(x, np.ndarray):
            total = builder.affine(call.name, total, np.ones(()), _per_sample(x, total))
    return total


def subtract(call: Call) -> Result:
    a, b = call.operands
    builder, one, none = call.state.builder, np.ones(()), np.zeros(())
    if isinstance(b, np.ndarray):
        x = call.tensor(0)
        return builder.affine(call.name, x, one, -_per_sample(b, x))
    y = call.tensor(1)
    if isinstance(a, np.ndarray):
        return builder.affine(call.name, y, -one, _per_sample(a, y))
    return builder.add(call.name, call.tensor(0), builder.affine(f"{call.name}.negative", y, -one, none))


def is_nan(call: Call) -> Nowhere:
    return Nowhere(call.tensor(0))


def where(call: Call) -> Any:
    """A choice of winners; or of zeros where a mask left nothing to attend to, so that softmax gave no numbers."""
    chosen = call.operand(0)
    if not isinstance(chosen, Nowhere):
        return winners.where(call)
    x = call.tensor(2)
    fits = x.name == chosen.source.name and np.size(call.constant(1)) == 1
    require(fits, "chooses by an IsNaN of something else, or more than one number instead")
    return x


def gelu(call: Call) -> Result:
    approximate = call.get("approximate", b"none").decode()
    return call.state.builder.elementwise(Gelu, call.name, call.tensor(0), approximate=approximate)


def layer_norm(call: Call) -> Result:
    x, scale, shift = call.tensor(0), call.constant(1), call.optional(2)
    axis = sample_axis(call.get("axis", -1), x)
    require(axis == len(x.shape) - 1, f"normalizes {x.shape} from axis {axis} on; only the last axis is supported")
    shift = np.zeros_like(scale) if shift is None else shift
    return sequences.layer_norm(call.state.builder, call.name, x, scale, shift, call.get("epsilon", 1e-5))


def local_response_norm(call: Call) -> Result:
    x = call.state.builder.image(call.tensor(0), call.name)
    factors = {key: float(call.get(key, usual)) for key, usual in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))}
    return call.state.builder.elementwise(LocalResponseNorm, call.name, x, size=call.get("size"), **factors)


def attention(call: Call) -> Result:
    options = {key: value for key, value in call.attributes.items() if key != "scale" and value}
    plain = len([name for name in call.names if name]) == 3 and not options
    require(plain, f"has a mask, a past or options ({', '.join(options)}); only plain attention is supported")
    q, k, v = (call.tensor(i) for i in range(3))
    shapes = q.shape, k.shape, v.shape
    heads = all(len(shape) == 3 for shape in shapes)
    require(heads, f"reads shapes {shapes}; expected heads (B, heads, positions, channels)")
    return sequences.attention(call.state.builder, call.name, q, k, v, call.get("scale"))


def negate(call: Call) -> Result:
    return call.state.builder.affine(call.name, call.tensor(0), -np.ones(()), np.zeros(()))


def multiply(call: Call) -> Any:
    a, b = call.operands
    if isinstance(a, NormalShare) or isinstance(b, NormalShare):
        return _times_share(call, a, b) if isinstance(a, NormalShare) else _times_share(call, b, a)
    if any(isinstance(operand, winners.Mask) for operand in (a, b)):
        mask, i = (a, 1) if isinstance(a, winners.Mask) else (b, 0)
        return winners.choose(call, mask, call.tensor(i))
    if not any(isinstance(operand, np.ndarray) for operand in (a, b)):
        factors = [x.factor_of(y) if isinstance(x, Repeated) else None for x, y in ((a, b), (b, a))]
        return call.state.builder.multiply(
            call.name, *(call.tensor(i) if x is None else x for i, x in enumerate(factors))
        )
    constant, i = (a, 1) if isinstance(a, np.ndarray) else (b, 0)
    return _scale(call, call.tensor(i), constant)


def divide(call: Call) -> Result:
    require(isinstance(call.operand(1), np.ndarray), "divides by an activation; only constants are supported")
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = 1.0 / call.constant(1).astype(np.float64)
    require(bool(np.isfinite(factor).all()), "divides by zero")
    return _scale(call, call.tensor(0), factor)


def _scale(call: Call, x: Value, constant: Array) -> Value:
    """`x * constant`; remembered, because winners may be ranked by it, and a factor may undo another."""
    factor = _per_sample(constant, x)
    extents = zip(factor.shape[::-1], x.shape[::-1], strict=False)
    if (factor == 1).all() and factor.ndim <= len(x.shape) and all(n in (1, m) for n, m in extents):
        return x
    source, known = call.state.scaled.get(x.name, (x, np.ones(())))
    if known.size == factor.size == 1 and float(known.item()) * float(factor.item()) == 1.0:
        return source
    result = call.state.builder.affine(call.name, x, factor, np.zeros(()))
    if (factor > 0).all():
        call.state.scaled[result.name] = x, factor
    return result


def _per_sample(constant: Array, value: Value) -> Array:
    """A constant that broadcasts to a batch as one that broadcasts to a sample."""
    full = not value.is_whole and constant.ndim == len(value.shape) + 1
    require(not full or len(constant) == 1, "has a constant that differs between samples")
    return constant[0] if full else constant


# --- windows ---------------------------------------------------------------------------------------------------------


def max_pool(call: Call) -> Result:
    require(set(call.get("dilations", (1,))) == {1}, "has a dilation; only 1 is supported")
    x, ceils = call.image(0), bool(call.get("ceil_mode"))
    return call.state.builder.max_pool(call.name, x, *_window(call), ceils)


def average_pool(call: Call) -> Result:
    counts = bool(call.get("count_include_pad", 0))
    x, ceils = call.image(0), bool(call.get("ceil_mode"))
    return call.state.builder.average_pool(call.name, x, *_window(call), counts, ceils)


def _window(call: Call) -> tuple[Any, Any, tuple[int, ...]]:
    """Kernel, stride and padding of a pool."""
    kernel = tuple(call.get("kernel_shape"))
    stride = tuple(call.get("strides", (1,) * len(kernel)))
    return kernel, stride, _padding(call, call.image(0), kernel, stride)


def _padding(call: Call, x: Value | Padded, kernel: Any, stride: Any) -> tuple[int, ...]:
    """What `pads` or `auto_pad` adds before every axis, then after it."""
    mode = call.get("auto_pad", b"NOTSET").decode()
    none = (0, 0) * len(kernel)
    if mode == "NOTSET":
        pads = tuple(call.get("pads", none))
        require(len(pads) == len(none), f"has pads {pads} of {len(kernel)} axes")
        return pads
    if mode == "VALID":
        return none
    require(isinstance(x, Value), f"has auto_pad={mode} after a Pad", "give its pads as numbers")
    assert isinstance(x, Value)
    totals = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in zip(x.shape[1:], kernel, stride, strict=True)]
    before = [total // 2 if mode == "SAME_UPPER" else total - total // 2 for total in totals]
    return *before, *(total - first for total, first in zip(totals, before, strict=True))


def global_average(call: Call) -> Result:
    return call.state.builder.global_pool(AveragePool, call.name, call.tensor(0))


def global_maximum(call: Call) -> Result:
    return call.state.builder.global_pool(MaxPool, call.name, call.tensor(0))


def reduce_mean(call: Call) -> Result:
    return _reduced(call, AveragePool)


def reduce_max(call: Call) -> Result:
    return _reduced(call, MaxPool)


def _reduced(call: Call, kind: type[Node]) -> Value:
    x = call.tensor(0)
    axes = sorted(sample_axis(axis, x) for axis in call.numbers("axes", 1) or [])
    return sequences.reduced(call.state.builder, call.name, x, kind, axes, bool(call.get("keepdims", 1)))


def pad(call: Call) -> Result:
    x, pads, given = call.tensor(0), call.numbers("pads", 1), call.optional(2)
    mode = call.get("mode", b"constant").decode()
    require(mode == "constant", f"pads with mode {mode}; only constant is supported")
    rank = len(x.shape) + 1
    axes = call.numbers("axes", 3) or list(range(rank))
    full = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        full[axis % rank], full[axis % rank + rank] = (pads or [])[i], (pads or [])[i + len(axes)]
    if not any(full):
        return x
    others = full[:2] + full[rank : rank + 2]
    fits = rank in (3, 4) and not any(others)
    require(fits, f"pads {full}; only height and width, or positions, are supported")
    require(min(full) >= 0, f"pads {full}, which crops the image; only padding is supported")
    fill = float(given.item()) if given is not None else float(call.get("value", 0.0))
    (top, left), (bottom, right) = (0, *full[2:rank])[-2:], (0, *full[rank + 2 :])[-2:]
    return Padded(x, (top, left, bottom, right), fill)


# --- shapes ----------------------------------------------------------------------------------------------------------


def arranging(operation: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """An operation that only arranges elements, for activations and for the mask of their winners."""

    def arrange(call: Call) -> Any:
        mask = call.operand(0)
        if not isinstance(mask, winners.Mask):
            return operation(call)
        known = {**call.state.known, call.names[0]: mask.laid}
        return replace(mask, laid=operation(replace(call, state=replace(call.state, known=known))))

    return arrange


def concat(call: Call) -> Result:
    known = [x if isinstance(x, np.ndarray) else call.tensor(i) for i, x in enumerate(call.operands)]
    like = next(item for item in known if isinstance(item, Value))
    values = [_per_sample(item, like) if isinstance(item, np.ndarray) else item for item in known]
    return sequences.concat(call.state.builder, call.name, values, sample_axis(call.get("axis"), like))


def flatten(call: Call) -> Result:
    x = call.tensor(0)
    full = call.state.builder.whole_shape(x)
    axis = call.get("axis", 1) % (len(full) + 1)
    return call.state.builder.with_whole_shape(x, (prod(full[:axis]), prod(full[axis:])))


def reshape(call: Call) -> Result:
    x = call.tensor(0)
    full = call.state.builder.whole_shape(x)
    shape = [full[i] if extent == 0 else extent for i, extent in enumerate(call.numbers("shape", 1) or ())]
    return call.state.builder.reshape_batch(x, shape)


def squeeze(call: Call) -> Result:
    x = call.tensor(0)
    given, full = call.numbers("axes", 1), call.state.builder.whole_shape(x)
    ones = [i for i, n in enumerate(full) if n == 1 and (i > 0 or x.is_whole)]
    drops = ones if given is None else [i % len(full) for i in given]
    require(all(full[i] == 1 for i in drops), f"squeezes axes {given} of {full}, which are not all 1")
    return call.state.builder.with_whole_shape(x, [n for i, n in enumerate(full) if i not in drops])


def unsqueeze(call: Call) -> Any:
    if isinstance(call.operand(0), winners.Least):
        return winners.restore_axis(call)
    x = call.tensor(0)
    given = call.numbers("axes", 1) or []
    shape = list(call.state.builder.whole_shape(x))
    rank = len(shape) + len(given)
    for axis in sorted(axis % rank for axis in given):
        shape.insert(axis, 1)
    return call.state.builder.with_whole_shape(x, shape)


def transpose(call: Call) -> Result:
    x = call.tensor(0)
    rank = len(call.state.builder.whole_shape(x))
    return call.state.builder.transpose_batch(x, list(call.get("perm", range(rank - 1, -1, -1))))


def part(call: Call) -> Any:
    """A slice of activations, or of the values of a TopK."""
    if isinstance(call.operand(0), winners.Symbol):
        return winners.slice_values(call)
    x = call.tensor(0)
    starts, ends, axes, steps = (call.numbers(key, i) for i, key in enumerate(("starts", "ends", "axes", "steps"), 1))
    starts, ends = starts or [], ends or []
    for axis, start, end, step in zip(
        axes or range(len(starts)), starts, ends, steps or [1] * len(starts), strict=True
    ):
        place = sample_axis(axis, x)
        x = sequences.take(call.state.builder, call.name, x, place, range(x.shape[place])[start:end:step])
    return x


def pick(call: Call) -> Any:
    """Some places of an axis of activations, or of the values of a TopK."""
    if isinstance(call.operand(0), winners.Symbol):
        return winners.gather_values(call)
    x, index = call.tensor(0), call.constant(1)
    axis = sample_axis(call.get("axis", 0), x)
    require(index.ndim < 2, f"picks by indices of shape {index.shape}; only one index or a list is supported")
    size = x.shape[axis]
    inside = all(-size <= i < size for i in index.ravel())
    require(inside, f"picks {index.ravel().tolist()} of {size}, some of which are not there")
    taken = sequences.take(call.state.builder, call.name, x, axis, [int(i) % size for i in index.ravel()])
    if index.ndim:
        return taken
    full = list(call.state.builder.whole_shape(taken))
    del full[axis if x.is_whole else axis + 1]
    return call.state.builder.with_whole_shape(taken, full)


def split(call: Call) -> Result:
    x = call.tensor(0)
    axis, parts = sample_axis(call.get("axis", 0), x), call.numbers("split", 1)
    size = x.shape[axis]
    if parts is None:
        count = call.get("num_outputs", call.results)
        each = -(-size // count)
        parts = [min(each, size - i * each) for i in range(count)]
    ends = np.cumsum(parts)
    require(ends[-1] == size, f"splits {size} into {parts}")
    ranges = [range(end - part, end) for part, end in zip(parts, ends, strict=True)]
    return tuple(
        sequences.take(call.state.builder, f"{call.name}.{i}", x, axis, chosen) for i, chosen in enumerate(ranges)
    )


def expand(call: Call) -> Result:
    x, shape = call.tensor(0), call.numbers("shape", 1) or []
    full = np.broadcast_shapes(call.state.builder.whole_shape(x), shape)
    require(not x.is_whole and len(full) == len(x.shape) + 1, f"expands {x.shape} to {full}")
    return x if full[1:] == x.shape else Repeated(x, full[1:])


def softmax(call: Call) -> Result:
    x, opset = call.tensor(0), call.state.opset
    axis = sample_axis(call.get("axis", -1 if opset >= 13 else 1), x)
    axes = (axis,) if opset >= 13 else tuple(range(axis, len(x.shape)))
    return call.state.builder.softmax(call.name, x, axes)


def shape(call: Call) -> Result:
    operand, builder = call.operand(0), call.state.builder
    is_top = isinstance(operand, winners.TOP)
    full = winners.whole_shape(builder, operand) if is_top else builder.whole_shape(call.tensor(0))
    return np.array(full[call.get("start", 0) : call.get("end")], np.int64)


def same(call: Call) -> Result:
    return call.tensor(0)


def cast(call: Call) -> Result:
    if isinstance(operand := call.operand(0), winners.Mask):
        return operand
    require(call.get("to") in FLOATS, "casts to integers")
    return call.tensor(0)


# --- quantized models ------------------------------------------------------------------------------------------------


def quantize(call: Call) -> Result:
    """Clips to what the integers can hold; the scale is remembered for an integer network."""
    x, scale, zero_point = call.tensor(0), call.constant(1), call.optional(2)
    zero = np.zeros((), np.uint8) if zero_point is None else zero_point
    require(scale.size == 1 and zero.size == 1, "has a scale per channel; activations have one scale")
    require(zero.dtype in (np.uint8, np.int8), f"quantizes to {zero.dtype}; only int8 and uint8 are supported")
    limits, step = np.iinfo(zero.dtype), float(scale.item())
    require(0 < step < np.inf, f"has a scale of {step}; expected above 0")
    low, high = (step * (bound - int(zero.item())) for bound in (limits.min, limits.max))
    result = call.state.builder.elementwise(Clip, call.name, x, minimum=low, maximum=high)
    call.state.scales[result.name] = _known_scale(low, high, step)
    return result


def quantize_constant(call: Call) -> Array:
    values, scale, zero = _quantized_operands(call)
    limits = np.iinfo(zero.dtype)
    levels = np.rint(values / scale) + zero.astype(np.int64)
    return np.asarray(np.clip(levels, limits.min, limits.max), zero.dtype)


def dequantize_constant(call: Call) -> Array:
    values, scale, zero = _quantized_operands(call)
    call.state.constant_scales[call.name] = scale
    real: Array = ((values.astype(np.int64) - zero) * scale.astype(np.float64)).astype(np.float32)
    return real


def _quantized_operands(call: Call) -> tuple[Array, Array, Array]:
    """Values, scales and zero points that broadcast to them."""
    values, scale, zero = call.constant(0), call.constant(1), call.optional(2)
    zero = np.zeros((), np.uint8 if values.dtype.kind == "f" else values.dtype) if zero is None else zero
    require(not call.get("block_size"), "has a scale per block; only scales per tensor and channel are supported")
    require(bool((scale > 0).all()), "has a scale that is not above 0")
    axis = call.get("axis", 1)
    form = [1] * values.ndim
    if scale.size > 1:
        form[axis] = -1
    return values, scale.reshape(form), zero.reshape(form) if zero.size > 1 else zero


def _known_scale(low: float, high: float, step: float) -> KnownScale:
    """The scale of integers from low to high with zero point 0: the same, if that is their zero point."""
    if low == 0:
        return KnownScale("uint8", step)
    return KnownScale("int8", step) if low == -128 * step else KnownScale("int8", max(-low, high) / 127.0, False)


OPERATIONS: Mapping[str, Callable[[Call], Any]] = {
    "Conv": conv,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batch_norm,
    "Relu": relu,
    "Clip": clip,
    "LeakyRelu": leaky_relu,
    "PRelu": leaky_relu,
    "Sigmoid": activation("sigmoid"),
    "Tanh": activation("tanh"),
    "Swish": activation("silu"),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": activation("hard_swish"),
    "Elu": activation("elu"),
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average,
    "GlobalMaxPool": global_maximum,
    "ReduceMean": reduce_mean,
    "ReduceMax": reduce_max,
    "Pad": pad,
    "Add": add,
    "Sum": add,
    "Sub": subtract,
    "Neg": negate,
    "Gelu": gelu,
    "Erf": erf,
    "IsNaN": is_nan,
    "LayerNormalization": layer_norm,
    "LRN": local_response_norm,
    "Attention": attention,
    "Mul": multiply,
    "Div": divide,
    "Concat": concat,
    "Flatten": arranging(flatten),
    "Reshape": arranging(reshape),
    "Squeeze": arranging(squeeze),
    "Unsqueeze": arranging(unsqueeze),
    "Transpose": arranging(transpose),
    "Split": split,
    "Expand": expand,
    "Softmax": softmax,
    "Shape": shape,
    "Identity": arranging(same),
    "Dropout": same,
    "Cast": cast,
    "QuantizeLinear": quantize,
    "DequantizeLinear": same,
    **winners.OPERATIONS,
    "Where": where,
    "Slice": part,
    "Gather": pick,
}
#: Operations over images (C, H, W) and signals (C, W), not over sequences (W, C).
OF_CHANNELS_FIRST = ("Conv", "BatchNormalization", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
OF_CONSTANTS: Mapping[str, Callable[[Call], Array]] = {
    "QuantizeLinear": quantize_constant,
    "DequantizeLinear": dequantize_constant,
}
"""What the `onnx` package cannot compute in every version."""
REMEDIES: Mapping[str, str] = {
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"), "export in the QDQ format"),
    "DynamicQuantizeLinear": "quantize statically, in the QDQ format",
    **dict.fromkeys(("LSTM", "GRU", "RNN", "Loop", "Scan", "If"), "networks with memory or branches are not supported"),
    **dict.fromkeys(("Mish", "Selu", "Celu", "Softplus", "Softsign"), "retrain with Relu, Elu, Sigmoid or HardSwish"),
    "LogSoftmax": "if it is last, leave it out and apply it to the result; elsewhere retrain with Relu",
    "InstanceNormalization": "retrain with batch normalization",
    "ConvTranspose": "only networks without upsampling are supported",
    "Resize": "only networks without upsampling are supported",
}
"""What to do about operations that have no counterpart, where there is more to say than to replace them."""
