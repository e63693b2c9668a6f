"""ONNX models become graphs that compute what ONNX Runtime computes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra csengine[onnx]")
runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")

from light_models import light, mobilenet_v2  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from csengine import ModelFormatError, UnsupportedModelError, container, reference  # noqa: E402
from csengine.cli import main  # noqa: E402
from csengine.convert import convert  # noqa: E402
from csengine.errors import QuantizationError  # noqa: E402
from csengine.graph import KWTA, Clip, Conv2d, Graph, Input, Linear, MaxPool, Relu, Reshape  # noqa: E402
from csengine.importers.check import check  # noqa: E402
from csengine.importers.onnx import load, read  # noqa: E402
from csengine.peers import functions, onnx_form  # noqa: E402
from csengine.quantization import KnownScales, quantize  # noqa: E402

RNG = np.random.default_rng(0)


def weights(*shape: int) -> Any:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)


def model_of(nodes: list[Any], constants: dict[str, Any], shape: tuple[int, ...] = (6, 9, 8), opset: int = 17) -> Any:
    """Nodes from x to y."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def assert_same(model: Any) -> None:
    graph = read(model).graph
    source = model.graph.input[0] if len(model.graph.input) == 1 else None
    shape = [d.dim_value for d in source.type.tensor_type.shape.dim] if source else [1, 3, 224, 224]
    x = RNG.standard_normal(shape).astype(np.float32)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {graph.input.name: x})[0]
    swaps = graph.layout == "NCHW" and x.ndim == 4
    got = reference.run(graph, np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if swaps else x)
    got = got.transpose(0, 3, 1, 2) if got.ndim == 4 and graph.layout == "NCHW" else got
    np.testing.assert_allclose(got.ravel(), wanted.ravel(), rtol=0, atol=1e-4 * np.abs(wanted).max())


def node(op: str, *inputs: str, **attributes: Any) -> Any:
    return helper.make_node(op, list(inputs), ["y"], **attributes)


OPERATIONS = {
    "conv": (
        node("Conv", "x", "w", "b", pads=[1, 0, 2, 1], strides=[2, 1]),
        {"w": weights(4, 6, 3, 2), "b": weights(4)},
    ),
    "conv_groups": (node("Conv", "x", "w", group=3), {"w": weights(6, 2, 3, 3)}),
    "conv_same_upper": (node("Conv", "x", "w", auto_pad="SAME_UPPER", strides=[2, 2]), {"w": weights(4, 6, 2, 3)}),
    "conv_same_lower": (node("Conv", "x", "w", auto_pad="SAME_LOWER", strides=[2, 2]), {"w": weights(4, 6, 2, 3)}),
    "batch_norm": (
        node("BatchNormalization", "x", "s", "b", "m", "v"),
        {"s": weights(6), "b": weights(6), "m": weights(6), "v": np.abs(weights(6)) + 1},
    ),
    "relu6": (node("Clip", "x", "l", "h"), {"l": np.float32(0), "h": np.float32(0.6)}),
    "leaky": (node("LeakyRelu", "x", alpha=0.2), {}),
    "prelu": (node("PRelu", "x", "s"), {"s": weights(6, 1, 1)}),
    "max_pool": (node("MaxPool", "x", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]), {}),
    "average_pool": (node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 1], pads=[1, 1, 1, 1]), {}),
    "average_pool_counted": (node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1), {}),
    "average_pool_ceil": (
        node("AveragePool", "x", kernel_shape=[4, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
        {},
    ),
    "average_pool_ceil_without_padding": (
        node("AveragePool", "x", kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1, count_include_pad=1),
        {},
    ),
    "global_average": (node("GlobalAveragePool", "x"), {}),
    "mul": (node("Mul", "x", "c"), {"c": weights(1, 6, 1, 1)}),
    "add_constant": (node("Add", "c", "x"), {"c": weights(6, 1, 1)}),
    "add_twice": (node("Add", "x", "x"), {}),
    "concat": (node("Concat", "x", "x", axis=1), {}),
    "concat_rows": (node("Concat", "x", "x", axis=2), {}),
    "concat_constant": (node("Concat", "c", "x", axis=1), {"c": weights(1, 2, 9, 8)}),
    "concat_constant_column": (node("Concat", "x", "c", axis=-1), {"c": weights(1, 6, 9, 1)}),
    "softmax": (node("Softmax", "x", axis=1), {}),
    "identity": (node("Identity", "x"), {}),
    "conv_dilated": (node("Conv", "x", "w", dilations=[2, 3], pads=[2, 1, 0, 3]), {"w": weights(4, 6, 3, 2)}),
    "max_pool_ceil": (node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), {}),
    "max_pool_ceil_padded": (
        node("MaxPool", "x", kernel_shape=[2, 3], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1),
        {},
    ),
    "positions": (node("Add", "x", "c"), {"c": weights(6, 9, 8)}),
    "turned": (node("Transpose", "x", perm=[0, 1, 3, 2]), {}),
    "softmax_of_rows": (node("Softmax", "x", axis=3), {}),
    "product": (node("MatMul", "x", "w"), {"w": weights(8, 5)}),
    "product_from_left": (node("MatMul", "w", "x"), {"w": weights(5, 9)}),
    "some_channels": (node("Slice", "x", "a", "b", "c"), {"a": np.int64([1]), "b": np.int64([5]), "c": np.int64([1])}),
    "a_row": (node("Gather", "x", "i", axis=2), {"i": np.int64(3)}),
    "every_other_column": (
        node("Slice", "x", "a", "b", "c", "d"),
        {"a": np.int64([1]), "b": np.int64([8]), "c": np.int64([3]), "d": np.int64([2])},
    ),
    "sigmoid": (node("Sigmoid", "x"), {}),
    "tanh": (node("Tanh", "x"), {}),
    "hard_sigmoid": (node("HardSigmoid", "x", alpha=0.3), {}),
    "hard_sigmoid_of_defaults": (node("HardSigmoid", "x"), {}),
    "hard_swish": (node("HardSwish", "x"), {}),
    "elu": (node("Elu", "x", alpha=0.6), {}),
    "prelu_of_a_batch": (node("PRelu", "x", "s"), {"s": weights(1, 6, 1, 1)}),
    "prelu_of_one_slope": (node("PRelu", "x", "s"), {"s": weights(1)}),
    "square": (node("Mul", "x", "x"), {}),
    "maximum": (node("ReduceMax", "x", axes=[2, 3], keepdims=0), {}),
    "mean_of_rows": (node("ReduceMean", "x", axes=[2], keepdims=0), {}),
    "maximum_of_columns": (node("ReduceMax", "x", axes=[-1]), {}),
    "layer_norm": (node("LayerNormalization", "x", "s", "b"), {"s": weights(8), "b": weights(8)}),
    "local_response_norm": (node("LRN", "x", size=3, alpha=0.4, beta=0.6, bias=2.0), {}),
    "local_response_norm_of_defaults": (node("LRN", "x", size=5), {}),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation(name: str) -> None:
    made, constants = OPERATIONS[name]
    assert_same(model_of([made], constants))


def test_flattened_images_reorder_the_rows_of_the_next_layer() -> None:
    flat = helper.make_node("Flatten", ["x"], ["f"])
    assert_same(model_of([flat, node("Gemm", "f", "w", "b", transB=1)], {"w": weights(5, 432), "b": weights(5)}))
    assert_same(model_of([flat, node("MatMul", "f", "w")], {"w": weights(432, 5)}))


def test_a_channel_shuffle_becomes_a_sparse_convolution() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "a"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", "t", "b"),
    ]
    assert_same(model_of(nodes, {"a": np.int64([1, 2, 3, 9, 8]), "b": np.int64([1, 6, 9, 8])}))


