"""The NumPy reference as a backend: slow, and right by definition."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from csengine import reference
from csengine.backends import KernelChoice, Mode, require_finite
from csengine.graph import OPERATION_NAMES, Conv2d, Graph, Linear
from csengine.packing import PackedMatrix


def compile(graph: Graph, mode: Mode, threads: int) -> ReferenceProgram:
    """A program that runs `csengine.reference`; mode and threads do not change what it does."""
    return ReferenceProgram(graph)


class ReferenceProgram:
    """See `csengine.backends.Program`."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def run(self, x: NDArray[Any]) -> NDArray[Any]:
        """The result `[B, ...]`."""
        require_finite(x)
        return reference.run(self._graph, x)

    def trace(self, x: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """Every node's tensor."""
        require_finite(x)
        return reference.trace(self._graph, x)

    def choices(self) -> Mapping[str, KernelChoice]:
        """One NumPy function per operation; packed layers run the five steps."""
        found = {}
        for node in self._graph.nodes:
            mode: Mode | str = ""
            if isinstance(node, (Conv2d, Linear)):
                mode = "sparse-sparse" if isinstance(node.weight, PackedMatrix) else "dense"
            found[node.name] = KernelChoice(OPERATION_NAMES[type(node)], "numpy", mode)
        return found

    def profile(self, x: NDArray[Any]) -> Mapping[str, float]:
        """Seconds per node."""
        require_finite(x)
        seconds: dict[str, float] = {}
        tensors: dict[str, NDArray[Any]] = {}
        for node in self._graph.nodes:
            start = time.perf_counter()
            tensors[node.name] = reference.apply(node, [tensors[name] for name in node.inputs] or [x])
            seconds[node.name] = time.perf_counter() - start
        return seconds
