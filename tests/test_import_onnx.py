"""ONNX models become graphs that compute what ONNX Runtime computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra csengine[onnx]")
runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from csengine import ModelFormatError, UnsupportedModelError, reference  # noqa: E402
from csengine.cli import main  # noqa: E402
from csengine.convert import convert  # noqa: E402
from csengine.graph import KWTA, Conv2d, Graph, Input, Linear, MaxPool, Relu, Reshape  # noqa: E402
from csengine.importers.onnx import load, read  # noqa: E402
from csengine.peers import functions, onnx_form  # noqa: E402
from csengine.quantization import quantize  # noqa: E402

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
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
    "global_average": (node("GlobalAveragePool", "x"), {}),
    "mul": (node("Mul", "x", "c"), {"c": weights(1, 6, 1, 1)}),
    "add_constant": (node("Add", "c", "x"), {"c": weights(6, 1, 1)}),
    "add_twice": (node("Add", "x", "x"), {}),
    "concat": (node("Concat", "x", "x", axis=1), {}),
    "softmax": (node("Softmax", "x", axis=1), {}),
    "identity": (node("Identity", "x"), {}),
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


def light(name: str) -> Any:
    """A network of the onnx package with random weights in place of its constant ones."""
    model = onnx.load(LIGHT / f"light_{name}.onnx")
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    layers = {n.input[1] for n in model.graph.node if n.op_type in ("Conv", "Gemm")}
    kept = []
    for made in model.graph.node:
        if made.op_type == "ConstantOfShape" and made.output[0] in layers:
            shape = shapes[made.input[0]]
            values = RNG.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
            model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), made.output[0]))
        else:
            kept.append(made)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


@pytest.mark.parametrize("name", ["squeezenet", "resnet50", "shufflenet"])
def test_a_whole_network(name: str) -> None:
    assert_same(light(name))


def test_everything_unsupported_is_listed() -> None:
    nodes = [helper.make_node("Sigmoid", ["x"], ["a"], name="gate"), helper.make_node("LRN", ["x"], ["b"], size=3)]
    with pytest.raises(UnsupportedModelError) as error:
        read(model_of([*nodes, node("Mul", "a", "b")], {}))
    assert "gate (Sigmoid)" in str(error.value)
    assert "b (LRN)" in str(error.value)


@pytest.mark.parametrize(
    ("made", "constants", "reason"),
    [
        (node("Conv", "x", "w", dilations=[2, 2]), {"w": weights(4, 6, 2, 2)}, "dilation"),
        (node("MaxPool", "x", kernel_shape=[2, 2], ceil_mode=1), {}, "ceil_mode"),
        (node("Mul", "x", "x"), {}, "multiplies two activations"),
        (node("Add", "x", "c"), {"c": weights(6, 9, 8)}, "differs between positions"),
        (node("Transpose", "x", perm=[0, 1, 3, 2]), {}, "another order of axes"),
        (node("Transpose", "x", perm=[1, 0, 2, 3]), {}, "batch axis"),
        (node("Softmax", "x", axis=2), {}, "other axes than the channels"),
    ],
)
def test_what_cannot_be_imported_says_why(made: Any, constants: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        read(model_of([made], constants))


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model at all")
    with pytest.raises(ModelFormatError, match="not a valid ONNX model"):
        load(path)


def test_convert_writes_a_file_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, samples = tmp_path / "m.onnx", tmp_path / "x.npy"
    clip = [helper.make_node("Conv", ["x", "w"], ["c"]), node("Clip", "c", "l", "h")]
    model = model_of(clip, {"w": weights(4, 6, 3, 3), "l": np.float32(0), "h": np.float32(6)})
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 7, 6]))
    onnx.save(model, source)
    np.save(samples, RNG.standard_normal((8, 6, 9, 8)).astype(np.float32))
    assert main(["convert", str(source), "-o", str(tmp_path / "f.safetensors"), "--float"]) == 0
    assert "0.000%" in capsys.readouterr().out
    assert main(["convert", str(source), "-o", str(tmp_path / "i.safetensors"), "--calibrate", str(samples)]) == 0
    assert main(["run", str(tmp_path / "i.safetensors"), str(samples), "--json"]) == 0


# --- more operations -------------------------------------------------------------------------------------------------

IMAGE_PADS = np.int64([0, 0, 1, 0, 0, 0, 2, 1])
CHAINS = {
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


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain(name: str) -> None:
    constants = {
        "pads": IMAGE_PADS,
        "low": np.float32(-np.inf),
        "c": weights(6, 1, 1) + 2,
        "w": weights(4, 6, 3, 3),
        "axes": np.int64([2, 3]),
    }
    nodes = CHAINS[name]
    read_names = {item for made in nodes for item in made.input}
    assert_same(model_of(nodes, {key: value for key, value in constants.items() if key in read_names}))


def test_padding_costs_nothing_where_a_window_reads_it() -> None:
    nodes = CHAINS["pad_relu_max_pool"]
    kinds = [type(made).__name__ for made in read(model_of(nodes, {"pads": IMAGE_PADS})).graph.nodes]
    assert kinds == ["Input", "Relu", "MaxPool"]


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


@pytest.mark.parametrize("name", WINNERS)
def test_k_winners(name: str) -> None:
    constants = {
        "extents": np.int64([1, 6, 9, 8]),
        "ones": np.ones((1, 3, 9, 8), np.float32),
        "minus": np.int64([-1]),
        "end": np.int64([99]),
        "boost": np.float32(np.arange(1, 7).reshape(6, 1, 1)),
    }
    nodes = WINNERS[name]
    read_names = {item for made in nodes for item in made.input}
    model = model_of(nodes, {key: value for key, value in constants.items() if key in read_names})
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
