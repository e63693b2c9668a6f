"""From an ONNX file to the engine's float32 graph. Needs the extra `csengine[onnx]`.

What cannot be imported is collected: one error lists every such node with the reason and what to do. Of quantized
models (QDQ) the scales are kept for an integer network to use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner, numpy_helper
from onnx.reference import ReferenceEvaluator

from csengine.errors import GraphError, ModelFormatError, UnsupportedModelError
from csengine.graph import Graph
from csengine.importers.builder import Builder, Padded, Problems, UnsupportedError, Value
from csengine.importers.onnx_operations import (
    FLOATS,
    OF_CHANNELS_FIRST,
    OF_CONSTANTS,
    OPERATIONS,
    REMEDIES,
    Call,
    State,
)
from csengine.quantization import KnownScales

Array = NDArray[Any]
_DOMAINS = ("", "ai.onnx")
_BRANCHES = frozenset({"If", "Loop", "Scan"})
_RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"})


@dataclass(frozen=True, eq=False)
class Imported:
    """A float32 graph with what its source says of it.

    source: ONNX name of the input. tensors: by ONNX name, the graph tensor that holds it, and its elements' places;
    result: the same of the output. scales: of a quantized source.
    """

    graph: Graph
    source: str
    tensors: Mapping[str, Value]
    result: Value
    scales: KnownScales


def load(path: str | os.PathLike[str], input_shape: tuple[int, ...] | None = None) -> Graph:
    """The float32 graph of an ONNX file.

    input_shape: of one sample, in the model's order, where the file leaves it open. Raises FileNotFoundError,
    ModelFormatError (not ONNX, or not valid), UnsupportedModelError (with everything that cannot be imported).
    `csengine.importers.check` compares the graph with its source.
    """
    return read(read_proto(path), input_shape).graph


def read_proto(path: str | os.PathLike[str]) -> Any:
    """The checked `onnx.ModelProto` of a file. Raises FileNotFoundError, ModelFormatError."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise ModelFormatError(f"{path}: not a valid ONNX model ({error!s:.300}); export it again") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such model: {error.filename or path}") from error
    return model


