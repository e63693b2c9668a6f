"""What a graph infers, and every network it refuses to build."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graphs import graphs
from hypothesis import given, settings

from csengine.errors import GraphError
from csengine.graph import (
    ACCUMULATOR_LIMIT,
    KWTA,
    MAX_ELEMENTS,
    MAX_OPERANDS,
    OPERATION_NAMES,
    OPERATIONS,
    Activation,
    Add,
    Affine,
    AveragePool,
    Concat,
    Conv2d,
    Dequantize,
    Gelu,
    Graph,
    Input,
    LayerNorm,
    Linear,
    LocalResponseNorm,
    MatMul,
    MaxPool,
    Node,
    Product,
    Quantize,
    Relu,
    Requantization,
    Reshape,
    Softmax,
    TensorType,
    Transpose,
)
from csengine.packing import pack

RNG = np.random.default_rng(0)


def source(*shape: int, dtype: Any = "uint8") -> Input:
    return Input(name="x", inputs=(), shape=shape, dtype=dtype, scale=None if dtype == "float32" else 0.5)


def weight(*shape: int, dtype: Any = np.int8) -> Any:
    return RNG.integers(-3, 4, shape).astype(dtype)


def requantization(n: int = 1, shifts: int | None = None, **changes: Any) -> Requantization:
    pairs = np.full(n, 40000, np.uint16), np.full(n if shifts is None else shifts, 17, np.uint8)
    return replace(Requantization(*pairs, "int8", 0.25), **changes)


def conv2d(**changes: Any) -> Conv2d:
    """A 3x3 convolution 4 -> 8."""
    return replace(Conv2d(name="y", inputs=("x",), weight=weight(36, 8), kernel=(3, 3)), **changes)


def linear(**changes: Any) -> Linear:
    """A linear layer 16 -> 8."""
    return replace(Linear(name="y", inputs=("x",), weight=weight(16, 8)), **changes)


def kwta(**changes: Any) -> KWTA:
    return replace(KWTA(name="y", inputs=("x",), k=3, scope="local"), **changes)


def result_type(*nodes: Node) -> TensorType:
    return Graph(nodes).output_type


def refuse(message: str, *nodes: Node) -> None:
    with pytest.raises(GraphError, match=message):
        Graph(nodes)


IMAGE = source(6, 5, 4)
VECTOR = source(16)
FLOATS = source(16, dtype="float32")
FLOAT_IMAGE = source(6, 5, 4, dtype="float32")
ACCUMULATORS = linear(name="acc")

# --- inference -------------------------------------------------------------------------------------------------------


def test_input_has_its_declared_type() -> None:
    assert result_type(source(6, 5, 4)) == TensorType((6, 5, 4), "uint8", 0.5)
    assert result_type(source(7, dtype="float32")) == TensorType((7,), "float32")


def test_inverse_scale_of_the_input_is_one_float32() -> None:
    assert source(1).inv_scale == np.float32(2.0)
    assert replace(source(1), scale=0.1).inv_scale == np.float32(1.0 / 0.1)
    assert source(1, dtype="float32").inv_scale == np.float32(1.0)
    assert isinstance(source(1).inv_scale, np.float32)


def test_convolution_infers_shape_and_type() -> None:
    assert result_type(IMAGE, conv2d()) == TensorType((4, 3, 8), "int32")
    assert result_type(IMAGE, conv2d(stride=(2, 3), padding=(1, 0, 2, 3))) == TensorType((4, 2, 8), "int32")
    requantized = conv2d(requantization=requantization(8, dtype="uint8"))
    assert result_type(IMAGE, requantized) == TensorType((4, 3, 8), "uint8", 0.25)
    assert result_type(IMAGE, conv2d(weight=pack(weight(36, 8)))) == TensorType((4, 3, 8), "int32")
    as_float = conv2d(weight=weight(36, 8, dtype=np.float32), bias=np.zeros(8, np.float32))
    assert result_type(FLOAT_IMAGE, as_float) == TensorType((4, 3, 8), "float32")


def test_grouped_and_depthwise_convolutions() -> None:
    assert result_type(IMAGE, conv2d(weight=weight(18, 8), groups=2)).shape == (4, 3, 8)
    assert result_type(IMAGE, conv2d(weight=weight(9, 12), groups=4)).shape == (4, 3, 12)


def test_linear_infers_shape_and_type() -> None:
    assert result_type(VECTOR, linear()) == TensorType((8,), "int32")
    assert result_type(VECTOR, linear(requantization=requantization(8))) == TensorType((8,), "int8", 0.25)


def test_passing_operations_keep_the_type() -> None:
    assert result_type(VECTOR, Relu(name="y", inputs=("x",))) == TensorType((16,), "uint8", 0.5)
    assert result_type(VECTOR, kwta(k=99)) == TensorType((16,), "uint8", 0.5)
    assert result_type(IMAGE, kwta(scope="global", factor=np.ones(120, np.float32))).shape == (6, 5, 4)
    assert result_type(IMAGE, kwta(factor=np.ones(4, np.float32))).shape == (6, 5, 4)


def test_pools_infer_shape() -> None:
    window: Any = {"name": "y", "inputs": ("x",), "kernel": (2, 3), "stride": (2, 1), "padding": (1, 2, 0, 1)}
    assert result_type(IMAGE, MaxPool(**window)) == TensorType((3, 6, 4), "uint8", 0.5)
    pool = AveragePool(**window, requantization=requantization())
    assert result_type(IMAGE, pool) == TensorType((3, 6, 4), "int8", 0.25)
    assert result_type(FLOAT_IMAGE, AveragePool(**window)) == TensorType((3, 6, 4), "float32")


def test_joins_infer_shape() -> None:
    both: Any = {"name": "y", "inputs": ("x", "x")}
    assert result_type(IMAGE, Add(**both, requantization=requantization(2, 1))) == TensorType((6, 5, 4), "int8", 0.25)
    assert result_type(IMAGE, Concat(**both, requantization=requantization(2))).shape == (6, 5, 8)
    assert result_type(FLOATS, Concat(**both)) == TensorType((32,), "float32")
    assert result_type(FLOATS, Add(**both)) == TensorType((16,), "float32")
    one = Concat(name="y", inputs=("x",), requantization=requantization())
    assert result_type(IMAGE, one).shape == (6, 5, 4)


def test_reshape_keeps_the_type_even_of_accumulators() -> None:
    assert result_type(IMAGE, Reshape(name="y", inputs=("x",), shape=(120,))) == TensorType((120,), "uint8", 0.5)
    assert result_type(VECTOR, ACCUMULATORS, Reshape(name="y", inputs=("acc",), shape=(2, 2, 2))).dtype == "int32"


def test_dequantize_and_softmax_are_float32() -> None:
    scaled = Dequantize(name="y", inputs=("acc",), scale=np.full(8, 0.1))
    assert result_type(VECTOR, ACCUMULATORS, scaled, Softmax(name="z", inputs=("y",))) == TensorType((8,), "float32")
    assert result_type(IMAGE, replace(scaled, inputs=("x",), scale=np.array([0.1]))) == TensorType((6, 5, 4), "float32")


def test_affine_keeps_the_type() -> None:
    affine = Affine(name="y", inputs=("x",), scale=np.ones(4, np.float32), shift=np.zeros(4, np.float32))
    assert result_type(FLOAT_IMAGE, affine) == TensorType((6, 5, 4), "float32")


def test_dense_macs() -> None:
    graph = Graph((IMAGE, conv2d(), Dequantize(name="z", inputs=("y",), scale=np.ones(1))))
    assert [node.dense_macs(graph.types[node.name]) for node in graph.nodes] == [0, 36 * 4 * 3 * 8, 0]


def test_graph_knows_its_ends_and_readers() -> None:
    nodes = (
        IMAGE,
        Relu(name="y", inputs=("x",)),
        Add(name="z", inputs=("y", "y"), requantization=requantization(2, 1)),
    )
    graph = Graph(nodes)
    assert graph.input is nodes[0]
    assert graph.output is nodes[2]
    assert graph.readers == {"x": (nodes[1],), "y": (nodes[2],), "z": ()}
    assert graph.input_types(nodes[2]) == (graph.types["y"], graph.types["y"])


def test_every_operation_has_one_name() -> None:
    assert {OPERATIONS[name] for name in OPERATIONS} == set(OPERATION_NAMES)
    assert len(OPERATIONS) == len(OPERATION_NAMES)


@settings(max_examples=50, deadline=None)
@given(graphs())
def test_a_graph_can_be_built_again_from_its_nodes(graph: Graph) -> None:
    again = Graph(graph.nodes, graph.layout)
    assert again.types == graph.types
    assert again.output_type == graph.types[graph.output.name]


# --- order and names -------------------------------------------------------------------------------------------------


def test_refuses_an_empty_network() -> None:
    refuse("must begin with its input")


def test_refuses_a_network_that_does_not_begin_with_its_input() -> None:
    refuse("must begin with its input", Relu(name="y", inputs=()), IMAGE)


def test_refuses_a_second_input() -> None:
    refuse("second input", IMAGE, replace(IMAGE, name="y"))


def test_refuses_an_unknown_kind_of_node() -> None:
    refuse("unknown kind Node", IMAGE, Node(name="y", inputs=("x",)))


def test_refuses_a_taken_name() -> None:
    refuse("taken", IMAGE, Relu(name="x", inputs=("x",)))


def test_refuses_an_empty_name() -> None:
    refuse("empty", IMAGE, Relu(name="", inputs=("x",)))


@pytest.mark.parametrize("name", ["a\nb", "\ud800", "\x00", "\x1b[31m"])
def test_refuses_a_name_that_is_not_printable(name: str) -> None:
    refuse("not printable", IMAGE, Relu(name=name, inputs=("x",)))


def test_refuses_a_forward_reference() -> None:
    refuse("no earlier node", IMAGE, Relu(name="y", inputs=("z",)), Relu(name="z", inputs=("x",)))


def test_refuses_a_cycle() -> None:
    refuse("no earlier node", IMAGE, Relu(name="y", inputs=("z",)), Relu(name="z", inputs=("y",)))


def test_refuses_a_node_that_reads_itself() -> None:
    refuse("no earlier node", IMAGE, Relu(name="y", inputs=("y",)))


@pytest.mark.parametrize("inputs", [(), ("x", "x")])
def test_refuses_a_wrong_number_of_inputs(inputs: tuple[str, ...]) -> None:
    refuse("expected 1", IMAGE, Relu(name="y", inputs=inputs))


def test_refuses_an_input_that_reads() -> None:
    refuse("reads 1 tensors", replace(IMAGE, inputs=("x",)))


def test_refuses_an_addition_of_one_or_three() -> None:
    refuse("expected 2", IMAGE, Add(name="y", inputs=("x",), requantization=requantization(2, 1)))
    refuse("expected 2", IMAGE, Add(name="y", inputs=("x", "x", "x"), requantization=requantization(2, 1)))


def test_refuses_a_concatenation_of_nothing() -> None:
    refuse("expected 1 to 64", IMAGE, Concat(name="y", inputs=(), requantization=requantization(0)))


def test_refuses_a_concatenation_of_too_many() -> None:
    for count in (MAX_OPERANDS, MAX_OPERANDS + 1):
        node = Concat(name="y", inputs=("x",) * count, requantization=requantization(count))
        if count <= MAX_OPERANDS:
            assert result_type(VECTOR, node).size == 16 * count
        else:
            refuse("reads 65 tensors", VECTOR, node)


def test_refuses_an_unknown_layout() -> None:
    with pytest.raises(GraphError, match="layout 'CHWN'"):
        Graph((IMAGE,), "CHWN")  # type: ignore[arg-type]


# --- shapes and sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (2, 2), (2, 2, 2, 2)])
def test_refuses_an_input_with_a_wrong_number_of_axes(shape: tuple[int, ...]) -> None:
    refuse("expected", source(*shape))


@pytest.mark.parametrize("shape", [(0,), (-1,), (4, 0, 4), (MAX_ELEMENTS + 1,), (2**14, 2**14, 2), (-2, -2, 4)])
def test_refuses_an_input_without_or_with_too_many_elements(shape: tuple[int, ...]) -> None:
    refuse("has shape", source(*shape))


def test_accepts_an_input_with_as_many_elements_as_allowed() -> None:
    assert result_type(source(MAX_ELEMENTS)).size == MAX_ELEMENTS


def test_refuses_an_input_of_another_type() -> None:
    refuse("has type 'int32'", source(4, dtype="int32"))
    refuse("has type 'float64'", source(4, dtype="float64"))


def test_refuses_a_scale_on_a_float_input() -> None:
    refuse("cannot have a scale", replace(FLOATS, scale=0.5))


BAD_SCALES = [0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e-30, 1e28, 10**30, 1e300]


@pytest.mark.parametrize("scale", [None, *BAD_SCALES])
def test_refuses_a_bad_scale_of_the_input(scale: Any) -> None:
    refuse("has scale", replace(VECTOR, scale=scale))


@pytest.mark.parametrize("scale", BAD_SCALES)
def test_refuses_a_bad_scale_of_a_requantization(scale: Any) -> None:
    refuse("has scale", VECTOR, linear(requantization=requantization(8, scale=scale)))


@pytest.mark.parametrize("scale", BAD_SCALES)
def test_refuses_a_bad_scale_of_a_dequantization(scale: Any) -> None:
    refuse("has a scale", VECTOR, Dequantize(name="y", inputs=("x",), scale=np.array([float(scale)])))


def test_accepts_integer_scales() -> None:
    assert result_type(replace(VECTOR, scale=10**20)).scale == 10**20


def test_refuses_a_convolution_of_a_vector() -> None:
    refuse(r"expected \(H, W, C\)", source(36), conv2d())


def test_refuses_a_window_larger_than_the_image() -> None:
    refuse("larger than its padded input", source(6, 2, 4), conv2d())
    assert result_type(source(6, 2, 4), conv2d(padding=(0, 0, 0, 1))).shape == (4, 1, 8)
    refuse("larger than its padded input", source(6, 2, 4), conv2d(stride=(9, 9)))


@pytest.mark.parametrize(
    "change",
    [{"kernel": (0, 3)}, {"kernel": (3, -1)}, {"stride": (1, 0)}, {"stride": (-1, 1)}],
)
def test_refuses_a_window_or_stride_below_one(change: dict[str, Any]) -> None:
    refuse("expected >= 1", IMAGE, conv2d(**change))
    refuse("expected >= 1", IMAGE, MaxPool(name="y", inputs=("x",), **{"kernel": (1, 1), "stride": (1, 1), **change}))


def test_refuses_negative_padding() -> None:
    refuse("padding", IMAGE, conv2d(padding=(0, 0, -1, 0)))


@pytest.mark.parametrize("change", [{"kernel": (2**15 + 1, 1)}, {"stride": (1, 2**20)}, {"padding": (0, 2**16, 0, 0)}])
def test_refuses_a_huge_window(change: dict[str, Any]) -> None:
    refuse("larger than 2", IMAGE, conv2d(**change))


def test_refuses_padding_that_makes_the_image_huge() -> None:
    wide: Any = {"kernel": (2**15, 2**15), "stride": (2**15, 2**15), "padding": (2**15 - 1,) * 4}
    refuse("padded input", source(1, 1, 1), MaxPool(name="y", inputs=("x",), **wide))


def test_refuses_a_pool_whose_window_may_lie_in_the_padding() -> None:
    for padding in ((2, 0, 0, 0), (0, 3, 0, 0), (0, 0, 2, 0), (0, 0, 0, 3)):
        window: Any = {"kernel": (2, 3), "stride": (1, 1), "padding": padding}
        refuse("padding smaller than the window", IMAGE, MaxPool(name="y", inputs=("x",), **window))
        average = AveragePool(name="y", inputs=("x",), **window, requantization=requantization())
        refuse("padding smaller than the window", IMAGE, average)


def test_refuses_an_average_whose_sum_could_overflow() -> None:
    area: Any = {"kernel": (2**12, 2**12), "stride": (1, 1)}
    pool = AveragePool(name="y", inputs=("x",), **area, requantization=requantization())
    refuse("sum could overflow", source(2**12, 2**12, 1), pool)


def test_refuses_a_result_with_too_many_elements() -> None:
    refuse("expected 1 to", source(2**13, 2**13, 1), conv2d(weight=weight(1, 5), kernel=(1, 1)))
    big = source(MAX_ELEMENTS // 2 + 1)
    refuse("expected 1 to", big, Concat(name="y", inputs=("x", "x"), requantization=requantization(2)))


def test_refuses_kernels_of_the_wrong_length() -> None:
    refuse("kernels of 35 inputs; expected 36", IMAGE, conv2d(weight=weight(35, 8)))
    refuse("kernels of 15 inputs; expected 16", VECTOR, linear(weight=weight(15, 8)))
    refuse("kernels of 15 inputs; expected 16", VECTOR, linear(weight=pack(weight(15, 8))))


def test_refuses_a_linear_layer_on_an_image() -> None:
    refuse("flatten it first", source(2, 2, 4), linear())


@pytest.mark.parametrize("groups", [-2, 0, 3, 5, 8])
def test_refuses_groups_that_do_not_divide_the_channels(groups: int) -> None:
    refuse("do not divide", IMAGE, conv2d(groups=groups))


def test_refuses_a_packed_grouped_convolution() -> None:
    refuse("grouped convolutions keep dense weights", IMAGE, conv2d(weight=pack(weight(18, 8)), groups=2))


def test_refuses_sums_and_concatenations_of_shapes_that_differ() -> None:
    pool = MaxPool(name="p", inputs=("x",), kernel=(2, 2), stride=(1, 1))
    refuse("adds shapes", IMAGE, pool, Add(name="y", inputs=("x", "p"), requantization=requantization(2, 1)))
    refuse("joins shapes", IMAGE, pool, Concat(name="y", inputs=("x", "p"), requantization=requantization(2)))


@pytest.mark.parametrize("shape", [(), (119,), (12, 10), (2, 2, 2, 15)])
def test_refuses_a_reshape_that_does_not_fit(shape: tuple[int, ...]) -> None:
    refuse("reshape|asks for shape", IMAGE, Reshape(name="y", inputs=("x",), shape=shape))


@pytest.mark.parametrize("shape", [(-120,), (-1, -1, 120), (-6, 5, -4)])
def test_refuses_a_reshape_to_negative_extents(shape: tuple[int, ...]) -> None:
    refuse("has shape|reshapes", IMAGE, Reshape(name="y", inputs=("x",), shape=shape))


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (36,), (36, 8, 1)])
def test_refuses_a_weight_that_is_no_matrix(shape: tuple[int, ...]) -> None:
    refuse("no matrix", IMAGE, conv2d(weight=np.zeros(shape, np.int8)))
    refuse("no matrix", VECTOR, linear(weight=np.zeros(shape, np.int8)))
    refuse("no matrix", VECTOR, linear(weight="weights"))


def test_refuses_a_weight_without_kernels() -> None:
    refuse("weight", IMAGE, conv2d(weight=np.zeros((36, 0), np.int8)))
    refuse("weight", VECTOR, linear(weight=np.zeros((0, 8), np.int8)))


def test_refuses_a_packed_weight_with_a_huge_number_of_kernels() -> None:
    packed = replace(pack(weight(16, 8)), kernels=2**31 - 1)
    refuse("weight", VECTOR, linear(weight=packed))


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64])
def test_refuses_weights_of_the_wrong_type_for_integers(dtype: Any) -> None:
    refuse("weight", VECTOR, linear(weight=weight(16, 8).astype(dtype)))


def test_refuses_packed_weights_of_the_wrong_type() -> None:
    refuse("float32 weights; expected int8", VECTOR, linear(weight=pack(weight(16, 8, dtype=np.float32))))
    refuse("int8 weights; expected float32", FLOATS, linear(weight=pack(weight(16, 8))))


def test_refuses_int8_weights_on_floats() -> None:
    refuse("weight", FLOATS, linear())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_weights_biases_and_factors_that_are_not_finite(value: float) -> None:
    bad = weight(16, 8, dtype=np.float32)
    bad[3, 3] = value
    refuse("not finite", FLOATS, linear(weight=bad))
    fine = weight(16, 8, dtype=np.float32)
    refuse("not finite", FLOATS, linear(weight=fine, bias=np.full(8, value, np.float32)))
    refuse("not finite", VECTOR, kwta(factor=np.full(16, value, np.float32)))
    line = np.full(16, value, np.float32)
    refuse("not finite", FLOATS, Affine(name="y", inputs=("x",), scale=line, shift=np.zeros(16, np.float32)))
    refuse("not finite", FLOATS, Affine(name="y", inputs=("x",), scale=np.ones(16, np.float32), shift=line))


def test_refuses_a_damaged_packed_weight() -> None:
    packed = pack(weight(16, 8))
    damaged = replace(packed, members=packed.members + 8)
    refuse("y: ", VECTOR, linear(weight=damaged))


@pytest.mark.parametrize(
    "bias",
    [np.zeros(7, np.int32), np.zeros((8, 1), np.int32), np.zeros(8, np.int64), np.zeros(8, np.float32), [0] * 8],
)
def test_refuses_a_bias_of_the_wrong_kind(bias: Any) -> None:
    refuse("bias", VECTOR, linear(bias=bias))


def test_refuses_an_integer_bias_on_floats() -> None:
    refuse("bias", FLOATS, linear(weight=weight(16, 8, dtype=np.float32), bias=np.zeros(8, np.int32)))


def test_refuses_an_affine_of_the_wrong_length() -> None:
    ones, zeros = np.ones(15, np.float32), np.zeros(16, np.float32)
    refuse("scale of shape", FLOATS, Affine(name="y", inputs=("x",), scale=ones, shift=zeros))
    refuse("shift of shape", FLOATS, Affine(name="y", inputs=("x",), scale=zeros, shift=ones))


def test_refuses_an_affine_on_integers() -> None:
    ones = np.ones(16, np.float32)
    refuse("defined on float32", VECTOR, Affine(name="y", inputs=("x",), scale=ones, shift=ones))


# --- k-WTA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, -1])
def test_refuses_k_below_one(k: int) -> None:
    refuse("expected at least 1", VECTOR, kwta(k=k))


def test_refuses_an_unknown_scope() -> None:
    refuse("scope 'row'", VECTOR, kwta(scope="row"))


def test_refuses_a_ranking_factor_of_the_wrong_length() -> None:
    refuse("factor of shape", IMAGE, kwta(factor=np.ones(120, np.float32)))
    refuse("factor of shape", IMAGE, kwta(factor=np.ones(4, np.float32), scope="global"))
    refuse("factor of type", VECTOR, kwta(factor=np.ones(16)))


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-40, 1e30])
def test_refuses_a_ranking_factor_out_of_range(value: float) -> None:
    refuse("ranking factor", VECTOR, kwta(factor=np.full(16, value, np.float32)))


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reader",
    [
        Relu(name="y", inputs=("acc",)),
        kwta(inputs=("acc",)),
        linear(inputs=("acc",), weight=weight(8, 8)),
        Add(name="y", inputs=("acc", "acc"), requantization=requantization(2, 1)),
        Concat(name="y", inputs=("acc", "acc"), requantization=requantization(2)),
    ],
)
def test_refuses_readers_of_accumulators(reader: Node) -> None:
    refuse("reads accumulators", VECTOR, ACCUMULATORS, reader)


@pytest.mark.parametrize("kind", [MaxPool, AveragePool])
def test_refuses_pools_of_accumulators(kind: Any) -> None:
    pool = kind(name="y", inputs=("acc",), kernel=(1, 1), stride=(1, 1))
    refuse("reads accumulators", IMAGE, conv2d(name="acc"), pool)


def test_refuses_a_requantization_of_floats() -> None:
    q = requantization(8)
    refuse("cannot be requantized", FLOATS, linear(weight=weight(16, 8, dtype=np.float32), requantization=q))
    refuse("cannot be requantized", FLOATS, Add(name="y", inputs=("x", "x"), requantization=requantization(2, 1)))


@pytest.mark.parametrize("kind", [Add, Concat])
def test_refuses_joins_of_integers_without_a_requantization(kind: Any) -> None:
    refuse("needs a requantization", VECTOR, kind(name="y", inputs=("x", "x")))


def test_refuses_an_average_of_integers_without_a_requantization() -> None:
    refuse("needs a requantization", IMAGE, AveragePool(name="y", inputs=("x",), kernel=(2, 2), stride=(2, 2)))


def test_refuses_to_mix_integers_and_floats() -> None:
    scaled = Dequantize(name="f", inputs=("x",), scale=np.ones(1))
    refuse("mixes", VECTOR, scaled, Add(name="y", inputs=("x", "f"), requantization=requantization(2, 1)))
    refuse("mixes", VECTOR, scaled, Concat(name="y", inputs=("f", "x")))


def test_refuses_a_dequantization_of_floats() -> None:
    refuse("has no scale", FLOATS, Dequantize(name="y", inputs=("x",), scale=np.ones(1)))


@pytest.mark.parametrize("scale", [np.ones(2), np.ones(()), np.ones((1, 1)), np.ones(1, np.float32)])
def test_refuses_a_dequantization_of_the_wrong_kind(scale: Any) -> None:
    refuse("has a scale of", VECTOR, Dequantize(name="y", inputs=("x",), scale=scale))


def test_refuses_a_softmax_of_integers() -> None:
    refuse("softmax is float32", VECTOR, Softmax(name="y", inputs=("x",)))


def test_transformer_operations_infer_shape() -> None:
    turned = Transpose(name="t", inputs=("x",), axes=(2, 0, 1))
    assert result_type(IMAGE, turned) == TensorType((4, 6, 5), "uint8", 0.5)
    assert result_type(FLOAT_IMAGE, MatMul(name="y", inputs=("x", "x"), transposed=True)).shape == (6, 5, 5)
    back = Transpose(name="t", inputs=("x",), axes=(0, 2, 1))
    assert result_type(FLOAT_IMAGE, back, MatMul(name="y", inputs=("x", "t"))).shape == (6, 5, 5)
    norm = LayerNorm(name="n", inputs=("x",), scale=np.ones(4, np.float32), shift=np.zeros(4, np.float32))
    assert result_type(FLOAT_IMAGE, norm, Gelu(name="y", inputs=("n",))) == TensorType((6, 5, 4), "float32")


def test_refuses_transformer_operations_that_do_not_fit() -> None:
    ones: Any = {"scale": np.ones(4, np.float32), "shift": np.ones(4, np.float32)}
    refuse("GELU is float32", VECTOR, Gelu(name="y", inputs=("x",)))
    refuse("approximated by 'erf'", FLOATS, Gelu(name="y", inputs=("x",), approximate="erf"))  # type: ignore[arg-type]
    refuse("layer normalization is float32", IMAGE, LayerNorm(name="y", inputs=("x",), **ones))
    refuse("scale of shape", FLOATS, LayerNorm(name="y", inputs=("x",), **ones))
    refuse("epsilon 0", FLOAT_IMAGE, LayerNorm(name="y", inputs=("x",), **ones, epsilon=0.0))
    refuse("product of activations is float32", IMAGE, MatMul(name="y", inputs=("x", "x")))
    refuse("do not fit", FLOAT_IMAGE, MatMul(name="y", inputs=("x", "x")))
    refuse("expected .H, W, C. of both", FLOATS, MatMul(name="y", inputs=("x", "x")))
    refuse("expected each of 0, 1, 2", IMAGE, Transpose(name="y", inputs=("x",), axes=(0, 1, 1)))
    refuse("expected .H, W, C", VECTOR, Transpose(name="y", inputs=("x",), axes=(0, 1, 2)))


def test_a_quantization_leads_back_to_integers() -> None:
    back = Quantize(name="y", inputs=("x",), dtype="int8", scale=0.25)
    assert result_type(FLOAT_IMAGE, back) == TensorType((6, 5, 4), "int8", 0.25)
    refuse("reads uint8; expected float32", IMAGE, back)
    refuse("quantizes to 'int32'", FLOATS, Quantize(name="y", inputs=("x",), dtype="int32", scale=1.0))  # type: ignore[arg-type]
    refuse("has scale 0.0", FLOATS, Quantize(name="y", inputs=("x",), dtype="int8", scale=0.0))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"size": 2}, "sums over 2 channels; expected an odd number"),
        ({"size": 0}, "sums over 0 channels"),
        ({"size": 2**15 + 1}, "below 32768"),
        ({"size": 3, "alpha": -1.0}, "alpha -1.0"),
        ({"size": 3, "beta": 5.0}, "beta 5.0"),
        ({"size": 3, "bias": 0.0}, "bias 0.0"),
    ],
)
def test_refuses_a_local_response_normalization_out_of_range(attributes: dict[str, Any], reason: str) -> None:
    refuse(reason, FLOAT_IMAGE, LocalResponseNorm(name="y", inputs=("x",), **attributes))


def test_local_response_normalization_is_float32() -> None:
    norm = LocalResponseNorm(name="y", inputs=("x",), size=5)
    assert result_type(FLOAT_IMAGE, norm) == TensorType((6, 5, 4), "float32")
    refuse("local response normalization is float32", IMAGE, norm)


TABLE = np.zeros(256, np.int8)


def test_activations_are_float32_or_what_their_table_is() -> None:
    assert result_type(FLOAT_IMAGE, activation()) == TensorType((6, 5, 4), "float32")
    assert result_type(IMAGE, activation(table=TABLE, scale=0.5)) == TensorType((6, 5, 4), "int8", 0.5)
    unsigned = activation(table=TABLE.view(np.uint8), scale=0.5)
    assert result_type(IMAGE, unsigned) == TensorType((6, 5, 4), "uint8", 0.5)


@pytest.mark.parametrize(
    ("source", "attributes", "reason"),
    [
        (FLOAT_IMAGE, {"function": "mish"}, "is 'mish'; known are silu"),
        (FLOAT_IMAGE, {"alpha": np.inf}, "alpha inf"),
        (FLOAT_IMAGE, {"function": "tanh", "alpha": 2.0}, "tanh with alpha 2.0"),
        (FLOAT_IMAGE, {"table": TABLE}, "needs no table"),
        (FLOAT_IMAGE, {"scale": 1.0}, "needs no table"),
        (IMAGE, {}, "needs a table"),
        (IMAGE, {"table": TABLE}, "has scale None"),
        (IMAGE, {"table": TABLE[1:], "scale": 1.0}, r"a table of shape \(255,\)"),
        (IMAGE, {"table": TABLE.astype(np.int16), "scale": 1.0}, "a table of type int16"),
    ],
)
def test_refuses_an_activation(source: Input, attributes: dict[str, Any], reason: str) -> None:
    refuse(reason, source, activation(**attributes))


def test_products_are_of_one_shape_or_of_one_position() -> None:
    gate = MaxPool(name="g", inputs=("x",), kernel=(6, 5), stride=(1, 1))
    assert result_type(FLOAT_IMAGE, gate, Product(name="y", inputs=("x", "g"))).shape == (6, 5, 4)
    assert result_type(FLOAT_IMAGE, Product(name="y", inputs=("x", "x"))).shape == (6, 5, 4)
    refuse(r"multiplies shape \(1, 1, 4\) by \(6, 5, 4\)", FLOAT_IMAGE, gate, Product(name="y", inputs=("g", "x")))
    refuse("needs a requantization", IMAGE, Product(name="y", inputs=("x", "x")))
    scaled = Product(name="y", inputs=("x", "x"), requantization=requantization(1))
    assert result_type(IMAGE, scaled).dtype == scaled.requantization.dtype  # type: ignore[union-attr]
    refuse("cannot be requantized", FLOAT_IMAGE, scaled)


def activation(**attributes: Any) -> Activation:
    return Activation(name="y", inputs=("x",), **{"function": "silu", **attributes})


def test_sequences_are_images_of_height_1() -> None:
    with pytest.raises(GraphError, match="height of 1"):
        Graph((FLOAT_IMAGE,), "NWC")
    graph = Graph((Input(name="x", inputs=(), shape=(1, 5, 4)),), "NWC")
    assert graph.outside((1, 5, 4)) == (5, 4)
    x = np.zeros((2, 5, 4), np.float32)
    assert graph.from_caller(x).shape == (2, 1, 5, 4)
    assert graph.to_caller(graph.from_caller(x)).shape == x.shape


def test_signals_are_images_of_height_1_with_channels_first() -> None:
    with pytest.raises(GraphError, match=r"layout NCW .* height of 1"):
        Graph((FLOAT_IMAGE,), "NCW")
    graph = Graph((Input(name="x", inputs=(), shape=(1, 5, 4)),), "NCW")
    assert graph.outside((1, 5, 4)) == (4, 5)
    assert [graph.keeps_order(shape) for shape in ((1, 5, 4), (1, 5, 1), (1, 1, 4), (4,))] == [False, True, True, True]
    x = np.arange(40, dtype=np.float32).reshape(2, 4, 5)
    inside = graph.from_caller(x)
    np.testing.assert_array_equal(inside, x.transpose(0, 2, 1)[:, None])
    assert inside.flags.c_contiguous
    np.testing.assert_array_equal(graph.to_caller(inside), x)


def test_refuses_another_layout() -> None:
    with pytest.raises(GraphError, match="has layout 'CHWN'; expected NHWC, NCHW, NWC, NCW"):
        Graph((FLOAT_IMAGE,), "CHWN")  # type: ignore[arg-type]


@pytest.mark.parametrize("multiplier", [0, 1, 2**15 - 1])
def test_refuses_a_multiplier_below_two_to_the_15(multiplier: int) -> None:
    values = np.array([40000] * 7 + [multiplier], np.uint16)
    refuse("below 2", VECTOR, linear(requantization=requantization(8, multiplier=values)))


def test_accepts_multipliers_and_shifts_at_their_limits() -> None:
    multiplier, shift = np.array([2**15, 2**16 - 1] * 4, np.uint16), np.array([1, 47] * 4, np.uint8)
    assert result_type(VECTOR, linear(requantization=requantization(8, multiplier=multiplier, shift=shift))).size == 8


@pytest.mark.parametrize("shift", [0, 48, 255])
def test_refuses_a_shift_out_of_range(shift: int) -> None:
    values = np.array([17] * 7 + [shift], np.uint8)
    refuse("outside 1", VECTOR, linear(requantization=requantization(8, shift=values)))
    one = requantization(2, shift=np.array([shift], np.uint8))
    refuse("outside 1", VECTOR, Add(name="y", inputs=("x", "x"), requantization=one))


def test_an_addition_may_have_one_small_multiplier_but_not_two() -> None:
    for smaller in (0, 2**15 - 1):
        q = requantization(2, 1, multiplier=np.array([2**15, smaller], np.uint16))
        assert result_type(VECTOR, Add(name="y", inputs=("x", "x"), requantization=q)).dtype == "int8"
    q = requantization(2, 1, multiplier=np.array([2**15 - 1, 2**15 - 1], np.uint16))
    refuse("below 2", VECTOR, Add(name="y", inputs=("x", "x"), requantization=q))


def test_refuses_multipliers_and_shifts_of_the_wrong_kind() -> None:
    refuse("multiplier of shape", VECTOR, linear(requantization=requantization(7)))
    refuse("shift of shape", VECTOR, linear(requantization=requantization(8, 1)))
    refuse(
        "multiplier of type", VECTOR, linear(requantization=requantization(8, multiplier=np.full(8, 40000, np.int32)))
    )
    refuse("shift of type", VECTOR, linear(requantization=requantization(8, shift=np.full(8, 17, np.int8))))
    refuse("shift of shape", VECTOR, Add(name="y", inputs=("x", "x"), requantization=requantization(2, 2)))
    refuse("multiplier of shape", VECTOR, Concat(name="y", inputs=("x", "x"), requantization=requantization(1)))


def test_refuses_a_requantization_to_another_type() -> None:
    refuse("requantizes to 'int32'", VECTOR, linear(requantization=requantization(8, dtype="int32")))


# --- the overflow proof ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("dtype", "magnitude"), [("uint8", 255), ("int8", 128)])
def test_proves_accumulators_up_to_the_limit_and_refuses_one_beyond(
    dtype: str, magnitude: int, sign: int, packed: bool
) -> None:
    matrix = np.array([[100, -1], [-128, 1], [127, 0], [0, 0], [-100, 0]], np.int8)
    stored = pack(matrix, block=(4, 16)) if packed else matrix
    room = ACCUMULATOR_LIMIT - (100 + 128 + 127 + 100) * magnitude
    x = source(5, dtype=dtype)
    assert result_type(x, linear(weight=stored, bias=np.array([sign * room, 0], np.int32))).dtype == "int32"
    refuse("could overflow", x, linear(weight=stored, bias=np.array([sign * (room + 1), 0], np.int32)))
    refuse("could overflow", x, linear(weight=stored, bias=np.array([-(2**31), 0], np.int32)))


def test_proves_accumulators_of_long_kernels() -> None:
    rows = ACCUMULATOR_LIMIT // (255 * 128)
    fits = np.full((rows, 1), -128, np.int8)
    assert result_type(source(rows), linear(weight=fits)).dtype == "int32"
    refuse("could overflow", source(rows + 1), linear(weight=np.full((rows + 1, 1), -128, np.int8)))


def test_refuses_the_bias_that_alone_leaves_the_accumulator() -> None:
    empty = pack(np.zeros((16, 8), np.int8))
    assert result_type(VECTOR, linear(weight=empty, bias=np.full(8, -(2**31) + 1, np.int32))).dtype == "int32"
    refuse("could overflow", VECTOR, linear(weight=empty, bias=np.full(8, -(2**31), np.int32)))
