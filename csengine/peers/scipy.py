"""SciPy: one linear layer as a compressed sparse row matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from csengine.container import Model
from csengine.graph import Linear, Relu
from csengine.peers import functions
from csengine.peers.runtime import Loaded, Source


def load(model: Model, variant: str, batches: Sequence[NDArray[Any]], threads: int) -> Loaded:
    """See `csengine.peers.runtime`; runs on one thread whatever is asked for."""
    graph = functions.real(model.graph)
    layer = next(node for node in graph.nodes if isinstance(node, Linear))
    clamps = any(isinstance(node, Relu) for node in graph.nodes)
    matrix = sparse.csr_matrix(np.ascontiguousarray(layer.dense_weight.T))
    size = len(batches[0])
    columns = [np.ascontiguousarray(functions.real_input(model.graph, x).T) for x in batches]
    source = Source([x[:, 0] for x in columns] if size == 1 else columns)
    bias = np.zeros(layer.kernels, np.float32) if layer.bias is None else layer.bias
    bias = bias if size == 1 else bias[:, None]
    results: list[NDArray[Any]] = []

    def call() -> None:
        y = matrix @ source.buffer
        y += bias
        results[:] = [np.maximum(y, 0, out=y) if clamps else y]

    return Loaded(source.feed, call, lambda: results[0].reshape(-1, size).T)