@pytest.mark.parametrize(
    "name", ["squeezenet", "resnet50", "shufflenet", "densenet121", "inception_v1", "inception_v2"]
)
def test_a_whole_network(name: str) -> None:
    model = light(name)
    imported = read(model)
    x = RNG.standard_normal((1, *imported.graph.input.shape)).astype(np.float32)
    found = check(model, imported, x)
    found.raise_if_far(1e-5)
    assert len(found.tensors) > len(imported.graph.nodes) * 0.8
    assert max(item.relative_error for item in found.tensors) < 1e-5


def test_mobilenet_v2_of_the_transformers_package() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("onnxscript", reason="PyTorch exports with it")
    model = mobilenet_v2(96, 10)
    imported = read(model)
    found = check(model, imported, RNG.standard_normal((1, *imported.graph.input.shape)).astype(np.float32))
    assert len(found.tensors) > 90
    assert max(item.relative_error for item in found.tensors) < 1e-4


# --- signals -------------------------------------------------------------------------------------------------------

KERNELS = {"w": weights(4, 6, 3)}
SIGNALS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "conv": ([node("Conv", "x", "w", pads=[2, 1], strides=[2])], KERNELS),
    "conv_same_lower": ([node("Conv", "x", "w", auto_pad="SAME_LOWER", strides=[3])], KERNELS),
    "conv_dilated": ([node("Conv", "x", "w", dilations=[4], pads=[8, 0])], KERNELS),
    "conv_depthwise": ([node("Conv", "x", "w", group=6)], {"w": weights(12, 1, 3)}),
    "pad_conv": (
        [helper.make_node("Pad", ["x", "p"], ["q"]), node("Conv", "q", "w")],
        {**KERNELS, "p": np.int64([0, 0, 3, 0, 0, 1])},
    ),
    "pad": ([node("Pad", "x", "p")], {"p": np.int64([0, 0, 3, 0, 0, 1])}),
    "max_pool": ([node("MaxPool", "x", kernel_shape=[3], strides=[2], pads=[1, 1])], {}),
    "max_pool_ceil": ([node("MaxPool", "x", kernel_shape=[3], strides=[3], ceil_mode=1)], {}),
    "average_pool": ([node("AveragePool", "x", kernel_shape=[3], strides=[2], pads=[1, 1])], {}),
    "average_pool_counted": ([node("AveragePool", "x", kernel_shape=[3], pads=[1, 1], count_include_pad=1)], {}),
    "global_average": ([node("GlobalAveragePool", "x")], {}),
    "global_maximum": ([node("GlobalMaxPool", "x")], {}),
    "reduce_max": ([node("ReduceMax", "x", axes=[2], keepdims=0)], {}),
    "reduce_mean": ([node("ReduceMean", "x", axes=[-1])], {}),
    "batch_norm": (
        [node("BatchNormalization", "x", "s", "b", "m", "v")],
        {"s": weights(6), "b": weights(6), "m": weights(6), "v": np.abs(weights(6)) + 1},
    ),
    "last": ([node("Gather", "x", "i", axis=2)], {"i": np.int64(-1)}),
    "middle": ([node("Slice", "x", "a", "b", "c")], {"a": np.int64([2]), "b": np.int64([9]), "c": np.int64([2])}),
    "every_third": (
        [node("Slice", "x", "a", "b", "c", "d")],
        {"a": np.int64([0]), "b": np.int64([99]), "c": np.int64([2]), "d": np.int64([3])},
    ),
    "conv_cut": (
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[3, 5], strides=[2]),
            helper.make_node("Relu", ["c"], ["r"]),
            node("Slice", "r", "a", "b", "c0"),
        ],
        {**KERNELS, "a": np.int64([1]), "b": np.int64([-2]), "c0": np.int64([2])},
    ),
    "flattened": (
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("Flatten", ["c"], ["f"]),
            node("Gemm", "f", "g"),
        ],
        {**KERNELS, "g": weights(4 * 12, 5)},
    ),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_an_operation_on_signals(name: str) -> None:
    model = model_of(*SIGNALS[name], shape=(6, 14))
    imported = read(model)
    x = RNG.standard_normal((1, *imported.graph.input.shape), np.float32)
    check(model, imported, x).raise_if_far(1e-6)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_everything_unsupported_is_listed() -> None:
    nodes = [helper.make_node("Mish", ["x"], ["a"], name="gate"), helper.make_node("LRN", ["x"], ["b"], size=4)]
    with pytest.raises(UnsupportedModelError) as error:
        read(model_of([*nodes, node("Mul", "a", "b")], {}, opset=18))
    assert "gate (Mish): has no counterpart; retrain with Relu" in str(error.value)
    assert "b (LRN): b: sums over 4 channels; expected an odd number" in str(error.value)


