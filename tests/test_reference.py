"""The reference against independent definitions: PyTorch, plain Python integers, and loops."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import pytest
from graphs import BLOCKS, CHANNELS, graphs, random_graph, random_input
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from csengine import reference
from csengine.graph import (
    FUNCTIONS,
    KWTA,
    OPERATION_NAMES,
    Activation,
    Add,
    Affine,
    AveragePool,
    Clip,
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
    Relu,
    Requantization,
    Reshape,
    Softmax,
    Transpose,
)
from csengine.packing import PackedMatrix, pack

torch = pytest.importorskip("torch")
RANGES = {"uint8": (0, 255), "int8": (-128, 127)}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """PyTorch's threads cost more than these small tensors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def requantization(multiplier: Any, shift: Any, dtype: Any = "int8") -> Requantization:
    return Requantization(np.atleast_1d(np.uint16(multiplier)), np.atleast_1d(np.uint8(shift)), dtype, 1.0)


def exact_requantize(value: int, multiplier: int, shift: int, dtype: str) -> int:
    """Half up and clamped, by rational arithmetic."""
    lowest, highest = RANGES[dtype]
    return min(max(floor(Fraction(value * multiplier, 2**shift) + Fraction(1, 2)), lowest), highest)


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def torch_run(graph: Graph, x: np.ndarray, dtype: Any = torch.float64) -> np.ndarray:
    """A float network's result, by PyTorch; NHWC in and out."""
    tensors: dict[str, Any] = {}
    for node in graph.nodes:
        operands = [tensors[name] for name in node.inputs] or [torch.from_numpy(x).to(dtype)]
        tensors[node.name] = torch_apply(node, operands, dtype)
    return np.asarray(tensors[graph.output.name].numpy())


def torch_activation(node: Activation, x: Any) -> Any:
    functional, alpha = torch.nn.functional, node.alpha
    functions = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "silu": lambda x: functional.silu(alpha * x) / alpha,
        "hard_sigmoid": lambda x: functional.hardsigmoid(6 * alpha * x),
        "hard_swish": functional.hardswish,
        "elu": lambda x: functional.elu(x, alpha),
        "leaky_relu": lambda x: functional.leaky_relu(x, alpha),
    }
    return functions[node.function](x)


def torch_apply(node: Node, operands: list[Any], dtype: Any) -> Any:
    functional = torch.nn.functional
    x = operands[0]
    match node:
        case Conv2d():
            depth = x.shape[3] // node.groups
            weight = torch.from_numpy(node.dense_weight.T.reshape(node.kernels, *node.kernel, depth).copy())
            bias = None if node.bias is None else torch.from_numpy(node.bias).to(dtype)
            padded = torch_pad(x, node.padding, 0.0)
            y = functional.conv2d(padded, weight.permute(0, 3, 1, 2).to(dtype), bias, node.stride, groups=node.groups)
            return y.permute(0, 2, 3, 1)
        case Linear():
            bias = None if node.bias is None else torch.from_numpy(node.bias).to(dtype)
            return functional.linear(x, torch.from_numpy(node.dense_weight.T.copy()).to(dtype), bias)
        case MaxPool():
            y = functional.max_pool2d(torch_pad(x, node.padding, -torch.inf), node.kernel, node.stride)
            return y.permute(0, 2, 3, 1)
        case AveragePool():
            y = functional.avg_pool2d(torch_pad(x, node.padding, 0.0), node.kernel, node.stride)
            if not node.count_padding:
                inside = torch_pad(torch.ones_like(x), node.padding, 0.0)
                y = y / functional.avg_pool2d(inside, node.kernel, node.stride)
            return y.permute(0, 2, 3, 1)
        case KWTA():
            return torch_kwta(node, x)
        case Affine():
            return x * torch.from_numpy(node.scale).to(dtype) + torch.from_numpy(node.shift).to(dtype)
        case Relu():
            return functional.relu(x)
        case Clip():
            return x if node.minimum == node.maximum is None else torch.clamp(x, node.minimum, node.maximum)
        case Activation():
            return torch_activation(node, x)
        case Add():
            return operands[0] + operands[1]
        case Product():
            return operands[0] * operands[1]
        case Concat():
            return torch.cat(operands, dim=-1)
        case Reshape():
            return x.reshape(len(x), *node.shape)
        case Softmax():
            return functional.softmax(x, dim=-1)
        case Gelu():
            return functional.gelu(x, approximate=node.approximate)
        case LayerNorm():
            scale, shift = (torch.from_numpy(values).to(dtype) for values in (node.scale, node.shift))
            return functional.layer_norm(x, (x.shape[-1],), scale, shift, node.epsilon)
        case LocalResponseNorm():
            rows = x.reshape(-1, x.shape[-1], 1)
            y = functional.local_response_norm(rows, node.size, node.alpha, node.beta, node.bias)
            return y.reshape(x.shape)
        case MatMul():
            return x @ (operands[1].mT if node.transposed else operands[1])
        case Transpose():
            return x.permute(0, *(axis + 1 for axis in node.axes))
        case _:
            return x


