"""The compiled kernels of the Numba backend: the paper's steps as loops.

**Combine** happened offline (`csengine.packing`). A layer with weights then runs as

    select     list the active (non-zero) inputs of each line of the image, in order
    multiply   an active input with the weights stored in its row
    route      each product to the kernel that owns it
    sum        one total per kernel

The modes differ in what they leave out. Without activation sparsity, all inputs are listed. With dense weights nothing
is routed, because every kernel owns every row:

    |               | dense weights  | packed weights                                   |
    |---------------|----------------|--------------------------------------------------|
    | all inputs    | dense          | packed_select after select_all, or packed_planes |
    | active inputs | dense_select   | packed_select                                    |

A linear layer is a 1 x 1 convolution over an image whose pixels are the samples of the batch.

Three facts make plain loops fast:

* LLVM keeps a small array in registers if nobody else knows its address and if it sees every access. `_registers` makes
  such arrays of 64 sums (`PANEL`), with which the inner loop of `dense` is two fused multiply-adds per 8 weights, and
  nothing else.
* float32 is exact for integers up to 2**24 and multiplies faster than int32. Whoever calls these kernels proves that no
  sum of an integer layer leaves that range and passes weights and bias as float32, or else as int8 and int32. Sums have
  the type of the bias.
* Requantization never decreases, so a layer with a max-pool behind it pools its sums, and requantizes only the largest.

All kernels are in this one file, because Numba's cache notices an edit only of the file that a kernel is in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import FunctionType
from typing import Any, ClassVar, TypeAlias, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import njit, prange
from numba.core import types
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
_Function = TypeVar("_Function", bound=Callable[..., Any])

PANEL = 64
"""Kernels (or positions) that are summed at once, in registers."""

BLOCK = 8
"""Kernels that a packed block is cut into: the sums of one AVX register."""

FEW_BLOCKS = 4
"""With at most so many blocks in a row, the long loop is over the inputs; else over the blocks, in memory's order."""

# "contract" lets a multiplication and an addition become one instruction; NaN and infinity keep their meaning.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def _inlined(function: _Function) -> _Function:
    """Compile a step of a kernel as a part of the kernel."""
    return cast(_Function, njit(function, forceinline=True, **_OPTIONS))


def _operation(typed: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose LLVM instructions are written by hand; it is called without `typing_context`."""
    return cast("Callable[..., Any]", intrinsic(prefer_literal=True)(typed))


class Kernel:
    """A function compiled on first use, in two forms: for one thread, where `prange` is a plain loop that needs no
    thread pool and survives a fork, and for many.

    Compiled code is kept on disk where Numba finds a directory that it can write; where it does not, and after
    `forget`, it lives as long as the process.
    """

    _all: ClassVar[list[Kernel]] = []
    _is_cached: ClassVar[bool] = True

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._forms: dict[bool, Callable[..., Any]] = {}
        self._all.append(self)

    def form(self, parallel: bool) -> Callable[..., Any]:
        """The function that runs; it compiles itself for the types of its first arguments."""
        if parallel not in self._forms:
            self._forms[parallel] = self._build(parallel)
        return self._forms[parallel]

    def _build(self, parallel: bool) -> Callable[..., Any]:
        function = cast(FunctionType, self.function)
        if parallel:  # under a name of its own, by which the cache tells the forms apart
            function = FunctionType(function.__code__, function.__globals__, f"{function.__name__}_parallel")
            function.__qualname__ = function.__name__
            function.__module__ = self.function.__module__
        if self._is_cached:
            try:
                return cast("Callable[..., Any]", njit(function, cache=True, parallel=parallel, **_OPTIONS))
            except RuntimeError:  # no directory to write to
                pass
        return cast("Callable[..., Any]", njit(function, parallel=parallel, **_OPTIONS))

    @classmethod
    def forget(cls) -> None:
        """Use no cache from now on: it turned out to be damaged, or its disk to be full."""
        cls._is_cached = False
        for kernel in cls._all:
            kernel._forms.clear()


# --- vectors ---------------------------------------------------------------------------------------------------------
# Numba has no type for what a vector register holds, and LLVM finds vectors only in loops that it understands. So here
# is one: a fixed number of lanes, as many registers as they need, and the few operations that the kernels below name.


class _Vector(types.Type):
    """Lanes of an array's element type."""

    def __init__(self, dtype: Any, lanes: int) -> None:
        super().__init__(name=f"Vector({dtype}, {lanes})")
        self.dtype, self.lanes = dtype, lanes


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(manager.lookup(kind.dtype).get_value_type(), kind.lanes))  # type: ignore[no-untyped-call]