BRANCH = helper.make_graph(
    [helper.make_node("Relu", ["x"], ["t"])], "b", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
)
TOP = helper.make_node("TopK", ["x", "k"], ["values", "indices"], axis=1)
TOP_OF_ROWS = helper.make_node("TopK", ["x", "k"], ["values", "indices"], axis=2)
PADS = {"p": np.int64([0, 0, 1, 1, 0, 0, 1, 1])}
TWO = {"k": np.int64([2])}
REFUSED: list[tuple[list[Any], dict[str, Any], str]] = [
    ([node("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 2])], {}, "dilation"),
    ([node("Conv", "x", "w")], {"w": weights(4, 6, 3)}, "1-D windows over shape .*expected 2-D ones over an image"),
    ([node("Conv", "x", "w")], {"w": weights(4, 6, 1, 1, 1)}, "is a 3-D convolution"),
    ([node("Conv", "x", "w", pads=[1, 1])], {"w": weights(4, 6, 3, 3)}, r"has pads \(1, 1\) of 2 axes"),
    ([node("Conv", "x", "w", dilations=[9999, 9999])], {"w": weights(4, 6, 3, 3)}, "makes kernels of .* taps"),
    ([helper.make_node("Relu", ["x"], ["v"]), node("Conv", "x", "v")], {}, "computes operand 1 at run time"),
    (
        [node("AveragePool", "x", kernel_shape=[4, 4], strides=[2, 2], pads=[1] * 4, ceil_mode=1, count_include_pad=1)],
        {},
        "ceil_mode and counts its padding",
    ),
    ([node("Concat", "x", "c", axis=2)], {"c": weights(1, 6, 1, 7)}, r"joins a constant of shape \(6, 1, 7\)"),
    ([node("LogSoftmax", "x")], {}, "if it is last, leave it out"),
    ([helper.make_node("IsNaN", ["x"], ["n"]), node("Where", "n", "x", "r")], {"r": np.float32(0)}, "operand 2"),
    ([helper.make_node("IsNaN", ["x"], ["n"]), node("Cast", "n", to=TensorProto.FLOAT)], {}, "reads an IsNaN"),
    (
        [helper.make_node("Slice", ["x", "a", "b", "a"], ["s"]), node("Mul", "x", "s")],
        {"a": np.int64([1]), "b": np.int64([2])},
        "multiplies activations of shapes",
    ),
    ([node("Div", "x", "x")], {}, "divides by an activation"),
    ([node("Div", "x", "c")], {"c": np.zeros((6, 1, 1), np.float32)}, "divides by zero"),
    ([node("Transpose", "x", perm=[1, 0, 2, 3])], {}, "does not begin with the batch"),
    ([node("MatMul", "x", "x")], {}, "multiplies activations of shapes"),
    ([node("Erf", "x")], {}, "only|but as a part of GELU"),
    ([node("Gather", "x", "i", axis=2)], {"i": np.int64([1, 2, 4])}, "a part of axis 1.*average over the positions"),
    ([node("LayerNormalization", "x", "s", axis=2)], {"s": weights(9, 8)}, "only the last axis"),
    ([node("Softmax", "x", axis=2)], {}, "other axes than the channels"),
    ([node("ReduceMean", "x", axes=[1])], {}, "only height and width"),
    ([node("Pad", "x", "p", mode="reflect")], PADS, "mode reflect"),
    ([node("Pad", "x", "p")], {"p": np.int64([0, 0, -1, 0, 0, 0, 0, 0])}, "crops"),
    ([node("Pad", "x", "p")], {"p": np.int64([0, 1, 0, 0, 0, 0, 0, 0])}, "only height and width"),
    ([node("Pad", "x", "p", "c")], {**PADS, "c": np.float32(3)}, "padded with 3.0"),
    ([node("QLinearConv", "x", *("c" for _ in range(7)))], {"c": np.float32(1)}, "the QDQ format"),
    ([node("ConvTranspose", "x", "w")], {"w": weights(6, 4, 2, 2)}, "without upsampling"),
    ([helper.make_node("Custom", ["x"], ["y"], domain="com.example")], {}, r"y \(Custom\): has no counterpart"),
    ([TOP, node("Relu", "values")], TWO, "the values of a TopK, which is supported only as"),
    ([TOP, node("ReduceMin", "values", axes=[2], keepdims=1)], TWO, "another axis than the TopK"),
    ([helper.make_node("TopK", ["x", "k"], ["y", "i"], axis=1, largest=0)], TWO, "largest"),
    ([TOP, node("ScatterElements", "x", "indices", "values", axis=1)], TWO, "into zeros"),
    (
        [TOP, node("ScatterElements", "z", "indices", "values", axis=2)],
        {**TWO, "z": np.zeros((1, 6, 9, 8), np.float32)},
        "along another axis than the TopK",
    ),
    (
        [TOP, helper.make_node("Gather", ["values", "i"], ["v"], axis=1), node("Less", "x", "v")],
        {**TWO, "i": np.int64(-1)},
        "put it back with Unsqueeze",
    ),
    ([TOP, node("GatherElements", "x", "indices", axis=3)], TWO, "along its axis"),
    (
        [TOP_OF_ROWS, node("ScatterElements", "z", "indices", "values", axis=2)],
        {**TWO, "z": np.zeros((1, 6, 9, 8), np.float32)},
        "only channels or whole samples compete",
    ),
    (
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", "q", "s", "z")],
        {"s": np.abs(weights(6)), "z": np.zeros(6, np.int8)},
        "a scale per channel",
    ),
    (
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", "q", "s", "z")],
        {"s": np.float32(0), "z": np.int8(0)},
        "a scale of 0.0; expected above 0",
    ),
    ([node("Shape", "x")], {}, "does not depend on the input"),
    ([node("Gather", "x", "i", axis=1)], {"i": np.int64([1, 1])}, "expected every place once at most"),
    ([node("Gather", "x", "i", axis=1)], {"i": np.int64([7])}, "some of which are not there"),
    ([node("MatMul", "x", "w")], {"w": weights(7, 5)}, "by a matrix of 7 x 5, which does not fit"),
    ([node("MatMul", "w", "x")], {"w": weights(5, 7)}, "by a matrix of 7 x 5, which does not fit"),
    ([node("Conv", "x", "w")], {"w": weights(4, 5, 3, 3)}, "kernels of 45 inputs; expected 54"),
    ([node("Conv", "x", "w")], {"w": weights(4, 6, 12, 12)}, "larger than its padded input"),
    ([node("Transpose", "x", perm=[0, 1])], {}, "does not fit what it reads"),
    ([node("Expand", "x", "e")], {"e": np.ones(70, np.int64)}, "does not fit what it reads"),
    ([node("Concat", "x", "x", axis=7)], {}, "along the batch axis|does not fit"),
    ([node("Mul", "x", "c")], {"c": weights(5, 1, 1)}, "a constant of shape"),
    ([node("Mul", "x", "c")], {"c": np.full((6, 1, 1), np.nan, np.float32)}, "not finite"),
    ([node("If", "c", then_branch=BRANCH, else_branch=BRANCH)], {"c": np.bool_(True)}, "memory or branches"),
    ([node("Einsum", "x", "x", equation="bchw,bchw->bchw")], {}, "has no counterpart; replace it by"),
    ([node("Softplus", "x")], {}, "retrain with Relu, Elu"),
    ([node("HardSigmoid", "x", beta=0.4)], {}, "has beta 0.4"),
    ([node("Resize", "x", "", "s")], {"s": np.float32([1, 1, 2, 2])}, "without upsampling"),
]


@pytest.mark.parametrize(("nodes", "constants", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_imported_says_why(nodes: Any, constants: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        read(model_of(nodes, constants))


def test_models_of_another_form_are_refused() -> None:
    identity, other = node("Identity", "x"), helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 6, 9, 8])
    two_outputs = model_of([identity, helper.make_node("Relu", ["x"], ["z"])], {})
    two_outputs.graph.output.append(other)
    two_inputs = model_of([node("Add", "x", "z")], {})
    two_inputs.graph.input.append(other)
    for model, found in ((two_outputs, "1 inputs and 2 outputs"), (two_inputs, "2 inputs and 1 outputs")):
        with pytest.raises(UnsupportedModelError, match=f"{found}; expected one of each: cut it"):
            read(model)
    for shape, reason in (((6, 9, 8, 2), "give it 1 to 3"), ((6, 0, 8), "no fixed shape; give input_shape")):
        with pytest.raises(UnsupportedModelError, match=reason):
            read(model_of([identity], {}, shape))
    assert read(model_of([identity], {}, (6, 0, 8)), (6, 9, 8)).graph.input.shape == (9, 8, 6)
    integers = model_of([identity], {})
    integers.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(UnsupportedModelError, match="takes INT64; expected real numbers"):
        read(integers)


def broken(kind: str, place: Path) -> bytes:
    """A file that is no model."""
    whole = model_of([node("Conv", "x", "w")], {"w": weights(4, 6, 3, 3)})
    data = whole.SerializeToString()
    if kind == "dangling":
        return bytes(model_of([node("Relu", "nothing")], {}).SerializeToString())
    if kind == "external":
        onnx.save(whole, place / "m.onnx", save_as_external_data=True, location="gone.bin", size_threshold=0)
        (place / "gone.bin").unlink()
        return (place / "m.onnx").read_bytes()
    flipped = bytes(byte ^ (0x40 if i % 7 == 3 else 0) for i, byte in enumerate(data[:200])) + data[200:]
    return {"empty": b"", "text": b"not a model at all", "truncated": data[: len(data) // 2], "flipped": flipped}[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "dangling", "external", "flipped"])
def test_a_broken_file_is_refused(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(broken(kind, tmp_path))
    with pytest.raises(ModelFormatError, match="not a valid ONNX model"):
        load(path)
    assert main(["convert", str(path), "-o", str(tmp_path / "out"), "--float"]) == 2
    assert "not a valid ONNX model" in capsys.readouterr().err


def test_a_model_that_onnx_runtime_refuses_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(model_of([node("DequantizeLinear", "x", "s")], {"s": np.float32(1)}), tmp_path / "m.onnx", 6, 9, 8)
    assert main(["convert", path, "-o", str(tmp_path / "out"), "--float"]) == 2
    assert "ONNX Runtime cannot run the model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_batch_that_is_squeezed_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = helper.make_node("GlobalAveragePool", ["x"], ["p"])
    path = saved(model_of([pool, node("Squeeze", "p")], {}), tmp_path / "m.onnx")
    assert main(["convert", path, "-o", str(tmp_path / "out"), "--float"]) == 0
    assert main(["compare", path, str(tmp_path / "out"), "--batch", "3"]) == 0
    capsys.readouterr()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such model: .*nothing\.onnx"):
        load(tmp_path / "nothing.onnx")


# --- more operations -------------------------------------------------------------------------------------------------

IMAGE_PADS = np.int64([0, 0, 1, 0, 0, 0, 2, 1])
CHAINS = {
    "guarded_softmax": [
        helper.make_node("Softmax", ["x"], ["s"], axis=3),
        helper.make_node("IsNaN", ["s"], ["n"]),
        node("Where", "n", "nothing", "s"),
    ],
    "gate": [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Sigmoid", ["p"], ["s"]),
        node("Mul", "s", "x"),
    ],
    "gate_expanded": [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Expand", ["p", "whole"], ["s"]),
        node("Mul", "x", "s"),
    ],
    "swish": [helper.make_node("Sigmoid", ["x"], ["s"]), node("Mul", "x", "s")],
    "hard_swish_written": [helper.make_node("HardSigmoid", ["x"], ["s"], alpha=1 / 6), node("Mul", "s", "x")],
    "pad_conv": [helper.make_node("Pad", ["x", "pads"], ["p"]), node("Conv", "p", "w", pads=[1, 1, 1, 1])],
    "pad_max_pool": [helper.make_node("Pad", ["x", "pads"], ["p"]), node("MaxPool", "p", kernel_shape=[3, 3])],
    "pad_relu_max_pool": [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Pad", ["r", "pads"], ["p"]),
        node("MaxPool", "p", kernel_shape=[3, 3], strides=[2, 2]),
    ],
    "pad_low_max_pool": [
        helper.make_node("Pad", ["x", "pads", "low"], ["p"]),
        node("MaxPool", "p", kernel_shape=[3, 3]),
    ],
    "pad_average_pool": [
        helper.make_node("Pad", ["x", "pads"], ["p"]),
        node("AveragePool", "p", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    ],
    "pad_average_pool_joined": [
        helper.make_node("Pad", ["x", "pads"], ["p"]),
        node("AveragePool", "p", kernel_shape=[3, 3]),
    ],
    "pad_twice_read": [
        helper.make_node("Pad", ["x", "pads"], ["p"]),
        helper.make_node("Relu", ["p"], ["r"]),
        node("Add", "p", "r"),
    ],
    "pad_result": [node("Pad", "x", "pads")],
    "subtract": [node("Sub", "x", "c")],
    "subtract_from": [node("Sub", "c", "x")],
    "subtract_activations": [helper.make_node("Relu", ["x"], ["r"]), node("Sub", "x", "r")],
    "divide": [node("Div", "x", "c")],
    "negate": [node("Neg", "x")],
    "mean": [node("ReduceMean", "x", axes=[2, 3])],
    "mean_flat": [node("ReduceMean", "x", axes=[-1, -2], keepdims=0)],
    "global_max": [node("GlobalMaxPool", "x")],
    "squeeze": [
        helper.make_node("GlobalAveragePool", ["x"], ["g"]),
        helper.make_node("Squeeze", ["g", "axes"], ["s"]),
        helper.make_node("Unsqueeze", ["s", "axes"], ["u"]),
        node("Squeeze", "u", "axes"),
    ],
}


CHAIN_CONSTANTS = {
    "nothing": np.float32(0),
    "whole": np.int64([1, 6, 9, 8]),
    "pads": IMAGE_PADS,
    "low": np.float32(-np.inf),
    "c": weights(6, 1, 1) + 2,
    "w": weights(4, 6, 3, 3),
    "axes": np.int64([2, 3]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain(name: str) -> None:
    nodes = CHAINS[name]
    read_names = {item for made in nodes for item in made.input}
    assert_same(model_of(nodes, {key: value for key, value in CHAIN_CONSTANTS.items() if key in read_names}))


def test_padding_costs_nothing_where_a_window_reads_it() -> None:
    nodes = CHAINS["pad_relu_max_pool"]
    kinds = [type(made).__name__ for made in read(model_of(nodes, {"pads": IMAGE_PADS})).graph.nodes]
    assert kinds == ["Input", "Relu", "MaxPool"]


def test_functions_of_a_model_are_looked_into() -> None:
    body = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Add", ["r", "a"], ["b"])]
    function = helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    model = model_of([helper.make_node("Twice", ["x"], ["y"], domain="local")], {})
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    assert_same(model)
    x = RNG.standard_normal((1, 9, 8, 6)).astype(np.float32)
    check(model, read(model), x).raise_if_far(1e-6)


# --- k-winners -------------------------------------------------------------------------------------------------------


def top(k: int = 3, ranking: str = "x") -> list[Any]:
    """A TopK along the channels, and the constants that its users need."""
    return [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.int64([k]))),
        helper.make_node("TopK", [ranking, "k"], ["values", "indices"], axis=1),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.float32(0))),
        helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.int64([1]))),
    ]


LEAST = helper.make_node("ReduceMin", ["values"], ["least"], axes=[1], keepdims=1)
ZEROS = helper.make_node(
    "ConstantOfShape", ["extents"], ["zeros"], value=numpy_helper.from_array(np.zeros(1, np.float32))
)
WINNERS = {
    "scatter": [*top(), ZEROS, node("ScatterElements", "zeros", "indices", "values", axis=1)],
    "scatter_mask": [
        *top(),
        ZEROS,
        helper.make_node("ScatterElements", ["zeros", "indices", "ones"], ["mask"], axis=1),
        node("Mul", "x", "mask"),
    ],
    "scatter_mask_of_its_shape": [
        *top(),
        ZEROS,
        helper.make_node("Shape", ["indices"], ["shape"]),
        helper.make_node("Expand", ["single", "shape"], ["all"]),
        helper.make_node("ScatterElements", ["zeros", "indices", "all"], ["mask"], axis=1),
        node("Mul", "x", "mask"),
    ],
    "least_by_number": [
        *top(),
        helper.make_node("Gather", ["values", "last"], ["v"], axis=1),
        helper.make_node("Unsqueeze", ["v", "one"], ["least"]),
        helper.make_node("Less", ["x", "least"], ["m"]),
        node("Where", "m", "zero", "x"),
    ],
    "where_less": [*top(), LEAST, helper.make_node("Less", ["x", "least"], ["m"]), node("Where", "m", "zero", "x")],
    "where_greater_or_equal": [
        *top(),
        LEAST,
        helper.make_node("GreaterOrEqual", ["x", "least"], ["m"]),
        node("Where", "m", "x", "zero"),
    ],
    "where_not": [
        *top(),
        LEAST,
        helper.make_node("LessOrEqual", ["least", "x"], ["m"]),
        helper.make_node("Not", ["m"], ["n"]),
        node("Where", "n", "zero", "x"),
    ],
    "cast_mask": [
        *top(),
        LEAST,
        helper.make_node("Greater", ["least", "x"], ["m"]),
        helper.make_node("Not", ["m"], ["n"]),
        helper.make_node("Cast", ["n"], ["c"], to=TensorProto.FLOAT),
        node("Mul", "c", "x"),
    ],
    "slice": [
        *top(),
        helper.make_node("Slice", ["values", "minus", "end", "one"], ["least"]),
        helper.make_node("Less", ["x", "least"], ["m"]),
        node("Where", "m", "zero", "x"),
    ],
    "gather_next": [
        *top(4),
        helper.make_node("Gather", ["values", "minus"], ["least"], axis=1),
        helper.make_node("Greater", ["x", "least"], ["m"]),
        node("Where", "m", "x", "zero"),
    ],
    "boosted": [
        helper.make_node("Mul", ["x", "boost"], ["ranking"]),
        *top(3, "ranking"),
        ZEROS,
        helper.make_node("GatherElements", ["x", "indices"], ["chosen"], axis=1),
        node("ScatterElements", "zeros", "indices", "chosen", axis=1),
    ],
}


WINNER_CONSTANTS = {
    "extents": np.int64([1, 6, 9, 8]),
    "ones": np.ones((1, 3, 9, 8), np.float32),
    "single": np.float32(1),
    "minus": np.int64([-1]),
    "last": np.int64(-1),
    "one": np.int64([1]),
    "end": np.int64([99]),
    "boost": np.float32(np.arange(1, 7).reshape(6, 1, 1)),
}


@pytest.mark.parametrize("name", WINNERS)
def test_k_winners(name: str) -> None:
    nodes = WINNERS[name]
    read_names = {item for made in nodes for item in made.input}
    model = model_of(nodes, {key: value for key, value in WINNER_CONSTANTS.items() if key in read_names})
    assert_same(model)
    winners = read(model).graph.output
    assert isinstance(winners, KWTA)
    assert (winners.k, winners.scope, winners.factor is None) == (3, "local", name != "boosted")


def test_k_winners_of_a_flattened_image_are_global() -> None:
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), *top(50, "f"), LEAST]
    nodes += [helper.make_node("Less", ["f", "least"], ["m"]), node("Where", "m", "zero", "f")]
    model = model_of(nodes, {})
    assert_same(model)
    assert {made.scope for made in read(model).graph.nodes if isinstance(made, KWTA)} == {"global"}


@pytest.mark.parametrize("selection", ["scatter", "threshold"])
@pytest.mark.parametrize("form", ["float", "qdq"])
def test_what_the_bench_writes_for_others_comes_back(form: Any, selection: Any) -> None:
    model, x = packed_network(), RNG.random((4, 8, 8, 3), np.float32)
    written = onnx_form.write(model.graph, form, 1, selection=selection).model
    imported = read(written)
    assert sum(isinstance(made, KWTA) for made in imported.graph.nodes) == 2
    graph = functions.real(model.graph) if form == "float" else model.graph
    if form == "qdq":
        imported_graph, _ = quantize(imported.graph, None, known=imported.scales)
    else:
        imported_graph = imported.graph
    wanted, got = reference.run(graph, x), reference.run(imported_graph, x)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def packed_network() -> Any:
    """Convolution, pool, ReLU, both kinds of k-winners, linear layers: int8, packed."""

    def matrix(*shape: int) -> Any:
        return np.where(RNG.random(shape) < 0.3, RNG.normal(size=shape), 0).astype(np.float32)

    nodes: list[Any] = [
        Input(name="input", inputs=(), shape=(8, 8, 3)),
        Conv2d(name="conv", inputs=("input",), weight=matrix(27, 16), kernel=(3, 3), padding=(1, 1, 1, 1)),
        MaxPool(name="pool", inputs=("conv",), kernel=(2, 2), stride=(2, 2)),
        Relu(name="relu", inputs=("pool",)),
        KWTA(name="winners", inputs=("relu",), k=4, scope="local"),
        Reshape(name="flatten", inputs=("winners",), shape=(256,)),
        Linear(name="hidden", inputs=("flatten",), weight=matrix(256, 70), bias=matrix(1, 70)[0]),
        Relu(name="relu2", inputs=("hidden",)),
        KWTA(name="winners2", inputs=("relu2",), k=9, scope="global"),
        Linear(name="output", inputs=("winners2",), weight=matrix(70, 5)),
    ]
    return convert(Graph(tuple(nodes), "NCHW"), RNG.random((16, 8, 8, 3), np.float32))[0]


# --- the command line ------------------------------------------------------------------------------------------------


def saved(model: Any, path: Path, *shape: int) -> str:
    """A model in a file, with the shape of its result."""
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, *shape]))
    onnx.save(model, path)
    return str(path)


