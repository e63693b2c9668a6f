"""The work of a layer, and how long it takes at least.

A bound is the larger of two times: products at the rate of the instruction that multiplies, bytes at the rate of the
level of memory that holds them. What else a kernel does (sums on their way in and out, selection, requantization) takes
instructions, too, but another kernel may do with fewer: they are in the share that is not reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csengine import reference
from csengine.backends import KernelChoice
from csengine.graph import Conv2d, Graph, Linear
from csengine.packing import PackedMatrix
from csengine.plan import count_macs

Array = NDArray[Any]
Row = Mapping[str, Any]
Report = Mapping[str, Any]
TIERS = ("scalar", "avx2", "avx512", "avx512vnni", "amx")
EMPTY = "a call of an empty network"
"""Stands for a layer in the results: it has none."""

# --- what is done -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Of one sample.

    products: of a weight and an input that the kernel's mode multiplies, on average. bytes_read: of weights, as the
    graph stores them, in rows that have an active input if the mode selects these, and of the input. bytes_held: of
    all weights, the input and the output: what has to fit in a cache to stay there. row_bytes: of weights that are read
    at one place, where rows are read at any place, else 0.
    """

    dtype: str
    products: float
    bytes_read: float
    bytes_written: int
    bytes_held: int
    row_bytes: int


def work_of(graph: Graph, choice: KernelChoice, x: Array) -> Work:
    """Of a network that is one operation on samples x: of `graph.input`, or behind k-winners that leave x as it is.

    A pooling after it is fused with it.
    """
    source, output = graph.input, graph.output_type
    layers = [node for node in graph.nodes if isinstance(node, (Conv2d, Linear))]
    moved = _bytes(graph.types[source.name]), _bytes(output)
    dtype = "float32" if source.dtype == "float32" else "int8"
    if not layers:
        return Work(dtype, 0, moved[0], moved[1], sum(moved), 0)
    (layer,) = layers
    tensors = {layer.inputs[0]: x, layer.name: np.empty((len(x), *graph.types[layer.name].shape))}
    products = count_macs(graph, tensors, {layer.name: choice.mode})[layer.name] / len(x)
    weight = layer.dense_weight if choice.mode == "dense" else layer.weight
    selects = choice.mode == "sparse-sparse"
    share = _share_of_rows(layer, weight, x) if selects else 1.0
    rows = weight.weights if isinstance(weight, PackedMatrix) else weight
    row_bytes = int(rows[0].nbytes) if selects and isinstance(layer, Linear) else 0
    return Work(dtype, products, share * weight.nbytes + moved[0], moved[1], weight.nbytes + sum(moved), row_bytes)


def _bytes(kind: Any) -> int:
    return math.prod(kind.shape) * np.dtype(kind.dtype).itemsize


def _share_of_rows(layer: Conv2d | Linear, weight: PackedMatrix | Array, x: Array) -> float:
    """Of the rows of weights (or blocks of rows, if packed), how many meet an active input of a sample anywhere."""
    active = x != 0
    if isinstance(layer, Conv2d):
        active = reference.windows(active, layer.kernel, layer.stride, layer.padding, 0)
    active = active.reshape(len(x), -1, layer.rows).any(axis=1)
    block = weight.block[0] if isinstance(weight, PackedMatrix) else 1
    padded = np.pad(active, ((0, 0), (0, -layer.rows % block)))
    return float(padded.reshape(len(x), -1, block).any(axis=2).mean())


# --- how long it takes at least ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """The least time of a layer, and what takes it."""

    seconds: float
    by: str


def bound_of(kernel: Row, bounds: Report) -> Bound:
    """Of a kernel on a layer: its tier, and `Work` by its fields. bounds: as bench/bounds.py writes them."""
    level = level_of(kernel["bytes_held"], bounds["caches"])
    reading = read_rate(bounds["memory"], level, kernel["row_bytes"])
    rows = f" in rows of {kernel['row_bytes']} B" if kernel["row_bytes"] and level != "L1" else ""
    limits = [
        Bound(kernel["bytes_read"] / reading * 1e-9, f"reading from {level}{rows}"),
        Bound(kernel["bytes_written"] / write_rate(bounds["memory"], level) * 1e-9, f"writing to {level}"),
    ]
    if kernel["products"]:
        rate, loop = peak(bounds["loops"], kernel["tier"], kernel["dtype"])
        limits.append(Bound(kernel["products"] / rate * 1e-9, loop))
    return max(limits, key=lambda bound: bound.seconds)


def level_of(size: int, caches: Mapping[str, int]) -> str:
    """The fastest level of memory that holds so many bytes."""
    return next((level for level, capacity in sorted(caches.items()) if size <= capacity), "memory")


def peak(loops: Iterable[Row], tier: str, dtype: str) -> tuple[float, str]:
    """Most products per nanosecond of any loop, and its name."""
    found = [loop for loop in loops if (loop["tier"], loop["dtype"]) == (tier, dtype)]
    best = max(found, key=lambda loop: loop["per_ns"] * loop["products"])
    return best["per_ns"] * best["products"], best["name"]


def read_rate(memory: Sequence[Row], level: str, row_bytes: int) -> float:
    """Bytes per nanosecond: in rows of about that size, or at best if row_bytes is 0."""
    reads = [row for row in memory if (row["access"], row["level"]) == ("read", level)]
    in_rows = [row for row in reads if row["row_bytes"]]
    if row_bytes and in_rows:
        nearest = min(in_rows, key=lambda row: abs(math.log(row["row_bytes"] / row_bytes)))
        return float(nearest["bytes_per_ns"])
    return float(max(row["bytes_per_ns"] for row in reads))


def write_rate(memory: Iterable[Row], level: str) -> float:
    """Bytes per nanosecond."""
    return float(max(row["bytes_per_ns"] for row in memory if (row["access"], row["level"]) == ("write", level)))
