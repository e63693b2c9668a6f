"""Float32 networks on the command line: ONNX models, and packed files that hold one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from csengine.cli import shipped
from csengine.errors import ShapeError, UnsupportedModelError
from csengine.graph import Graph

if TYPE_CHECKING:
    from csengine.importers.check import Check
    from csengine.importers.onnx import Imported

Array = NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """A network, how samples are given to it, and what a packed file says of its inputs and outputs."""

    graph: Graph
    labels: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)

    def samples(self, values: Array) -> Array:
        """Samples in the source's order of axes as float32 in NHWC. Raises ShapeError."""
        wanted = self.graph.outside(self.graph.input.shape)
        if values.shape == wanted:
            values = values[None]
        if values.shape[1:] != wanted or not len(values):
            expected = ", ".join(map(str, wanted))
            raise ShapeError(f"samples have shape {values.shape}; expected (B, {expected}), B > 0")
        return self.graph.from_caller(values.astype(np.float32))

    def random(self, count: int, seed: int = 0) -> Array:
        """Standard normal samples in NHWC."""
        return np.random.default_rng(seed).standard_normal((count, *self.graph.input.shape), np.float32)


@dataclass(frozen=True, eq=False, kw_only=True)
class Source(Network):
    """An ONNX model that was imported."""

    model: Any
    imported: Imported

    @property
    def can_check(self) -> bool:
        """Whether ONNX Runtime is installed."""
        from csengine.importers import check

        return check.is_available()

    def check(self, x: Array, graph: Graph | None = None) -> Check:
        """See `csengine.importers.check`."""
        from csengine.importers import check

        return check.check(self.model, self.imported, x, graph)


def read_source(path: str, input_shape: tuple[int, ...] | None = None) -> Source:
    """Read and import an ONNX file. Raises what `csengine.importers.onnx.load` raises."""
    try:
        from csengine.importers import onnx
    except ImportError as error:
        raise UnsupportedModelError(f"reading ONNX needs pip install 'csengine[onnx]' ({error})") from error
    model = onnx.read_proto(path)
    imported = onnx.read(model, input_shape)
    return Source(graph=imported.graph, model=model, imported=imported)


def read_network(path: str, input_shape: tuple[int, ...] | None = None) -> Network:
    """An ONNX file, or a packed file."""
    if is_source(path):
        return read_source(path, input_shape)
    model = shipped.load_model(path).model
    return Network(graph=model.graph, labels=model.labels, preprocessing=model.preprocessing)


def is_source(name: str | None) -> bool:
    """Whether this names an ONNX model."""
    return name is not None and Path(name).suffix.lower() == ".onnx"