def torch_pad(x: Any, padding: tuple[int, int, int, int], value: float) -> Any:
    top, left, bottom, right = padding
    return torch.nn.functional.pad(x.permute(0, 3, 1, 2), (left, right, top, bottom), value=value)


def torch_kwta(node: KWTA, x: Any) -> Any:
    scopes = x if node.scope == "local" else x.reshape(len(x), -1)
    keys = scopes.to(torch.float32)
    keys = keys if node.factor is None else keys * torch.from_numpy(node.factor)
    winners = torch.sort(keys, dim=-1, descending=True, stable=True).indices[..., : node.k]
    mask = torch.zeros_like(scopes).scatter(-1, winners, 1.0)
    return torch.where(mask > 0, scopes, 0.0).reshape(x.shape)


@settings(max_examples=150, deadline=None)
@given(graphs(integer=False), st.integers(0, 1000))
def test_float_networks_equal_pytorch(graph: Graph, seed: int) -> None:
    x = random_input(graph, 3, seed)
    expected = torch_run(graph, x)
    got = reference.run(graph, x)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("seed", range(30))
def test_float_networks_equal_pytorch_in_float32(seed: int) -> None:
    graph = random_graph(seed, integer=False)
    x = random_input(graph, 3, seed)
    expected = torch_run(graph, x, torch.float32)
    np.testing.assert_allclose(
        reference.run(graph, x), expected, rtol=0, atol=1e-4 * max(1.0, float(np.abs(expected).max()))
    )


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 0, 2, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_integer_convolution_is_exact(
    groups: int, stride: tuple[int, int], padding: tuple[int, int, int, int], dtype: Any
) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(*RANGES[dtype], (2, 7, 6, 4), endpoint=True).astype(dtype)
    weight = rng.integers(-128, 127, (3 * 2 * 4 // groups, 8), endpoint=True).astype(np.int8)
    bias = rng.integers(-(2**20), 2**20, 8).astype(np.int32)
    spatial: Any = {"kernel": (3, 2), "stride": stride, "padding": padding, "groups": groups}
    node = Conv2d(name="c", inputs=("x",), weight=weight, bias=bias, **spatial)
    got = reference.apply(node, [x])
    assert got.dtype == np.int32
    assert got.flags.c_contiguous
    expected = torch_apply(node, [torch.from_numpy(x).to(torch.float64)], torch.float64)
    np.testing.assert_array_equal(got, expected.numpy())


@pytest.mark.parametrize("channels", sorted(set(CHANNELS)))
def test_depthwise_convolution_is_exact(channels: int) -> None:
    rng = np.random.default_rng(channels)
    x = rng.integers(0, 255, (1, 5, 5, channels), endpoint=True).astype(np.uint8)
    weight = rng.integers(-128, 127, (9, channels), endpoint=True).astype(np.int8)
    node = Conv2d(name="c", inputs=("x",), weight=weight, kernel=(3, 3), padding=(1, 1, 1, 1), groups=channels)
    expected = np.zeros((1, 5, 5, channels), np.int64)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.int64)
    for ky, kx in itertools.product(range(3), range(3)):
        expected += padded[:, ky : ky + 5, kx : kx + 5] * weight[ky * 3 + kx].astype(np.int64)
    np.testing.assert_array_equal(reference.apply(node, [x]), expected)


def test_rows_of_a_convolution_are_in_ky_kx_channel_order() -> None:
    x = np.arange(2 * 3 * 2, dtype=np.float32).reshape(1, 2, 3, 2)
    node = Conv2d(name="c", inputs=("x",), weight=np.eye(8, dtype=np.float32), kernel=(2, 2))
    np.testing.assert_array_equal(reference.apply(node, [x])[0, 0, 0], [0, 1, 2, 3, 6, 7, 8, 9])
    np.testing.assert_array_equal(reference.apply(node, [x])[0, 0, 1], [2, 3, 4, 5, 8, 9, 10, 11])


# --- k-WTA -----------------------------------------------------------------------------------------------------------


def naive_kwta(values: list[Any], k: int, factor: list[Any] | None) -> list[Any]:
    """Strict order by (value * factor descending, index ascending), one winner at a time."""
    keys = [
        v if factor is None else np.float32(v) * np.float32(f) for v, f in zip(values, factor or values, strict=True)
    ]
    left = set(range(len(values)))
    for _ in range(min(k, len(values))):
        best = min(left, key=lambda index: (-int(keys[index]) if factor is None else -keys[index], index))
        left.remove(best)
    return [0 if index in left else value for index, value in enumerate(values)]


kwta_values = st.sampled_from(["uint8", "int8"]).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 2), st.sampled_from([1, 2, 5, 16, 17])),
        elements=st.sampled_from([0, 1, 2, 127]) | st.integers(*RANGES[dtype]),
    )
)


