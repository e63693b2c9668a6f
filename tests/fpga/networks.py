"""Small random networks that a pipeline can hold, of a given shape, and samples for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csengine import reference
from csengine.graph import KWTA, Conv2d, Graph, Input, Linear, MaxPool, Node, Requantization, Reshape
from csengine.packing import EMPTY, PackedMatrix, pack

_EXTREMES = {"uint8": (0, 255), "int8": (-128, 127)}


@dataclass(frozen=True)
class Spec:
    """One layer; kernel (0, 0): linear; slots 1: dense; pool: "", "before" or "after" the k-WTA of k; k 0: none."""

    kernels: int
    kernel: tuple[int, int] = (0, 0)
    stride: int = 1
    slots: int = 1
    block: tuple[int, int] = (1, 1)
    dtype: str | None = "uint8"
    k: int = 0
    pool: str = ""


def network(shape: tuple[int, ...], dtype: str, layers: list[Spec], seed: int = 0) -> Graph:
    """A random network; scales come from the spread of its sums, with ties and saturation on purpose."""
    rng = np.random.default_rng(seed)
    nodes: list[Node] = [Input(name="x", inputs=(), shape=shape, dtype=dtype, scale=0.5)]  # type: ignore[arg-type]
    for i, spec in enumerate(layers):
        graph = Graph(tuple(nodes), "NHWC")
        kind = graph.types[nodes[-1].name]
        if spec.kernel == (0, 0) and len(kind.shape) == 3:
            nodes.append(Reshape(name=f"flat{i}", inputs=(nodes[-1].name,), shape=(kind.size,)))
            kind = replace(kind, shape=(kind.size,))
        node = _layer(rng, f"layer{i}", nodes, spec, kind.shape)
        nodes.append(node)
        winners = KWTA(name=f"k{i}", inputs=("",), k=spec.k, scope="global" if spec.kernel == (0, 0) else "local")
        pool = MaxPool(name=f"pool{i}", inputs=("",), kernel=(2, 2), stride=(2, 2))
        follow = {"": [winners], "before": [pool, winners], "after": [winners, pool]}[spec.pool]
        for after in follow:
            if after is not winners or spec.k:
                nodes.append(replace(after, inputs=(nodes[-1].name,)))
    return Graph(tuple(nodes), "NHWC")


def _layer(rng: np.random.Generator, name: str, nodes: list[Node], spec: Spec, shape: tuple[int, ...]) -> Node:
    is_linear = spec.kernel == (0, 0)
    rows = shape[0] if is_linear else spec.kernel[0] * spec.kernel[1] * shape[2]
    weight = _weight(rng, rows, spec)
    bias = rng.integers(-3000, 3000, spec.kernels, np.int32)
    common: dict[str, Any] = {"name": name, "inputs": (nodes[-1].name,), "weight": weight, "bias": bias}
    if is_linear:
        plain: Node = Linear(**common)
    else:
        plain = Conv2d(**common, kernel=spec.kernel, stride=(spec.stride, spec.stride))
    if spec.dtype is None:
        return plain
    graph = Graph((*nodes, plain), "NHWC")
    sums = reference.trace(graph, samples(graph, 6, 99))[name]
    spread = max(1.0, float(np.abs(sums).mean()))
    multiplier = rng.integers(2**15, 2**16, spec.kernels).astype(np.uint16)
    shift = np.rint(np.log2(multiplier * spread / rng.choice([3, 30, 100], spec.kernels))).clip(1, 47).astype(np.uint8)
    scaling = Requantization(multiplier, shift, spec.dtype, 0.5)  # type: ignore[arg-type]
    return replace(plain, requantization=scaling)  # type: ignore[call-arg]


def _weight(rng: np.random.Generator, rows: int, spec: Spec) -> NDArray[np.int8] | PackedMatrix:
    if spec.slots == 1:
        return rng.integers(-128, 128, (rows, spec.kernels)).astype(np.int8)
    u, v = spec.block
    blocks = -(-spec.kernels // v)
    sets = -(-blocks // spec.slots)
    members = np.full(sets * spec.slots, EMPTY, np.int32)
    members[:blocks] = rng.permutation(blocks)
    members = members.reshape(sets, spec.slots)
    # Every row block of every set belongs to one of its slots, or to nobody: what trained masks look like.
    owner = rng.integers(0, spec.slots, (-(-rows // u), sets))
    kernel = np.where(rng.random(owner.shape) < 0.1, EMPTY, members[np.arange(sets), owner])
    mask = kernel[:, :, None] == np.arange(blocks)
    full = mask.any(axis=1).repeat(u, axis=0).repeat(v, axis=1)[:rows, : spec.kernels]
    matrix = (rng.integers(-128, 128, full.shape) * full).astype(np.int8)
    return pack(matrix, block=spec.block, sets=members)


def thinned(graph: Graph, name: str, slots: int, seed: int = 0) -> Graph:
    """The same network with other weights in one layer: random, `slots` kernels in a set, its rows dealt out evenly."""
    rng = np.random.default_rng(seed)
    node = next(node for node in graph.nodes if node.name == name)
    assert isinstance(node, Conv2d | Linear)
    rows, kernels = node.dense_weight.shape
    members = np.full(-(-kernels // slots) * slots, EMPTY, np.int32)
    members[:kernels] = np.arange(kernels)
    members = members.reshape(-1, slots)
    owner = np.stack([rng.permutation(np.arange(rows) % slots) for _ in members], axis=1)
    mask = (members[np.arange(len(members)), owner][:, :, None] == np.arange(kernels)).any(axis=1)
    matrix = (rng.integers(1, 128, mask.shape) * rng.choice([-1, 1], mask.shape) * mask).astype(np.int8)
    thin = replace(node, weight=pack(matrix, block=(1, 1), sets=members))  # type: ignore[arg-type]
    return Graph(tuple(thin if it is node else it for it in graph.nodes), graph.layout)


def samples(graph: Graph, count: int, seed: int) -> NDArray[Any]:
    """Samples `[count, ...]` of different kinds: full range, few values, extremes, zeros, all equal."""
    rng = np.random.default_rng(seed)
    kind = graph.types[graph.input.name]
    low, high = _EXTREMES[kind.dtype]
    x = np.empty((count, *kind.shape), kind.dtype)
    for i in range(count):
        x[i] = [
            rng.integers(low, high + 1, kind.shape),
            rng.integers(0, 3, kind.shape),
            rng.choice([low, high], kind.shape),
            rng.integers(low, high + 1, kind.shape) * (rng.random(kind.shape) < 0.1),
            np.full(kind.shape, high),
            np.zeros(kind.shape),
        ][i % 6]
    return x