def test_convert_writes_a_file_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = [helper.make_node("Conv", ["x", "w"], ["c"]), node("Clip", "c", "l", "h")]
    model = model_of(clip, {"w": weights(4, 6, 3, 3), "l": np.float32(0), "h": np.float32(6)})
    source, samples = saved(model, tmp_path / "m.onnx", 4, 7, 6), str(tmp_path / "x.npy")
    x = RNG.standard_normal((8, 6, 9, 8)).astype(np.float32)
    np.save(samples, x)
    np.savez(tmp_path / "x.npz", other=x[:1], mine=x)
    real, integer, clipped = (str(tmp_path / f"{name}.safetensors") for name in "fic")
    assert main(["convert", source, "-o", real, "--float"]) == 0
    assert "0.000%" in capsys.readouterr().out
    assert main(["convert", source, "-o", integer, "--calibrate", samples]) == 0
    assert "calibrated" in capsys.readouterr().out
    assert main(["run", integer, samples, "--json"]) == 0
    archive = ["--calibrate", str(tmp_path / "x.npz")]
    more = ["--array", "mine", "--percentile", "90", "--no-check"]
    assert main(["convert", source, "-o", clipped, *archive, *more]) == 0
    scales = [container.load(path).graph.input.scale or 0.0 for path in (integer, clipped)]
    assert 0 < scales[1] < 0.9 * scales[0]
    assert "not checked" in capsys.readouterr().out
    assert main(["convert", source, "-o", real]) == 2
    assert "--float, or --calibrate FILE" in capsys.readouterr().err
    assert main(["convert", source, "-o", real, "--float", "--percentile", "99"]) == 2
    assert "give --calibrate FILE, too" in capsys.readouterr().err
    assert main(["convert", source, "-o", real, *archive]) == 2
    assert "choose one with --array" in capsys.readouterr().err