@settings(max_examples=200, deadline=None)
@given(kwta_values, st.integers(1, 20), st.sampled_from(["local", "global"]), st.booleans(), st.randoms())
def test_kwta_is_strict(x: np.ndarray, k: int, scope: Any, ranked: bool, random: Any) -> None:
    scopes = x.reshape(-1, x.shape[3]) if scope == "local" else x.reshape(len(x), -1)
    factor = [random.choice([0.5, 1.0, 1.0, 2.0, 1.7]) for _ in range(scopes.shape[1])] if ranked else None
    node = KWTA(
        name="k", inputs=("x",), k=k, scope=scope, factor=None if factor is None else np.array(factor, np.float32)
    )
    got = reference.apply(node, [x])
    assert got.dtype == x.dtype
    expected = [naive_kwta(list(values), k, factor) for values in scopes]
    np.testing.assert_array_equal(got.reshape(scopes.shape), expected)


def test_kwta_breaks_ties_by_the_lower_index() -> None:
    x = np.array([[3, 7, 7, 7, 3]], np.uint8)
    node = KWTA(name="k", inputs=("x",), k=2, scope="local")
    np.testing.assert_array_equal(reference.apply(node, [x]), [[0, 7, 7, 0, 0]])


def test_kwta_keeps_exactly_k_even_when_they_are_negative() -> None:
    x = np.array([[-128, -1, -127, -128]], np.int8)
    node = KWTA(name="k", inputs=("x",), k=3, scope="global")
    np.testing.assert_array_equal(reference.apply(node, [x]), [[-128, -1, -127, 0]])


