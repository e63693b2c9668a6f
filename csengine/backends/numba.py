"""The Numba backend: the readable twin of the C++ engine, compiled when it is first used.

A graph becomes a list of steps, one per node or group of fused nodes. A step prepares its weights once, and binds calls
of the kernels in `numba_kernels` (which explains what they do, and why that is fast) to buffers that are kept from run
to run. Loading pays for the compilation: `compile` runs samples of zeros.

With one thread the kernels are plain loops. With more, those that have enough to do share it through Numba's threading
layer, over the samples of a batch and the lines, kernels or elements of a sample. One layer (workqueue) aborts the
process when two threads enter it at once; where Numba has no other, runs take turns. Another (omp) ends a forked
process that enters it: there, runs have one thread.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numba import get_num_threads, set_num_threads
from numba.core import config
from numba.np.ufunc import threading_layer
from numpy.typing import NDArray

from csengine.backends import KernelChoice, Mode, require_finite
from csengine.backends import numba_kernels as kernels
from csengine.backends.numba_kernels import BLOCK, PANEL, Kernel
from csengine.errors import BackendUnavailableError, ShapeError
from csengine.graph import (
    KWTA,
    MAGNITUDE,
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
    TensorType,
    Transpose,
)
from csengine.packing import NOBODY, PackedMatrix
from csengine.plan import density, expected_activity

Array: TypeAlias = NDArray[Any]
_Call: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...]]
_Bind: TypeAlias = "Callable[[_Workspace], list[_Call]]"

_WORKSPACE_BYTES = 1 << 22  # a batch runs in parts whose tensors fit in about so much
_MAX_PART = 64  # samples of a part
_IDLE_WORKSPACES = 8  # kept for the next runs
_WORTH_THREADS = 20_000  # nanoseconds of work, for which waking the other threads pays
_FLOAT32 = np.dtype(np.float32)
_EXACT_IN_FLOAT32 = 1 << 24  # float32 holds every integer up to here

_numba_settings: Any = config  # whose names Numba makes as it is imported
_turns = threading.Lock()


def compile(graph: Graph, mode: Mode, threads: int) -> NumbaProgram:
    """Compile for this machine.

    mode: "dense", "sparse-dense" and "sparse-sparse" hold for every layer with packed weights; "auto" takes the
    cheapest kernel of each layer by the rule of `_cost`. threads: at most so many run a call.
    """
    if _numba_settings.DISABLE_JIT:
        raise BackendUnavailableError("Numba does not compile while NUMBA_DISABLE_JIT is set; unset it")
    try:
        return NumbaProgram(graph, mode, threads)
    except (OSError, EOFError, pickle.UnpicklingError):  # Numba's cache is damaged, or its disk full
        Kernel.forget()
        return NumbaProgram(graph, mode, threads)


# --- the program -----------------------------------------------------------------------------------------------------


class NumbaProgram:
    """See `csengine.backends.Program`."""

    def __init__(self, graph: Graph, mode: Mode, threads: int) -> None:
        self._graph, self._mode = graph, mode
        self._threads = _start_threads(threads)
        self._plan = _Plan(graph, mode, fuse=True)
        self._idle: deque[_Workspace] = deque(maxlen=_IDLE_WORKSPACES)
        per_sample = sum(kind.size * np.dtype(kind.dtype).itemsize for kind in graph.types.values())
        self._part = max(self._threads, 1, min(_MAX_PART, _WORKSPACE_BYTES // per_sample))
        for batch in (1, self._part) if self._threads > 1 else (1,):  # both forms of the kernels
            self.run(np.zeros((batch, *graph.input.shape), np.float32))

    def run(self, x: Array) -> Array:
        """The result `[B, ...]`."""
        name, kind = self._graph.output.name, self._graph.output_type
        result = np.empty((len(x), *kind.shape), kind.dtype)
        with self._threads_set():
            for begin in range(0, len(x), self._part):
                part = x[begin : begin + self._part]
                workspace = self._take(len(part))
                workspace.run(part)
                result[begin : begin + len(part)] = workspace.tensors[name]
                self._idle.append(workspace)
        return result

    def trace(self, x: Array) -> Mapping[str, Array]:
        """Every node's tensor, from a program without fusion."""
        plan = _Plan(self._graph, self._mode, fuse=False)
        tensors = {name: np.empty((len(x), *kind.shape), kind.dtype) for name, kind in self._graph.types.items()}
        with self._threads_set():
            for begin in range(0, len(x), self._part):
                part = x[begin : begin + self._part]
                workspace = _Workspace(plan, len(part), self._threads)
                workspace.run(part)
                for name, tensor in workspace.tensors.items():
                    tensors[name][begin : begin + len(part)] = tensor
        return tensors

    def choices(self) -> Mapping[str, KernelChoice]:
        """The kernel of every step, by the node whose tensor it makes; a view of another tensor has none."""
        found = {self._graph.input.name: KernelChoice("input", "numba", "")}
        return found | {step.name: KernelChoice(step.kernel, "numba", step.mode) for step in self._plan.steps}

    def profile(self, x: Array) -> Mapping[str, float]:
        """Seconds per step."""
        seconds = dict.fromkeys(self.choices(), 0.0)
        with self._threads_set():
            for begin in range(0, len(x), self._part):
                part = x[begin : begin + self._part]
                workspace = self._take(len(part))
                with _timed(seconds, self._graph.input.name):
                    workspace.load(part)
                for step, calls in zip(self._plan.steps, workspace.steps, strict=True):
                    with _timed(seconds, step.name):
                        for kernel, arguments in calls:
                            kernel(*arguments)
                self._idle.append(workspace)
        return seconds

    def _take(self, batch: int) -> _Workspace:
        """An idle workspace for a batch, or a new one; whoever holds it is alone with it."""
        for _ in range(len(self._idle)):
            try:
                workspace = self._idle.popleft()
            except IndexError:  # another thread took it
                break
            if workspace.batch == batch:
                return workspace
            self._idle.append(workspace)
        return _Workspace(self._plan, batch, self._threads)

    def _threads_set(self) -> AbstractContextManager[None]:
        """Numba's number of threads, of which each Python thread has its own, is ours inside."""
        if self._threads > 1 and _lost_its_threads():
            self._threads = 1
            self._idle.clear()  # workspaces of several threads
        return nullcontext() if self._threads == 1 else _numba_threads(self._threads)


