"""Float networks become integer networks: what is folded, how ranges and types are chosen, how large the error is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graphs import graphs, random_input
from hypothesis import given, settings
from hypothesis import strategies as st

from csengine import reference
from csengine.errors import QuantizationError
from csengine.graph import (
    ACCUMULATOR_LIMIT,
    FUNCTIONS,
    KWTA,
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
    MaxPool,
    Node,
    Packing,
    Product,
    Relu,
    Requantization,
    Reshape,
    Softmax,
    TensorType,
    Transpose,
)
from csengine.packing import pack
from csengine.plan import expected_activity
from csengine.quantization import (
    KnownScale,
    KnownScales,
    LayerError,
    fold_affines,
    multiplier_and_shift,
    quantize,
    quantize_weights,
)

RNG = np.random.default_rng(0)
_START = RNG.bit_generator.state
IMAGE = Input(name="x", inputs=(), shape=(8, 8, 3))
VECTOR = Input(name="x", inputs=(), shape=(16,))


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order() -> None:
    RNG.bit_generator.state = _START


def normal(*shape: int, scale: float = 1.0) -> Any:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def conv2d(name: str, source: str, channels: int, kernels: int, **changes: Any) -> Conv2d:
    """A 3x3 convolution that keeps the size."""
    weight = normal(9 * channels, kernels, scale=(9 * channels) ** -0.5)
    made = Conv2d(name=name, inputs=(source,), weight=weight, kernel=(3, 3), padding=(1, 1, 1, 1))
    return replace(made, bias=normal(kernels, scale=0.1), **changes)


def linear(name: str, source: str, rows: int, kernels: int, **changes: Any) -> Linear:
    weight = normal(rows, kernels, scale=rows**-0.5)
    return replace(Linear(name=name, inputs=(source,), weight=weight, bias=normal(kernels, scale=0.1)), **changes)


def affine(name: str, source: str, channels: int) -> Affine:
    scale = RNG.uniform(0.5, 2.0, channels).astype(np.float32)
    return Affine(name=name, inputs=(source,), scale=scale, shift=normal(channels, scale=0.3))


def relu(name: str, source: str) -> Relu:
    return Relu(name=name, inputs=(source,))


def of(graph: Graph, name: str) -> Any:
    return next(node for node in graph.nodes if node.name == name)


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean()))


def quantized(*nodes: Node, batch: int = 16, **options: Any) -> tuple[Graph, dict[str, LayerError]]:
    """Quantize on random samples; also check that float and integer results are alike."""
    graph = Graph(nodes)
    samples = normal(batch, *graph.input.shape)
    result, errors = quantize(graph, samples, **options)
    if not options:
        limit = 0.15 if any(isinstance(node, KWTA) for node in nodes) else 0.05  # rounding chooses other winners
        assert relative_error(reference.run(result, samples), reference.run(graph, samples)) < limit
    return result, {error.name: error for error in errors}


# --- batch normalization ---------------------------------------------------------------------------------------------


def assert_folds(graph: Graph, left: int) -> Graph:
    """The same function with so many affines left."""
    folded = fold_affines(graph)
    assert sum(isinstance(node, Affine) for node in folded.nodes) == left
    x = normal(4, *graph.input.shape)
    expected = reference.run(graph, x)
    np.testing.assert_allclose(reference.run(folded, x), expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    return folded


@pytest.mark.parametrize("bias", [True, False])
def test_an_affine_after_a_layer_is_folded(bias: bool) -> None:
    convolution = conv2d("c", "x", 3, 5)
    convolution = convolution if bias else replace(convolution, bias=None)
    folded = assert_folds(Graph((IMAGE, convolution, affine("a", "c", 5), relu("r", "a"))), 0)
    assert [node.name for node in folded.nodes] == ["x", "c", "r"]
    assert_folds(Graph((VECTOR, linear("l", "x", 16, 5), affine("a", "l", 5))), 0)


def test_folding_is_exact_where_float32_is() -> None:
    layer = Linear(name="l", inputs=("x",), weight=RNG.integers(-9, 9, (16, 5)).astype(np.float32))
    scale = RNG.choice(np.float32([-2, -0.5, 0.0, 0.25, 1, 4]), 5)
    graph = Graph((VECTOR, layer, Affine(name="a", inputs=("l",), scale=scale, shift=np.arange(5, dtype=np.float32))))
    x = RNG.integers(-99, 99, (10, 16)).astype(np.float32)
    np.testing.assert_array_equal(reference.run(fold_affines(graph), x), reference.run(graph, x))


def test_affines_in_a_row_are_folded() -> None:
    nodes = (IMAGE, conv2d("c", "x", 3, 5), affine("a", "c", 5), affine("b", "a", 5), relu("r", "b"))
    assert_folds(Graph(nodes), 0)


def test_an_affine_stays_where_another_node_reads_the_layer() -> None:
    nodes = (IMAGE, conv2d("c", "x", 3, 5), affine("a", "c", 5), Add(name="s", inputs=("c", "a")))
    assert_folds(Graph(nodes), 1)


def test_an_affine_stays_where_another_node_reads_a_folded_one() -> None:
    nodes = (IMAGE, conv2d("c", "x", 3, 5), affine("a", "c", 5), affine("b", "a", 5), Add(name="s", inputs=("a", "b")))
    assert_folds(Graph(nodes), 1)


def test_an_affine_stays_where_no_layer_is_before_it() -> None:
    assert_folds(Graph((IMAGE, affine("a", "x", 3), relu("r", "a"), affine("b", "r", 3))), 2)


def test_folding_keeps_the_output_last() -> None:
    nodes = (IMAGE, conv2d("c", "x", 3, 5), relu("dead", "x"), affine("a", "c", 5))
    folded = assert_folds(Graph(nodes), 0)
    assert folded.output.name == "c"


def test_folding_keeps_the_wanted_packing() -> None:
    weight = normal(16, 8) * (RNG.random((16, 8)) < 0.3)
    packed = pack(weight, block=(4, 1), set_size=3)
    folded = fold_affines(Graph((VECTOR, linear("l", "x", 16, 8, weight=packed), affine("a", "l", 8))))
    layer = of(folded, "l")
    assert (layer.packing.block, layer.packing.set_size) == ((4, 1), 3)
    np.testing.assert_array_equal(layer.packing.sets, packed.members)
    wanted = Packing((1, 16), 4)
    folded = fold_affines(Graph((VECTOR, linear("l", "x", 16, 8, packing=wanted), affine("a", "l", 8))))
    assert of(folded, "l").packing is wanted


# --- numbers ---------------------------------------------------------------------------------------------------------


@settings(max_examples=500)
@given(st.floats(2.0**-32, 2.0**15 * (1 - 2.0**-17), exclude_max=True))
def test_multiplier_and_shift_are_in_range_and_near(ratio: float) -> None:
    multiplier, shift = multiplier_and_shift(np.array([ratio]))
    assert (multiplier.dtype, shift.dtype) == (np.uint16, np.uint8)
    assert 2**15 <= multiplier.item() < 2**16
    assert 1 <= shift.item() <= 47
    assert abs(multiplier.item() / 2.0 ** shift.item() - ratio) <= ratio * 2.0**-16


@pytest.mark.parametrize("shift", range(1, 48))
def test_every_multiplier_and_shift_is_found(shift: int) -> None:
    wanted = np.array([2**15, 2**15 + 1, 50000, 2**16 - 1])
    multiplier, found = multiplier_and_shift(wanted / 2.0**shift)
    np.testing.assert_array_equal(multiplier, wanted)
    np.testing.assert_array_equal(found, shift)


def test_a_mantissa_that_rounds_up_is_carried() -> None:
    multiplier, shift = multiplier_and_shift(np.array([1 - 2.0**-20, 2.0**14 - 2.0**-10]))
    np.testing.assert_array_equal(multiplier, 2**15)
    np.testing.assert_array_equal(shift, [15, 1])


@pytest.mark.parametrize("ratio", [0.0, -1.0, np.nan, np.inf, -np.inf, 2.0**15, 2.0**15 - 2.0**-10, 2.0**-32 * 0.99])
def test_refuses_ratios_that_do_not_fit(ratio: float) -> None:
    with pytest.raises(QuantizationError, match="do not fit"):
        multiplier_and_shift(np.array([1.0, ratio]))


@pytest.mark.parametrize("bias_scale", [0.0, 1e-3, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("output_scale", [None, 1e-6, 0.02, 1e3])
def test_weights_and_biases_are_near_and_in_range(bias_scale: float, output_scale: float | None) -> None:
    weight = normal(20, 6) * np.float32([1, 1e-3, 1e3, 1, 0, 0])
    bias = normal(6, scale=bias_scale) * np.float32([1, 1, 1, 0, 1, 0])
    layer = Linear(name="l", inputs=("x",), weight=weight, bias=bias)
    quantized_weight, quantized_bias, unit = quantize_weights(layer, 0.05, output_scale)
    assert (quantized_weight.dtype, unit.dtype) == (np.int8, np.float64)
    assert quantized_bias is not None
    assert quantized_bias.dtype == np.int32
    assert np.abs(quantized_weight.astype(int)).max() <= 127
    assert np.abs(quantized_bias.astype(np.int64)).max() <= 2**30
    np.testing.assert_allclose(quantized_weight * unit / 0.05, weight, rtol=0, atol=(unit / 0.05).max() * 0.501)
    assert (np.abs(quantized_bias * unit - bias) <= unit * 0.501).all()
    if output_scale is not None:
        assert (unit / output_scale >= 2.0**-30 * 0.999).all()


def test_weights_use_the_whole_range_of_each_channel() -> None:
    layer = Linear(name="l", inputs=("x",), weight=normal(20, 6) * np.float32([1, 10, 100, 1e-3, 1e-6, 1]))
    weight, bias, _ = quantize_weights(layer, 0.05, 0.02)
    assert bias is None
    np.testing.assert_array_equal(np.abs(weight.astype(int)).max(axis=0)[[0, 1, 2, 3, 5]], 127)


# --- types and scales ------------------------------------------------------------------------------------------------


def test_an_affine_of_an_image_that_cannot_be_folded_becomes_a_convolution_per_channel() -> None:
    graph, errors = quantized(IMAGE, affine("a", "x", 3), relu("r", "a"), conv2d("c", "r", 3, 5))
    layer = of(graph, "a")
    assert isinstance(layer, Conv2d)
    assert (layer.groups, layer.kernel, graph.types["a"].dtype) == (3, (1, 1), "uint8")
    assert errors["a"].relative_error < 0.02


def test_a_relu_becomes_the_clamp_of_an_unsigned_result() -> None:
    graph, _ = quantized(IMAGE, conv2d("c", "x", 3, 5), relu("r", "c"), conv2d("d", "r", 5, 4))
    assert [type(node) for node in graph.nodes] == [Input, Conv2d, Conv2d, Dequantize]
    assert [graph.types[name].dtype for name in ("x", "c", "d")] == ["int8", "uint8", "int32"]


def test_a_relu_is_moved_before_what_it_commutes_with() -> None:
    nodes = (
        IMAGE,
        conv2d("c", "x", 3, 5),
        MaxPool(name="p", inputs=("c",), kernel=(2, 2), stride=(2, 2)),
        KWTA(name="k", inputs=("p",), k=3, scope="local"),
        Reshape(name="f", inputs=("k",), shape=(80,)),
        relu("r", "f"),
        linear("l", "r", 80, 7),
    )
    graph, _ = quantized(*nodes)
    assert not any(isinstance(node, Relu) for node in graph.nodes)
    assert {graph.types[name].dtype for name in "cpkf"} == {"uint8"}


def test_a_relu_stays_where_the_signed_value_is_read_too() -> None:
    nodes = (IMAGE, conv2d("c", "x", 3, 5), relu("r", "c"), Add(name="s", inputs=("c", "r")))
    graph, _ = quantized(*nodes)
    assert isinstance(of(graph, "r"), Relu)
    assert {graph.types[name].dtype for name in "crs"} == {"int8"}


def test_a_relu_at_the_end_is_a_clamp() -> None:
    graph, _ = quantized(IMAGE, conv2d("c", "x", 3, 5), relu("r", "c"))
    assert [node.name for node in graph.nodes] == ["x", "c", "c.scaled"]
    assert graph.types["c"].dtype == "uint8"


def test_the_input_is_unsigned_where_samples_are_not_negative() -> None:
    nodes = (IMAGE, conv2d("c", "x", 3, 5))
    for samples, dtype in ((normal(4, 8, 8, 3), "int8"), (np.abs(normal(4, 8, 8, 3)), "uint8")):
        graph, _ = quantize(Graph(nodes), samples)
        largest = 255 if dtype == "uint8" else 127
        assert graph.input.dtype == dtype
        assert graph.input.scale == pytest.approx(float(np.abs(samples).max()) / largest)


def test_joins_of_unsigned_tensors_are_unsigned() -> None:
    nodes = (
        IMAGE,
        conv2d("c", "x", 3, 5),
        relu("r", "c"),
        conv2d("d", "r", 5, 5),
        relu("t", "d"),
        Add(name="s", inputs=("r", "t")),
        Concat(name="j", inputs=("s", "r", "t")),
        AveragePool(name="p", inputs=("j",), kernel=(8, 8), stride=(1, 1)),
    )
    graph, _ = quantized(*nodes)
    assert {graph.types[name].dtype for name in "cdsjp"} == {"uint8"}


def test_joins_with_a_signed_tensor_are_signed_unless_a_relu_follows() -> None:
    nodes = (IMAGE, conv2d("c", "x", 3, 5), relu("r", "c"), conv2d("d", "r", 5, 5), Add(name="s", inputs=("r", "d")))
    graph, _ = quantized(*nodes)
    assert [graph.types[name].dtype for name in "cds"] == ["uint8", "int8", "int8"]
    graph, _ = quantized(*nodes, relu("t", "s"))
    assert [graph.types[name].dtype for name in "cds"] == ["uint8", "int8", "uint8"]


def test_operations_that_pass_values_keep_the_scale() -> None:
    nodes = (
        IMAGE,
        conv2d("c", "x", 3, 5),
        KWTA(name="k", inputs=("c",), k=2, scope="local", factor=np.float32([1, 2, 1, 1, 0.5])),
        MaxPool(name="p", inputs=("k",), kernel=(2, 2), stride=(2, 2)),
    )
    graph, errors = quantized(*nodes)
    assert graph.types["c"].scale == graph.types["k"].scale == graph.types["p"].scale == errors["p"].scale
    np.testing.assert_array_equal(of(graph, "k").factor, of(Graph(nodes), "k").factor)


def test_scales_come_from_what_is_left_of_a_tensor() -> None:
    layer = conv2d("c", "x", 3, 5)
    layer = replace(layer, weight=layer.dense_weight, bias=np.full(5, -1.5, np.float32))
    nodes = (IMAGE, layer, KWTA(name="k", inputs=("c",), k=2, scope="local"), relu("r", "k"))
    samples = normal(16, 8, 8, 3)
    tensors = reference.trace(Graph(nodes), samples)
    graph, _ = quantize(Graph(nodes), samples)
    assert tensors["r"].max() < 0.7 * np.abs(tensors["c"]).max()
    assert graph.types["c"].scale == pytest.approx(tensors["r"].max() / 255)


def test_a_sum_that_is_always_zero_stays_zero() -> None:
    layer = conv2d("c", "x", 3, 5)
    opposite = replace(layer, name="d", weight=-layer.dense_weight, bias=-layer.bias)  # type: ignore[operator]
    nodes = (IMAGE, layer, opposite, Add(name="s", inputs=("c", "d")))
    graph, errors = quantize(Graph(nodes), normal(16, 8, 8, 3))
    np.testing.assert_array_equal(reference.run(graph, normal(4, 8, 8, 3)), 0)
    assert errors[-1].relative_error == 0


def test_every_channel_of_a_layer_has_its_own_scale() -> None:
    layer = linear("l", "x", 16, 4)
    layer = replace(layer, weight=layer.dense_weight * np.float32([1, 1e-2, 1e2, 1e-4]), bias=None)
    graph, _ = quantized(VECTOR, layer)
    samples = normal(8, 16)
    got, expected = reference.run(graph, samples), reference.run(Graph((VECTOR, layer)), samples)
    for channel in range(4):
        assert relative_error(got[:, channel], expected[:, channel]) < 0.05


def test_the_last_layer_leaves_its_accumulators_exact() -> None:
    layer = linear("l", "x", 16, 4)
    graph, _ = quantized(VECTOR, layer)
    assert [type(node) for node in graph.nodes] == [Input, Linear, Dequantize]
    assert graph.output_type.dtype == "float32"
    assert of(graph, "l.scaled").scale.shape == (4,)


def test_a_softmax_reads_dequantized_accumulators() -> None:
    graph, _ = quantized(VECTOR, linear("l", "x", 16, 4), Softmax(name="s", inputs=("l",)))
    assert [type(node) for node in graph.nodes] == [Input, Linear, Dequantize, Softmax]
    graph, _ = quantized(VECTOR, linear("l", "x", 16, 4), relu("r", "l"), Softmax(name="s", inputs=("r",)))
    assert [type(node) for node in graph.nodes] == [Input, Linear, Dequantize, Softmax]
    assert graph.types["l"].dtype == "uint8"


def test_the_result_can_stay_integer() -> None:
    layer = linear("l", "x", 16, 4)
    graph, _ = quantized(VECTOR, layer, integer_output=True)
    assert graph.output_type.dtype == "int32"
    graph, _ = quantized(VECTOR, layer, relu("r", "l"), integer_output=True)
    assert graph.output_type.dtype == "uint8"


def test_what_the_result_does_not_depend_on_is_left_out() -> None:
    nodes = (IMAGE, conv2d("c", "x", 3, 5), conv2d("dead", "x", 3, 2), relu("dead2", "c"), relu("r", "c"))
    graph, _ = quantized(*nodes)
    assert [node.name for node in graph.nodes] == ["x", "c", "c.scaled"]
    assert graph.types["c"].dtype == "uint8"


def test_packings_are_kept_for_the_packer() -> None:
    weight = normal(16, 8) * (RNG.random((16, 8)) < 0.3)
    packed = pack(weight, block=(4, 1), set_size=3)
    wanted = Packing((1, 16), 4)
    nodes = (VECTOR, linear("l", "x", 16, 8, weight=packed), relu("r", "l"), linear("m", "r", 8, 4, packing=wanted))
    graph, _ = quantized(*nodes)
    assert (of(graph, "l").packing.block, of(graph, "l").packing.set_size) == ((4, 1), 3)
    assert of(graph, "m").packing is wanted
    integer = of(graph, "l").dense_weight
    assert not integer[weight == 0].any()


def test_the_layout_is_kept() -> None:
    graph = Graph((IMAGE, conv2d("c", "x", 3, 5)), "NCHW")
    assert quantize(graph, normal(4, 8, 8, 3))[0].layout == "NCHW"


# --- percentiles -----------------------------------------------------------------------------------------------------


def test_a_percentile_ignores_outliers() -> None:
    samples = normal(64, 16)
    samples[3, 3] = 1000.0
    graph = Graph((VECTOR, linear("l", "x", 16, 8)))
    whole, _ = quantize(graph, samples)
    cut, errors = quantize(graph, samples, percentile=99.5)
    assert whole.input.scale == pytest.approx(1000 / 127)
    assert cut.input.scale is not None
    assert cut.input.scale < 0.1 * 1000 / 127
    assert errors[0].saturated > 0
    plain = normal(64, 16)
    expected = reference.run(graph, plain)
    assert relative_error(reference.run(cut, plain), expected) < relative_error(reference.run(whole, plain), expected)


def test_percentile_100_is_the_largest_magnitude() -> None:
    graph, samples = Graph((VECTOR, linear("l", "x", 16, 8), relu("r", "l"))), normal(16, 16)
    whole, cut = quantize(graph, samples)[0], quantize(graph, samples, percentile=100.0)[0]
    assert {n: k.scale for n, k in whole.types.items()} == pytest.approx({n: k.scale for n, k in cut.types.items()})


def test_percentiles_count_only_values_that_are_not_zero() -> None:
    samples = np.zeros((64, 16), np.float32)
    samples[:, 0] = np.linspace(-1, 1, 64)
    graph, _ = quantize(Graph((VECTOR, linear("l", "x", 16, 8))), samples, percentile=90.0)
    assert graph.input.scale == pytest.approx(0.9 / 127, rel=0.05)


@pytest.mark.parametrize("percentile", [0.0, 50.0, 100.1, -1.0, float("nan")])
def test_refuses_a_percentile_out_of_range(percentile: float) -> None:
    with pytest.raises(QuantizationError, match="between 50 and 100"):
        quantize(Graph((VECTOR, linear("l", "x", 16, 8))), normal(4, 16), percentile=percentile)


# --- the unusual -----------------------------------------------------------------------------------------------------


def test_calibration_on_zeros_gives_a_network_that_runs() -> None:
    graph = Graph((IMAGE, conv2d("c", "x", 3, 5), relu("r", "c"), conv2d("d", "r", 5, 4)))
    for percentile in (None, 99.0):
        result, _ = quantize(graph, np.zeros((2, 8, 8, 3), np.float32), percentile=percentile)
        got = reference.run(result, np.zeros((1, 8, 8, 3), np.float32))
        expected = reference.run(graph, np.zeros((1, 8, 8, 3), np.float32))
        assert relative_error(got, expected) < 0.05


def test_tensors_that_are_always_zero_do_no_harm() -> None:
    dead = replace(conv2d("dead", "r", 5, 5), bias=np.full(5, -1e6, np.float32))
    nodes = (
        IMAGE,
        conv2d("c", "x", 3, 5),
        relu("r", "c"),
        dead,
        relu("zero", "dead"),
        Add(name="s", inputs=("zero", "r")),
        Concat(name="j", inputs=("s", "zero", "r")),
        AveragePool(name="p", inputs=("zero",), kernel=(2, 2), stride=(1, 1)),
        MaxPool(name="q", inputs=("j",), kernel=(2, 2), stride=(1, 1)),
        Concat(name="t", inputs=("p", "q")),
        conv2d("d", "t", 20, 4),
    )
    graph, errors = quantized(*nodes)
    assert errors["dead"].relative_error == 0
    assert reference.trace(graph, normal(3, 8, 8, 3))["p"].max() == 0


def test_channels_without_weights_give_their_bias() -> None:
    layer = linear("l", "x", 16, 6)
    weight, bias = layer.dense_weight.copy(), np.float32([0, 0.5, 3, -2, 0, 1])
    weight[:, [0, 1, 3]] = 0
    nodes = (VECTOR, replace(layer, weight=weight, bias=bias), relu("r", "l"), linear("m", "r", 6, 4))
    graph, _ = quantized(*nodes)
    values = reference.trace(graph, normal(4, 16))["l"] * graph.types["l"].scale
    np.testing.assert_allclose(values[:, [0, 1, 3]], [[0, 0.5, 0]] * 4, atol=graph.types["l"].scale or 0)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e9])
def test_a_huge_bias_fits(size: float) -> None:
    layer = linear("l", "x", 16, 6)
    bias = np.float32([size, -size, 0, 1, 0, 0])
    graph, _ = quantized(VECTOR, replace(layer, bias=bias), relu("r", "l"), linear("m", "r", 6, 4))
    assert np.abs(of(graph, "l").bias.astype(np.int64)).max() <= 2**30
    graph, _ = quantized(VECTOR, replace(layer, bias=bias))
    got = reference.run(graph, np.zeros((1, 16), np.float32))
    np.testing.assert_allclose(got, bias[None], rtol=1e-3, atol=1e-3)


def test_values_of_any_size_are_scaled() -> None:
    for size in (1e-9, 1e-3, 1e3, 1e9):
        layer = linear("l", "x", 16, 6)
        layer = replace(layer, weight=layer.dense_weight * np.float32(size), bias=None)
        graph = Graph((VECTOR, layer, relu("r", "l"), linear("m", "r", 6, 4, bias=None)))
        samples = normal(8, 16)
        result, _ = quantize(graph, samples)
        assert relative_error(reference.run(result, samples), reference.run(graph, samples)) < 0.05


def test_an_input_alone_is_a_network() -> None:
    graph, _ = quantized(VECTOR)
    assert [type(node) for node in graph.nodes] == [Input, Dequantize]


# --- activations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_activation_becomes_a_table(function: Any) -> None:
    activation = Activation(name="a", inputs=("c",), function=function, alpha=0.5 if FUNCTIONS[function] else 1.0)
    graph, _ = quantized(IMAGE, conv2d("c", "x", 3, 5), activation, conv2d("y", "a", 5, 2))
    assert kinds(graph) == "Input Conv2d Activation Conv2d Dequantize"
    made, source = of(graph, "a"), graph.types["c"].scale
    assert source is not None
    assert made.table.dtype == ("uint8" if function in ("sigmoid", "hard_sigmoid") else "int8")
    for value in (-128, -1, 0, 1, 127):
        real = reference.activate(activation, np.array([value * source]))[0] / made.scale
        limits = np.iinfo(made.table.dtype)
        assert made.table[value % 256] == np.clip(np.rint(real), limits.min, limits.max)


def test_a_factor_per_channel_multiplies_integers() -> None:
    pool = AveragePool(name="p", inputs=("c",), kernel=(8, 8), stride=(8, 8))
    gate = Activation(name="s", inputs=("p",), function="hard_sigmoid", alpha=1 / 6)
    product = Product(name="m", inputs=("c", "s"))
    graph, _ = quantized(IMAGE, conv2d("c", "x", 3, 5), pool, gate, product, conv2d("y", "m", 5, 2))
    assert kinds(graph) == "Input Conv2d AveragePool Activation Product Conv2d Dequantize"
    made = of(graph, "m").requantization
    scales = [graph.types[name].scale for name in ("c", "s", "m")]
    assert made.multiplier[0] / 2.0 ** made.shift[0] == pytest.approx(scales[0] * scales[1] / scales[2], rel=2**-15)
    assert [graph.types[name].dtype for name in ("c", "s", "m")] == ["int8", "uint8", "int8"]


def test_an_activation_of_unsigned_integers_and_a_relu_after_one_are_unsigned() -> None:
    silu = Activation(name="a", inputs=("r",), function="silu")
    graph, _ = quantized(IMAGE, conv2d("c", "x", 3, 5), relu("r", "c"), silu, conv2d("y", "a", 5, 2))
    assert (graph.types["c"].dtype, graph.types["a"].dtype) == ("uint8", "uint8")
    swish = Activation(name="a", inputs=("c",), function="hard_swish")
    graph, _ = quantized(IMAGE, conv2d("c", "x", 3, 5), swish, relu("r", "a"), conv2d("y", "r", 5, 2))
    assert kinds(graph) == "Input Conv2d Activation Conv2d Dequantize"
    assert of(graph, "a").table.dtype == np.uint8


def test_an_activation_at_the_end_is_exact() -> None:
    sigmoid = Activation(name="s", inputs=("l",), function="sigmoid")
    graph, _ = quantized(VECTOR, linear("l", "x", 16, 4), sigmoid)
    assert kinds(graph) == "Input Linear Dequantize Activation"
    graph, _ = quantized(VECTOR, linear("l", "x", 16, 4), sigmoid, integer_output=True)
    assert kinds(graph) == "Input Linear Activation"


def test_a_table_says_how_active_its_result_is() -> None:
    table = np.arange(256, dtype=np.uint8)
    table[128:] = 0
    node = Activation(name="a", inputs=("x",), function="silu", table=table, scale=1.0)
    graph = Graph((Input(name="x", inputs=(), shape=(4,), dtype="int8", scale=1.0), node))
    assert expected_activity(graph)["a"] == 127 / 256


# --- refusals --------------------------------------------------------------------------------------------------------


def refuse(message: str, graph: Graph, samples: Any) -> None:
    with pytest.raises(QuantizationError, match=message):
        quantize(graph, samples)


def test_samples_in_the_order_of_the_source_are_refused_with_a_way_out() -> None:
    image = Input(name="x", inputs=(), shape=(6, 5, 4))
    graph = Graph((image, relu("r", "x")), "NCHW")
    refuse(r"NHWC.*got shape \(2, 4, 6, 5\); .*give graph\.from_caller\(samples\)", graph, normal(2, 4, 6, 5))
    refuse(r"got shape \(2, 5, 6, 4\)$", graph, normal(2, 5, 6, 4))


def test_refuses_a_network_that_is_integer_already() -> None:
    integer, _ = quantized(VECTOR, linear("l", "x", 16, 4))
    refuse("integers already", integer, normal(4, 16))


@pytest.mark.parametrize("shape", [(0, 16), (4, 15), (16,), (4, 16, 1), ()])
def test_refuses_samples_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    refuse(r"samples \[B, 16\]", Graph((VECTOR, linear("l", "x", 16, 4))), np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_samples_that_are_not_finite(value: float) -> None:
    samples = normal(4, 16)
    samples[2, 2] = value
    refuse("finite samples", Graph((VECTOR, linear("l", "x", 16, 4))), samples)


def test_refuses_a_network_without_anything_for_integers() -> None:
    refuse("nothing in the network has an integer form", Graph((VECTOR, affine("a", "x", 16))), normal(4, 16))


def test_refuses_a_layer_whose_accumulators_could_overflow() -> None:
    rows = ACCUMULATOR_LIMIT // (127 * 255) + 1
    wide = Input(name="x", inputs=(), shape=(rows,))
    layer = Linear(name="l", inputs=("x",), weight=np.ones((rows, 1), np.float32))
    refuse("could overflow", Graph((wide, layer)), np.ones((1, rows), np.float32))


# --- islands of float32 ----------------------------------------------------------------------------------------------

GELU = Gelu(name="g", inputs=("l",))


def test_layers_give_their_accumulators_to_float32_and_quantize_what_they_read() -> None:
    layers = (linear("l", "x", 16, 8), GELU, relu("r", "g"), linear("m", "r", 8, 6), linear("n", "r", 8, 4))
    graph, errors = quantized(VECTOR, *layers, Concat(name="y", inputs=("m", "n")))
    assert kinds(graph) == "Input Linear Dequantize Gelu Relu Quantize Linear Dequantize Linear Dequantize Concat"
    names = ("x", "l", "r", "r.quantized", "m", "y")
    assert [graph.types[name].dtype for name in names] == ["int8", "int32", "float32", "uint8", "int32", "float32"]
    assert of(graph, "m").inputs == of(graph, "n").inputs == ("r.quantized",)
    assert list(errors) == ["x", "r.quantized"]
    assert max(error.relative_error for error in errors.values()) < 0.02


def test_what_floats_alone_read_stays_float32() -> None:
    """A residual stream into which a layer adds, and which a normalization reads."""
    norm = LayerNorm(name="n", inputs=("x",), scale=normal(16), shift=normal(16))
    nodes = (
        VECTOR,
        norm,
        linear("l", "n", 16, 16),
        Add(name="sum", inputs=("x", "l")),
        replace(norm, name="y", inputs=("sum",)),
    )
    graph, _ = quantized(*nodes)
    assert kinds(graph) == "Input LayerNorm Quantize Linear Dequantize Add LayerNorm"
    assert {name for name, kind in graph.types.items() if kind.is_integer} == {"n.quantized", "l"}


def test_integers_that_floats_read_too_are_dequantized_once() -> None:
    reader = linear("m", "r", 8, 8)
    gelus = (replace(GELU, inputs=("r",)), Gelu(name="h", inputs=("r",)))
    graph, _ = quantized(
        VECTOR,
        linear("l", "x", 16, 8),
        relu("r", "l"),
        reader,
        *gelus,
        Add(name="a", inputs=("g", "h")),
        Add(name="y", inputs=("a", "m")),
    )
    assert kinds(graph) == "Input Linear Linear Dequantize Dequantize Gelu Gelu Add Add"
    assert of(graph, "g").inputs == of(graph, "h").inputs == ("l.scaled",)


def test_a_softmax_between_layers_is_an_island_and_one_at_the_end_is_not() -> None:
    nodes = (VECTOR, linear("l", "x", 16, 4), Softmax(name="s", inputs=("l",)))
    graph, _ = quantized(*nodes, linear("m", "s", 4, 2))
    assert kinds(graph) == "Input Linear Dequantize Softmax Quantize Linear Dequantize"
    assert graph.types["s.quantized"].dtype == "uint8"
    graph, _ = quantized(*nodes, Reshape(name="y", inputs=("s",), shape=(1, 2, 2)))
    assert kinds(graph) == "Input Linear Dequantize Softmax Reshape"
    graph, _ = quantized(*nodes, linear("m", "x", 16, 4), Add(name="y", inputs=("s", "m")))
    assert kinds(graph) == "Input Linear Dequantize Softmax Linear Dequantize Add"


def test_an_affine_within_an_island_stays_one() -> None:
    channels = (affine("a", "g", 5), Gelu(name="h", inputs=("a",)), conv2d("y", "h", 5, 2))
    graph, _ = quantized(IMAGE, conv2d("l", "x", 3, 5), GELU, *channels)
    assert kinds(graph) == "Input Conv2d Dequantize Gelu Affine Gelu Quantize Conv2d Dequantize"


def test_names_that_are_taken_are_left_alone() -> None:
    taken = (affine("l.scaled", "g", 8), linear("l.scaled.quantized", "l.scaled", 8, 8))
    graph, _ = quantized(VECTOR, linear("l", "x", 16, 8), GELU, *taken)
    assert [node.name for node in graph.nodes][2::2] == ["l.scaled_", "l.scaled", "l.scaled.quantized"]


def test_integers_are_given_where_the_last_operation_has_them() -> None:
    nodes = (VECTOR, linear("l", "x", 16, 8), GELU, linear("m", "g", 8, 4))
    assert quantized(*nodes, relu("y", "m"), integer_output=True)[0].output_type.dtype == "uint8"
    assert quantized(*nodes[:3], integer_output=True)[0].output_type.dtype == "float32"


def test_known_scales_hold_within_islands() -> None:
    """Also behind what keeps a scale."""
    order = (
        Reshape(name="image", inputs=("g",), shape=(1, 2, 4)),
        Transpose(name="t", inputs=("image",), axes=(0, 2, 1)),
    )
    nodes = (VECTOR, linear("l", "x", 16, 8), GELU, *order, conv2d("y", "t", 2, 3))
    known = KnownScales({"x": KnownScale("int8", 0.03), "g": KnownScale("int8", 0.02)})
    graph, errors = quantize(Graph(nodes), None, known=known)
    assert graph.types["t.quantized"] == TensorType((1, 4, 2), "int8", 0.02)
    assert not errors
    with pytest.raises(QuantizationError, match="t: the source has no scale"):
        quantize(Graph(nodes), None, known=KnownScales({"x": KnownScale("int8", 0.03)}))


def kinds(graph: Graph) -> str:
    return " ".join(type(node).__name__ for node in graph.nodes)


# --- errors ----------------------------------------------------------------------------------------------------------


def resnet() -> Graph:
    """Convolutions with batch normalization, a residual addition, a concatenation, pools, k-WTA and a classifier."""
    return Graph(
        (
            IMAGE,
            conv2d("c1", "x", 3, 8),
            affine("n1", "c1", 8),
            relu("r1", "n1"),
            conv2d("c2", "r1", 8, 8),
            affine("n2", "c2", 8),
            Add(name="sum", inputs=("r1", "n2")),
            relu("r2", "sum"),
            conv2d("c3", "r2", 8, 4, stride=(2, 2)),
            MaxPool(name="pool", inputs=("r2",), kernel=(2, 2), stride=(2, 2)),
            Concat(name="join", inputs=("c3", "pool")),
            KWTA(name="winners", inputs=("join",), k=6, scope="local"),
            AveragePool(name="mean", inputs=("winners",), kernel=(2, 2), stride=(2, 2)),
            Reshape(name="flat", inputs=("mean",), shape=(48,)),
            linear("hidden", "flat", 48, 16),
            KWTA(name="few", inputs=("hidden",), k=8, scope="global"),
            relu("r3", "few"),
            linear("classes", "r3", 16, 5),
            Softmax(name="probabilities", inputs=("classes",)),
        )
    )


def test_a_whole_network_is_quantized_with_a_small_error() -> None:
    graph, calibration, samples = resnet(), normal(128, 8, 8, 3), normal(64, 8, 8, 3)
    integer, errors = quantize(graph, calibration)
    got, expected = reference.run(integer, samples), reference.run(graph, samples)
    assert relative_error(got, expected) < 0.05
    assert (got.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9
    kept = ["x", "c1", "c2", "sum", "c3", "pool", "join", "winners", "mean", "flat", "hidden", "few"]
    assert [error.name for error in errors] == kept
    for error in errors:
        kind = integer.types[error.name]
        assert (error.dtype, error.scale) == (kind.dtype, kind.scale)
        assert 0 <= error.relative_error < 0.12, error
        assert 0 <= error.saturated < 0.02, error


def test_errors_accumulate_from_the_rounding_of_the_input() -> None:
    graph = Graph((VECTOR, linear("l", "x", 16, 4)))
    samples = normal(64, 16)
    _, (error,) = quantize(graph, samples)
    # Rounding is uniform within half a step.
    expected = error.scale / np.sqrt(12) / np.sqrt((samples**2).mean())
    assert error.relative_error == pytest.approx(expected, rel=0.1)
    assert error.saturated == pytest.approx(1 / samples.size)


def test_a_clipped_tensor_shows_its_error() -> None:
    samples = normal(64, 16)
    graph = Graph((VECTOR, linear("l", "x", 16, 4)))
    _, (clipped,) = quantize(graph, samples, percentile=60.0)
    _, (whole,) = quantize(graph, samples)
    assert clipped.relative_error > 10 * whole.relative_error
    assert clipped.saturated == pytest.approx(0.4, abs=0.02)


@settings(max_examples=150)
@given(graphs(integer=False), st.integers(0, 1000), st.sampled_from([None, 99.0]), st.booleans())
def test_any_float_network_is_quantized_or_refused(
    graph: Graph, seed: int, percentile: float | None, integer_output: bool
) -> None:
    samples = random_input(graph, 6, seed)
    try:
        integer, errors = quantize(graph, samples, percentile=percentile, integer_output=integer_output)
    except QuantizationError as error:
        assert "nothing in the network has an integer form" in str(error)  # noqa: PT017 (either is right)
        return
    got = reference.run(integer, samples)
    assert got.shape == (6, *graph.output_type.shape)
    assert np.isfinite(got).all()
    assert [error.name for error in errors] == [name for name, kind in integer.types.items() if kind.scale is not None]
    assert all(np.isfinite(error.relative_error) for error in errors)
    assert all(kind.dtype != "float32" for name, kind in integer.types.items() if name in {e.name for e in errors})
    assert integer_output or integer.output_type.dtype == "float32"
    for node in integer.nodes:
        if isinstance(node, (Conv2d, Linear)):
            assert all(kind.is_integer for kind in integer.input_types(node))
        assert getattr(node, "requantization", None) is None or isinstance(node.requantization, Requantization)  # type: ignore[attr-defined]
    discrete = any(isinstance(node, (KWTA, LayerNorm)) for node in graph.nodes)  # small differences become large
    if percentile is None and not integer_output and not discrete:
        scale = float(np.abs(reference.run(graph, samples)).max())
        np.testing.assert_allclose(got, reference.run(graph, samples), rtol=0, atol=0.2 * scale + 1e-6)