@pytest.mark.parametrize("k", [4, 5, 2**31 - 1])
def test_kwta_of_k_at_least_n_is_the_identity(k: int) -> None:
    x = np.array([[-5, 0, 3, -128]], np.int8)
    np.testing.assert_array_equal(reference.apply(KWTA(name="k", inputs=("x",), k=k, scope="local"), [x]), x)


def test_kwta_ranks_by_value_times_factor_and_passes_the_value() -> None:
    x = np.array([[10, 9, 8]], np.uint8)
    factor = np.array([1.0, 1.0, 2.0], np.float32)
    node = KWTA(name="k", inputs=("x",), k=1, scope="local", factor=factor)
    np.testing.assert_array_equal(reference.apply(node, [x]), [[0, 0, 8]])


@pytest.mark.parametrize("seed", range(5))
def test_kwta_of_float_is_strict(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.choice(np.float32([-1.5, -0.0, 0.0, 0.25, 0.5, 3.0]), (4, 33))
    node = KWTA(name="k", inputs=("x",), k=7, scope="local")
    ones = [1.0] * 33
    np.testing.assert_array_equal(reference.apply(node, [x]), [naive_kwta(list(row), 7, ones) for row in x])


# --- numbers ---------------------------------------------------------------------------------------------------------

accumulators = (
    st.integers(-(2**31), 2**31 - 1)
    | st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31), 2**30, -(2**30)])
    | st.integers(-300, 300)
)
multipliers = st.sampled_from([2**15, 2**15 + 1, 2**16 - 1, 3 * 2**14]) | st.integers(2**15, 2**16 - 1)


@settings(max_examples=1000, deadline=None)
@given(accumulators, multipliers, st.integers(1, 47), st.sampled_from(["uint8", "int8"]))
def test_requantize_is_exact(acc: int, multiplier: int, shift: int, dtype: str) -> None:
    got = reference.requantize(np.array([acc], np.int32), np.array([multiplier]), np.array([shift]), dtype)
    assert got.dtype == dtype
    assert got.item() == exact_requantize(acc, multiplier, shift, dtype)


