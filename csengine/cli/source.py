"""ONNX sources of packed models, on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from csengine.errors import ShapeError, UnsupportedModelError
from csengine.graph import Graph

if TYPE_CHECKING:
    from csengine.importers.check import Check
    from csengine.importers.onnx import Imported

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Source:
    """An ONNX model that was imported."""

    model: Any
    imported: Imported

    def samples(self, values: Array) -> Array:
        """Samples in the source's order of axes as float32 in NHWC. Raises ShapeError."""
        shape = self.imported.graph.input.shape
        is_nchw = self.imported.graph.layout == "NCHW" and len(shape) == 3
        wanted = (shape[2], *shape[:2]) if is_nchw else shape
        if values.shape == wanted:
            values = values[None]
        if values.shape[1:] != wanted or not len(values):
            expected = ", ".join(map(str, wanted))
            raise ShapeError(f"samples have shape {values.shape}; expected (B, {expected}), B > 0")
        return np.ascontiguousarray(values.transpose(0, 2, 3, 1) if is_nchw else values, np.float32)

    def random(self, count: int, seed: int = 0) -> Array:
        """Standard normal samples in NHWC."""
        return np.random.default_rng(seed).standard_normal((count, *self.imported.graph.input.shape), np.float32)

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
    return Source(model, onnx.read(model, input_shape))