def _start_threads(threads: int) -> int:
    """As many as were asked for, if Numba has them. Raises BackendUnavailableError if it cannot start any."""
    if threads <= 1 or _lost_its_threads():
        return 1
    try:
        get_num_threads()  # starts them
    except ValueError as error:
        raise BackendUnavailableError(
            f"Numba cannot run {threads} threads ({error}); unset NUMBA_THREADING_LAYER or use threads=1"
        ) from error
    _starter.append(os.getpid())
    return min(threads, int(_numba_settings.NUMBA_NUM_THREADS))


_starter: list[int] = []  # the first entry is the process that started Numba's threads


def _lost_its_threads() -> bool:
    """Whether this is a fork of the process that started OpenMP's threads: entering them again would end it."""
    return bool(_starter) and _starter[0] != os.getpid() and threading_layer() == "omp"


@contextmanager
def _numba_threads(threads: int) -> Iterator[None]:
    with _turns if threading_layer() == "workqueue" else nullcontext():
        before = get_num_threads()
        set_num_threads(threads)
        try:
            yield
        finally:
            set_num_threads(before)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - start


# --- steps and their buffers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """One node, or a group of fused nodes under the name of the last.

    work: expected nanoseconds per sample. bind: gives the calls for some buffers.
    """

    name: str
    kernel: str
    mode: str
    work: float
    bind: _Bind


class _Plan:
    """What to run: the steps, the tensors that are views of others, and those that fusion made unnecessary."""

    def __init__(self, graph: Graph, mode: Mode, fuse: bool) -> None:
        self.graph = graph
        self.steps: list[_Step] = []
        self.views: dict[str, str] = {}
        self.missing: set[str] = set()
        activity = expected_activity(graph)
        done: set[str] = set()
        for node in graph.nodes[1:]:
            if node.name in done:
                continue
            if _is_identity(graph, node):
                self.views[node.name] = node.inputs[0]
            elif isinstance(node, (Conv2d, Linear)):
                kernel = _choose(node, mode, activity[node.inputs[0]])
                pool = _fusible_pool(graph, node) if fuse and kernel != "grouped" else None
                if pool is not None:
                    self.missing.add(node.name)
                    done.add(pool.name)
                self.steps.append(_layer_step(graph, node, kernel, pool, activity[node.inputs[0]]))
            else:
                self.steps.append(_step(node, graph.types[node.name].size))


class _Workspace:
    """The tensors of a part of a batch, by node, and the calls that fill them."""

    def __init__(self, plan: _Plan, batch: int, threads: int) -> None:
        self.batch = batch
        self.tensors: dict[str, Array] = {}
        self._input = plan.graph.input
        self._threads = threads
        for name, kind in plan.graph.types.items():
            if name in plan.views:
                self.tensors[name] = self.tensors[plan.views[name]].reshape(batch, *kind.shape)
            elif name not in plan.missing:
                self.tensors[name] = _zeros((batch, *kind.shape), kind.dtype)
        self._is_parallel = self._pays(prod(self._input.shape))
        self._quantize = kernels.quantize.form(self._is_parallel)
        self._inv_scale = None if self._input.scale is None else self._input.inv_scale
        self.steps = [self._bind(step) for step in plan.steps]
        self.calls = [call for calls in self.steps for call in calls]

    def _bind(self, step: _Step) -> list[_Call]:
        self._is_parallel = self._pays(step.work)
        return step.bind(self)

    def _pays(self, work: float) -> bool:
        return self._threads > 1 and work * self.batch > _WORTH_THREADS

    def call(self, kernel: Kernel, *arguments: Any) -> _Call:
        """A call of a kernel, in its form for one thread or for many."""
        return kernel.form(self._is_parallel), arguments

    def run(self, x: Array) -> None:
        """Fill all tensors."""
        self.load(x)
        for kernel, arguments in self.calls:
            kernel(*arguments)

    def load(self, x: Array) -> None:
        """Write the input tensor. Raises ShapeError for another shape, or if a value is not finite."""
        target = self.tensors[self._input.name]
        if x.shape != target.shape:
            raise ShapeError(f"input has shape {x.shape}; expected {target.shape} (sample first, NHWC)")
        if x.dtype == target.dtype and self._inv_scale is not None:
            target[...] = x
            return
        if x.dtype != _FLOAT32 or not x.flags.carray:
            x = np.array(x, np.float32, order="C")
        if self._quantize(x.reshape(-1), self._inv_scale, target.reshape(-1)):
            require_finite(x)


def _zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """Zeros that begin at a cache line."""
    size = prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    array: Array = memory[start : start + size].view(dtype).reshape(shape)
    return array


def _aligned(array: Array, dtype: Any = None) -> Array:
    """A contiguous and writable copy that begins at a cache line."""
    copy: Array = _zeros(array.shape, dtype or array.dtype)
    copy[...] = array
    return copy


def _is_identity(graph: Graph, node: Node) -> bool:
    """Whether a node's tensor holds the elements of its first input, in the same order."""
    source = graph.types[node.inputs[0]]
    match node:
        case Reshape():
            return True
        case Relu():
            return source.dtype == "uint8"
        case KWTA():
            return node.k >= node.scope_size(source)
        case _:
            return False