@pytest.mark.parametrize("shift", range(1, 48))
@pytest.mark.parametrize("multiplier", [2**15, 2**16 - 1])
def test_requantize_at_every_shift(shift: int, multiplier: int) -> None:
    # Around every step of the result, from one end of the accumulator to the other.
    steps = {(2 * y + 1) * 2 ** (shift - 1) // multiplier + d for y in range(-130, 257) for d in (-1, 0, 1)}
    values = sorted({v for v in steps if -(2**31) <= v < 2**31} | {-(2**31), 2**31 - 1})
    acc = np.array(values, np.int32)
    for dtype in RANGES:
        got = reference.requantize(acc, np.array([multiplier], np.uint16), np.array([shift], np.uint8), dtype)
        np.testing.assert_array_equal(got, [exact_requantize(v, multiplier, shift, dtype) for v in values])


def test_requantize_rounds_half_up() -> None:
    acc = np.array([-5, -3, -1, 1, 3, 5], np.int32)  # times one half
    got = reference.requantize(acc, np.array([2**15], np.uint16), np.array([16], np.uint8), "int8")
    np.testing.assert_array_equal(got, [-2, -1, 0, 1, 2, 3])


def test_requantize_uses_each_channel_s_own_pair() -> None:
    acc = np.full((2, 3), 100, np.int32)
    pairs = np.array([2**15, 2**15, 2**16 - 1], np.uint16), np.array([15, 16, 17], np.uint8)
    np.testing.assert_array_equal(reference.requantize(acc, *pairs, "uint8"), [[100, 50, 50]] * 2)


def test_quantize_rounds_half_to_even_and_clamps() -> None:
    x = np.array([-3.5, -2.5, -0.5, 0.5, 1.5, 2.5, 300.0, -300.0, 3e38, -3e38, 1e-45], np.float32)
    signed = reference.quantize(x, np.float32(1.0), "int8")
    np.testing.assert_array_equal(signed, [-4, -2, 0, 0, 2, 2, 127, -128, 127, -128, 0])
    unsigned = reference.quantize(x, np.float32(10.0), "uint8")
    np.testing.assert_array_equal(unsigned, [0, 0, 0, 5, 15, 25, 255, 0, 255, 0, 0])


@settings(max_examples=300, deadline=None)
@given(st.floats(-2000, 2000, width=32), st.floats(1e-3, 1e3))
def test_quantize_is_one_float32_multiply(x: float, scale: float) -> None:
    node = Input(name="i", inputs=(), shape=(1,), dtype="int8", scale=scale)
    product = np.float32(x) * np.float32(1.0 / scale)
    expected = min(max(round(float(product)), -128), 127)  # Python's round is half to even
    assert reference.input_values(node, np.array([[x]], np.float32)).item() == expected


def test_input_of_the_model_s_own_type_passes() -> None:
    node = Input(name="i", inputs=(), shape=(2,), dtype="uint8", scale=0.5)
    x = np.array([[3, 255]], np.uint8)
    np.testing.assert_array_equal(reference.input_values(node, x), x)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["uint8", "int8"]).flatmap(lambda d: st.tuples(st.just(d), st.integers(*RANGES[d]))),
    st.sampled_from(["uint8", "int8"]).flatmap(lambda d: st.tuples(st.just(d), st.integers(*RANGES[d]))),
    multipliers,
    st.integers(0, 2**16 - 1),
    st.integers(1, 47),
    st.sampled_from(["uint8", "int8"]),
)
def test_add_is_exact(a: Any, b: Any, first: int, second: int, shift: int, dtype: str) -> None:
    node = Add(name="a", inputs=("x", "y"), requantization=requantization([first, second], shift, dtype))
    got = reference.apply(node, [np.array([[value]], kind) for kind, value in (a, b)])
    assert got.dtype == dtype
    assert got.item() == exact_requantize(a[1] * first + b[1] * second, 1, shift, dtype)


def test_concat_brings_each_input_to_the_common_scale() -> None:
    x, y = np.array([[[[255, 3]]]], np.uint8), np.array([[[[-128]]]], np.int8)
    q = requantization([2**15, 2**16 - 1], [17, 16], "int8")
    got = reference.apply(Concat(name="c", inputs=("x", "y"), requantization=q), [x, y])
    expected = [exact_requantize(v, m, s, "int8") for v, m, s in ((255, 2**15, 17), (3, 2**15, 17), (-128, 65535, 16))]
    np.testing.assert_array_equal(got[0, 0, 0], expected)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 0, 1, 2)])
def test_integer_pools_are_exact(dtype: str, padding: tuple[int, int, int, int]) -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(*RANGES[dtype], (2, 5, 6, 3), endpoint=True).astype(dtype)
    window: Any = {"kernel": (2, 3), "stride": (2, 1), "padding": padding}
    largest = reference.apply(MaxPool(name="m", inputs=("x",), **window), [x])
    mean = reference.apply(
        AveragePool(name="a", inputs=("x",), **window, requantization=requantization(40000, 18)), [x]
    )
    assert largest.dtype == dtype
    top, left, _, _ = padding
    for b, i, j, c in np.ndindex(largest.shape):
        seen = [
            int(x[b, y, z, c])
            for y in range(2 * i - top, 2 * i - top + 2)
            for z in range(j - left, j - left + 3)
            if 0 <= y < 5 and 0 <= z < 6
        ]
        assert largest[b, i, j, c] == max(seen)
        assert mean[b, i, j, c] == exact_requantize(sum(seen), 40000, 18, "int8")


def test_average_of_a_large_window_is_exact() -> None:
    x = np.full((1, 40, 40, 2), [255, 254], np.uint8)
    q = requantization(round(2**26 / 1600), 26, "uint8")
    node = AveragePool(name="a", inputs=("x",), kernel=(40, 40), stride=(1, 1), requantization=q)
    np.testing.assert_array_equal(reference.apply(node, [x]), [[[[255, 254]]]])


