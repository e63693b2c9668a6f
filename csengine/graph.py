"""The network as data: a directed graph of frozen nodes in topological order.

A node names the tensor it produces and the tensors it reads. `Graph` checks every node once, when it is built, and
infers the shape and type of one sample of every tensor; whoever holds a `Graph` holds a valid network.

Layout is NHWC: a tensor of one sample is `(height, width, channels)` or `(features,)`. A weight is a matrix `[R, O]`
of R inputs of one kernel, in (ky, kx, channel) order, by O kernels: dense as an array, or a `PackedMatrix`.

Two number systems share the operations. Float networks are float32 throughout. Integer networks hold uint8 or int8
activations, int8 weights and int32 accumulators, all with zero point 0, so that "inactive" is exactly 0. `Dequantize`
and `Quantize` lead from one to the other, so that an integer network may compute in float32 what has no integer form.
`reference.py` defines what each operation computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from csengine.errors import GraphError, PackingError
from csengine.packing import NOBODY, PackedMatrix, validate

DType: TypeAlias = Literal["float32", "uint8", "int8", "int32"]
Layout: TypeAlias = Literal["NHWC", "NCHW", "NWC", "NCW"]
Weight: TypeAlias = NDArray[np.float32] | NDArray[np.int8] | PackedMatrix
Scope: TypeAlias = Literal["local", "global"]
Function: TypeAlias = Literal["sigmoid", "tanh", "silu", "hard_sigmoid", "hard_swish", "elu", "leaky_relu"]

#: Elements that a weight, or a (padded) sample of a tensor, may have; keeps a damaged file from asking for all memory.
MAX_ELEMENTS = 2**28
#: Accumulators are 32 bits wide; no layer may be able to leave them.
ACCUMULATOR_LIMIT = 2**31 - 1
#: Tensors that one operation may read.
MAX_OPERANDS = 64
#: The largest magnitude that an activation of each integer type can have.
MAGNITUDE = {"uint8": 255, "int8": 128}
#: The axes (batch, height, width, channels) in each layout's order, and those of a layout in that order.
_OUTSIDE = {"NHWC": (0, 1, 2, 3), "NCHW": (0, 3, 1, 2), "NWC": (0, 1, 2, 3), "NCW": (0, 1, 3, 2)}
_INSIDE = {**_OUTSIDE, "NCHW": (0, 2, 3, 1)}
#: Layouts of images of height 1, without that axis.
_FLAT = ("NWC", "NCW")
#: Scales and ranking factors lie strictly between these, so that their products with integers are normal float32.
MIN_SCALE, MAX_SCALE = 1e-30, 1e28


@dataclass(frozen=True)
class TensorType:
    """Shape (of one sample, NHWC), element type and, for integer activations, the real value of 1."""

    shape: tuple[int, ...]
    dtype: DType
    scale: float | None = None

    @property
    def channels(self) -> int:
        """Length of the last axis."""
        return self.shape[-1]

    @property
    def size(self) -> int:
        """Elements of one sample."""
        return prod(self.shape)

    @property
    def is_integer(self) -> bool:
        """Whether this is an integer activation or accumulator."""
        return self.dtype != "float32"


@dataclass(frozen=True, eq=False)
class Requantization:
    """Exact scaling of integers: `y = clamp((acc * multiplier + 2**(shift - 1)) >> shift)` in 64 bits.

    multiplier: uint16 `[n]`, `2**15 <= M < 2**16`; shift: uint8 `[n]`, `1 <= s <= 47`; n is one per output channel
    of a layer, 1 for a pool or a product, one per input of a concatenation. An addition has two multipliers, of which
    the smaller may be any, and one shift. scale: real value of 1 in the result.
    """

    multiplier: NDArray[np.uint16]
    shift: NDArray[np.uint8]
    dtype: Literal["uint8", "int8"]
    scale: float

    def check(self, owner: str, multipliers: int, shifts: int | None = None) -> None:
        """Raise GraphError unless there are so many multipliers and shifts, all in range."""
        shifts = multipliers if shifts is None else shifts
        _require(self.dtype in MAGNITUDE, owner, f"requantizes to {self.dtype!r}; expected 'uint8' or 'int8'")
        _check_scale(owner, self.scale)
        _check_array(owner, "multiplier", self.multiplier, np.uint16, (multipliers,))
        _check_array(owner, "shift", self.shift, np.uint8, (shifts,))
        floor = self.multiplier if shifts == multipliers else self.multiplier.max(keepdims=True)
        _require(bool((floor >= 2**15).all()), owner, "a requantization multiplier is below 2**15")
        in_range = bool(((self.shift >= 1) & (self.shift <= 47)).all())
        _require(in_range, owner, "a requantization shift is outside 1..47")


@dataclass(frozen=True, eq=False)
class Packing:
    """How a layer's weight should be packed: block `(U, V)`, set size S, and the trained assignment, if known.

    sets: int32 `[T, S]` of kernel blocks, -1 for an empty slot (see `csengine.packing`).
    """

    block: tuple[int, int] = (1, 1)
    set_size: int | None = None
    sets: NDArray[np.int32] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """One operation; `name` is also the name of the tensor that it produces."""

    name: str
    inputs: tuple[str, ...]
    arity: ClassVar[int | None] = 1

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """Type of one sample of the result, from the types of the inputs. Raises GraphError."""
        raise NotImplementedError

    def dense_macs(self, result: TensorType) -> int:
        """Multiply-accumulates of one sample, every weight and activation counted."""
        return 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Node):
    """The network's input: `q = clamp(rint(x * inv_scale))` for integer types, x itself for float32."""

    shape: tuple[int, ...]
    dtype: DType = "float32"
    scale: float | None = None
    arity: ClassVar[int | None] = 0

    @property
    def inv_scale(self) -> np.float32:
        """The one float32 factor that quantizes the input."""
        factor: np.float32 = np.float32(1.0 / self.scale if self.scale is not None else 1.0)
        return factor

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The declared type."""
        _require(len(self.shape) in (1, 3), self.name, f"has shape {self.shape}; expected (features,) or (H, W, C)")
        _require(self.dtype in ("float32", "uint8", "int8"), self.name, f"has type {self.dtype!r}")
        if self.dtype == "float32":
            _require(self.scale is None, self.name, "is float32 and cannot have a scale")
        else:
            _check_scale(self.name, self.scale)
        return TensorType(self.shape, self.dtype, self.scale)


@dataclass(frozen=True, eq=False, kw_only=True)
class _WeightedNode(Node):
    """What convolution and linear layers share: weight `[R, O]`, bias `[O]`, and the way out of the accumulator."""

    weight: Weight
    bias: NDArray[np.float32] | NDArray[np.int32] | None = None
    requantization: Requantization | None = None
    packing: Packing | None = None

    @property
    def rows(self) -> int:
        """R, the inputs of one kernel."""
        return self.weight.rows if isinstance(self.weight, PackedMatrix) else int(self.weight.shape[0])

    @property
    def kernels(self) -> int:
        """O, the output channels."""
        return self.weight.kernels if isinstance(self.weight, PackedMatrix) else int(self.weight.shape[1])

    @property
    def dense_weight(self) -> NDArray[np.float32] | NDArray[np.int8]:
        """The weight as an array `[R, O]`."""
        return self.weight.unpack() if isinstance(self.weight, PackedMatrix) else self.weight

    def _result(self, source: TensorType, shape: tuple[int, ...]) -> TensorType:
        """Check weight, bias and requantization against the input's type; the type of the result."""
        _activation(self.name, source)
        _check_size(self.name, shape)
        wanted = np.dtype(np.int8 if source.is_integer else np.float32)
        if isinstance(self.weight, PackedMatrix):
            _check_packed(self.name, self.weight)
            _require(self.weight.dtype == wanted, self.name, f"has {self.weight.dtype} weights; expected {wanted}")
        else:
            _check_array(self.name, "weight", self.weight, wanted, (self.rows, self.kernels))
        if self.bias is not None:
            bias_type = np.int32 if source.is_integer else np.float32
            _check_array(self.name, "bias", self.bias, bias_type, (self.kernels,))
        if not source.is_integer:
            _require(self.requantization is None, self.name, "is float32 and cannot be requantized")
            return TensorType(shape, "float32")
        self._prove_no_overflow(MAGNITUDE[source.dtype])
        if self.requantization is None:
            return TensorType(shape, "int32")
        self.requantization.check(self.name, self.kernels)
        return TensorType(shape, self.requantization.dtype, self.requantization.scale)

    def _prove_no_overflow(self, magnitude: int) -> None:
        """Raise GraphError unless the sum of |w| * max|x| + |bias| stays below 2**31 for every kernel."""
        bound = _column_magnitudes(self.weight)[: self.kernels] * magnitude
        if self.bias is not None:
            bound += np.abs(self.bias.astype(np.int64))
        worst = int(bound.max(initial=0))
        _require(
            worst <= ACCUMULATOR_LIMIT,
            self.name,
            f"could overflow its 32-bit accumulator (|sum| up to {worst}); scale its weights down or split the layer",
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv2d(_WeightedNode):
    """2-D convolution; weight `[kh * kw * C / groups, O]`; padding (top, left, bottom, right) adds zeros."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """`(H', W', O)`."""
        (source,) = inputs
        height, width = _window_count(self.name, source, self.kernel, self.stride, self.padding)
        _check_is_matrix(self.name, self.weight)
        channels, kernels = source.channels, self.kernels
        divides = self.groups >= 1 and channels % self.groups == 0 and kernels % self.groups == 0
        _require(divides, self.name, f"has {self.groups} groups, which do not divide {channels} -> {kernels} channels")
        is_packed = isinstance(self.weight, PackedMatrix)
        _require(self.groups == 1 or not is_packed, self.name, "is grouped; grouped convolutions keep dense weights")
        expected = self.kernel[0] * self.kernel[1] * channels // self.groups
        _require(self.rows == expected, self.name, f"has kernels of {self.rows} inputs; expected {expected}")
        return self._result(source, (height, width, kernels))

    def dense_macs(self, result: TensorType) -> int:
        """R * O * positions."""
        return self.rows * result.size


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(_WeightedNode):
    """Matrix product over the last axis of `(features,)`; weight `[R, O]`."""

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """`(O,)`."""
        (source,) = inputs
        _require(len(source.shape) == 1, self.name, f"reads shape {source.shape}; flatten it first")
        _check_is_matrix(self.name, self.weight)
        _require(self.rows == source.size, self.name, f"has kernels of {self.rows} inputs; expected {source.size}")
        return self._result(source, (self.kernels,))

    def dense_macs(self, result: TensorType) -> int:
        """R * O."""
        return self.rows * result.size


@dataclass(frozen=True, eq=False, kw_only=True)
class Affine(Node):
    """`x * scale[c] + shift[c]` on float32 channels: batch normalization at inference, where it was not folded."""

    scale: NDArray[np.float32]
    shift: NDArray[np.float32]

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The input's type."""
        (source,) = inputs
        _require(source.dtype == "float32", self.name, "is defined on float32; fold it before quantizing")
        _check_array(self.name, "scale", self.scale, np.float32, (source.channels,))
        _check_array(self.name, "shift", self.shift, np.float32, (source.channels,))
        return source


@dataclass(frozen=True, eq=False, kw_only=True)
class Relu(Node):
    """`max(x, 0)`."""

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The input's type."""
        (source,) = inputs
        return _activation(self.name, source)


@dataclass(frozen=True, eq=False, kw_only=True)
class Clip(Node):
    """`min(max(x, minimum), maximum)`; integers are clipped to whole numbers of their own scale. None is no bound."""

    minimum: float | None = None
    maximum: float | None = None

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The input's type."""
        (source,) = inputs
        limits = np.finfo(np.float32) if source.dtype == "float32" else np.iinfo(source.dtype)
        bounds = [bound for bound in (self.minimum, self.maximum) if bound is not None]
        in_range = all(float(limits.min) <= bound <= float(limits.max) for bound in bounds) and bounds == sorted(bounds)
        _require(in_range, self.name, f"clips {source.dtype} to {bounds}; expected an ascending range within the type")
        whole = source.dtype == "float32" or all(float(bound).is_integer() for bound in bounds)
        _require(whole, self.name, f"clips integers to {bounds}; expected whole numbers")
        return _activation(self.name, source)


#: Functions that an activation may be, and whether alpha is a part of them.
FUNCTIONS: Mapping[str, bool] = {
    **dict.fromkeys(("silu", "hard_sigmoid", "elu", "leaky_relu"), True),
    **dict.fromkeys(("sigmoid", "tanh", "hard_swish"), False),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Activation(Node):
    """A function of every element: of float32 in double, rounded once; of integers what a table says, `table[x]`.

    alpha: factor of x within silu (and hard_sigmoid), of what is negative (elu, leaky_relu). table: uint8 or int8
    `[256]`, made of the function; its index is the byte of x, so that of int8 -1 it is 255. scale: real value of 1
    in the table.
    """

    function: Function
    alpha: float = 1.0
    table: NDArray[np.uint8] | NDArray[np.int8] | None = None
    scale: float | None = None

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The input's shape; float32, or the table's type."""
        (source,) = inputs
        known = f"is {self.function!r}; known are {', '.join(FUNCTIONS)}"
        _require(self.function in FUNCTIONS, self.name, known)
        sane = abs(self.alpha) <= 1e6 if FUNCTIONS[self.function] else self.alpha == 1.0
        _require(
            sane, self.name, f"is {self.function} with alpha {self.alpha}; expected up to 1e6, and 1 if it has none"
        )
        if _activation(self.name, source).dtype == "float32":
            _require(self.table is None and self.scale is None, self.name, "reads float32, for which it needs no table")
            return source
        _require(self.table is not None, self.name, "reads integers and needs a table")
        assert self.table is not None
        dtype: DType = "int8" if self.table.dtype == np.int8 else "uint8"
        _check_array(self.name, "table", self.table, dtype, (256,))
        _check_scale(self.name, self.scale)
        return TensorType(source.shape, dtype, self.scale)


@dataclass(frozen=True, eq=False, kw_only=True)
class KWTA(Node):
    """k winners take all, strict: exactly k survive per scope, by (value descending, index ascending).

    scope: "local" is the channels of one position, "global" the whole sample in NHWC order. factor: float32, one per
    channel (local) or per element (global), ranks by value * factor and passes the value on (the boosting that
    evaluation keeps). `k >= n` is the identity.
    """

    k: int
    scope: Scope
    factor: NDArray[np.float32] | None = None

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The input's type."""
        (source,) = inputs
        _require(self.k >= 1, self.name, f"has k = {self.k}; expected at least 1")
        _require(self.scope in ("local", "global"), self.name, f"has scope {self.scope!r}; expected local or global")
        if self.factor is not None:
            _check_array(self.name, "factor", self.factor, np.float32, (self.scope_size(source),))
            _check_range(self.name, "ranking factor", self.factor)
        return _activation(self.name, source)

    def scope_size(self, source: TensorType) -> int:
        """n, the elements that compete."""
        return source.channels if self.scope == "local" else source.size


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Node):
    """Largest value of each window; padding never wins."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """`(H', W', C)`."""
        (source,) = inputs
        source = _activation(self.name, source)
        height, width = _window_count(self.name, source, self.kernel, self.stride, self.padding)
        _check_padding_is_partial(self.name, self.kernel, self.padding)
        return TensorType((height, width, source.channels), source.dtype, source.scale)


@dataclass(frozen=True, eq=False, kw_only=True)
class AveragePool(Node):
    """Mean of each window; integers requantize the exact sum (1 / area is in the scale).

    count_padding: whether a mean divides by the whole window, padding counted as zeros, or by what lies on the image.
    Then an integer pool has one multiplier and shift for every number of elements, 1 to the window's.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    requantization: Requantization | None = None
    count_padding: bool = True

    @property
    def divisors(self) -> int:
        """Numbers by which a sum may be divided."""
        return 1 if self.count_padding else self.kernel[0] * self.kernel[1]

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """`(H', W', C)`."""
        (source,) = inputs
        height, width = _window_count(self.name, source, self.kernel, self.stride, self.padding)
        _check_padding_is_partial(self.name, self.kernel, self.padding)
        fits = self.kernel[0] * self.kernel[1] * 255 <= ACCUMULATOR_LIMIT
        _require(fits, self.name, f"has a window of {self.kernel}, whose sum could overflow")
        dtype, scale = _requantized(self.name, inputs, self.requantization, self.divisors)
        return TensorType((height, width, source.channels), dtype, scale)


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Node):
    """Element-wise sum; integers: `clamp((a * Ma + b * Mb + 2**(s - 1)) >> s)`."""

    requantization: Requantization | None = None
    arity: ClassVar[int | None] = 2

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The inputs' shape."""
        first, second = inputs
        _require(first.shape == second.shape, self.name, f"adds shapes {first.shape} and {second.shape}")
        dtype, scale = _requantized(self.name, inputs, self.requantization, 2, 1)
        return TensorType(first.shape, dtype, scale)


