"""Compares an imported network with its ONNX source, tensor by tensor, as ONNX Runtime computes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from csengine import reference
from csengine.errors import BackendUnavailableError, ModelFormatError, ShapeError, UnsupportedModelError
from csengine.graph import Affine, Clip, Graph, Relu
from csengine.importers.builder import Value
from csengine.importers.onnx import Imported
from csengine.quantization import relative_error

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorCheck:
    """How far one tensor is from its source's.

    name: in the graph; source: in the ONNX model. relative_error: root of the mean squared difference over the root
    mean square of the source's values. largest: difference over the source's largest magnitude.
    """

    name: str
    source: str
    elements: int
    relative_error: float
    largest: float


@dataclass(frozen=True, eq=False)
class Check:
    """All tensors that both have, and the results `[B, ...]`, in the graph's order, of the source and of the graph."""

    tensors: tuple[TensorCheck, ...]
    result: TensorCheck
    wanted: Array
    got: Array

    def raise_if_far(self, tolerance: float = 1e-3) -> None:
        """Raise UnsupportedModelError if the result is not the source's: the import would be wrong."""
        if not self.result.relative_error <= tolerance:
            first = next((item for item in self.tensors if not item.relative_error <= tolerance), self.result)
            raise UnsupportedModelError(
                f"the imported network differs from ONNX Runtime by {self.result.relative_error:.2e} (relative); "
                f"expected at most {tolerance:g}; the first tensor that differs is {first.source}: please report this"
            )


def is_available() -> bool:
    """Whether ONNX Runtime is installed."""
    return find_spec("onnxruntime") is not None


def check(model: Any, imported: Imported, x: Array, graph: Graph | None = None) -> Check:
    """Run an `onnx.ModelProto` and a graph on samples.

    x: float32 `[B, ...]` in NHWC. graph: what was made from `imported.graph`, for instance by quantization; None for
    that itself. Integers are compared by the real numbers that they stand for. Raises BackendUnavailableError,
    ModelFormatError (ONNX Runtime cannot run the source), ShapeError.
    """
    graph = graph or imported.graph
    if graph.input.shape != imported.graph.input.shape or graph.output_type.shape != imported.graph.output_type.shape:
        raise ShapeError(
            f"the packed model takes {graph.input.shape} and gives {graph.output_type.shape}, the source takes "
            f"{imported.graph.input.shape} and gives {imported.graph.output_type.shape}; expected the same network"
        )
    pairs = dict(_pairs(imported, graph))
    output = model.graph.output[0].name
    wanted = _run(model, imported, x, [source for source, _ in pairs.values()])
    got = reference.trace(graph, x)
    checks = []
    for name, (source, value) in pairs.items():
        if source not in wanted:  # within a function of the model
            continue
        expected = _in_graph_order(wanted[source], value)
        if graph.types[name].dtype == "uint8":
            expected = np.maximum(expected, 0.0)  # a ReLU further on became this tensor's clamp
        checks.append(_compare(name, source, expected, _real(graph, name, got[name])))
    expected = _in_graph_order(wanted[output], imported.result)
    real = _real(graph, graph.output.name, got[graph.output.name])
    return Check(tuple(checks), _compare("(result)", output, expected, real), expected, real)


def _pairs(imported: Imported, graph: Graph) -> Iterator[tuple[str, tuple[str, Value]]]:
    """Every tensor of the graph that stands for one of the source's, with that."""
    by_name: dict[str, tuple[str, Value]] = {}
    for source, value in imported.tensors.items():
        if value.name not in by_name or source == value.name:
            by_name[value.name] = source, value
    for name, kind in graph.types.items():
        has_numbers = kind.dtype == "float32" or kind.scale is not None
        if has_numbers and name in imported.graph.types:
            final = _stands_for(imported.graph, graph, name)
            if final in by_name:
                yield name, by_name[final]


def _stands_for(source: Graph, graph: Graph, name: str) -> str:
    """The last of the operations on a tensor that were folded into what makes it."""
    while len(readers := source.readers[name]) == 1:
        (reader,) = readers
        if reader.name in graph.types or not isinstance(reader, (Affine, Relu, Clip)):
            break
        name = reader.name
    return name


def _run(model: Any, imported: Imported, x: Array, names: list[str]) -> Mapping[str, Array]:
    """Tensors of the source, float64 `[B, ...]`."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailableError(f"comparing needs ONNX Runtime: pip install onnxruntime ({error})") from error
    x = np.ascontiguousarray(imported.graph.to_caller(x))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    content = _with_outputs(model, names).SerializeToString()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return _run_session(session, imported.source, x)
    except Exception as error:  # its errors have no class in common
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise ModelFormatError(f"ONNX Runtime cannot run the model ({error!s:.300}); export it again") from error


def _run_session(session: Any, name: str, x: Array) -> Mapping[str, Array]:
    """All outputs for a batch of any size, and the input under its name."""
    (source,) = (item for item in session.get_inputs() if item.name == name)
    kinds = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
    x = x.astype(kinds.get(source.type, np.float32))
    size = source.shape[0] if isinstance(source.shape[0], int) and source.shape[0] else 1
    count = -(-len(x) // size) * size
    filled = x[np.arange(count) % len(x)]
    outputs = [item.name for item in session.get_outputs()]
    parts = [session.run(outputs, {source.name: filled[i : i + size]}) for i in range(0, count, size)]
    joined = (np.concatenate([_with_batch(part, size) for part in tensors]) for tensors in zip(*parts, strict=True))
    results = [tensor[: len(x)].astype(np.float64) for tensor in joined]
    return {source.name: x.astype(np.float64), **dict(zip(outputs, results, strict=True))}


def _with_batch(tensor: Array, size: int) -> Array:
    """A tensor whose batch axis may have been squeezed."""
    return tensor if tensor.shape[:1] == (size,) or tensor.size % size else tensor.reshape(size, -1)


def _with_outputs(model: Any, names: list[str]) -> Any:
    """The model with more of its tensors as outputs."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    present = {item.name for item in model.graph.output} | {item.name for item in model.graph.input}
    made = {name for node in model.graph.node for name in node.output}
    changed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name in made - present)
    return changed


def _in_graph_order(values: Array, value: Value) -> Array:
    rows = values.reshape(len(values), -1)
    return np.asarray(rows[:, value.places.ravel()].reshape(len(values), *value.places.shape))


def _real(graph: Graph, name: str, values: Array) -> Array:
    return values * float(graph.types[name].scale or 1.0)


def _compare(name: str, source: str, wanted: Array, got: Array) -> TensorCheck:
    difference = got - wanted
    error = relative_error(got, wanted)
    largest = float(np.abs(difference).max(initial=0.0)) / (float(np.abs(wanted).max(initial=0.0)) or 1.0)
    return TensorCheck(name, source, wanted.size, error, largest)
