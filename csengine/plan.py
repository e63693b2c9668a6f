"""What a network costs: multiply-accumulates and bytes per layer, dense and as they are done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csengine import reference
from csengine.backends import KernelChoice, KernelTiming
from csengine.graph import (
    KWTA,
    OPERATION_NAMES,
    Activation,
    Add,
    Clip,
    Concat,
    Conv2d,
    Dequantize,
    Graph,
    Linear,
    MaxPool,
    Node,
    Product,
    Quantize,
    Relu,
    Reshape,
    Transpose,
)
from csengine.packing import PackedMatrix


@dataclass(frozen=True)
class LayerPlan:
    """One node of a plan; counts are per sample.

    kernel, tier, mode: what runs it; all "" where it was fused into the next node. macs_dense: every weight times every
    activation. macs_done: what the mode does, with the activity that the network guarantees (k-WTA) or is assumed
    (half after a ReLU). bytes_weights: as stored; bytes_dense: the same weights as a dense array. measured: the kernels
    that were tried for the layer, the chosen one first, then the fastest; empty where the backend does not measure.
    cycles: clock cycles per sample in the last run, where the hardware counts them.
    """

    name: str
    operation: str
    kernel: str
    tier: str
    mode: str
    macs_dense: int
    macs_done: int
    bytes_weights: int
    bytes_dense: int
    measured: tuple[KernelTiming, ...] = ()
    cycles: float | None = None

    @property
    def runner_up(self) -> KernelTiming | None:
        """The fastest kernel that was not chosen."""
        return self.measured[1] if len(self.measured) > 1 else None

    @property
    def dense(self) -> KernelTiming | None:
        """The fastest kernel that uses no sparsity: what the layer would cost without."""
        return next((timing for timing in self.measured if timing.mode == "dense"), None)


def plan(graph: Graph, choices: Mapping[str, KernelChoice]) -> tuple[LayerPlan, ...]:
    """The plan of a network, given the kernels that a backend chose."""
    activity = expected_activity(graph)
    return tuple(_layer_plan(graph, node, choices, activity) for node in graph.nodes)


def _layer_plan(
    graph: Graph, node: Node, choices: Mapping[str, KernelChoice], activity: Mapping[str, float]
) -> LayerPlan:
    choice = choices.get(node.name, KernelChoice("", "", ""))
    operation = OPERATION_NAMES[type(node)]
    if not isinstance(node, (Conv2d, Linear)):
        counts = (0, 0, 0, 0)
        return LayerPlan(node.name, operation, choice.kernel, choice.tier, choice.mode, *counts, cycles=choice.cycles)
    source = _choice_of(graph, node, choices)
    mode = source.mode
    dense = node.dense_macs(graph.types[node.name])
    share = {"sparse-sparse": activity[node.inputs[0]] * density(node), "sparse-dense": density(node)}.get(mode, 1.0)
    stored, expanded = weight_bytes(node)
    done = round(dense * share)
    counts = (dense, done, stored, expanded)
    return LayerPlan(
        node.name, operation, choice.kernel, choice.tier, mode, *counts, measured=source.measured, cycles=choice.cycles
    )


def _choice_of(graph: Graph, node: Node, choices: Mapping[str, KernelChoice]) -> KernelChoice:
    """The choice for a layer, which a fused layer's reader carries."""
    while node.name not in choices and len(graph.readers[node.name]) == 1:
        node = graph.readers[node.name][0]
    return choices.get(node.name, KernelChoice("", "", ""))


def layer_choices(graph: Graph, choices: Mapping[str, KernelChoice]) -> dict[str, KernelChoice]:
    """The choice for every layer with weights, also where it is fused into its reader."""
    return {node.name: _choice_of(graph, node, choices) for node in graph.nodes if isinstance(node, (Conv2d, Linear))}


def density(node: Conv2d | Linear) -> float:
    """Share of the weights that are not zero."""
    weight = node.weight.weights if isinstance(node.weight, PackedMatrix) else node.weight
    return float(np.count_nonzero(weight)) / max(1, node.rows * node.kernels)


def weight_bytes(node: Conv2d | Linear) -> tuple[int, int]:
    """Bytes of the weight as stored, and as a dense array of the same type."""
    dense = node.rows * node.kernels * int(node.weight.dtype.itemsize)
    return int(node.weight.nbytes), dense


def expected_activity(graph: Graph) -> dict[str, float]:
    """Share of each tensor's values expected to be other than zero: k / n after k-WTA, half after a ReLU."""
    activity: dict[str, float] = {}
    for node in graph.nodes:
        activity[node.name] = _activity(graph, node, [activity[name] for name in node.inputs])
    return activity


def _activity(graph: Graph, node: Node, inputs: Sequence[float]) -> float:
    match node:
        case KWTA():
            return min(inputs[0], node.k / node.scope_size(graph.input_types(node)[0]))
        case Relu():
            return min(inputs[0], 0.5)
        case Clip() if node.minimum == 0:
            return min(inputs[0], 0.5)
        case MaxPool():
            return min(1.0, inputs[0] * node.kernel[0] * node.kernel[1])
        case Reshape() | Transpose() | Dequantize() | Quantize():
            return inputs[0]
        case Activation() if node.table is not None:
            return float(np.count_nonzero(node.table)) / 256
        case Conv2d() | Linear():
            return 0.5 if graph.types[node.name].dtype == "uint8" else 1.0  # clamped at zero: a ReLU
        case Add() | Concat():
            return min(1.0, sum(inputs))
        case Product():
            return min(inputs)
        case _:
            return 1.0


def known_winners(graph: Graph) -> dict[str, int]:
    """The most values that can be other than zero at one position, of every tensor of which the graph tells it."""
    return {node.name: node.k for node in graph.nodes if isinstance(node, KWTA) and node.scope == "local"}


def count_macs(graph: Graph, tensors: Mapping[str, NDArray[Any]], mode_of: Mapping[str, str]) -> dict[str, int]:
    """Multiply-accumulates really done on a batch, whose tensors are given, per layer with weights."""
    return {
        node.name: _count_layer(node, tensors[node.inputs[0]], tensors[node.name], mode_of[node.name])
        for node in graph.nodes
        if isinstance(node, (Conv2d, Linear))
    }


def _count_layer(node: Conv2d | Linear, x: NDArray[Any], y: NDArray[Any], mode: str) -> int:
    vectors = y.size // node.kernels
    if mode == "dense" or (isinstance(node, Conv2d) and node.groups > 1):
        return vectors * node.rows * node.kernels
    weights_of_row = np.count_nonzero(node.dense_weight, axis=1)
    if mode == "sparse-dense":
        return vectors * int(weights_of_row.sum())
    active = x != 0
    if isinstance(node, Conv2d):
        active = reference.windows(active, node.kernel, node.stride, node.padding, 0)
    return int(active.reshape(vectors, node.rows).sum(axis=0) @ weights_of_row)