@dataclass(frozen=True, eq=False, kw_only=True)
class Product(Node):
    """Element-wise product, of an image by one position, too; integers: `clamp((a * b * M + 2**(s - 1)) >> s)`."""

    requantization: Requantization | None = None
    arity: ClassVar[int | None] = 2

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The first input's shape; the second has the same, or `(1, 1, C)`."""
        first, second = inputs
        fits = second.shape == first.shape or (len(first.shape) == 3 and second.shape == (1, 1, first.channels))
        _require(fits, self.name, f"multiplies shape {first.shape} by {second.shape}; expected the same, or (1, 1, C)")
        dtype, scale = _requantized(self.name, inputs, self.requantization, 1)
        return TensorType(first.shape, dtype, scale)


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(Node):
    """Concatenation of channels (the last axis); integers requantize each input to the common scale."""

    requantization: Requantization | None = None
    arity: ClassVar[int | None] = None

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """`(..., sum of channels)`."""
        places = {source.shape[:-1] for source in inputs}
        _require(len(places) == 1, self.name, f"joins shapes {[source.shape for source in inputs]}")
        dtype, scale = _requantized(self.name, inputs, self.requantization, len(inputs))
        return TensorType((*inputs[0].shape[:-1], sum(source.channels for source in inputs)), dtype, scale)