def _lanes_in_memory(context: Any, builder: Any, kind: Any, arguments: Any, lanes: int) -> tuple[Any, int]:
    """Where the lanes from a place in an array on are, and how its elements are aligned; no bound is checked."""
    array, place = arguments[:2]
    element = context.get_value_type(kind.dtype)
    first = builder.gep(context.make_array(kind)(context, builder, array).data, [place])
    return builder.bitcast(first, ir.VectorType(element, lanes).as_pointer()), context.get_abi_sizeof(element)


def _all_lanes(builder: Any, value: Any, lanes: int) -> Any:
    """A vector whose lanes all hold a value."""
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


@_operation
def _zeros(typing_context: Any, like: Any, lanes: Any) -> Any:
    """Zeros of the type of array `like`."""
    kind = _Vector(like.dtype, lanes.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant_null(kind)

    return kind(like, lanes), generate


@_operation
def _load(typing_context: Any, array: Any, place: Any, lanes: Any) -> Any:
    """`array[place : place + lanes]`."""
    kind = _Vector(array.dtype, lanes.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, align = _lanes_in_memory(context, builder, array, arguments, kind.lanes)
        return builder.load(pointer, align=align)

    return kind(array, types.intp, lanes), generate


@_operation
def _store(typing_context: Any, array: Any, place: Any, vector: Any) -> Any:
    """`array[place : place + lanes] = vector`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, align = _lanes_in_memory(context, builder, array, arguments, vector.lanes)
        builder.store(arguments[2], pointer, align=align)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@_operation
def _add_products(typing_context: Any, sums: Any, x: Any, weights: Any) -> Any:
    """`sums + x * weights` in the type of the sums, x being a number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, factor, row = arguments
        factors = _all_lanes(builder, context.cast(builder, factor, x, sums.dtype), sums.lanes)
        if isinstance(sums.dtype, types.Float):
            products = builder.fmul(factors, row, flags=("contract",))
            return builder.fadd(total, products, flags=("contract",))
        return builder.add(total, builder.mul(factors, builder.sext(row, total.type)))

    return sums(sums, x, weights), generate


@_operation
def _larger(typing_context: Any, vector: Any, other: Any) -> Any:
    """Lane by lane, the larger of two."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        is_float = isinstance(vector.dtype, types.Float)
        compare = builder.fcmp_ordered if is_float else builder.icmp_signed
        return builder.select(compare(">", *arguments), *arguments)

    return vector(vector, other), generate


@_operation
def _active_lanes(typing_context: Any, vector: Any) -> Any:
    """The lanes that are not zero, as the bits of a number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        compare = builder.fcmp_unordered if isinstance(vector.dtype, types.Float) else builder.icmp_unsigned
        active = compare("!=", arguments[0], context.get_constant_null(vector))
        return builder.bitcast(active, ir.IntType(vector.lanes))

    return types.uint64(vector), generate


@_operation
def _reaching(typing_context: Any, vector: Any, threshold: Any) -> Any:
    """The lanes, of unsigned numbers, that are not below a threshold, as the bits of a number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        reached = builder.icmp_unsigned(">=", arguments[0], _all_lanes(builder, arguments[1], vector.lanes))
        return builder.bitcast(reached, ir.IntType(vector.lanes))

    return types.uint64(vector, vector.dtype), generate


@_operation
def _first_lane(typing_context: Any, lanes: Any) -> Any:
    """The first of some lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.intp(lanes), generate


@_operation
def _count_lanes(typing_context: Any, lanes: Any) -> Any:
    """How many lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.intp(lanes), generate


# --- the way out of the sums -----------------------------------------------------------------------------------------


@_inlined
def _requantize(acc: Any, ratio: Any, limits: tuple[Any, Any]) -> Any:
    """`clamp((acc * M + 2**(s - 1)) >> s)` for ratio = M / 2**s, as `floor(acc * ratio + 1 / 2)` in double.

    That is exact: |acc| < 2**31 and M < 2**16, so every value on the way is fewer than 2**48 times 2**-s.
    """
    return min(max(np.floor(np.float64(acc) * ratio + 0.5), limits[0]), limits[1])


@_inlined
def _limits(out: Array) -> tuple[Any, Any]:
    """The range of an integer array's type, as doubles."""
    return np.float64(np.iinfo(out.dtype).min), np.float64(np.iinfo(out.dtype).max)


@_inlined
def _no_sums(lines: int, columns: int, like: Array) -> Array:
    """Zeros `[lines, columns, PANEL or a multiple]` for the sums of windows, as many in each as array `like` has."""
    return np.zeros((lines, columns, -(-like.size // PANEL) * PANEL), like.dtype)


@_inlined
def _leave(sums: Array, bias: Array, ratio: Array | None, out: Array, first: int) -> None:
    """Sums `[lines, columns, n]` of kernel `first` and those after it leave to out `[places, O]`.

    A place is the largest of all lines and of its share of the columns. bias: `[n]`. ratio: float64 `[O]` to
    requantize, or None.
    """
    pool_width = sums.shape[1] // out.shape[0]
    best = np.empty(sums.shape[2], sums.dtype)
    for place in range(out.shape[0]):
        _pool(sums[:, place * pool_width : (place + 1) * pool_width], best)
        results = out[place, first : first + bias.size]
        if ratio is None:
            for lane in range(results.size):
                results[lane] = best[lane] + bias[lane]
        else:
            ratios, limits = ratio[first : first + bias.size], _limits(out)
            for lane in range(results.size):
                results[lane] = _requantize(best[lane] + bias[lane], ratios[lane], limits)


@_inlined
def _pool(sums: Array, best: Array) -> None:
    """The largest sums `[n]` of a pooling window `[lines, columns, n]`."""
    for lane in range(0, best.size, PANEL):
        largest = _load(sums[0, 0], lane, PANEL)
        for y in range(sums.shape[0]):
            for x in range(sums.shape[1]):
                largest = _larger(largest, _load(sums[y, x], lane, PANEL))
        _store(best, lane, largest)


# --- select ----------------------------------------------------------------------------------------------------------


@Kernel
def select(x: Array, index: Array, value: Array, start: Array) -> None:
    """Select: the active inputs of every line of an image.

    x: `[lines, W, C]`. Writes, per line, their places in the line (column * C + channel) to index `[lines, W * C]`,
    their values to value `[lines, W * C]`, and where each column begins to start `[lines, W + 1]`.
    """
    lines, width, channels = x.shape
    for line in prange(lines):
        count = 0
        for column in range(width):
            start[line, column] = count
            whole = channels // PANEL * PANEL
            for first in range(0, whole, PANEL):
                active = _active_lanes(_load(x[line, column], first, PANEL))
                while active != 0:
                    channel = first + _first_lane(active)
                    index[line, count] = column * channels + channel
                    value[line, count] = x[line, column, channel]
                    count += 1
                    active &= active - np.uint64(1)
            for channel in range(whole, channels):  # without a branch, which would often be mispredicted
                index[line, count] = column * channels + channel
                value[line, count] = x[line, column, channel]
                count += x[line, column, channel] != 0
        start[line, width] = count


@Kernel
def select_all(x: Array, index: Array, value: Array, start: Array) -> None:
    """What `select` writes when every input counts as active: the sparse-dense mode."""
    lines, width, channels = x.shape
    for line in prange(lines):
        for column in range(width):
            start[line, column] = column * channels
            for channel in range(channels):
                index[line, column * channels + channel] = column * channels + channel
                value[line, column * channels + channel] = x[line, column, channel]
        start[line, width] = width * channels


# --- dense weights ---------------------------------------------------------------------------------------------------


@Kernel
def dense(x: Array, panels: Array, bias: Array, ratio: Array | None, window: tuple[int, ...], out: Array) -> None:
    """Dense mode: every input times every weight; 64 kernels at two neighbouring windows at a time.

    x: `[images, H, W * C]`, padded. panels: weights `[panels, kernel height, kernel width * C, 64]`, int8 or float32.
    bias: `[panels, 64]`, int32 or float32. ratio: float64 `[O]`, or None. window: steps down (lines) and right
    (elements) from window to window; height and width of the pooling. out: `[images, H', W', O]`.
    """
    down, right, pool_height, pool_width = window
    images, height, width, _ = out.shape
    columns = width * pool_width
    for item in prange(panels.shape[0] * images * height):
        panel, image, row = item // height // images, item // height % images, item % height
        weights = panels[panel]
        sums = _no_sums(pool_height, columns, bias[panel])
        for y in range(pool_height):
            lines = x[image, (row * pool_height + y) * down :]
            for column in range(0, columns - 1, 2):
                _multiply_pair(lines, column * right, right, weights, sums[y, column], sums[y, column + 1])
            if columns % 2:
                _multiply(lines, (columns - 1) * right, weights, sums[y, columns - 1])
        _leave(sums, bias[panel], ratio, out[image, row], panel * PANEL)


@_inlined
def _multiply_pair(lines: Array, first: int, right: int, weights: Array, sums: Array, sums_right: Array) -> None:
    """Sums of 64 kernels at two windows, from element `first` and `first + right` on; a weight read serves both."""
    total, total_right = _zeros(sums, PANEL), _zeros(sums, PANEL)
    for tap in range(weights.shape[0]):
        inputs, inputs_right = lines[tap, first:], lines[tap, first + right :]
        for i in range(weights.shape[1]):
            row = _load(weights[tap, i], 0, PANEL)
            total = _add_products(total, inputs[i], row)
            total_right = _add_products(total_right, inputs_right[i], row)
    _store(sums, 0, total)
    _store(sums_right, 0, total_right)


@_inlined
def _multiply(lines: Array, first: int, weights: Array, sums: Array) -> None:
    """Sums of 64 kernels at the window from element `first` of the lines on."""
    total = _zeros(sums, PANEL)
    for tap in range(weights.shape[0]):
        inputs = lines[tap, first:]
        for i in range(weights.shape[1]):
            total = _add_products(total, inputs[i], _load(weights[tap, i], 0, PANEL))
    _store(sums, 0, total)


@Kernel
def dense_select(
    lists: tuple[Array, Array, Array],
    panels: Array,
    bias: Array,
    ratio: Array | None,
    window: tuple[int, ...],
    out: Array,
) -> None:
    """Sparse activations, dense weights: only the rows of active inputs are read, 64 kernels at a time.

    lists: index, value and start, as `select` wrote them. panels: `[panels, R, 64]`. window: kernel height and width,
    channels, steps down and right in pixels, height and width of the pooling. Otherwise as `dense`.
    """
    _, _, _, down, _, pool_height, pool_width = window
    images, height, width, _ = out.shape
    lines = lists[0].shape[0] // images
    for item in prange(panels.shape[0] * images * height):
        panel, image, row = item // height // images, item // height % images, item % height
        weights = panels[panel]
        sums = _no_sums(pool_height, width * pool_width, bias[panel])
        for y in range(pool_height):
            top = image * lines + (row * pool_height + y) * down
            for column in range(width * pool_width):
                _multiply_active(lists, top, column, window, weights, sums[y, column])
        _leave(sums, bias[panel], ratio, out[image, row], panel * PANEL)


@_inlined
def _multiply_active(
    lists: tuple[Array, Array, Array],
    top: int,
    column: int,
    window: tuple[int, ...],
    weights: Array,
    sums: Array,
) -> None:
    """Multiply the active inputs of one window with their rows of 64 weights each."""
    index, value, start = lists
    taps, tap_width, channels, _, right, _, _ = window
    total = _zeros(sums, PANEL)
    for tap in range(taps):
        line = top + tap
        # a line's active inputs are in order, so those inside the window are one stretch
        to_row = tap * tap_width * channels - column * right * channels
        begin, end = start[line, column * right], start[line, column * right + tap_width]
        indices, values = index[line, begin:end], value[line, begin:end]
        for n in range(indices.size):
            row = np.uintp(indices[n] + to_row)
            total = _add_products(total, values[n], _load(weights[row], 0, PANEL))
    _store(sums, 0, total)


# --- packed weights --------------------------------------------------------------------------------------------------


@Kernel
def packed_select(
    lists: tuple[Array, Array, Array],
    weights: Array,
    route: Array,
    bias: Array,
    ratio: Array | None,
    window: tuple[int, ...],
    out: Array,
) -> None:
    """Sparse-sparse: multiply the active inputs with the packed weights of their rows, route the products, sum.

    lists: index, value and start, as `select` wrote them. weights: `[R, blocks, BLOCK or 1]`, int8 or float32: what a
    row holds of each packed set, in blocks of neighbouring kernels. route: uint32 `[R, blocks]`, the first of the
    kernels that own a block; spare kernels after the last take what nobody owns. bias: `[kernels and the spare ones]`,
    int32 or float32. window: as for `dense_select`.
    """
    _, _, _, down, _, pool_height, pool_width = window
    images, height, width, _ = out.shape
    lines = lists[0].shape[0] // images
    for item in prange(images * height):
        image, row = item // height, item % height
        sums = _no_sums(pool_height, width * pool_width, bias)
        for y in range(pool_height):
            top = image * lines + (row * pool_height + y) * down
            for column in range(width * pool_width):
                _multiply_route_sum(lists, top, column, window, weights, route, sums[y, column])
        _leave(sums, bias, ratio, out[image, row], 0)


@_inlined
def _multiply_route_sum(
    lists: tuple[Array, Array, Array],
    top: int,
    column: int,
    window: tuple[int, ...],
    weights: Array,
    route: Array,
    sums: Array,
) -> None:
    """Multiply, route and sum the active inputs of one window."""
    index, value, start = lists
    taps, tap_width, channels, _, right, _, _ = window
    for tap in range(taps):
        line = top + tap
        to_row = tap * tap_width * channels - column * right * channels
        begin, end = start[line, column * right], start[line, column * right + tap_width]
        indices, values = index[line, begin:end], value[line, begin:end]
        if weights.shape[1] <= FEW_BLOCKS:
            for block in range(weights.shape[1]):
                for n in range(indices.size):
                    _multiply_block(values[n], np.uintp(indices[n] + to_row), block, weights, route, sums)
        else:
            for n in range(indices.size):
                x, row = values[n], np.uintp(indices[n] + to_row)
                for block in range(weights.shape[1]):
                    _multiply_block(x, row, block, weights, route, sums)


@_inlined
def _multiply_block(x: Any, row: Any, block: int, weights: Array, route: Array, sums: Array) -> None:
    """An active input times one block of its row; the products go to the kernels that own the block."""
    kernel = route[row, block]
    if weights.shape[2] == 1:
        sums[kernel] += x * weights[row, block, 0]
    else:
        _store(sums, kernel, _add_products(_load(sums, kernel, BLOCK), x, _load(weights[row, block], 0, BLOCK)))


@Kernel
def spread(x: Array, planes: Array, window: tuple[int, ...]) -> None:
    """Lay an image out for `packed_planes`: channel by channel, so that neighbours are neighbours in memory.

    x: `[images, H, W, C]`. planes: `[images, C * phases or more, size]`, zero where there is padding. With a stride,
    every stride-th pixel is a neighbour, and each of the stride * stride phases has a plane. window: stride down and
    right, padding at the top and left, pixels from one line of a plane to the next.
    """
    down, right, top, left, pitch = window
    images, height, width, channels = x.shape
    for item in prange(images * height):
        image, row = item // height, item % height
        y = row + top
        for column in range(width):
            z = column + left
            phase = y % down * right + z % right
            place = y // down * pitch + z // right
            for channel in range(channels):
                planes[image, channel * down * right + phase, place] = x[image, row, column, channel]


@Kernel
def packed_planes(
    planes: Array,
    offset: Array,
    weights: Array,
    first: Array,
    bias: Array,
    ratio: Array | None,
    window: tuple[int, ...],
    out: Array,
) -> None:
    """Sparse-dense convolution: each weight of a kernel times 64 neighbouring positions at a time.

    Nothing is routed: Combine was undone at load, into one list per kernel, `first[o]` to `first[o + 1]`, of weights
    and of the offsets (uint64) of what they multiply in planes `[images, n]`, as `spread` wrote them. window: lines of
    positions, distance of two lines, height and width of the pooling. out: `[images, H', W', O]`.
    """
    lines, pitch, pool_height, pool_width = window
    images, height, width, kernels = out.shape
    for item in prange(images * kernels):
        image, kernel = item // kernels, item % kernels
        inputs = planes[image]
        sums = np.empty(lines * pitch + PANEL, planes.dtype)
        for position in range(0, lines * pitch, PANEL):
            _multiply_positions(inputs, offset, weights, first[kernel], first[kernel + 1], sums, np.uint64(position))
        for row in range(height):
            for column in range(width):
                place = row * pool_height * pitch + column * pool_width
                best = sums[place]
                for y in range(pool_height):
                    for z in range(pool_width):
                        best = max(best, sums[place + y * pitch + z])
                acc = best + bias[kernel]
                if ratio is None:
                    out[image, row, column, kernel] = acc
                else:
                    out[image, row, column, kernel] = _requantize(acc, ratio[kernel], _limits(out))


@_inlined
def _multiply_positions(
    inputs: Array, offset: Array, weights: Array, begin: int, end: int, sums: Array, position: Any
) -> None:
    """Sums of one kernel at 64 positions."""
    lanes = _zeros(sums, PANEL)
    for n in range(begin, end):
        lanes = _add_products(lanes, weights[n], _load(inputs, offset[n] + position, PANEL))
    _store(sums, position, lanes)


# --- grouped convolution ---------------------------------------------------------------------------------------------


@Kernel
def grouped(x: Array, weights: Array, bias: Array, ratio: Array | None, window: tuple[int, ...], out: Array) -> None:
    """Grouped and depthwise convolution, always dense: neighbouring groups at a time.

    x: `[images, H, W * C]`, padded. weights: `[kernel height, kernel width, D, M, groups]` for D inputs and M kernels
    of each group. bias: `[M, groups]`. window: steps down (lines) and right (columns). out: `[images, H', W', O]`.
    """
    down, right = window
    images, height, width, _ = out.shape
    taps, tap_width, depth, members, groups = weights.shape
    channels = depth * groups
    for item in prange(images * height):
        image, row = item // height, item % height
        sums = np.empty_like(bias)
        for column in range(width):
            sums[:] = bias
            for tap in range(taps * tap_width):
                y, z = tap // tap_width, tap % tap_width
                values = x[image, row * down + y, (column * right + z) * channels :]
                for d in range(depth):
                    for member in range(members):
                        for group in range(groups):
                            sums[member, group] += values[group * depth + d] * weights[y, z, d, member, group]
            for member in range(members):
                for group in range(groups):
                    kernel = group * members + member
                    if ratio is None:
                        out[image, row, column, kernel] = sums[member, group]
                    else:
                        result = _requantize(sums[member, group], ratio[kernel], _limits(out))
                        out[image, row, column, kernel] = result


# --- k winners take all ----------------------------------------------------------------------------------------------


@Kernel
def kwta(x: Array, factor: Array | None, k: int, keys: Array, out: Array) -> None:
    """Exactly k winners per scope, by (value descending, index ascending); losers become 0.

    x, out: `[items, scopes, n]`. factor: float32 `[n]`, or None. k: less than n. keys: room for `[items, n]` unsigned
    ranking keys, uint8 for 8-bit values without a factor, else uint32.
    """
    for item in prange(x.shape[0]):
        for scope in range(x.shape[1]):
            _rank(x[item, scope], factor, keys[item])
            threshold, reaching = _find_threshold(keys[item], k)
            _pass_winners(x[item, scope], keys[item], threshold, reaching - k, out[item, scope])


@_inlined
def _rank(x: Array, factor: Array | None, keys: Array) -> None:
    """Unsigned keys in the order of the values (times the factor): the larger key wins."""
    if keys.itemsize == 1:
        flip = np.uint8(128 if x.dtype.type(-1) < 0 else 0)  # -128 becomes 0 and 127 becomes 255
        for i in range(keys.size):
            keys[i] = np.uint8(x[i]) ^ flip
    else:
        for i in range(keys.size):
            score = np.float32(x[i]) if factor is None else np.float32(x[i]) * factor[i]
            # as integers, floats are in order when positive and in reverse order when negative
            bits = np.float32(score + np.float32(0)).view(np.uint32)  # + 0: -0 equals 0
            key = bits ^ np.uint32(0xFFFFFFFF if bits >> 31 else 0x80000000)
            keys[i] = np.uint32(0) if np.isnan(score) else key


@_inlined
def _find_threshold(keys: Array, k: int) -> tuple[Any, int]:
    """A threshold that k keys reach, by bisection from the highest bit down; and how many reach it.

    More than k reach it only where equal keys compete for the last places; those equal the threshold.
    """
    threshold, reaching = keys.dtype.type(0), keys.size
    bit = 1 << (8 * keys.itemsize - 1)
    while reaching != k and bit > 0:
        higher = keys.dtype.type(threshold | bit)
        count = _count_reaching(keys, higher)
        if count >= k:
            threshold, reaching = higher, count
        bit >>= 1
    return threshold, reaching


@_inlined
def _count_reaching(keys: Array, threshold: Any) -> int:
    """How many keys are not below a threshold."""
    count, whole = 0, keys.size // PANEL * PANEL
    for first in range(0, whole, PANEL):
        count += _count_lanes(_reaching(_load(keys, first, PANEL), threshold))
    for i in range(whole, keys.size):
        count += keys[i] >= threshold
    return count


@_inlined
def _pass_winners(x: Array, keys: Array, threshold: Any, surplus: int, out: Array) -> None:
    """Pass what reaches the threshold, but for the last `surplus` values that equal it."""
    zero = x.dtype.type(0)
    for i in range(keys.size):
        out[i] = x[i] if keys[i] >= threshold else zero
    i = keys.size
    while surplus > 0:
        i -= 1
        if keys[i] == threshold:
            out[i] = zero
            surplus -= 1


# --- pools -----------------------------------------------------------------------------------------------------------


@Kernel
def max_pool(x: Array, window: tuple[int, ...], out: Array) -> None:
    """Largest of each window inside the image.

    x: `[images, H, W, C]`. window: its height and width, steps down and right, padding at the top and left.
    """
    taps, tap_width, down, right, top, left = window
    images, height, width, channels = out.shape
    for item in prange(images * height):
        image, row = item // height, item % height
        first_y = row * down - top
        for column in range(width):
            first_x = column * right - left
            best = out[image, row, column]
            is_first = True
            for y in range(max(first_y, 0), min(first_y + taps, x.shape[1])):
                for z in range(max(first_x, 0), min(first_x + tap_width, x.shape[2])):
                    values = x[image, y, z]
                    for channel in range(channels):
                        best[channel] = values[channel] if is_first else max(best[channel], values[channel])
                    is_first = False


@Kernel
def average_pool(x: Array, ratio: Array | None, counts: bool, window: tuple[int, ...], out: Array) -> None:
    """Mean of each window as for `max_pool`, of what lies on the image only if padding does not count.

    ratio: float64, one for all, or one for every number of elements on the image, requantizes the sum; or None.
    """
    taps, tap_width, down, right, top, left = window
    images, height, width, channels = out.shape
    for item in prange(images * height):
        image, row = item // height, item % height
        sums = np.empty(channels, np.float64)  # exact for integers, as the sum of a window is below 2**31
        first_y = row * down - top
        for column in range(width):
            first_x = column * right - left
            last_y, last_x = min(first_y + taps, x.shape[1]), min(first_x + tap_width, x.shape[2])
            inside = (last_y - max(first_y, 0)) * (last_x - max(first_x, 0))
            sums[:] = 0
            for y in range(max(first_y, 0), last_y):
                for z in range(max(first_x, 0), last_x):
                    for channel in range(channels):
                        sums[channel] += x[image, y, z, channel]
            for channel in range(channels):
                if ratio is None:
                    out[image, row, column, channel] = sums[channel] / (taps * tap_width if counts else inside)
                else:
                    scale = ratio[0 if counts else inside - 1]
                    out[image, row, column, channel] = _requantize(sums[channel], scale, _limits(out))


# --- element by element ----------------------------------------------------------------------------------------------


@Kernel
def quantize(x: Array, inv_scale: Any, out: Array) -> int:
    """`clamp(rint(x * inv_scale))` of float32 `[n]`, one float32 multiplication, or x itself if inv_scale is None.

    NaN gives the least integer. Returns how many values are not finite.
    """
    outliers = 0
    for i in prange(x.size):
        outliers += not np.isfinite(x[i])
        if inv_scale is None:
            out[i] = x[i]
        else:
            limits = _limits(out)
            out[i] = min(max(np.float32(limits[0]), np.rint(x[i] * inv_scale)), np.float32(limits[1]))
    return outliers


@Kernel
def relu(x: Array, out: Array) -> None:
    """`max(x, 0)` of `[n]`."""
    for i in prange(x.size):
        out[i] = max(x[i], x.dtype.type(0))


@Kernel
def clip(x: Array, low: Any, high: Any, out: Array) -> None:
    """`min(max(x, low), high)` of `[n]`."""
    for i in prange(x.size):
        out[i] = min(max(x[i], low), high)


@Kernel
def lookup(x: Array, table: Array, out: Array) -> None:
    """`table[x]` of bytes `[n]`."""
    for i in prange(x.size):
        out[i] = table[x[i]]


#: The functions of `activation`, which compiled code knows by their place.
ACTIVATIONS = ("silu", "hard_sigmoid", "elu", "leaky_relu", "sigmoid", "tanh", "hard_swish")


@Kernel
def activation(x: Array, function: int, alpha: float, out: Array) -> None:
    """A function of float32 `[n]`, in double; by its place in `ACTIVATIONS`."""
    for i in prange(x.size):
        value = np.float64(x[i])
        if function == 0:  # silu
            result = value / (1.0 + math.exp(-alpha * value))
        elif function == 1:  # hard_sigmoid
            result = min(max(alpha * value + 0.5, 0.0), 1.0)
        elif function == 2:  # elu
            result = value if value > 0.0 else alpha * math.expm1(value)
        elif function == 3:  # leaky_relu
            result = value if value > 0.0 else alpha * value
        elif function == 4:  # sigmoid
            result = 1.0 / (1.0 + math.exp(-value))
        elif function == 5:  # tanh
            result = math.tanh(value)
        else:  # hard_swish
            result = value * min(max(value / 6.0 + 0.5, 0.0), 1.0)
        out[i] = np.float32(result)


@Kernel
def affine(x: Array, scale: Array, shift: Array, out: Array) -> None:
    """`x * scale + shift` per channel, float32 `[places, C]`."""
    for place in prange(x.shape[0]):
        for channel in range(x.shape[1]):
            out[place, channel] = x[place, channel] * scale[channel] + shift[channel]


@Kernel
def add(a: Array, b: Array, ratios: Any, out: Array) -> None:
    """`a + b` of `[n]`; integers `clamp((a * Ma + b * Mb + 2**(s - 1)) >> s)` for float64 ratios M / 2**s."""
    for i in prange(a.size):
        if ratios is None:
            out[i] = a[i] + b[i]
        else:
            out[i] = _requantize(a[i] * ratios[0] + b[i] * ratios[1], 1.0, _limits(out))


@Kernel
def product(a: Array, b: Array, ratio: float | None, out: Array) -> None:
    """`a * b` of `[B, positions, C]`, of which b may have one position; ratio, M / 2**s, may be None."""
    positions = a.shape[1]
    for place in prange(a.shape[0] * positions):
        sample, position = place // positions, place % positions
        gate = position if b.shape[1] > 1 else 0
        for channel in range(a.shape[2]):
            if ratio is None:
                out[sample, position, channel] = a[sample, position, channel] * b[sample, gate, channel]
            else:
                exact = np.int32(a[sample, position, channel]) * np.int32(b[sample, gate, channel])
                out[sample, position, channel] = _requantize(exact, ratio, _limits(out))


@Kernel
def concat(x: Array, ratio: float | None, first: int, out: Array) -> None:
    """One input `[places, C]` becomes the channels of out `[places, O]` from `first` on; ratio may be None."""
    for place in prange(x.shape[0]):
        for channel in range(x.shape[1]):
            if ratio is None:
                out[place, first + channel] = x[place, channel]
            else:
                out[place, first + channel] = _requantize(x[place, channel], ratio, _limits(out))


@Kernel
def dequantize(x: Array, scale: Array, out: Array) -> None:
    """`float32(x * scale)` per channel, in double and rounded once; `[places, C]`, scale float64 `[C]`."""
    for place in prange(x.shape[0]):
        for channel in range(x.shape[1]):
            out[place, channel] = np.float32(x[place, channel] * scale[channel])


@Kernel
def softmax(x: Array, out: Array) -> None:
    """Softmax of each row of float32 `[rows, n]`; sums are double, because rows may be long."""
    for row in prange(x.shape[0]):
        largest = x[row, 0]
        for i in range(1, x.shape[1]):
            largest = max(largest, x[row, i])
        total = 0.0
        for i in range(x.shape[1]):
            out[row, i] = np.exp(x[row, i] - largest)
            total += out[row, i]
        for i in range(x.shape[1]):
            out[row, i] = np.float32(out[row, i] / total)


@Kernel
def gelu(x: Array, is_tanh: bool, out: Array) -> None:
    """`x * Phi(x)` of float32 `[n]`, in double; by tanh or by erf, so written that nothing cancels where x < 0."""
    for i in prange(x.size):
        value = np.float64(x[i])
        if is_tanh:
            share = 1.0 / (1.0 + math.exp(-1.5957691216057308 * (value + 0.044715 * value * value * value)))
        else:
            share = 0.5 * math.erfc(-0.7071067811865476 * value)
        out[i] = np.float32(value * share)


@Kernel
def layer_norm(x: Array, scale: Array, shift: Array, epsilon: float, out: Array) -> None:
    """Mean 0 and variance 1 of each row of float32 `[places, C]`, then scale and shift per channel; in double."""
    channels = x.shape[1]
    for place in prange(x.shape[0]):
        mean = 0.0
        for channel in range(channels):
            mean += x[place, channel]
        mean /= channels
        variance = 0.0
        for channel in range(channels):
            variance += (x[place, channel] - mean) ** 2
        factor = 1.0 / math.sqrt(variance / channels + epsilon)
        for channel in range(channels):
            out[place, channel] = np.float32((x[place, channel] - mean) * factor * scale[channel] + shift[channel])


@Kernel
def local_response_norm(x: Array, half: int, alpha: float, beta: float, bias: float, out: Array) -> None:
    """`x / (bias + alpha * squares)**beta` of float32 `[places, C]`, in double; squares of `half` channels around."""
    channels = x.shape[1]
    for place in prange(x.shape[0]):
        for channel in range(channels):
            squares = 0.0
            for other in range(max(0, channel - half), min(channels, channel + half + 1)):
                squares += np.float64(x[place, other]) ** 2
            out[place, channel] = np.float32(x[place, channel] / (bias + alpha * squares) ** beta)


@Kernel
def matmul(a: Array, b: Array, out: Array) -> None:
    """Products of matrices: float32 `[n, W, C]` times `[n, C, O]`."""
    for item in prange(a.shape[0]):
        for i in range(a.shape[1]):
            for j in range(out.shape[2]):
                out[item, i, j] = 0
            for k in range(a.shape[2]):
                for j in range(out.shape[2]):
                    out[item, i, j] += a[item, i, k] * b[item, k, j]