def _fusible_pool(graph: Graph, node: Node) -> MaxPool | None:
    """The max-pool that alone reads a convolution, if its windows do not overlap."""
    readers = graph.readers[node.name]
    if len(readers) != 1 or not isinstance(readers[0], MaxPool):
        return None
    pool = readers[0]
    return pool if pool.stride == pool.kernel and not any(pool.padding) else None


# --- layers with weights ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Window:
    """How a layer walks over its input image `[images, H, W, C]`; a linear layer is 1 x 1 over the batch."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    pool: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class _Layer:
    """A layer, and what its kernels need to know; result names the tensor it makes, its pool's if there is one."""

    node: Conv2d | Linear
    source: TensorType
    window: _Window
    result: str

    @property
    def kernels(self) -> int:
        """O."""
        return self.node.kernels

    @property
    def bias(self) -> Array:
        """`[O]`, zeros if there is none."""
        if self.node.bias is not None:
            return self.node.bias
        return np.zeros(self.kernels, np.int32 if self.source.is_integer else np.float32)

    @property
    def is_exact_in_float32(self) -> bool:
        """Whether no sum can leave the range in which float32 holds every integer."""
        if not self.source.is_integer:
            return True
        weight = np.abs(self.node.dense_weight.astype(np.int64)).sum(axis=0)
        bound = weight * MAGNITUDE[self.source.dtype] + np.abs(self.bias.astype(np.int64))
        return bool((bound <= _EXACT_IN_FLOAT32).all())

    def images(self, workspace: _Workspace, dtype: Any = None) -> tuple[Array, list[_Call]]:
        """The input `[images, H, W, C]`, padded, in another type if one is given, and the call that makes it."""
        x = workspace.tensors[self.node.inputs[0]]
        if isinstance(self.node, Linear):
            x = x.reshape(1, *_grid(workspace.batch), -1)
        top, left, bottom, right = self.window.padding
        if not any(self.window.padding) and (dtype is None or dtype == x.dtype):
            return x, []
        batch, height, width, channels = x.shape
        padded = _zeros((batch, top + height + bottom, left + width + right, channels), dtype or x.dtype)
        return padded, [(np.copyto, (padded[:, top : top + height, left : left + width], x))]

    def results(self, workspace: _Workspace) -> Array:
        """The result `[images, H', W', O]`."""
        out = workspace.tensors[self.result]
        return out.reshape(1, *_grid(workspace.batch), -1) if isinstance(self.node, Linear) else out