@dataclass(frozen=True, eq=False, kw_only=True)
class Reshape(Node):
    """Another shape over the same elements in NHWC order; `(features,)` flattens."""

    shape: tuple[int, ...]

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The given shape."""
        (source,) = inputs
        _require(len(self.shape) in (1, 3), self.name, f"asks for shape {self.shape}; expected 1 or 3 axes")
        _require(prod(self.shape) == source.size, self.name, f"reshapes {source.shape} to {self.shape}")
        return TensorType(self.shape, source.dtype, source.scale)


@dataclass(frozen=True, eq=False, kw_only=True)
class Dequantize(Node):
    """Output scaling: `float32(x * scale)`, computed in double and rounded once; scale float64 `[1]` or `[C]`."""

    scale: NDArray[np.float64]

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The input's shape, float32."""
        (source,) = inputs
        _require(source.is_integer, self.name, "reads float32, which has no scale")
        per_channel = self.scale.shape == (source.channels,)
        _check_array(self.name, "scale", self.scale, np.float64, (source.channels,) if per_channel else (1,))
        _check_range(self.name, "scale", self.scale)
        return TensorType(source.shape, "float32")


@dataclass(frozen=True, eq=False, kw_only=True)
class Quantize(Node):
    """Integers of float32 within a network: `q = clamp(rint(x * inv_scale))`, as of an input; NaN gives the least."""

    dtype: Literal["uint8", "int8"]
    scale: float

    @property
    def inv_scale(self) -> np.float32:
        """The one float32 factor that quantizes."""
        factor: np.float32 = np.float32(1.0 / self.scale)
        return factor

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The input's shape, of the given type."""
        (source,) = inputs
        _require(self.dtype in MAGNITUDE, self.name, f"quantizes to {self.dtype!r}; expected 'uint8' or 'int8'")
        _require(source.dtype == "float32", self.name, f"reads {source.dtype}; expected float32")
        _check_scale(self.name, self.scale)
        return TensorType(source.shape, self.dtype, self.scale)


