"""A packed network as an ONNX model, for the runtimes that read ONNX. Needs the package `onnx`.

The form says how the integers of a network are written:

    float     its `real` function, in float32
    qdq       QuantizeLinear and DequantizeLinear around float operations, which runtimes fuse to integer kernels
    integer   ConvInteger and MatMulInteger
    int4      float32, linear layers by ONNX Runtime's MatMulNBits: 4-bit weights in blocks of 32 inputs

Scales and weights are the packed network's own, zero points are 0: every runtime computes the same function, up to
how it rounds. k-winners become TopK and either a scatter of the winners ("scatter", exact) or a comparison with the
least of them ("threshold", keeps all that are equal to it).

On processors without VNNI, runtimes that add pairs of 8-bit products in 16 bits saturate. Weights of 7 bits prevent it,
as they recommend: `exact_weight_bits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from csengine.errors import UnsupportedModelError
from csengine.graph import (
    KWTA,
    Activation,
    Add,
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv2d,
    Dequantize,
    Graph,
    Input,
    Linear,
    MaxPool,
    Node,
    Product,
    Relu,
    Reshape,
    Softmax,
)
from csengine.peers.functions import (
    conv_weight,
    flattened,
    linear_weight,
    per_channel,
    real,
    real_bounds,
    rescaling,
    units,
    weight_scale,
)
from csengine.resources import has_vnni

Array = NDArray[Any]
Form = Literal["float", "qdq", "integer", "int4"]
Selection = Literal["scatter", "threshold"]

OPSET = 13
"""The oldest with quantization per channel: DeepSparse reads no newer one."""
_IR_VERSION = 8
_TYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int8": TensorProto.INT8}
_INT4_BLOCK = 32


@dataclass(frozen=True)
class Written:
    """A model, and the type of its input and result: float32 in real numbers, or the network's own integers."""

    model: Any
    input_type: str
    output_type: str


def write(
    graph: Graph,
    form: Form,
    batch: int,
    *,
    selection: Selection = "scatter",
    direct: bool = False,
    weight_bits: int = 8,
) -> Written:
    """The ONNX model of a network for one batch size.

    direct: the input is of the network's own integer type, not real (not for the forms "float" and "int4").
    weight_bits: 8, or 7 to round weights to even numbers, of half the size (not for the forms "float" and "int4").
    Raises UnsupportedModelError.
    """
    keeps_integers = form in ("qdq", "integer")
    source = graph if keeps_integers else real(graph)
    return _Writer(source, form, batch, selection, direct and keeps_integers, weight_bits).build()


def exact_weight_bits() -> int:
    """The most that ONNX Runtime and OpenVINO multiply without saturating on this processor."""
    return 8 if has_vnni() else 7