def _grid(batch: int) -> tuple[int, int]:
    """The samples of a batch as lines of pixels: up to 8 per line, if they divide the batch."""
    width = max(width for width in range(1, 9) if batch % width == 0)
    width = batch if width == 1 else width
    return batch // width, width


def _layer_step(graph: Graph, node: Conv2d | Linear, kernel: str, pool: MaxPool | None, activity: float) -> _Step:
    (source,) = graph.input_types(node)
    window = _Window()
    if isinstance(node, Conv2d):
        window = _Window(node.kernel, node.stride, node.padding, pool.kernel if pool else (1, 1))
    name = (pool or node).name
    prepare, mode = _LAYER_KERNELS[kernel]
    if kernel == "dense_select" and isinstance(node.weight, PackedMatrix):
        mode = "dense"  # it leaves out inactive inputs, but multiplies the weights that are zero
    windows = graph.types[node.name].size // node.kernels
    work = windows * _cost(node, kernel, activity)
    return _Step(name, kernel, mode, work, prepare(_Layer(node, source, window, name)))


def _choose(node: Conv2d | Linear, mode: Mode, activity: float) -> str:
    """The kernel of a layer. A mode that the layer's weights do not allow becomes the nearest that they do."""
    if isinstance(node, Conv2d) and node.groups > 1:
        return "grouped"
    sparse_dense = "packed_planes" if isinstance(node, Conv2d) else "packed"
    if isinstance(node.weight, PackedMatrix):
        kernel_of = {"dense": "dense", "sparse-dense": sparse_dense, "sparse-sparse": "packed_select"}
    else:
        kernel_of = {"dense": "dense", "sparse-dense": "dense", "sparse-sparse": "dense_select"}
    if mode != "auto":
        return kernel_of[mode]
    return min({*kernel_of.values(), "dense_select"}, key=lambda name: (_cost(node, name, activity), name))


