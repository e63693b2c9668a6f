"""Makes the layers of a float32 network complementary, keeping the strongest weights.

A layer's kernel blocks are put into sets (`csengine.masks`): at a sparsity of 90 %, sets of ten, in which every row
block belongs to one member, the one whose weights there are strongest; a search permutes kernel blocks between sets so
that little is lost. Packed, such a layer fills its sets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from csengine.errors import PackingError
from csengine.graph import Conv2d, Graph, Linear, Packing
from csengine.masks import ComplementaryMask, block_strength, magnitude_mask
from csengine.packing import MAX_SET_SIZE
from csengine.quantization import fold_affines

Layer: TypeAlias = "Conv2d | Linear"
_SWEEPS = 10  # of the search for sets; twice as many keep a thousandth more


@dataclass(frozen=True)
class LayerLoss:
    """What pruning left of one layer.

    density: share of the weights that stayed. kept: share of the sum of squares that stayed; unstructured: the share
    that as many weights could have kept at most, wherever they were.
    """

    name: str
    rows: int
    kernels: int
    block: tuple[int, int]
    set_size: int
    density: float
    kept: float
    unstructured: float


def prune(
    graph: Graph,
    sparsity: float,
    *,
    block: tuple[int, int] = (1, 1),
    layers: Mapping[str, float] | None = None,
    keep: Collection[str] | None = None,
    spread: bool = False,
    seed: int = 0,
) -> tuple[Graph, tuple[LayerLoss, ...]]:
    """The network with complementary weights, and what each pruned layer lost.

    Affines are folded first, so that weights count as they act. sparsity: share of the weights to remove, of every
    layer alike, or, with `spread`, of all pruned layers together, more where magnitudes differ more. block: (U, V).
    layers: sparsity of single layers. keep: layers that stay dense; None keeps those that read the input or give the
    result. Grouped convolutions always stay. Raises PackingError.
    """
    graph = fold_affines(graph)
    known = {node.name: node for node in graph.nodes if isinstance(node, (Conv2d, Linear))}
    kept = set(first_and_last(graph) if keep is None else keep)
    for name in (*kept, *(layers or {})):
        if name not in known:
            raise PackingError(f"no layer {name!r}; the network has {', '.join(known) or 'none with weights'}")
    if any(kind.is_integer for kind in graph.types.values()):
        raise PackingError("the network holds integers; prune the float32 network that it was made from")
    kept -= set(layers or {})
    chosen = [node for name, node in known.items() if name not in kept and _is_prunable(node)]
    densities = _spread(chosen, sparsity, block) if spread else {node.name: 1 - _checked(sparsity) for node in chosen}
    densities |= {name: 1 - _checked(value) for name, value in (layers or {}).items()}
    rng = np.random.default_rng(seed)
    pruned = {node.name: _prune_layer(node, densities[node.name], block, rng) for node in chosen}
    nodes = [pruned[node.name][0] if node.name in pruned else node for node in graph.nodes]
    return Graph(tuple(nodes), graph.layout), tuple(loss for _, loss in pruned.values())


def first_and_last(graph: Graph) -> set[str]:
    """Layers that nothing but operations without weights separates from the input or the result."""
    layers = {node.name for node in graph.nodes if isinstance(node, (Conv2d, Linear))}
    near: set[str] = set()
    reached = {graph.input.name}
    for node in graph.nodes[1:]:
        if reached & set(node.inputs):
            (near if node.name in layers else reached).add(node.name)
    reached = {graph.output.name}
    for node in reversed(graph.nodes):
        if node.name in reached and node.name in layers:
            near.add(node.name)
        elif node.name in reached:
            reached |= set(node.inputs)
    return near


def complementary_mask(
    weights: NDArray[Any], density: float, block: tuple[int, int], rng: np.random.Generator, sweeps: int = _SWEEPS
) -> ComplementaryMask:
    """The mask of a matrix [R, O] that keeps about this share of its weights; sets are as large as that allows."""
    row_blocks, kernel_blocks = -(-weights.shape[0] // block[0]), -(-weights.shape[1] // block[1])
    each, set_size = max(1, round(density * row_blocks)), round(1 / density)
    if each * set_size > row_blocks and row_blocks // set_size > 0.9 * density * row_blocks:
        each = row_blocks // set_size  # rounded so that one member more fits
    set_size = min(row_blocks // each, kernel_blocks, MAX_SET_SIZE)
    return magnitude_mask(weights, set_size, rng=rng, block=block, blocks_per_kernel=each, sweeps=sweeps)


def _is_prunable(node: Layer) -> bool:
    return not (isinstance(node, Conv2d) and node.groups > 1)


def _checked(sparsity: float) -> float:
    if not 0.0 < sparsity < 1.0:
        raise PackingError(f"sparsity is {sparsity}; expected above 0 and below 1, such as 0.9")
    return sparsity


def _prune_layer(
    node: Layer, density: float, block: tuple[int, int], rng: np.random.Generator
) -> tuple[Layer, LayerLoss]:
    weight = node.dense_weight
    mask = complementary_mask(weight, density, block, rng)
    left = np.where(mask.matrix, weight, np.float32(0))
    packing = Packing(block, mask.members.shape[1], mask.members)
    pruned = replace(node, weight=left, packing=packing)
    return pruned, measure_loss(node.name, weight, mask)


def measure_loss(name: str, weight: NDArray[Any], mask: ComplementaryMask) -> LayerLoss:
    """What a mask leaves of a matrix [R, O]."""
    power = np.square(weight, dtype=np.float64).ravel()
    total, count = power.sum() or 1.0, int(np.count_nonzero(weight[mask.matrix]))
    best = np.partition(power, power.size - count)[power.size - count :].sum() / total if count else 0.0
    kept = float(power[mask.matrix.ravel()].sum() / total)
    rows, kernels = weight.shape
    return LayerLoss(name, rows, kernels, mask.block, mask.members.shape[1], mask.density, kept, float(best))


def _spread(layers: Collection[Layer], sparsity: float, block: tuple[int, int]) -> dict[str, float]:
    """Densities of single layers so that together they lose this share: blocks compete by their layer-adaptive score.

    The zeros between dilated taps do not count.

    The score (Lee et al. 2021, arXiv 2010.07611) is a block's strength over that of all that are at least as strong.
    """
    _checked(sparsity)
    scores = {node.name: _scores(_of_inputs(block_strength(node.dense_weight, block))) for node in layers}
    everything = np.concatenate(list(scores.values())) if scores else np.zeros(1)
    threshold = np.quantile(everything, sparsity)
    return {name: max(float((score > threshold).mean()), 1e-6) for name, score in scores.items()}


def _of_inputs(strength: NDArray[np.float64]) -> NDArray[np.float64]:
    """The strengths [R, O] of the rows that weigh an input, as those between the taps of a dilated kernel do not."""
    return strength[strength.any(axis=1)]


def _scores(strength: NDArray[np.float64]) -> NDArray[np.float64]:
    ascending = np.sort(strength, axis=None)
    at_least = np.cumsum(ascending[::-1])[::-1]
    return np.divide(ascending, at_least, out=np.zeros_like(ascending), where=at_least > 0)


__all__ = ["LayerLoss", "complementary_mask", "first_and_last", "measure_loss", "prune"]