@settings(max_examples=200, deadline=None)
@given(st.integers(-(2**31), 2**31 - 1), st.floats(1e-6, 1e6))
def test_dequantize_rounds_once(value: int, scale: float) -> None:
    node = Dequantize(name="d", inputs=("x",), scale=np.array([scale]))
    got = reference.apply(node, [np.array([[value]], np.int32)])
    assert got.dtype == np.float32
    assert got.item() == np.float32(value * scale)


def test_softmax_survives_large_logits() -> None:
    got = reference.apply(Softmax(name="s", inputs=("x",)), [np.array([[1e38, 0.0, 1e38]], np.float32)])
    np.testing.assert_array_equal(got, [[0.5, 0.0, 0.5]])


# --- the five steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (16, 16), (17, 33), (65, 64)])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_packed_product_equals_dense_product(block: Any, density: float, shape: Any, dtype: str) -> None:
    rng = np.random.default_rng([*shape, *block])
    is_float = dtype == "float32"
    values = rng.integers(-128, 127, shape, endpoint=True) * (rng.random(shape) < density)
    packed = pack(values.astype(np.float32 if is_float else np.int8), block=block)
    lowest, highest = RANGES["int8" if is_float else dtype]
    x = rng.integers(lowest, highest, (5, shape[0]), endpoint=True) * (rng.random((5, shape[0])) < 0.4)
    x = x.astype(dtype)
    got = reference.packed_product(x, packed)
    expected = reference.dense_product(x, packed.unpack())
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)  # float32, too: every sum is a small integer
    np.testing.assert_array_equal(expected, x.astype(np.int64) @ values)


def test_accumulators_reach_the_32_bit_limit_exactly() -> None:
    weight = np.full((4, 2), [[127, -128]], np.int8)
    x = np.full((1, 4), 255, np.uint8)
    bias = np.array([2**31 - 1 - 4 * 127 * 255, -(2**31 - 1) + 4 * 128 * 255], np.int32)
    for stored in (weight, pack(weight)):
        node = Linear(name="l", inputs=("x",), weight=stored, bias=bias)
        np.testing.assert_array_equal(reference.apply(node, [x]), [[2**31 - 1, -(2**31 - 1)]])


def test_select_finds_only_active_row_blocks() -> None:
    packed = pack(np.ones((5, 3), np.int8), block=(2, 1))
    x = np.array([[0, 0, 0, 7, 0], [1, 0, 0, 0, -128]], np.int8)
    vector, row, values = reference.select(x, packed)
    assert list(zip(vector, row, values.tolist(), strict=True)) == [(0, 1, [0, 7]), (1, 0, [1, 0]), (1, 2, [-128, 0])]


# --- whole networks --------------------------------------------------------------------------------------------------


def unpacked(graph: Graph) -> Graph:
    """The network with dense weights."""
    nodes = [
        replace(node, weight=node.dense_weight) if isinstance(node, (Conv2d, Linear)) else node for node in graph.nodes
    ]
    return Graph(tuple(nodes), graph.layout)


@settings(max_examples=100, deadline=None)
@given(graphs(), st.integers(0, 1000), st.booleans())
def test_packing_changes_no_result(graph: Graph, seed: int, direct: bool) -> None:
    x = random_input(graph, 2, seed, direct=direct)
    got, expected = reference.trace(graph, x), reference.trace(unpacked(graph), x)
    for name, kind in graph.types.items():
        if kind.is_integer:
            np.testing.assert_array_equal(got[name], expected[name])
        else:
            tolerance = 1e-5 * max(1.0, float(np.abs(expected[name]).max()))
            np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=tolerance)