def test_compare_shows_every_tensor_beside_its_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["r"]), node("Flatten", "r")]
    source = saved(model_of(nodes, {"w": weights(4, 6, 3, 3)}), tmp_path / "m.onnx", 168)
    packed, other = (str(tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    assert main(["convert", source, "-o", packed, "--float"]) == 0
    capsys.readouterr()
    assert main(["compare", source, packed, "-b", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {row["source"] for row in report["rows"]} >= {"x", "c", "r"}
    assert all(row["relative_error"] < 1e-6 for row in report["rows"])
    graph = container.load(packed).graph
    wrong = [replace(n, weight=n.dense_weight * np.float32(1.01)) if isinstance(n, Conv2d) else n for n in graph.nodes]
    container.save(container.Model(Graph(tuple(wrong), graph.layout)), other)
    assert main(["compare", source, other]) == 1
    assert "beyond 0.0001" in capsys.readouterr().out
    assert main(["compare", source, other, "--tolerance", "0.1"]) == 0
    assert main(["compare", source]) == 0
    assert main(["compare", packed, source]) == 2


def test_a_picture_of_the_errors(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra csengine[report]")
    source, picture = saved(model_of([node("Relu", "x")], {}), tmp_path / "m.onnx", 6, 9, 8), tmp_path / "errors.png"
    assert main(["compare", source, "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 1000


# --- quantized models ------------------------------------------------------------------------------------------------


def quantized_model(zero_point: Any) -> Any:
    """A convolution of 8-bit weights between 8-bit activations, as exporters write it (QDQ)."""
    constants = {
        "s": np.float32(0.02),
        "z": zero_point,
        "t": np.float32(0.05),
        "w": RNG.integers(-128, 127, (4, 6, 3, 3)).astype(np.int8),
        "ws": np.float32([0.01, 0.02, 0.03, 0.004]),
        "wz": np.zeros(4, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "t", "z"], ["cq"]),
        node("DequantizeLinear", "cq", "t", "z"),
    ]
    return model_of(nodes, constants)


@pytest.mark.parametrize(
    ("zero_point", "dtype"),
    [(np.int8(0), "int8"), (np.uint8(0), "uint8"), (np.uint8(128), "int8"), (np.int8(-128), "uint8")],
)
def test_scales_of_a_quantized_model_are_kept(zero_point: Any, dtype: str) -> None:
    model = quantized_model(zero_point)
    imported = read(model)
    graph, errors = quantize(imported.graph, None, known=imported.scales)
    assert errors == ()
    kinds = [kind for kind in graph.types.values() if kind.scale is not None]
    assert [(kind.dtype, np.float32(kind.scale)) for kind in kinds] == [
        (dtype, np.float32(0.02)),
        (dtype, np.float32(0.05)),
    ]
    (layer,) = (made for made in graph.nodes if isinstance(made, Conv2d))
    wanted = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "w")
    np.testing.assert_array_equal(layer.dense_weight, wanted.transpose(2, 3, 1, 0).reshape(54, 4))
    found = check(model, imported, RNG.uniform(-3, 3, (5, 9, 8, 6)).astype(np.float32), graph)
    unit = 0.05 / np.abs(found.wanted).max()
    assert found.result.largest <= 1.001 * unit  # where the rounding differs


def test_other_zero_points_are_requantized_from_their_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, packed = saved(quantized_model(np.uint8(90)), tmp_path / "m.onnx", 4, 7, 6), str(tmp_path / "m.safetensors")
    assert main(["convert", source, "-o", packed]) == 0
    assert capsys.readouterr().out.count("from its range") == 4
    clips = [made for made in container.load(packed).graph.nodes if isinstance(made, Clip)]
    assert len(clips) == 2  # the range that the source has is kept
    assert main(["compare", source, packed]) == 0


def test_a_source_without_some_scales_needs_samples() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["r"]), node("Conv", "r", "w")], {"w": weights(4, 6, 3, 3)})
    with pytest.raises(QuantizationError, match="x: the source has no scale for it; give samples"):
        quantize(read(model).graph, None, known=KnownScales())
