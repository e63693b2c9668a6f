"""From an ONNX file to the engine's float32 graph. Needs the extra `csengine[onnx]`.

What cannot be imported is collected: one error lists every such node with the reason and what to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from csengine.errors import GraphError, ModelFormatError, UnsupportedModelError
from csengine.graph import AveragePool, Clip, Graph, MaxPool, Relu
from csengine.importers.builder import Builder, UnsupportedError, Value

Array = NDArray[Any]
_Result: TypeAlias = "Value | Array"
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def load(path: str | os.PathLike[str], input_shape: tuple[int, ...] | None = None) -> Graph:
    """The float32 graph of an ONNX file.

    input_shape: of one sample, in the model's order, where the file leaves it open. Raises FileNotFoundError,
    ModelFormatError (not ONNX, or not valid), UnsupportedModelError (with everything that cannot be imported).
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise ModelFormatError(f"{path}: not a valid ONNX model ({error!s:.300})") from error
    return from_model(model, input_shape)


def from_model(model: Any, input_shape: tuple[int, ...] | None = None) -> Graph:
    """The float32 graph of an ONNX model in memory; see `load`."""
    return _Importer(model, input_shape).run()


class _Importer:
    """Walks the nodes once; `known` holds tensors and constants by their ONNX names."""

    def __init__(self, model: Any, input_shape: tuple[int, ...] | None) -> None:
        self.graph = model.graph
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
        self.problems: list[str] = []
        self.known: dict[str, _Result] = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        sources = [source for source in self.graph.input if source.name not in self.known]
        if len(sources) != 1 or len(self.graph.output) != 1:
            raise UnsupportedModelError(
                f"the model has {len(sources)} inputs and {len(self.graph.output)} outputs; expected one of each: "
                "cut it with onnx.utils.extract_model"
            )
        self.source, self.batch = sources[0], 1
        shape = self._input_shape(input_shape)
        readers = [node for node in self.graph.node if self.source.name in node.input]
        channels_last = len(shape) == 3 and all(
            node.op_type == "Transpose" and list(_attributes(node).get("perm", ())) == [0, 3, 1, 2] for node in readers
        )
        self.builder = Builder("NHWC" if channels_last else "NCHW")
        try:
            self.known[self.source.name] = self.builder.input(self.source.name, shape)
        except UnsupportedError as error:
            raise UnsupportedModelError(f"{self.source.name}: {error}; {error.remedy}") from error

    def _input_shape(self, given: tuple[int, ...] | None) -> tuple[int, ...]:
        kind = self.source.type.tensor_type
        if kind.elem_type not in _FLOATS:
            name = TensorProto.DataType.Name(kind.elem_type)
            raise UnsupportedModelError(f"{self.source.name}: takes {name}; expected real numbers")
        batch, *shape = [extent.dim_value for extent in kind.shape.dim] or [0]
        self.batch = batch or 1
        shape = list(given) if given is not None else shape
        if not shape or 0 in shape:
            raise UnsupportedModelError(f"{self.source.name}: has no fixed shape; give input_shape")
        return tuple(shape)

    def run(self) -> Graph:
        for node in self.graph.node:
            self._add(node)
        result = self.known.get(self.graph.output[0].name)
        if not self.problems and isinstance(result, Value):
            try:
                return self.builder.finish(result)
            except (UnsupportedError, GraphError) as error:
                self.problems.append(f"output {self.graph.output[0].name}: {error}")
        elif not self.problems:
            self.problems.append(f"output {self.graph.output[0].name}: does not depend on the input")
        raise UnsupportedModelError("cannot import:\n  " + "\n  ".join(self.problems))

    def _add(self, node: Any) -> None:
        label = f"{node.name or (node.output[0] if node.output else '?')} ({node.op_type})"
        operation = _OPERATIONS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        names = [name for name in node.input if name]
        if all(isinstance(self.known.get(name), np.ndarray) for name in names) and node.op_type not in _RANDOM:
            self._fold(node, label)
        elif operation is None:
            known = ", ".join(_OPERATIONS)
            self.problems.append(f"{label}: has no counterpart; replace it by operations that have: {known}")
        elif all(name in self.known for name in names):  # otherwise it reads what could not be imported
            try:
                inputs = [self.known[name] if name else None for name in node.input]
                self.known[node.output[0]] = operation(self, node.output[0], inputs, _attributes(node))
            except UnsupportedError as error:
                self.problems.append(f"{label}: {error}" + (f"; {error.remedy}" if error.remedy else ""))
            except GraphError as error:
                self.problems.append(f"{label}: {error}")

    def _fold(self, node: Any, label: str) -> None:
        """Compute a node of constants."""
        names = [name for name in dict.fromkeys(node.input) if name]
        made = helper.make_graph(
            [node],
            "constant",
            [
                helper.make_value_info(name, helper.make_tensor_type_proto(_type_of(self.known[name]), None))
                for name in names
            ],
            [helper.make_value_info(name, onnx.TypeProto()) for name in node.output if name],
        )
        try:
            model = helper.make_model(made, opset_imports=[helper.make_opsetid("", self.opset)])
            results = ReferenceEvaluator(model).run(None, {name: self.known[name] for name in names})
        except Exception as error:  # noqa: BLE001 - whatever an unknown operation raises is its reason
            self.problems.append(f"{label}: cannot be computed beforehand ({error!s:.200})")
            return
        self.known.update(zip((name for name in node.output if name), map(np.asarray, results), strict=True))

    # --- operations --------------------------------------------------------------------------------------------------

    def conv(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        x, weight, bias = _tensor(inputs, 0), _constant(inputs, 1), _optional(inputs, 2)
        if len(x.shape) != 3:
            raise UnsupportedError(f"reads shape {x.shape}; only 2-D convolutions are supported")
        _require(set(attributes.get("dilations", (1,))) == {1}, "has a dilation; only 1 is supported")
        kernel, stride = weight.shape[2:], tuple(attributes.get("strides", (1, 1)))
        padding = _padding(x, kernel, stride, attributes)
        return self.builder.conv(name, x, weight, bias, stride, padding, attributes.get("group", 1))

    def gemm(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        x, weight, bias = _tensor(inputs, 0), _constant(inputs, 1), _optional(inputs, 2)
        _require(not attributes.get("transA"), "transposes its activations")
        weight = weight.T if attributes.get("transB") else weight
        bias = None if bias is None else np.squeeze(bias, 0) if bias.ndim == 2 and len(bias) == 1 else bias
        bias = None if bias is None else bias * attributes.get("beta", 1.0)
        return self.builder.linear(name, x, weight * attributes.get("alpha", 1.0), bias)

    def matmul(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        weight = _constant(inputs, 1)
        _require(weight.ndim == 2, f"has a weight of shape {weight.shape}; only matrices are supported")
        return self.builder.linear(name, _tensor(inputs, 0), weight, None)

    def batch_norm(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        _require(not attributes.get("training_mode"), "is in training mode; export the model in evaluation mode")
        x = _tensor(inputs, 0)
        gain, shift, mean, variance = (_constant(inputs, i).astype(np.float64) for i in range(1, 5))
        scale = gain / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        form = (-1, *(1 for _ in x.shape[1:]))
        return self.builder.affine(name, x, scale.reshape(form), (shift - mean * scale).reshape(form))

    def relu(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        return self.builder.elementwise(Relu, name, _tensor(inputs, 0))

    def clip(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        bounds = [attributes.get(key) for key in ("min", "max")]
        for i in (1, 2):
            if (given := _optional(inputs, i)) is not None:
                bounds[i - 1] = float(given)
        limit = float(np.finfo(np.float32).max)
        low, high = (None if b is None or abs(b) >= limit else float(b) for b in bounds)
        if low == 0 and high is None:
            return self.relu(name, inputs[:1], {})
        return self.builder.elementwise(Clip, name, _tensor(inputs, 0), minimum=low, maximum=high)

    def leaky_relu(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        slope = _optional(inputs, 1)
        slope = np.asarray(attributes.get("alpha", 0.01) if slope is None else slope, np.float64)
        x, none = _tensor(inputs, 0), np.zeros(())
        straight = self.builder.affine(f"{name}.slope", x, slope, none)
        positive = self.builder.elementwise(Relu, f"{name}.positive", x)
        return self.builder.add(name, straight, self.builder.affine(f"{name}.rest", positive, 1 - slope, none))

    def max_pool(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        _require(set(attributes.get("dilations", (1,))) == {1}, "has a dilation; only 1 is supported")
        return self._pool(MaxPool, name, _tensor(inputs, 0), attributes)

    def average_pool(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        counts = bool(attributes.get("count_include_pad", 0))
        return self._pool(AveragePool, name, _tensor(inputs, 0), attributes, count_padding=counts)

    def _pool(self, kind: Any, name: str, x: Value, attributes: dict[str, Any], **more: Any) -> Value:
        if len(x.shape) != 3:
            raise UnsupportedError(f"pools shape {x.shape}; only images are supported")
        _require(not attributes.get("ceil_mode"), "has ceil_mode; pad the image instead")
        kernel, stride = tuple(attributes["kernel_shape"]), tuple(attributes.get("strides", (1, 1)))
        padding = _padding(x, kernel, stride, attributes)
        if not any(padding):
            more.pop("count_padding", None)
        return self.builder.pool(kind, name, x, kernel=kernel, stride=stride, padding=padding, **more)

    def global_average(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        x = _tensor(inputs, 0)
        return self.builder.pool(AveragePool, name, x, kernel=x.shape[1:], stride=x.shape[1:])

    def add(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        first = next(i for i, x in enumerate(inputs) if isinstance(x, Value))
        total: Value = inputs[first]
        for x in inputs[:first] + inputs[first + 1 :]:
            if isinstance(x, Value):
                total = self.builder.add(name, total, x)
            else:
                total = self.builder.affine(name, total, np.ones(()), _per_sample(x, total))
        return total

    def mul(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        values = [x for x in inputs if isinstance(x, Value)]
        _require(len(values) == 1, "multiplies two activations; only constants are supported")
        constant = next(x for x in inputs if not isinstance(x, Value))
        return self.builder.affine(name, values[0], _per_sample(constant, values[0]), np.zeros(()))

    def concat(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        values = [_tensor(inputs, i) for i in range(len(inputs))]
        return self.builder.concat(name, values, _sample_axis(attributes["axis"], values[0]))

    def flatten(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        x = _tensor(inputs, 0)
        _require(attributes.get("axis", 1) == 1, "flattens from another axis than 1")
        return self.builder.reshape(x, (prod(x.shape),))

    def reshape(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        x = _tensor(inputs, 0)
        target = attributes.get("shape") if len(inputs) < 2 else _constant(inputs, 1).tolist()
        full = (self.batch, *x.shape)
        shape = [full[i] if extent == 0 else int(extent) for i, extent in enumerate(target or ())]
        if -1 in shape:
            shape[shape.index(-1)] = prod(full) // max(1, -prod(shape))
        _require(len(shape) > 1 and shape[0] == self.batch, f"reshapes to {shape}, which moves the batch axis")
        return self.builder.reshape(x, tuple(shape[1:]))

    def transpose(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        x = _tensor(inputs, 0)
        axes = list(attributes.get("perm", range(len(x.shape), -1, -1)))
        _require(axes[0] == 0, "moves the batch axis")
        return self.builder.transpose(x, [axis - 1 for axis in axes[1:]])

    def softmax(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        x = _tensor(inputs, 0)
        axis = _sample_axis(attributes.get("axis", -1 if self.opset >= 13 else 1), x)
        axes = (axis,) if self.opset >= 13 else tuple(range(axis, len(x.shape)))
        return self.builder.softmax(name, x, axes)

    def shape(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        full = (self.batch, *_tensor(inputs, 0).shape)
        return np.array(full[attributes.get("start", 0) : attributes.get("end")], np.int64)

    def same(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        return _tensor(inputs, 0)

    def cast(self, name: str, inputs: list[Any], attributes: dict[str, Any]) -> _Result:
        _require(attributes["to"] in _FLOATS, "casts to integers")
        return _tensor(inputs, 0)


_RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"})
_OPERATIONS: Mapping[str, Callable[[_Importer, str, list[Any], dict[str, Any]], _Result]] = {
    "Conv": _Importer.conv,
    "Gemm": _Importer.gemm,
    "MatMul": _Importer.matmul,
    "BatchNormalization": _Importer.batch_norm,
    "Relu": _Importer.relu,
    "Clip": _Importer.clip,
    "LeakyRelu": _Importer.leaky_relu,
    "PRelu": _Importer.leaky_relu,
    "MaxPool": _Importer.max_pool,
    "AveragePool": _Importer.average_pool,
    "GlobalAveragePool": _Importer.global_average,
    "Add": _Importer.add,
    "Sum": _Importer.add,
    "Mul": _Importer.mul,
    "Concat": _Importer.concat,
    "Flatten": _Importer.flatten,
    "Reshape": _Importer.reshape,
    "Transpose": _Importer.transpose,
    "Softmax": _Importer.softmax,
    "Shape": _Importer.shape,
    "Identity": _Importer.same,
    "Dropout": _Importer.same,
    "Cast": _Importer.cast,
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UnsupportedError(message)


def _attributes(node: Any) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _type_of(array: Any) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))


def _tensor(inputs: list[Any], i: int) -> Value:
    value = inputs[i] if i < len(inputs) else None
    if not isinstance(value, Value):
        raise UnsupportedError(f"has a constant as operand {i}; expected an activation")
    return value


def _constant(inputs: list[Any], i: int) -> Array:
    value = inputs[i] if i < len(inputs) else None
    if not isinstance(value, np.ndarray):
        raise UnsupportedError(f"computes operand {i} at run time; only constants are supported")
    return value


def _optional(inputs: list[Any], i: int) -> Array | None:
    return None if i >= len(inputs) or inputs[i] is None else _constant(inputs, i)


def _per_sample(constant: Array, value: Value) -> Array:
    """A constant that broadcasts to a batch as one that broadcasts to a sample."""
    full = constant.ndim == len(value.shape) + 1
    _require(not full or len(constant) == 1, "has a constant that differs between samples")
    return constant[0] if full else constant


def _sample_axis(axis: int, value: Value) -> int:
    axis += len(value.shape) + 1 if axis < 0 else 0
    _require(axis >= 1, "works along the batch axis")
    return axis - 1


def _padding(x: Value, kernel: Any, stride: Any, attributes: dict[str, Any]) -> tuple[int, int, int, int]:
    """(top, left, bottom, right), from `pads` or `auto_pad`."""
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    if mode == "NOTSET":
        top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
        return top, left, bottom, right
    if mode == "VALID":
        return 0, 0, 0, 0
    totals = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in zip(x.shape[1:], kernel, stride, strict=True)]
    before = [total // 2 if mode == "SAME_UPPER" else total - total // 2 for total in totals]
    return before[0], before[1], totals[0] - before[0], totals[1] - before[1]