@settings(max_examples=100, deadline=None)
@given(graphs(), st.sampled_from([0, 1, 2]))
def test_every_tensor_has_the_inferred_type(graph: Graph, batch: int) -> None:
    for name, values in reference.trace(graph, random_input(graph, batch, 0)).items():
        assert values.shape == (batch, *graph.types[name].shape)
        assert values.dtype == graph.types[name].dtype
        assert values.flags.c_contiguous
        assert np.isfinite(values).all()


@pytest.mark.parametrize("integer", [True, False])
def test_samples_of_a_batch_do_not_touch_each_other(integer: bool) -> None:
    for seed in range(20):
        graph = random_graph(seed, integer=integer)
        x = random_input(graph, 4, seed)
        together = reference.run(graph, x)
        alone = np.concatenate([reference.run(graph, x[i : i + 1]) for i in range(4)])
        np.testing.assert_allclose(together, alone, rtol=1e-5 * (not integer), atol=1e-5 * (not integer))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_activations_of_float32(function: Any) -> None:
    """Also where a part of the function leaves the numbers; a result of float64, rounded once."""
    x = np.concatenate([np.linspace(-30, 30, 4001), [-1e30, -800, 800, 1e30, 0.0]]).astype(np.float32)[None]
    alphas = (0.01, 1 / 6, 1.0, 1.702) if FUNCTIONS[function] else (1.0,)
    for alpha in alphas:
        node = Activation(name="y", inputs=("x",), function=function, alpha=alpha)
        graph = Graph((Input(name="x", inputs=(), shape=(x.size,)), node))
        got = reference.run(graph, x)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, torch_run(graph, x).astype(np.float32), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("to", ["uint8", "int8"])
def test_activations_of_integers_are_a_table(dtype: Any, to: Any) -> None:
    table = np.random.default_rng(0).integers(0, 256, 256).astype(np.uint8).view(to)
    node = Activation(name="y", inputs=("x",), function="silu", table=table, scale=0.5)
    source = Input(name="x", inputs=(), shape=(256,), dtype=dtype, scale=1.0)
    lowest, highest = RANGES[dtype]
    x = np.arange(lowest, highest + 1).astype(dtype)[None]
    got = reference.run(Graph((source, node)), x)
    assert got.dtype == to
    assert got[0].tolist() == [int(table[value % 256]) for value in range(lowest, highest + 1)]


@pytest.mark.parametrize("types", list(itertools.product(RANGES, repeat=3)))
def test_products_of_integers_are_exact(types: tuple[Any, Any, Any]) -> None:
    """An image by one position; half up, by rational arithmetic."""
    rng, (a, b, to) = np.random.default_rng(0), types
    sources = [rng.integers(*RANGES[dtype], (2, 3, 2, 4), endpoint=True).astype(dtype) for dtype in (a, b)]
    sources[1] = sources[1][:, :1, :1]
    for multiplier, shift in ((40000, 24), (2**15, 16), (65535, 30)):
        node = Product(name="y", inputs=("a", "b"), requantization=requantization(multiplier, shift, to))
        got = reference.apply(node, sources)
        products = sources[0].astype(int) * sources[1].astype(int)
        wanted = [exact_requantize(int(value), multiplier, shift, to) for value in products.ravel()]
        assert got.dtype == to
        assert got.ravel().tolist() == wanted


# --- the generator of networks ---------------------------------------------------------------------------------------


def test_random_networks_are_reproducible() -> None:
    for seed in range(20):
        first, second = (random_graph(seed, integer=True) for _ in range(2))
        assert [node.name for node in first.nodes] == [node.name for node in second.nodes]
        x = random_input(first, 2, seed)
        np.testing.assert_array_equal(x, random_input(second, 2, seed))
        np.testing.assert_array_equal(reference.run(first, x), reference.run(second, x))