def _cost(node: Conv2d | Linear, kernel: str, activity: float) -> float:
    """Expected nanoseconds of one window: what the inner loops took on one AVX-512 core of about 3 GHz.

    Rough by intent: it decides between kernels whose times differ by factors.
    """
    is_conv = isinstance(node, Conv2d)
    dense = node.rows * -(-node.kernels // PANEL) * PANEL
    select = node.rows * 0.3 / (node.kernel[0] * node.kernel[1] if isinstance(node, Conv2d) else 1)
    if kernel == "grouped":
        return float(node.rows * node.kernels)
    if kernel == "dense":
        return dense * (0.02 if is_conv else 0.05)
    if kernel == "dense_select":
        return activity * dense * (0.036 if is_conv else 0.06) + select
    if kernel == "packed_planes":
        return density(node) * node.rows * node.kernels * 0.1
    assert isinstance(node.weight, PackedMatrix)
    sets, width = node.weight.sets, node.weight.block[1]
    routed = node.rows * (1 + sets * (0.7 if width == 1 else 1.1 * -(-width // BLOCK)))
    return routed if kernel == "packed" else activity * routed + select


def _prepare_dense(layer: _Layer) -> _Bind:
    panels, bias = _panels(layer)
    panels = panels.reshape(len(panels), layer.window.kernel[0], -1, PANEL)
    ratio = _ratio(layer.node.requantization)
    down, right = layer.window.stride

    def bind(workspace: _Workspace) -> list[_Call]:
        x, calls = layer.images(workspace, bias.dtype)
        images, height, width, channels = x.shape
        window = (down, right * channels, *layer.window.pool)
        lines = x.reshape(images, height, width * channels)
        out = layer.results(workspace)
        return [*calls, workspace.call(kernels.dense, lines, panels, bias, ratio, window, out)]

    return bind


def _prepare_dense_select(layer: _Layer) -> _Bind:
    panels, bias = _panels(layer)
    ratio = _ratio(layer.node.requantization)

    def bind(workspace: _Workspace) -> list[_Call]:
        lists, window, calls = _bind_select(layer, workspace, kernels.select, bias.dtype)
        out = layer.results(workspace)
        return [*calls, workspace.call(kernels.dense_select, lists, panels, bias, ratio, window, out)]

    return bind


def _prepare_packed(layer: _Layer, selecting: Kernel) -> _Bind:
    packed = layer.node.weight
    assert isinstance(packed, PackedMatrix)
    weights, route = _route(packed)
    bias = _zeros((packed.kernel_blocks * packed.block[1] + PANEL,), layer.bias.dtype)
    bias[: layer.kernels] = layer.bias
    ratio = _ratio(layer.node.requantization)

    def bind(workspace: _Workspace) -> list[_Call]:
        lists, window, calls = _bind_select(layer, workspace, selecting, bias.dtype)
        arguments = lists, weights, route, bias, ratio, window, layer.results(workspace)
        return [*calls, workspace.call(kernels.packed_select, *arguments)]

    return bind


def _route(packed: PackedMatrix) -> tuple[Array, Array]:
    """Packed weights `[R, blocks, lanes]`, and the first kernel of each block; lanes are BLOCK, or 1 if V is."""
    (u, v), spare = packed.block, packed.kernel_blocks
    lanes = 1 if v == 1 else BLOCK
    parts = -(-v // lanes)  # of a block of V kernels; the last is filled up with zeros
    weights = np.zeros((packed.row_blocks * u, packed.sets, parts * lanes), packed.weights.dtype)
    weights[..., :v] = packed.weights.transpose(0, 3, 1, 2).reshape(len(weights), packed.sets, v)
    owner = packed.members[np.arange(packed.sets), np.where(packed.kid == NOBODY, 0, packed.kid)]
    first = np.where(packed.kid == NOBODY, spare, owner) * v
    route = np.repeat(first, u, axis=0)[..., None] + np.arange(0, v, lanes)
    shape = len(weights), packed.sets * parts  # said, not -1: a matrix of zeros has no blocks
    return _aligned(weights.reshape(*shape, lanes)), _aligned(route.reshape(shape), np.uint32)


def _bind_select(
    layer: _Layer, workspace: _Workspace, selecting: Kernel, dtype: Any
) -> tuple[tuple[Array, Array, Array], tuple[int, ...], list[_Call]]:
    """The lists of active inputs of a layer, the window over them, and the calls that write them."""
    x, calls = layer.images(workspace)
    images, height, width, channels = x.shape
    lines = images * height
    index, value = _zeros((lines, width * channels), np.int32), _zeros((lines, width * channels), dtype)
    start = _zeros((lines, width + 1), np.int64)
    window = (*layer.window.kernel, channels, *layer.window.stride, *layer.window.pool)
    pixels = x.reshape(lines, width, channels)
    return (index, value, start), window, [*calls, workspace.call(selecting, pixels, index, value, start)]


def _prepare_planes(layer: _Layer) -> _Bind:
    (taps, tap_width), (down, right) = layer.window.kernel, layer.window.stride
    top, left, bottom, right_padding = layer.window.padding
    height, width, channels = layer.source.shape
    pitch = -(-(left + width + right_padding) // right)
    size = -(-(top + height + bottom) // down) * pitch
    lines = (top + height + bottom - taps) // down + 1
    kernel, row = np.nonzero(layer.node.dense_weight.T)
    y, x, channel = np.unravel_index(row, (taps, tap_width, channels))
    plane = (channel * down + y % down) * right + x % right
    offset = _aligned(plane * size + y // down * pitch + x // right, np.uint64)
    first = _aligned(np.searchsorted(kernel, np.arange(layer.kernels + 1)))
    dtype = np.float32 if layer.is_exact_in_float32 else np.int32
    weights = _aligned(layer.node.dense_weight[row, kernel], dtype)
    bias = _aligned(layer.bias, dtype)
    ratio = _ratio(layer.node.requantization)
    beyond = -(-(PANEL + tap_width) // size)  # planes that the last positions of the last weights reach into

    def bind(workspace: _Workspace) -> list[_Call]:
        source, out = workspace.tensors[layer.node.inputs[0]], layer.results(workspace)
        planes = _zeros((workspace.batch, channels * down * right + beyond, size), dtype)
        lists = offset, weights, first, bias, ratio
        window = (lines, pitch, *layer.window.pool)
        return [
            workspace.call(kernels.spread, source, planes, (down, right, top, left, pitch)),
            workspace.call(kernels.packed_planes, planes.reshape(workspace.batch, -1), *lists, window, out),
        ]

    return bind


def _prepare_grouped(layer: _Layer) -> _Bind:
    node = layer.node
    assert isinstance(node, Conv2d)
    groups, members = node.groups, node.kernels // node.groups
    depth = layer.source.channels // groups
    weight = layer.node.dense_weight.reshape(*node.kernel, depth, groups, members)
    weights = _aligned(weight.transpose(0, 1, 2, 4, 3))
    bias = _aligned(layer.bias.reshape(groups, members).T)
    ratio = _ratio(node.requantization)

    def bind(workspace: _Workspace) -> list[_Call]:
        x, calls = layer.images(workspace)
        lines = x.reshape(*x.shape[:2], -1)
        out = layer.results(workspace)
        return [*calls, workspace.call(kernels.grouped, lines, weights, bias, ratio, node.stride, out)]

    return bind


#: Kernel of a layer with weights: how to prepare it, and the mode that it runs.
_LAYER_KERNELS: Mapping[str, tuple[Callable[[_Layer], _Bind], Mode]] = {
    "dense": (_prepare_dense, "dense"),
    "grouped": (_prepare_grouped, "dense"),
    "dense_select": (_prepare_dense_select, "sparse-sparse"),
    "packed": (lambda layer: _prepare_packed(layer, kernels.select_all), "sparse-dense"),
    "packed_planes": (_prepare_planes, "sparse-dense"),
    "packed_select": (lambda layer: _prepare_packed(layer, kernels.select), "sparse-sparse"),
}


def _panels(layer: _Layer) -> tuple[Array, Array]:
    """Dense weights `[panels, R, PANEL]` and bias `[panels, PANEL]`, filled up with zeros.

    float32 where that is exact and the weights serve many positions; otherwise int8, which is less to read.
    """
    is_float = not layer.source.is_integer or (isinstance(layer.node, Conv2d) and layer.is_exact_in_float32)
    rows, count = layer.node.rows, -(-layer.kernels // PANEL)
    weight = np.zeros((rows, count * PANEL), np.float32 if is_float else np.int8)
    weight[:, : layer.kernels] = layer.node.dense_weight
    bias = _zeros((count * PANEL,), np.float32 if is_float else np.int32)
    bias[: layer.kernels] = layer.bias
    return _aligned(weight.reshape(rows, count, PANEL).transpose(1, 0, 2)), bias.reshape(count, PANEL)


def _ratio(requantization: Requantization | None) -> Array | None:
    """M / 2**s of a requantization, float64, or None."""
    if requantization is None:
        return None
    return _aligned(np.ldexp(requantization.multiplier.astype(np.float64), -requantization.shift.astype(np.int64)))


# --- the other operations --------------------------------------------------------------------------------------------


_KERNEL_NAMES: Mapping[type[Node], str] = {
    KWTA: "kwta",
    Relu: "relu",
    Clip: "clip",
    Activation: "activation",
    Affine: "affine",
    MaxPool: "pool",
    AveragePool: "pool",
    Add: "add",
    Product: "product",
    Concat: "concat",
    Dequantize: "dequantize",
    Quantize: "quantize",
    Softmax: "softmax",
    Gelu: "gelu",
    LayerNorm: "layer_norm",
    LocalResponseNorm: "local_response_norm",
    MatMul: "matmul",
    Transpose: "transpose",
}


def _step(node: Node, size: int) -> _Step:
    def bind(workspace: _Workspace) -> list[_Call]:
        inputs = [workspace.tensors[name] for name in node.inputs]
        if isinstance(node, Transpose):
            view = inputs[0].transpose(0, *(axis + 1 for axis in node.axes))
            return [(np.copyto, (workspace.tensors[node.name], view))]
        if isinstance(node, MatMul):
            return _products(node, inputs, workspace)
        calls = _operation(node, inputs, workspace.tensors[node.name])
        return [workspace.call(kernel, *arguments) for kernel, arguments in calls]

    return _Step(node.name, _KERNEL_NAMES[type(node)], "", size, bind)


def _operation(node: Node, inputs: list[Array], out: Array) -> list[tuple[Kernel, tuple[Any, ...]]]:
    """The kernels that compute a node without weights, with their arguments."""
    x = inputs[0]
    match node:
        case KWTA():
            return [(kernels.kwta, _kwta_arguments(node, x, out))]
        case Relu():
            return [(kernels.relu, (x.reshape(-1), out.reshape(-1)))]
        case Clip():
            return [(kernels.clip, (x.reshape(-1), *_bounds(node, x.dtype), out.reshape(-1)))]
        case Activation() if node.table is not None:
            bytes_of = x.reshape(-1).view(np.uint8)
            return [(kernels.lookup, (bytes_of, _aligned(node.table), out.reshape(-1)))]
        case Activation():
            function = kernels.ACTIVATIONS.index(node.function)
            return [(kernels.activation, (x.reshape(-1), function, node.alpha, out.reshape(-1)))]
        case Affine():
            scale, shift = _aligned(node.scale), _aligned(node.shift)
            return [(kernels.affine, (_places(x), scale, shift, _places(out)))]
        case MaxPool():
            return [(kernels.max_pool, (x, (*node.kernel, *node.stride, *node.padding[:2]), out))]
        case AveragePool():
            window = (*node.kernel, *node.stride, *node.padding[:2])
            counts = node.count_padding
            return [(kernels.average_pool, (x, _ratio(node.requantization), counts, window, out))]
        case Add():
            ratios = None if node.requantization is None else tuple(_ratios(node.requantization, 2))
            return [(kernels.add, (x.reshape(-1), inputs[1].reshape(-1), ratios, out.reshape(-1)))]
        case Product():
            (ratio,) = _ratios(node.requantization, 1)
            a, b, result = (item.reshape(len(item), -1, item.shape[-1]) for item in (*inputs, out))
            return [(kernels.product, (a, b, ratio, result))]
        case Concat():
            ends = np.cumsum([source.shape[-1] for source in inputs]).tolist()
            parts = zip(inputs, _ratios(node.requantization, len(inputs)), [0, *ends], strict=False)
            return [(kernels.concat, (_places(part), ratio, first, _places(out))) for part, ratio, first in parts]
        case Dequantize():
            scale = np.broadcast_to(node.scale, x.shape[-1:])
            return [(kernels.dequantize, (_places(x), _aligned(scale), _places(out)))]
        case Quantize():
            return [(kernels.quantize, (x.reshape(-1), node.inv_scale, out.reshape(-1)))]
        case Softmax():
            return [(kernels.softmax, (_places(x), _places(out)))]
        case Gelu():
            return [(kernels.gelu, (x.reshape(-1), node.approximate == "tanh", out.reshape(-1)))]
        case LayerNorm():
            scale, shift = _aligned(node.scale), _aligned(node.shift)
            return [(kernels.layer_norm, (_places(x), scale, shift, node.epsilon, _places(out)))]
        case LocalResponseNorm():
            factors = (node.size // 2, node.alpha / node.size, node.beta, node.bias)
            return [(kernels.local_response_norm, (_places(x), *factors, _places(out)))]
        case _:
            raise BackendUnavailableError(f"{node.name}: the Numba backend has no kernel for {type(node).__name__}")


def _products(node: MatMul, inputs: list[Array], workspace: _Workspace) -> list[_Call]:
    """The calls that multiply activations; the second is turned first, so that its rows are read in order."""
    a, b = (x.reshape(-1, *x.shape[2:]) for x in inputs)
    calls: list[_Call] = []
    if node.transposed:
        view, b = b.swapaxes(1, 2), _zeros((len(b), b.shape[2], b.shape[1]), b.dtype)
        calls = [(np.copyto, (b, view))]
    out = workspace.tensors[node.name]
    return [*calls, workspace.call(kernels.matmul, a, b, out.reshape(-1, *out.shape[2:]))]


def _bounds(node: Clip, dtype: Any) -> tuple[Any, Any]:
    """The bounds in the tensor's type, its limits where there is none."""
    limits = (-np.inf, np.inf) if dtype == np.float32 else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    low, high = (limit if b is None else b for b, limit in zip((node.minimum, node.maximum), limits, strict=True))
    return dtype.type(low), dtype.type(high)


def _places(x: Array) -> Array:
    """`[B, ..., C]` as `[places, C]`."""
    return x.reshape(-1, x.shape[-1])


def _ratios(requantization: Requantization | None, count: int) -> list[float] | list[None]:
    """`_ratio` as numbers, one per input; an addition has one shift for both."""
    ratio = _ratio(requantization)
    return [None] * count if ratio is None else [float(value) for value in ratio]


def _kwta_arguments(node: KWTA, x: Array, out: Array) -> tuple[Any, ...]:
    """Scopes as rows: the channels of each position of a line, or the whole sample."""
    n = node.scope_size(TensorType(x.shape[1:], "float32"))
    items = len(x) if node.scope == "global" or x.ndim == 2 else len(x) * x.shape[1]
    is_small = x.dtype.itemsize == 1 and node.factor is None
    keys = _zeros((items, n), np.uint8 if is_small else np.uint32)
    factor = None if node.factor is None else _aligned(node.factor)
    return x.reshape(items, -1, n), factor, node.k, keys, out.reshape(items, -1, n)