@dataclass(frozen=True, eq=False, kw_only=True)
class Softmax(Node):
    """Softmax over the last axis, float32."""

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The input's type."""
        (source,) = inputs
        return _float(self.name, source, "softmax")


@dataclass(frozen=True, eq=False, kw_only=True)
class Gelu(Node):
    """`x * Phi(x)` in float32, Phi the normal distribution; approximate: by erf ("none") or by tanh."""

    approximate: Literal["none", "tanh"] = "none"

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The input's type."""
        (source,) = inputs
        _require(self.approximate in ("none", "tanh"), self.name, f"is approximated by {self.approximate!r}")
        return _float(self.name, source, "GELU")


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerNorm(Node):
    """`(x - mean) / sqrt(variance + epsilon) * scale[c] + shift[c]` over the channels of each position, float32."""

    scale: NDArray[np.float32]
    shift: NDArray[np.float32]
    epsilon: float = 1e-5

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The input's type."""
        (source,) = inputs
        _check_array(self.name, "scale", self.scale, np.float32, (source.channels,))
        _check_array(self.name, "shift", self.shift, np.float32, (source.channels,))
        _require(0 < self.epsilon < 1, self.name, f"has epsilon {self.epsilon}; expected between 0 and 1")
        return _float(self.name, source, "layer normalization")


