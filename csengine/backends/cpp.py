"""The C++ backend: lowers a graph to the steps of a native program, fusing what is exact."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csengine.backends import KernelChoice, KernelTiming, Mode, require_finite
from csengine.errors import BackendUnavailableError
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
    TensorType,
    Transpose,
)
from csengine.packing import PackedMatrix
from csengine.plan import expected_activity, known_winners, layer_choices
from csengine.plan_cache import PlanCache

Array = NDArray[Any]

SPLIT_ABOVE = 30e-6
"""Seconds of a layer from which on threads share it: shared out and back again takes a few microseconds."""


def tiers() -> dict[str, bool]:
    """Every tier of instruction sets, slowest first, and whether this machine can run it."""
    return dict(_require_native().tiers())


def compile(
    graph: Graph,
    mode: Mode,
    threads: int,
    tier: str | None = None,
    measure: bool = True,
    kernels: Mapping[str, str] | None = None,
    cache: Path | None = None,
    split_above: float = SPLIT_ABOVE,
) -> CppProgram:
    """Compile for this machine.

    tier: None takes the best; an impossible one raises BackendUnavailableError. measure: for each layer take the
    fastest kernel that uses no more sparsity than `mode`, by measuring. Otherwise take kernels of exactly that mode
    where the layer has it; "auto" then chooses by a cost model, the same everywhere. kernels: names of kernels by
    layer, which are taken unasked; one that cannot run the layer raises ValueError. cache: a file of kernels found by
    measuring before; what it does not know is measured and added, and a file of another kind raises ValueError.
    split_above: seconds of a layer from which on threads share it when there are fewer samples than threads.
    """
    available = [name for name, can_run in tiers().items() if can_run]
    if tier is not None and tier not in available:
        raise BackendUnavailableError(f"tier {tier!r} cannot run here; this machine runs {', '.join(available)}")
    layers = [node.name for node in graph.nodes if isinstance(node, (Conv2d, Linear))]
    if unknown := sorted(set(kernels or ()) - set(layers)):
        raise ValueError(f"kernels are given for {', '.join(unknown)}; the layers are {', '.join(layers)}")
    tier = tier or available[-1]
    if cache is None or not measure:
        return CppProgram(graph, mode, threads, tier, measure, kernels or {}, split_above)
    plans = PlanCache(cache, _build(), tier, mode)
    plans.require_own()
    known = plans.find(graph)
    program = CppProgram(graph, mode, threads, tier, measure, {**known, **(kernels or {})}, split_above)
    if missing := set(layers) - set(known) - set(kernels or ()):
        found = layer_choices(graph, program.choices())
        plans.add(graph, {layer: found[layer].kernel for layer in missing})
    return program


def _build() -> str:
    """Changes whenever the native module does."""
    facts = Path(_require_native().__file__).stat()
    return f"{facts.st_size}-{facts.st_mtime_ns}"


def _require_native() -> Any:
    try:
        return importlib.import_module("csengine._native")
    except ImportError as error:
        raise BackendUnavailableError(
            f"the C++ backend is not built ({error}); reinstall csengine with a C++17 compiler, or use backend='numba'"
        ) from error


class CppProgram:
    """See `csengine.backends.Program`. One native call per run, over a preallocated arena, without the GIL."""

    def __init__(
        self,
        graph: Graph,
        mode: Mode,
        threads: int,
        tier: str,
        measure: bool,
        kernels: Mapping[str, str],
        split_above: float,
    ) -> None:
        self._graph, self._mode, self._tier = graph, mode, tier
        options = (_native_mode(mode), measure, False, threads, split_above, _weight_bytes(graph))
        self._native = _Lowering(graph, _require_native().Builder(tier, *options), kernels).build()
        self._shape = graph.output_type.shape

    def run(self, x: Array) -> Array:
        """The result `[B, ...]`."""
        y = self._native.run(x)
        if y is None:
            require_finite(x)
        result: Array = y if len(self._shape) == 1 else y.reshape(len(x), *self._shape)
        return result

    def trace(self, x: Array) -> Mapping[str, Array]:
        """Every node's tensor, from a program without fusion."""
        require_finite(x)
        builder = _require_native().Builder(self._tier, _native_mode(self._mode), False, True, 1, SPLIT_ABOVE, 0)
        lowering = _Lowering(self._graph, builder, {}, fuse=False)
        tensors = lowering.build().trace(x)
        shapes = {name: kind.shape for name, kind in self._graph.types.items()}
        return {name: tensors[lowering.tensors[name]].reshape(len(x), *shape) for name, shape in shapes.items()}

    def audit(self, x: Array, poison: int) -> tuple[Array, list[str]]:
        """For tests: the result over memory filled with a byte, and the steps that wrote where they must not."""
        y, guilty = self._native.audit(x, poison)
        return y.reshape(-1, *self._shape), guilty

    def choices(self) -> Mapping[str, KernelChoice]:
        """The kernel of every step, by the node whose tensor it makes."""
        return {
            node: KernelChoice(kernel, tier, mode, tuple(KernelTiming(*timing) for timing in measured))
            for node, kernel, tier, mode, measured in self._native.choices()
        }

    def profile(self, x: Array) -> Mapping[str, float]:
        """Seconds per step."""
        require_finite(x)
        nodes = [row[0] for row in self._native.choices()]
        return dict(zip(nodes, self._native.profile(x), strict=True))


