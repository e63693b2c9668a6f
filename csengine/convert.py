"""From a float32 graph to a packed model: quantize, then combine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csengine.container import Model
from csengine.graph import Conv2d, Graph, Linear, Packing
from csengine.packing import PackedMatrix, pack
from csengine.quantization import KnownScales, LayerError, fold_affines, quantize

#: A layer without a trained mask is packed when no more than this share of its weights is other than zero.
PACKING_DENSITY = 0.5


def convert(
    graph: Graph,
    calibration: NDArray[np.float32] | None,
    *,
    known: KnownScales | None = None,
    percentile: float | None = None,
    default: Packing | None = None,
    labels: tuple[str, ...] = (),
    preprocessing: Mapping[str, Any] | None = None,
    accuracy: Mapping[str, Any] | None = None,
) -> tuple[Model, tuple[LayerError, ...]]:
    """A packed model and, if it was quantized, the error per layer.

    calibration: samples `[B, ...]` in NHWC to quantize with. known: scales of a source that is quantized, with which
    samples may be needless. With neither, the network stays float32. percentile: see `csengine.quantization.quantize`.
    default: how to pack sparse layers that say nothing themselves. Raises QuantizationError, PackingError.
    """
    errors: tuple[LayerError, ...] = ()
    if calibration is None and known is None:
        graph = fold_affines(graph)
    else:
        graph, errors = quantize(graph, calibration, percentile=percentile, known=known)
    packed = pack_graph(graph, default)
    return Model(packed, labels, preprocessing or {}, accuracy or {}), errors


def pack_graph(graph: Graph, default: Packing | None = None) -> Graph:
    """The same graph with its sparse layers packed, each as it wants, or as `default` says."""
    return Graph(tuple(_pack_layer(node, default) for node in graph.nodes), graph.layout)


def _pack_layer(node: Any, default: Packing | None) -> Any:
    is_layer = isinstance(node, (Conv2d, Linear)) and not isinstance(node.weight, PackedMatrix)
    if not is_layer or (isinstance(node, Conv2d) and node.groups > 1):
        return node
    sparse = np.count_nonzero(node.weight) <= PACKING_DENSITY * node.weight.size
    how = node.packing or (default or Packing() if sparse else None)
    if how is None:
        return node
    weight = pack(node.weight, block=how.block, set_size=how.set_size, sets=how.sets)
    return replace(node, weight=weight, packing=None)