@dataclass(frozen=True, eq=False, kw_only=True)
class LocalResponseNorm(Node):
    """`x / (bias + alpha / size * squares)**beta` in float32 (Krizhevsky, Sutskever and Hinton 2012, section 3.3).

    squares: sum of x**2 over the `size` channels around each, those that there are; size is odd.
    """

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The input's type."""
        (source,) = inputs
        odd = 1 <= self.size < 2**15 and self.size % 2 == 1
        _require(odd, self.name, f"sums over {self.size} channels; expected an odd number below {2**15}")
        # Then the power is a normal double for every float32.
        sane = 0 <= self.alpha <= 1e6 and 0 <= self.beta <= 4 and 1e-6 <= self.bias <= 1e6
        given = f"alpha {self.alpha}, beta {self.beta}, bias {self.bias}"
        _require(sane, self.name, f"has {given}; expected 0 to 1e6, 0 to 4 and 1e-6 to 1e6")
        return _float(self.name, source, "local response normalization")


@dataclass(frozen=True, eq=False, kw_only=True)
class MatMul(Node):
    """Product of activations: for each row of the images, matrices `(W, C) @ (C, O)`, float32.

    The first input is `(H, W, C)`; the second is `(H, C, O)`, or `(H, O, C)` if `transposed`.
    """

    transposed: bool = False
    arity: ClassVar[int | None] = 2

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """`(H, W, O)`."""
        first, second = (_float(self.name, source, "a product of activations") for source in inputs)
        images = len(first.shape) == len(second.shape) == 3
        _require(images, self.name, f"multiplies shapes {first.shape} and {second.shape}; expected (H, W, C) of both")
        height, depth, columns = second.shape
        depth, columns = (columns, depth) if self.transposed else (depth, columns)
        fits = (height, depth) == (first.shape[0], first.channels)
        _require(fits, self.name, f"multiplies shapes {first.shape} and {second.shape}, which do not fit")
        return TensorType((height, first.shape[1], columns), "float32")