def test_random_networks_cover_every_operation_and_option() -> None:
    seen: Counter[str] = Counter()
    for seed, integer in itertools.product(range(150), (True, False)):
        graph = random_graph(seed, integer=integer)
        number = "integer" if integer else "float"
        seen[f"{number} ends in {OPERATION_NAMES[type(graph.output)]}, {graph.output_type.dtype}"] += 1
        for node in graph.nodes:
            seen.update(f"{number} {option}" for option in options(graph, node))
    operations = set(OPERATION_NAMES.values())
    of_floats = {"affine", "gelu", "layer_norm", "local_response_norm", "matmul"}
    expected = {f"integer {name}" for name in operations - of_floats}
    expected |= {f"float {name}" for name in operations - {"dequantize", "quantize"}}
    layers = ("strided", "padded", "packed", "dense", "with bias", "without bias", "empty", "full", "in accumulators")
    expected |= {f"integer {option}" for option in layers} | {f"float {option}" for option in layers[:-1]}
    expected |= {f"integer {a} -> {b}" for a in RANGES for b in RANGES}
    expected |= {f"integer block {block}" for block in BLOCKS} | {f"float block {block}" for block in BLOCKS}
    expected |= {"integer grouped", "integer depthwise", "integer mixed types", "integer same input twice"}
    expected |= {f"integer {scope} k-WTA{ranked}" for scope in ("local", "global") for ranked in ("", ", ranked")}
    expected |= {"integer k = 1", "integer k > n", "integer per channel", "integer per tensor", "integer global pool"}
    expected |= {"integer ends in linear, int32", "integer ends in conv2d, int32", "float ends in softmax, float32"}
    missing = sorted(expected - seen.keys())
    assert not missing


def options(graph: Graph, node: Node) -> set[str]:
    """Which options a node uses."""
    found = {OPERATION_NAMES[type(node)]}
    sources, result = graph.input_types(node), graph.types[node.name]
    if isinstance(node, (Conv2d, MaxPool, AveragePool)):
        found |= {"strided"} if max(node.stride) > 1 else set()
        found |= {"padded"} if max(node.padding) else set()
    if isinstance(node, (Conv2d, Linear)):
        density = np.count_nonzero(node.dense_weight) / node.dense_weight.size
        found |= {"empty"} if density == 0 else {"full"} if density == 1 else set()
        found |= {"without bias" if node.bias is None else "with bias"}
        found |= {"packed", f"block {node.weight.block}"} if isinstance(node.weight, PackedMatrix) else {"dense"}
        found |= {"in accumulators"} if result.dtype == "int32" else {f"{sources[0].dtype} -> {result.dtype}"}
    if isinstance(node, Conv2d) and node.groups > 1:
        found |= {"depthwise" if node.groups == sources[0].channels else "grouped"}
    if isinstance(node, (Add, Concat)):
        found |= {"mixed types"} if len({source.dtype for source in sources}) > 1 else set()
        found |= {"same input twice"} if len(set(node.inputs)) < len(node.inputs) else set()
    if isinstance(node, (MaxPool, AveragePool)) and node.kernel == sources[0].shape[:2] != (1, 1):
        found |= {"global pool"}
    if isinstance(node, KWTA):
        found |= {f"{node.scope} k-WTA{'' if node.factor is None else ', ranked'}"}
        size = node.scope_size(sources[0])
        found |= {"k = 1"} if node.k == 1 else {"k > n"} if node.k > size else set()
    if isinstance(node, Dequantize):
        found |= {"per channel" if node.scale.size > 1 else "per tensor"}
    return found


def test_random_requantizations_keep_information() -> None:
    varied = []
    for seed in range(100):
        graph = random_graph(seed, integer=True)
        for name, values in reference.trace(graph, random_input(graph, 6, 0)).items():
            if graph.types[name].dtype in RANGES and np.unique(values).size > 1:
                limits = RANGES[graph.types[name].dtype]
                varied.append(float(((values > limits[0]) & (values < limits[1])).mean()))
    assert np.mean(varied) > 0.3