def _weight_bytes(graph: Graph) -> int:
    """Of all layers, as they are stored."""
    weights = (node.weight for node in graph.nodes if isinstance(node, (Conv2d, Linear)))
    return sum(w.weights.nbytes if isinstance(w, PackedMatrix) else w.nbytes for w in weights)


def _native_mode(mode: Mode) -> str:
    return "" if mode == "auto" else mode


class _Lowering:
    """One walk over a graph that adds a native step per node, or per group of fused nodes."""

    def __init__(self, graph: Graph, builder: Any, kernels: Mapping[str, str], fuse: bool = True) -> None:
        self.graph = graph
        self.builder = builder
        self.kernels = kernels
        self.fuse = fuse
        self.tensors: dict[str, int] = {}  # node -> native tensor
        self.activity = expected_activity(graph)
        self.winners = known_winners(graph)

    def build(self) -> Any:
        fused: set[str] = set()
        for node in self.graph.nodes:
            if node.name in fused:
                continue
            if isinstance(node, Reshape):
                extents = _extents(self.graph.types[node.name])
                self.tensors[node.name] = self.builder.view(self.tensors[node.inputs[0]], *extents)
            elif isinstance(node, (Conv2d, Linear)):
                fused |= self._add_layer(node)
            else:
                self._add(node, *(self.tensors[name] for name in node.inputs))
        return self.builder.build(self.tensors[self.graph.output.name])

    def _tensor(self, node: Node) -> int:
        kind = self.graph.types[node.name]
        tensor: int = self.builder.tensor(kind.dtype, *_extents(kind))
        self.tensors[node.name] = tensor
        return tensor

    def _add(self, node: Node, *inputs: int) -> None:
        output, builder = self._tensor(node), self.builder
        match node:
            case Input():
                builder.input(node.name, output, float(node.inv_scale))
            case KWTA():
                factor = np.empty(0, np.float32) if node.factor is None else node.factor
                builder.kwta(node.name, *inputs, output, node.k, node.scope == "global", factor)
            case Relu():
                builder.relu(node.name, *inputs, output)
            case Clip():
                builder.clip(node.name, *inputs, output, *_bounds(node))
            case Activation() if node.table is not None:
                builder.lookup(node.name, *inputs, output, node.table.view(np.uint8))
            case Activation():
                builder.activation(node.name, *inputs, output, node.function, node.alpha)
            case Affine():
                builder.affine(node.name, *inputs, output, node.scale, node.shift)
            case MaxPool():
                builder.pool(node.name, *inputs, output, _window(node), False, True, None)
            case AveragePool():
                scaling = _pair(node.requantization)
                builder.pool(node.name, *inputs, output, _window(node), True, node.count_padding, scaling)
            case Add():
                builder.add(node.name, *inputs, output, _pair(node.requantization))
            case Product():
                builder.product(node.name, *inputs, output, _pair(node.requantization))
            case Concat():
                builder.concat(node.name, list(inputs), output, _pair(node.requantization))
            case Dequantize():
                builder.dequantize(node.name, *inputs, output, node.scale)
            case Quantize():
                builder.quantize(node.name, *inputs, output, float(node.inv_scale))
            case Softmax():
                builder.softmax(node.name, *inputs, output)
            case Gelu():
                builder.gelu(node.name, *inputs, output, node.approximate == "tanh")
            case LayerNorm():
                builder.layer_norm(node.name, *inputs, output, node.scale, node.shift, node.epsilon)
            case LocalResponseNorm():
                factors = (node.size, node.alpha, node.beta, node.bias)
                builder.local_response_norm(node.name, *inputs, output, *factors)
            case MatMul():
                builder.matmul(node.name, *inputs, output, node.transposed)
            case Transpose():
                builder.transpose(node.name, *inputs, output, node.axes)
            case _:
                raise BackendUnavailableError(f"{node.name}: the C++ backend has no kernel for {type(node).__name__}")

    def _add_layer(self, node: Conv2d | Linear) -> set[str]:
        """Add a convolution or linear layer with the pooling that follows it; the names fused into it."""
        kind = self.graph.types[node.name]
        height, width, _ = _extents(kind)
        pool = self._fusible_pool(node)
        source = self.tensors[node.inputs[0]]
        output = self._tensor(pool or node)
        packed = None
        if isinstance(node.weight, PackedMatrix):
            packed = _require_native().Packed(node.weight.weights, node.weight.kid, node.weight.members)
        window = _window(node) if isinstance(node, Conv2d) else (1, 1, 1, 1, 0, 0)
        self.builder.layer(
            (pool or node).name,
            source,
            output,
            window,
            (height, width),
            pool.kernel if pool else (1, 1),
            node.groups if isinstance(node, Conv2d) else 1,
            np.ascontiguousarray(node.dense_weight),
            packed,
            node.bias,
            _pair(node.requantization),
            self.activity[node.inputs[0]],
            self.winners.get(node.inputs[0], _extents(self.graph.types[node.inputs[0]])[2]),
            self.kernels.get(node.name, ""),
        )
        return {pool.name} if pool else set()

    def _fusible_pool(self, node: Node) -> MaxPool | None:
        """The 2 x 2 max-pool of stride 2 that alone reads a layer.

        A requantization never decreases, so the maximum of accumulators requantizes to the maximum of the results.
        """
        readers = self.graph.readers[node.name]
        if not self.fuse or len(readers) != 1 or not isinstance(readers[0], MaxPool):
            return None
        pool = readers[0]
        return pool if pool.kernel == pool.stride == (2, 2) and not any(pool.padding) else None


def _extents(kind: TensorType) -> tuple[int, int, int]:
    """Height, width and channels; a vector is one position."""
    if len(kind.shape) == 3:
        height, width, channels = kind.shape
        return height, width, channels
    return 1, 1, kind.shape[0]


def _window(node: Conv2d | MaxPool | AveragePool) -> tuple[int, int, int, int, int, int]:
    return (*node.kernel, *node.stride, *node.padding[:2])


def _bounds(node: Clip) -> tuple[float, float]:
    low, high = node.minimum, node.maximum
    return -np.inf if low is None else float(low), np.inf if high is None else float(high)


def _pair(requantization: Requantization | None) -> tuple[Array, Array] | None:
    return None if requantization is None else (requantization.multiplier, requantization.shift)