@dataclass(frozen=True, eq=False, kw_only=True)
class Transpose(Node):
    """The axes of an image in another order: axis i of the result is axis `axes[i]` of the input."""

    axes: tuple[int, int, int]

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The same type, in another shape."""
        (source,) = inputs
        _require(len(source.shape) == 3, self.name, f"reads shape {source.shape}; expected (H, W, C)")
        _require(sorted(self.axes) == [0, 1, 2], self.name, f"orders axes as {self.axes}; expected each of 0, 1, 2")
        return TensorType(tuple(source.shape[axis] for axis in self.axes), source.dtype, source.scale)


#: Every operation by the name that files and reports use.
OPERATIONS: Mapping[str, type[Node]] = {
    "input": Input,
    "conv2d": Conv2d,
    "linear": Linear,
    "affine": Affine,
    "relu": Relu,
    "clip": Clip,
    "kwta": KWTA,
    "max_pool": MaxPool,
    "average_pool": AveragePool,
    "add": Add,
    "concat": Concat,
    "reshape": Reshape,
    "dequantize": Dequantize,
    "softmax": Softmax,
    "gelu": Gelu,
    "layer_norm": LayerNorm,
    "matmul": MatMul,
    "transpose": Transpose,
    "local_response_norm": LocalResponseNorm,
    "quantize": Quantize,
    "activation": Activation,
    "product": Product,
}
OPERATION_NAMES: Mapping[type[Node], str] = {kind: name for name, kind in OPERATIONS.items()}


@dataclass(frozen=True, eq=False)
class Graph:
    """A checked network: nodes in topological order, the input first, the output last.

    layout: how the source model, and so the caller, orders the axes of images; "NWC" are sequences and "NCW" signals,
    images of height 1 without that axis. Raises GraphError when built if anything is out of order, out of range, or
    does not fit together.
    """

    nodes: tuple[Node, ...]
    layout: Layout = "NHWC"
    types: Mapping[str, TensorType] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "types", _infer_types(self.nodes))
        _require(self.layout in tuple(_OUTSIDE), "graph", f"has layout {self.layout!r}; expected {', '.join(_OUTSIDE)}")
        ends = self.input.shape, self.output_type.shape
        flat = self.layout not in _FLAT or all(len(shape) == 1 or shape[0] == 1 for shape in ends)
        _require(flat, "graph", f"has layout {self.layout} for shapes {ends}; expected a height of 1")

    @property
    def input(self) -> Input:
        """The input node."""
        node = self.nodes[0]
        assert isinstance(node, Input)
        return node

    @property
    def output(self) -> Node:
        """The node whose tensor is the result."""
        return self.nodes[-1]

    @property
    def output_type(self) -> TensorType:
        """Type of the result."""
        return self.types[self.output.name]

    @cached_property
    def readers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read each tensor."""
        found: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name].append(node)
        return {name: tuple(readers) for name, readers in found.items()}

    def input_types(self, node: Node) -> tuple[TensorType, ...]:
        """The types that a node reads."""
        return tuple(self.types[name] for name in node.inputs)

    def outside(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape of one sample as the caller orders its axes."""
        if len(shape) == 1:
            return shape
        ordered = tuple(shape[axis - 1] for axis in _OUTSIDE[self.layout][1:])
        return ordered[1:] if self.layout in _FLAT else ordered

    def keeps_order(self, shape: tuple[int, ...]) -> bool:
        """Whether the values of a sample (its shape here) follow each other in memory as the caller has them."""
        return self.layout not in ("NCHW", "NCW") or len(shape) == 1 or shape[2] == 1 or shape[:2] == (1, 1)

    def from_caller(self, x: NDArray[Any]) -> NDArray[Any]:
        """A batch of inputs in the caller's order of axes, in NHWC and contiguous."""
        image: NDArray[Any] = x[:, None] if self.layout in _FLAT and x.ndim == 3 else x
        inside = image.transpose(_INSIDE[self.layout]) if image.ndim == 4 else image
        return np.ascontiguousarray(inside).reshape(len(x), *self.input.shape)

    def to_caller(self, y: NDArray[Any]) -> NDArray[Any]:
        """A batch of results `[B, ...]` in the caller's order of axes."""
        outside = y.transpose(_OUTSIDE[self.layout]) if y.ndim == 4 else y
        return outside.reshape(len(y), *self.outside(y.shape[1:]))


def _infer_types(nodes: Sequence[Node]) -> dict[str, TensorType]:
    """Type of every tensor; checks order, names and arity on the way."""
    _require(len(nodes) >= 1 and isinstance(nodes[0], Input), "graph", "must begin with its input")
    types: dict[str, TensorType] = {}
    for position, node in enumerate(nodes):
        _require(type(node) in OPERATION_NAMES, node.name, f"is of unknown kind {type(node).__name__}")
        named = bool(node.name) and node.name.isprintable() and node.name not in types
        _require(named, repr(node.name), "is a name that is empty, not printable, or taken")
        _require(position == 0 or not isinstance(node, Input), node.name, "is a second input; expected one")
        count = len(node.inputs)
        fits = count == node.arity if node.arity is not None else 1 <= count <= MAX_OPERANDS
        wanted = f"1 to {MAX_OPERANDS}" if node.arity is None else node.arity
        _require(fits, node.name, f"reads {count} tensors; expected {wanted}")
        for name in node.inputs:
            _require(name in types, node.name, f"reads {name!r}, which no earlier node produces")
        result = node.infer([types[name] for name in node.inputs])
        _check_size(node.name, result.shape)
        types[node.name] = result
    return types


def _require(condition: bool, owner: str, message: str) -> None:
    if not condition:
        raise GraphError(f"{owner}: {message}")


def _check_array(owner: str, what: str, array: object, dtype: object, shape: tuple[int, ...]) -> None:
    """Raise GraphError unless this is an array of that type and shape, finite throughout."""
    wanted = np.dtype(dtype)  # type: ignore[call-overload]
    _require(isinstance(array, np.ndarray), owner, f"has a {what} that is no array")
    assert isinstance(array, np.ndarray)
    _require(array.dtype == wanted, owner, f"has a {what} of type {array.dtype}; expected {wanted}")
    _require(array.shape == shape, owner, f"has a {what} of shape {array.shape}; expected {shape}")
    if wanted.kind == "f":
        _require(bool(np.isfinite(array).all()), owner, f"has a {what} that is not finite")


def _check_scale(owner: str, scale: float | None) -> None:
    valid = scale is not None and MIN_SCALE < scale < MAX_SCALE
    _require(valid, owner, f"has scale {scale}; expected a number between {MIN_SCALE} and {MAX_SCALE}")


def _check_range(owner: str, what: str, values: NDArray[Any]) -> None:
    valid = bool(((values > MIN_SCALE) & (values < MAX_SCALE)).all())
    _require(valid, owner, f"has a {what} that is not between {MIN_SCALE} and {MAX_SCALE}")


def _check_size(owner: str, shape: tuple[int, ...]) -> None:
    sane = all(1 <= extent <= MAX_ELEMENTS for extent in shape) and prod(shape) <= MAX_ELEMENTS
    _require(sane, owner, f"has shape {shape}; expected 1 to {MAX_ELEMENTS} elements")


def _check_is_matrix(owner: str, weight: Weight) -> None:
    """Raise GraphError unless this has rows and kernels, and neither is beyond what an array could hold."""
    is_matrix = isinstance(weight, PackedMatrix) or (isinstance(weight, np.ndarray) and weight.ndim == 2)
    _require(is_matrix, owner, "has a weight that is no matrix; expected [inputs of one kernel, kernels]")
    shape = (weight.rows, weight.kernels) if isinstance(weight, PackedMatrix) else weight.shape
    _check_size(f"{owner}, weight", shape)


def _check_packed(owner: str, weight: PackedMatrix) -> None:
    """Raise GraphError unless this means one matrix, in blocks that do not dwarf it."""
    try:
        validate(weight)
    except PackingError as error:
        raise GraphError(f"{owner}: {error}") from error
    (u, v), blocks = weight.block, (weight.row_blocks, weight.kernel_blocks)
    _check_size(f"{owner}, padded weight", (blocks[0] * u, blocks[1] * v))


def _column_magnitudes(weight: Weight) -> NDArray[np.int64]:
    """Sum of |w| of every kernel (and of those that fill the last kernel block, 0)."""
    if not isinstance(weight, PackedMatrix):
        return np.asarray(np.abs(weight.astype(np.int16)).sum(axis=0, dtype=np.int64))
    row, t = np.nonzero(weight.kid != NOBODY)
    total = np.zeros((weight.kernel_blocks, weight.block[1]), np.int64)
    blocks = np.abs(weight.weights[row, t].astype(np.int16)).sum(axis=2, dtype=np.int64)
    np.add.at(total, weight.members[t, weight.kid[row, t]], blocks)
    return total.reshape(-1)


def _float(owner: str, source: TensorType, what: str) -> TensorType:
    _require(source.dtype == "float32", owner, f"reads {source.dtype}; {what} is float32: dequantize first")
    return source


def _activation(owner: str, source: TensorType) -> TensorType:
    _require(source.dtype != "int32", owner, "reads accumulators; requantize them first")
    return source


def _requantized(
    owner: str,
    inputs: Sequence[TensorType],
    requantization: Requantization | None,
    multipliers: int,
    shifts: int | None = None,
) -> tuple[DType, float | None]:
    """Result type of an operation that must requantize integers and must not requantize floats."""
    floats = [_activation(owner, source).dtype == "float32" for source in inputs]
    _require(all(floats) or not any(floats), owner, "mixes integers and float32; expected one of them")
    if all(floats):
        _require(requantization is None, owner, "is float32 and cannot be requantized")
        return "float32", None
    _require(requantization is not None, owner, "reads integers and needs a requantization")
    assert requantization is not None
    requantization.check(owner, multipliers, shifts)
    return requantization.dtype, requantization.scale


def _window_count(
    owner: str,
    source: TensorType,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
) -> tuple[int, int]:
    """How many windows fit along each axis."""
    _require(len(source.shape) == 3, owner, f"reads shape {source.shape}; expected (H, W, C)")
    top, left, bottom, right = padding
    _require(min(kernel) >= 1 and min(stride) >= 1, owner, f"has kernel {kernel}, stride {stride}; expected >= 1")
    _require(min(padding) >= 0, owner, f"has padding {padding}; expected >= 0")
    _require(max(*kernel, *stride, *padding) <= 2**15, owner, "has a window larger than 2**15")
    padded = source.shape[0] + top + bottom, source.shape[1] + left + right
    _check_size(f"{owner}, padded input", (*padded, source.channels))
    height, width = ((n - k) // step + 1 for n, k, step in zip(padded, kernel, stride, strict=True))
    _require(height >= 1 and width >= 1, owner, f"has a window {kernel} larger than its padded input {source.shape}")
    return height, width


def _check_padding_is_partial(owner: str, kernel: tuple[int, int], padding: tuple[int, int, int, int]) -> None:
    """Every pooling window must see at least one real element."""
    partial = max(padding[0], padding[2]) < kernel[0] and max(padding[1], padding[3]) < kernel[1]
    _require(partial, owner, f"pools {kernel} with padding {padding}; expected padding smaller than the window")
