"""What the weights of a network take: packed, dense, and in CSR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from csengine.cli.output import size
from csengine.graph import OPERATION_NAMES, Conv2d, Graph, Linear
from csengine.packing import PackedMatrix


@dataclass(frozen=True)
class LayerWeights:
    """The weight matrix of one layer. The packing fields are None for a dense weight.

    bytes: as stored; bytes_csr: values, column indices (2 bytes each if they suffice, else 4) and 4-byte row pointers.
    """

    name: str
    operation: str
    rows: int
    kernels: int
    nonzeros: int
    density: float
    bytes: int
    bytes_dense: int
    bytes_float32: int
    bytes_csr: int
    block: tuple[int, int] | None = None
    set_size: int | None = None
    sets: int | None = None
    overflow_sets: int | None = None
    fill: float | None = None
    block_fill: float | None = None


@dataclass(frozen=True)
class Totals:
    """Sums over all layers, in bytes; parameters include biases, sizes do not."""

    parameters: int
    nonzeros: int
    density: float
    bytes: int
    bytes_dense: int
    bytes_float32: int
    bytes_csr: int


def describe_weights(graph: Graph) -> tuple[LayerWeights, ...]:
    """Every layer that has weights."""
    return tuple(describe_layer(node) for node in graph.nodes if isinstance(node, (Conv2d, Linear)))


def describe_layer(node: Conv2d | Linear) -> LayerWeights:
    """One layer's weight."""
    count = node.rows * node.kernels
    item = int(node.weight.dtype.itemsize)
    stored = node.weight.weights if isinstance(node.weight, PackedMatrix) else node.weight
    nonzeros = int(np.count_nonzero(stored))
    index = 2 if node.kernels <= 1 << 16 else 4
    csr = nonzeros * (item + index) + 4 * (node.rows + 1)
    sizes = (int(node.weight.nbytes), count * item, count * 4, csr)
    plain = (node.name, OPERATION_NAMES[type(node)], node.rows, node.kernels, nonzeros, nonzeros / count, *sizes)
    if not isinstance(node.weight, PackedMatrix):
        return LayerWeights(*plain)
    packed, found = node.weight, node.weight.statistics()
    packing = (packed.block, packed.set_size, packed.sets, found.overflow_sets, found.fill, found.block_fill)
    return LayerWeights(*plain, *packing)


def total(graph: Graph, layers: Sequence[LayerWeights]) -> Totals:
    """The sums."""
    weighted = [node for node in graph.nodes if isinstance(node, (Conv2d, Linear))]
    biases = sum(node.bias.size for node in weighted if node.bias is not None)
    count, nonzeros = sum(row.rows * row.kernels for row in layers), sum(row.nonzeros for row in layers)
    return Totals(
        parameters=count + biases,
        nonzeros=nonzeros,
        density=nonzeros / count if count else 1.0,
        bytes=sum(row.bytes for row in layers),
        bytes_dense=sum(row.bytes_dense for row in layers),
        bytes_float32=sum(row.bytes_float32 for row in layers),
        bytes_csr=sum(row.bytes_csr for row in layers),
    )


HEADER = (
    "layer",
    ">matrix",
    ">non-zeros",
    ">density",
    ">block",
    ">sets x S",
    ">overflow",
    ">fill",
    ">stored",
    ">dense",
    ">CSR",
)


def weight_cells(row: LayerWeights) -> tuple[str, ...]:
    """One layer as cells under `HEADER`."""
    packing: tuple[str, ...] = ("dense", "", "", "")
    if row.block is not None and row.fill is not None:
        block = f"{row.block[0]}x{row.block[1]}"
        packing = (block, f"{row.sets} x {row.set_size}", str(row.overflow_sets), f"{row.fill:.1%}")
    sizes = (size(row.bytes), size(row.bytes_dense), size(row.bytes_csr))
    return (row.name, f"{row.rows} x {row.kernels}", f"{row.nonzeros:,}", f"{row.density:.1%}", *packing, *sizes)


def unpack(graph: Graph) -> Graph:
    """The same network with dense weights."""
    nodes = [
        replace(node, weight=node.dense_weight) if isinstance(node, (Conv2d, Linear)) else node for node in graph.nodes
    ]
    return Graph(tuple(nodes), graph.layout)