def read(model: Any, input_shape: tuple[int, ...] | None = None) -> Imported:
    """An `onnx.ModelProto`; see `load`."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    return _Importer(model, input_shape).run()


class _Importer:
    """Walks the nodes once."""

    def __init__(self, model: Any, input_shape: tuple[int, ...] | None) -> None:
        self.graph = model.graph
        self.problems = Problems()
        constants: dict[str, Any] = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        sources = [source for source in self.graph.input if source.name not in constants]
        if len(sources) != 1 or len(self.graph.output) != 1:
            raise UnsupportedModelError(
                f"the model has {len(sources)} inputs and {len(self.graph.output)} outputs; expected one of each: "
                "cut it with onnx.utils.extract_model"
            )
        self.source = sources[0]
        batch, shape = self._input_shape(input_shape)
        opset = max((o.version for o in model.opset_import if o.domain in _DOMAINS), default=1)
        flat = "NCW" if self._is_signal(self.source.name) else "NWC"
        layout = flat if len(shape) == 2 else "NHWC" if self._is_channels_last(shape) else "NCHW"
        self.state = State(Builder(layout, batch), opset, constants)
        try:
            self.state.known[self.source.name] = self.state.builder.input(self.source.name, shape)
        except UnsupportedError as error:
            raise UnsupportedModelError(f"{self.source.name}: {error}; {error.remedy}") from error

    def _input_shape(self, given: tuple[int, ...] | None) -> tuple[int, tuple[int, ...]]:
        """Batch size and shape of a sample."""
        kind = self.source.type.tensor_type
        if kind.elem_type not in FLOATS:
            name = TensorProto.DataType.Name(kind.elem_type)
            raise UnsupportedModelError(
                f"{self.source.name}: takes {name}; expected real numbers: cut the model behind what prepares its input"
            )
        batch, *shape = [extent.dim_value for extent in kind.shape.dim] or [0]
        shape = list(given) if given is not None else shape
        if not shape or 0 in shape:
            raise UnsupportedModelError(f"{self.source.name}: has no fixed shape; give input_shape (--input-shape)")
        return batch or 1, tuple(shape)

    def _is_channels_last(self, shape: tuple[int, ...]) -> bool:
        """Whether all that reads the input begins by moving its last axis to the front."""
        readers = [node for node in self.graph.node if self.source.name in node.input]
        return len(shape) == 3 and all(
            node.op_type == "Transpose" and list(_attributes(node).get("perm", ())) == [0, 3, 1, 2] for node in readers
        )

    def _is_signal(self, name: str) -> bool:
        """Whether all that reads a tensor has channels in front of positions."""
        readers = [node for node in self.graph.node if name in node.input]
        return bool(readers) and all(
            node.op_type in OF_CHANNELS_FIRST
            or (node.op_type in ("QuantizeLinear", "DequantizeLinear", "Pad") and self._is_signal(node.output[0]))
            for node in readers
        )

    def run(self) -> Imported:
        for node in self.graph.node:
            self._add(node)
        output, known = self.graph.output[0].name, self.state.known
        result = known.get(output)
        if not self.problems and isinstance(result, (Value, Padded)):
            try:
                graph, result = self.state.builder.finish(self.state.builder.padded(output, result))
                return Imported(graph, self.source.name, self._tensors(graph), result, self._scales(graph))
            except (UnsupportedError, GraphError) as error:
                self.problems.append(f"output {output}: {error}")
        elif not self.problems:
            self.problems.append(f"output {output}: does not depend on the input; expected a network")
        raise UnsupportedModelError("cannot import:\n  " + "\n  ".join(self.problems))

    def _tensors(self, graph: Graph) -> dict[str, Value]:
        integers = {node.output[0] for node in self.graph.node if node.op_type == "QuantizeLinear"}
        known = {name: value for name, value in self.state.known.items() if name not in integers}
        values = {name: value for name, value in known.items() if isinstance(value, Value) and not value.is_whole}
        return {name: value for name, value in values.items() if value.name in graph.types}

    def _scales(self, graph: Graph) -> KnownScales:
        activations, weights = (
            {name: scale for name, scale in scales.items() if name in graph.types}
            for scales in (self.state.scales, self.state.weight_scales)
        )
        return KnownScales(activations, weights)  # type: ignore[arg-type]

    def _add(self, node: Any) -> None:
        label = f"{node.name or (node.output[0] if node.output else '?')} ({node.op_type})"
        operation = OPERATIONS.get(node.op_type) if node.domain in _DOMAINS else None
        known, names = self.state.known, [name for name in node.input if name]
        is_constant = all(isinstance(known.get(name), np.ndarray) for name in names)
        if is_constant and node.op_type not in _RANDOM | _BRANCHES:
            self._fold(node, label)
        elif operation is None:
            remedy = REMEDIES.get(node.op_type, f"replace it by operations that have: {', '.join(OPERATIONS)}")
            self.problems.add(label, UnsupportedError("has no counterpart", remedy))
        elif all(name in known for name in names):  # otherwise it reads what could not be imported
            self._apply(operation, node, label)

    def _apply(self, operation: Callable[[Call], Any], node: Any, label: str) -> None:
        try:
            made = operation(Call(self.state, node.output[0], node.input, _attributes(node), len(node.output)))
        except UnsupportedError as error:
            self.problems.add(label, error)
        except GraphError as error:
            self.problems.append(f"{label}: {error}")
        except (ValueError, IndexError, TypeError, ArithmeticError, RuntimeError) as error:  # the checker let it pass
            self.problems.append(f"{label}: does not fit what it reads ({error!s:.200}); export the model again")
        else:
            self.state.known.update(zip(node.output, made if isinstance(made, tuple) else (made,), strict=False))

    def _fold(self, node: Any, label: str) -> None:
        """Compute a node of constants."""
        if node.op_type in OF_CONSTANTS:
            self._apply(OF_CONSTANTS[node.op_type], node, label)
            return
        known, names = self.state.known, [name for name in dict.fromkeys(node.input) if name]
        types = [helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(known[n].dtype), None) for n in names]
        made = helper.make_graph(
            [node],
            "constant",
            [helper.make_value_info(name, kind) for name, kind in zip(names, types, strict=True)],
            [helper.make_value_info(name, onnx.TypeProto()) for name in node.output if name],
        )
        try:
            model = helper.make_model(made, opset_imports=[helper.make_opsetid("", self.state.opset)])
            results = ReferenceEvaluator(model).run(None, {name: known[name] for name in names})
        except Exception as error:  # noqa: BLE001 - whatever an unknown operation raises is its reason
            self.problems.append(f"{label}: cannot be computed beforehand ({error!s:.200}); make it a constant")
            return
        known.update(zip((name for name in node.output if name), map(np.asarray, results), strict=True))


def _attributes(node: Any) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}