class _Writer:
    """Walks a graph once. `value` holds the float tensors of nodes, `integers` the quantized ones, where they exist."""

    def __init__(
        self, graph: Graph, form: Form, batch: int, selection: Selection, direct: bool, weight_bits: int
    ) -> None:
        self.graph, self.form, self.batch, self.selection, self.direct = graph, form, batch, selection, direct
        self.step = 2 ** (8 - weight_bits)  # between the weights that can be written
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.value: dict[str, str] = {}
        self.integers: dict[str, str] = {}
        self.flat = flattened(graph)

    def build(self) -> Written:
        for node in self.graph.nodes:
            self._add(node)
        kind = self.graph.output_type
        is_integer = kind.scale is not None
        self._call_it_result((self._quantized if is_integer else self._real)(self.graph.output.name))
        input_type = self.graph.input.dtype if self.direct else "float32"
        output_type = kind.dtype if is_integer else "float32"
        source = helper.make_tensor_value_info("input", _TYPES[input_type], self._extents(self.graph.input.shape))
        result = helper.make_tensor_value_info("result", _TYPES[output_type], self._extents(kind.shape))
        made = helper.make_graph(self.nodes, "network", [source], [result], self.constants)
        domains = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        domains = domains if self.form == "int4" else domains[:1]
        return Written(helper.make_model(made, opset_imports=domains, ir_version=_IR_VERSION), input_type, output_type)

    def _call_it_result(self, tensor: str) -> None:
        if tensor == "input":
            self._emit("Identity", ["input"], name="result")
        for made in self.nodes:
            for names in (made.input, made.output):
                renamed = ["result" if name == tensor != "input" else name for name in names]
                names[:] = renamed

    # --- building blocks ---------------------------------------------------------------------------------------------

    def _extents(self, shape: Sequence[int]) -> list[int]:
        return [self.batch, shape[2], shape[0], shape[1]] if len(shape) == 3 else [self.batch, *shape]

    def _emit(self, operation: str, inputs: Sequence[str], name: str = "", outputs: int = 1, **attributes: Any) -> str:
        """Add a node; the name of its first result."""
        name = name or f"t{len(self.nodes)}"
        names = [name, *(f"{name}.{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(operation, list(inputs), names, name=f"{operation}_{name}", **attributes))
        return name

    def _constant(self, values: Any, dtype: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype, order="C"), name))
        return name

    def _zero(self, dtype: str, size: int | None = None) -> str:
        return self._constant(np.zeros(() if size is None else size), dtype)

    def _give(self, node: Node, tensor: str) -> None:
        """Let a node's values be this float tensor, rounded to integers if it has some.

        The form "integer" rounds only where a layer reads them: DeepSparse does not pool integers.
        """
        if self.form == "integer" or self.graph.types[node.name].scale is None:
            self.value[node.name] = tensor
        else:
            self.integers[node.name] = self._quantize(node.name, tensor)

    def _quantize(self, name: str, tensor: str) -> str:
        kind = self.graph.types[name]
        return self._emit("QuantizeLinear", [tensor, self._constant(kind.scale, np.float32), self._zero(kind.dtype)])

    def _quantized(self, name: str) -> str:
        """A node's integers."""
        if name not in self.integers:
            self.integers[name] = self._quantize(name, self.value[name])
        return self.integers[name]

    def _real(self, name: str) -> str:
        """A node's float tensor."""
        if name not in self.value:
            kind = self.graph.types[name]
            arguments = [self.integers[name], self._constant(kind.scale, np.float32), self._zero(kind.dtype)]
            self.value[name] = self._emit("DequantizeLinear", arguments)
        return self.value[name]

    # --- operations --------------------------------------------------------------------------------------------------

    def _add(self, node: Node) -> None:
        match node:
            case Input():
                if self.direct:
                    self.integers[node.name] = "input"
                else:
                    self._give(node, "input")
            case Conv2d() | Linear() if not self.graph.input_types(node)[0].is_integer:
                self._give(node, self._float_layer(node))
            case Conv2d() | Linear():
                self._give(node, self._integer_layer(node) if self.form == "integer" else self._qdq_layer(node))
            case Relu() if node.inputs[0] in self.integers and self.graph.types[node.name].dtype == "uint8":
                self.integers[node.name] = self.integers[node.inputs[0]]
            case _:
                self._give(node, self._operation(node, [self._real(name) for name in node.inputs]))

    def _operation(self, node: Node, inputs: Sequence[str]) -> str:
        match node:
            case Relu():
                return self._emit("Relu", inputs)
            case Clip():
                bounds = real_bounds(self.graph, node)
                limits = ["" if bound is None else self._constant(bound, np.float32) for bound in bounds]
                return self._emit("Clip", [*inputs, *limits])
            case Activation():
                return self._activation(node, inputs[0])
            case KWTA():
                return self._winners(node, inputs[0])
            case MaxPool():
                return self._emit("MaxPool", inputs, **self._window(node))
            case AveragePool() if node.kernel == self.graph.input_types(node)[0].shape[:2] and not any(node.padding):
                return self._emit("GlobalAveragePool", inputs)  # OpenVINO refuses some of the others
            case AveragePool():
                return self._emit(
                    "AveragePool", inputs, count_include_pad=int(node.count_padding), **self._window(node)
                )
            case Add():
                return self._emit("Add", inputs)
            case Product():
                return self._emit("Mul", inputs)
            case Concat():
                return self._emit("Concat", inputs, axis=1)
            case Affine():
                values = [per_channel(self.graph, node, values) for values in (node.scale, node.shift)]
                scale, shift = (self._constant(per_channel, np.float32) for per_channel in values)
                return self._emit("Add", [self._emit("Mul", [inputs[0], scale]), shift])
            case Reshape():
                return self._reshape(node, inputs[0])
            case Dequantize():
                ratio = rescaling(self.graph, node)
                if ratio is None:
                    return self._emit("Identity", inputs)
                return self._emit("Mul", [*inputs, self._constant(per_channel(self.graph, node, ratio), np.float32)])
            case Softmax():
                return self._emit("Softmax", inputs, axis=1)
        raise UnsupportedModelError(f"{node.name}: no ONNX form of {type(node).__name__}")

    @staticmethod
    def _window(node: Conv2d | MaxPool | AveragePool) -> dict[str, Any]:
        return {"kernel_shape": node.kernel, "strides": node.stride, "pads": node.padding}

    def _reshape(self, node: Reshape, source: str) -> str:
        before, after = self.graph.types[node.inputs[0]].shape, node.shape
        if before == after:
            return self._emit("Identity", [source])
        if node.name not in self.flat and len(before) == 3:
            source = self._emit("Transpose", [source], perm=[0, 2, 3, 1])
        shape = self._constant([self.batch, *after], np.int64)
        result = self._emit("Reshape", [source, shape])
        return self._emit("Transpose", [result], perm=[0, 3, 1, 2]) if len(after) == 3 else result

    def _activation(self, node: Activation, x: str) -> str:
        match node.function:
            case "sigmoid":
                return self._emit("Sigmoid", [x])
            case "tanh":
                return self._emit("Tanh", [x])
            case "silu":
                inner = x if node.alpha == 1.0 else self._emit("Mul", [x, self._constant(node.alpha, np.float32)])
                return self._emit("Mul", [x, self._emit("Sigmoid", [inner])])
            case "hard_sigmoid":
                return self._emit("HardSigmoid", [x], alpha=node.alpha, beta=0.5)
            case "hard_swish":
                return self._emit("Mul", [x, self._emit("HardSigmoid", [x], alpha=1 / 6, beta=0.5)])
            case "elu":
                return self._emit("Elu", [x], alpha=node.alpha)
            case "leaky_relu":
                return self._emit("LeakyRelu", [x], alpha=node.alpha)

    def _winners(self, node: KWTA, source: str) -> str:
        kind = self.graph.types[node.name]
        size = node.scope_size(kind)
        if node.k >= size:
            return self._emit("Identity", [source])
        is_flattened = node.scope == "global" and len(kind.shape) == 3
        extents = self._constant(self._extents(kind.shape), np.int64)
        if is_flattened:
            source = self._emit("Reshape", [source, self._constant([self.batch, -1], np.int64)])
        result = self._selected(node, source, self._factor(node))
        return self._emit("Reshape", [result, extents]) if is_flattened else result

    def _factor(self, node: KWTA) -> Array | None:
        """Ranking factors as the tensor that competes has its values."""
        shape = self.flat.get(node.name) or self.graph.types[node.name].shape
        if node.factor is None:
            return None
        if node.scope == "local":
            return per_channel(self.graph, node, node.factor)
        return node.factor.reshape(shape).transpose(2, 0, 1).ravel() if len(shape) == 3 else node.factor

    def _selected(self, node: KWTA, source: str, factor: Array | None) -> str:
        """The winners among `source`, along axis 1."""
        ranking = source if factor is None else self._emit("Mul", [source, self._constant(factor, np.float32)])
        k = self._constant([node.k], np.int64)
        top = self._emit("TopK", [ranking, k], outputs=2, axis=1, sorted=0)
        if self.selection == "threshold":
            least = self._emit("ReduceMin", [top], axes=[1], keepdims=1)
            loses = self._emit("Less", [ranking, least])
            return self._emit("Where", [loses, self._zero("float32"), source])
        values = top if factor is None else self._emit("GatherElements", [source, f"{top}.1"], axis=1)
        shape = self.graph.types[node.name].shape
        extents = self._extents(shape) if node.scope == "local" else [self.batch, prod(shape)]
        zeros = self._constant(np.zeros(extents), np.float32)
        return self._emit("ScatterElements", [zeros, f"{top}.1", values], axis=1)

    # --- layers with weights -----------------------------------------------------------------------------------------

    def _weight(self, node: Conv2d | Linear) -> Array:
        return conv_weight(node) if isinstance(node, Conv2d) else linear_weight(node, self.flat.get(node.inputs[0]))

    def _stored(self, integers: Array, dtype: Any = np.int8) -> str:
        """Weights or biases as multiples of the smallest weight."""
        return self._constant(np.rint(integers / self.step), dtype)

    def _apply(
        self, node: Conv2d | Linear, source: str, weight: str, bias: str | None, *, transposed: bool = False
    ) -> str:
        """A layer on float tensors. transposed: a linear layer's weight is [O, R]."""
        inputs = [source, weight] if bias is None else [source, weight, bias]
        if isinstance(node, Conv2d):
            return self._emit("Conv", inputs, group=node.groups, **self._window(node))
        if bias is None and not transposed:
            return self._emit("MatMul", inputs)
        return self._emit("Gemm", inputs, transB=int(transposed))

    def _float_layer(self, node: Conv2d | Linear) -> str:
        source = self._real(node.inputs[0])
        weight, bias = self._weight(node), node.bias
        if self.form == "int4" and isinstance(node, Linear):
            result = self._int4_product(source, weight)
            return result if bias is None else self._emit("Add", [result, self._constant(bias, np.float32)])
        named = None if bias is None else self._constant(bias, np.float32)
        return self._apply(node, source, self._constant(weight, np.float32), named)

    def _int4_product(self, source: str, weight: Array) -> str:
        """MatMulNBits: per output, blocks of 32 inputs share a scale; two 4-bit weights to a byte, 8 means 0."""
        rows, kernels = weight.shape
        blocks = -(-rows // _INT4_BLOCK)
        columns = np.pad(weight, ((0, blocks * _INT4_BLOCK - rows), (0, 0))).T.reshape(kernels, blocks, _INT4_BLOCK)
        scale = np.abs(columns).max(axis=2) / 7.0
        scale = np.where(scale > 0, scale, 1.0)
        levels = (np.rint(columns / scale[..., None]) + 8).astype(np.uint8)
        packed = levels[..., ::2] | levels[..., 1::2] << 4
        arguments = [source, self._constant(packed, np.uint8), self._constant(scale.ravel(), np.float32)]
        sizes = {"K": rows, "N": kernels, "bits": 4, "block_size": _INT4_BLOCK, "accuracy_level": 4}
        return self._emit("MatMulNBits", arguments, domain="com.microsoft", **sizes)

    def _qdq_layer(self, node: Conv2d | Linear) -> str:
        scales = self._constant(weight_scale(self.graph, node) * self.step, np.float32)
        # [O, R] as well: OpenVINO stores weights sparse only if it need not transpose them.
        integers = self._stored(self._weight(node) if isinstance(node, Conv2d) else self._weight(node).T)
        weight = self._emit("DequantizeLinear", [integers, scales, self._zero("int8", node.kernels)], axis=0)
        bias = None
        if node.bias is not None:
            unit = self._constant(units(self.graph, node) * self.step, np.float32)
            arguments = [self._stored(node.bias, np.int32), unit]
            bias = self._emit("DequantizeLinear", arguments, axis=0)
        return self._apply(node, self._real(node.inputs[0]), weight, bias, transposed=True)

    def _integer_layer(self, node: Conv2d | Linear) -> str:
        source, kind = self._quantized(node.inputs[0]), self.graph.input_types(node)[0]
        inputs = [source, self._stored(self._weight(node)), self._zero(kind.dtype), self._zero("int8")]
        if isinstance(node, Conv2d):
            acc = self._emit("ConvInteger", inputs, group=node.groups, **self._window(node))
        else:
            acc = self._emit("MatMulInteger", inputs)
        shape = (1, -1, 1, 1) if isinstance(node, Conv2d) else (1, -1)
        bias = np.zeros(node.kernels) if node.bias is None else node.bias  # DeepSparse knows the pattern by it
        acc = self._emit("Add", [acc, self._stored(bias.reshape(shape), np.int32)])
        scale = self._constant(units(self.graph, node).reshape(shape) * self.step, np.float32)
        result = self._emit("Mul", [self._emit("Cast", [acc], to=TensorProto.FLOAT), scale])
        return self._emit("Relu", [result]) if self.graph.types[node.name].dtype == "uint8" else result
