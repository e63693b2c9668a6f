"""The C++ kernels at the edges of their vectors, tiles and blocks, over the full range of values."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from csengine import _native, reference
from csengine.backends import cpp
from csengine.graph import (
    FUNCTIONS,
    KWTA,
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
    Quantize,
    Relu,
    Requantization,
    Transpose,
)
from csengine.packing import EMPTY, pack

_ROUNDED = (Activation, Conv2d, Gelu, LayerNorm, Linear, LocalResponseNorm, MatMul)  # of float32, in some order
TIERS = [name for name, runs in cpp.tiers().items() if runs and name != "scalar"]
MODES = ("dense", "sparse-dense", "sparse-sparse")
LAYER_KERNELS = [
    name for operation, name, tier, _ in _native.kernel_table() if operation == "layer" and cpp.tiers()[tier]
]


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, activity: float) -> NDArray[Any]:
    """Integers over the full range, the ends of it often, and zeros."""
    limits = np.iinfo(dtype)
    x = rng.integers(limits.min, limits.max + 1, shape)
    x = np.where(rng.random(shape) < 0.2, rng.choice([limits.min, limits.max], shape), x)
    return np.where(rng.random(shape) < activity, x, 0).astype(dtype)


def block_mask(
    rng: np.random.Generator, shape: tuple[int, int], block: tuple[int, int], density: float
) -> NDArray[Any]:
    blocks = rng.random((-(-shape[0] // block[0]), -(-shape[1] // block[1]))) < density
    return np.kron(blocks, np.ones(block, bool))[: shape[0], : shape[1]]


def requantization(rng: np.random.Generator, kernels: int, typical: float, dtype: str) -> Requantization:
    """Scales accumulators of a typical size into the range, some of them far beyond it."""
    ratio = 100.0 / typical * 2.0 ** rng.uniform(-2, 3, kernels)
    mantissa, exponent = np.frexp(ratio)
    multiplier = np.clip(mantissa * 2**16, 2**15, 2**16 - 1).astype(np.uint16)
    return Requantization(multiplier, (16 - exponent).astype(np.uint8), dtype, 1.0)  # type: ignore[arg-type]


def programs(graph: Graph) -> Iterator[cpp.CppProgram]:
    """Every different program for a network: by tier and mode, then by every kernel that can run its layers."""
    done = []
    for tier, mode in itertools.product(TIERS, MODES):
        program = cpp.compile(graph, mode, 1, tier=tier, measure=False)  # type: ignore[arg-type]
        if program.choices() not in done:
            done.append(program.choices())
            yield program
    ran = {choice.kernel for choices in done for choice in choices.values()}
    layers = [node.name for node in graph.nodes if isinstance(node, (Conv2d, Linear))]
    for kernel, layer in itertools.product(sorted(set(LAYER_KERNELS) - ran), layers):
        with contextlib.suppress(ValueError):  # it cannot run this layer
            yield cpp.compile(graph, "auto", 1, measure=False, kernels={layer: kernel})


def check(nodes: tuple[Node, ...], x: NDArray[Any]) -> None:
    """Every tier, mode and kernel gives the reference's bits, over memory of any content, and keeps to its own."""
    graph = Graph(nodes)
    expected = reference.run(graph, x)
    for program in programs(graph):
        chosen = ", ".join(choice.kernel for choice in program.choices().values())
        for poison in (0x00, 0xFF, 0x81):
            got, guilty = program.audit(x, poison)
            assert not guilty, chosen
            assert_agree(graph, got, expected[: len(got)], chosen)


@pytest.mark.parametrize("threads", [2, 3, 16])
@pytest.mark.parametrize("block", [(1, 1), (1, 16), (4, 8), (4, 16)])
def test_threads_share_a_layer(threads: int, block: tuple[int, int]) -> None:
    """Parts of a layer by rows of results or by kernels, each kernel, samples fewer than threads and more."""
    rng = np.random.default_rng(threads)
    layers: list[tuple[Conv2d | Linear, tuple[int, ...]]] = [
        (conv((3, 3), 8, 40, padding=(1, 1, 1, 1)), (7, 9, 8)),
        (conv((3, 2), 8, 40, stride=(2, 1), padding=(0, 0, 2, 1)), (9, 8, 8)),
        (conv((5, 5), 1, 24), (15, 14, 1)),
        (conv((1, 1), 64, 32), (5, 3, 64)),
        (conv((3, 3), 64, 32, padding=(1, 1, 1, 1)), (5, 3, 64)),
        (conv((3, 3), 1, 8, padding=(1, 1, 1, 1), groups=8), (10, 7, 8)),
        (Linear(name="linear", inputs=("x",), weight=np.zeros((70, 150), np.int8)), (70,)),
    ]
    for layer, shape in layers:
        weight = values(rng, layer.weight.shape, "int8", 1.0) * block_mask(rng, layer.weight.shape, block, 0.3)
        q = requantization(rng, layer.kernels, 255 * 80 * np.sqrt(weight.shape[0]), "uint8")
        is_packed = not isinstance(layer, Conv2d) or layer.groups == 1
        source = Input(name="x", inputs=(), shape=shape, dtype="uint8", scale=1.0)
        form = pack(weight, block=block) if is_packed else weight
        winners = 3 if shape[-1] == 64 else None
        graph = Graph(surround(source, replace(layer, weight=form, requantization=q), winners, pool=False))
        x = values(rng, (threads + 1, *shape), "uint8", 0.5)
        expected = reference.run(graph, x)
        for kernel in LAYER_KERNELS:
            with contextlib.suppress(ValueError):
                options = {"measure": False, "kernels": {layer.name: kernel}, "split_above": 0.0}
                program = cpp.compile(graph, "auto", threads, **options)  # type: ignore[arg-type]
                for batch in (1, threads - 1, threads + 1):
                    np.testing.assert_array_equal(program.run(x[:batch]), expected[:batch], err_msg=kernel)
                _, guilty = program.audit(x, 0x81)
                assert not guilty, kernel


def test_threads_share_layers_of_many_calls() -> None:
    """One call at a time has the pool, layer after layer; calls meanwhile run alone; the pool sleeps in between."""
    rng = np.random.default_rng(0)
    nodes: list[Node] = [Input(name="x", inputs=(), shape=(9, 8, 16), dtype="uint8", scale=1.0)]
    for name in ("a", "b", "c"):
        layer = conv((3, 3), 16, 16, padding=(1, 1, 1, 1))
        weight = values(rng, layer.weight.shape, "int8", 0.3)
        scaling = requantization(rng, 16, 255 * 80 * 12, "uint8")
        nodes.append(replace(layer, name=name, inputs=(nodes[-1].name,), weight=weight, requantization=scaling))
    graph = Graph(tuple(nodes))
    x = values(rng, (4, 9, 8, 16), "uint8", 0.5)
    expected = reference.run(graph, x)
    program = cpp.compile(graph, "auto", 3, measure=False, split_above=0.0)
    samples = [i % 4 for i in range(400)]
    with ThreadPoolExecutor(4) as callers:
        for i, got in zip(samples, callers.map(lambda i: program.run(x[i : i + 1]), samples), strict=True):
            np.testing.assert_array_equal(got[0], expected[i])
    for i in samples[:20]:
        time.sleep(0.001)
        np.testing.assert_array_equal(program.run(x[i : i + 1])[0], expected[i])


def assert_agree(graph: Graph, got: NDArray[Any], expected: NDArray[Any], kernels: str) -> None:
    """The same values; after float32 sums, to 1e-5 of the layer's scale, if that is not next to nothing."""
    has_sums = any(isinstance(node, _ROUNDED) for node in graph.nodes)
    if has_sums and expected.dtype == np.float32:
        tolerance = 1e-5 * np.abs(expected).max(initial=0) + 1e-30
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance, err_msg=kernels)
    else:
        np.testing.assert_array_equal(got, expected, err_msg=kernels)


def check_layer(
    rng: np.random.Generator,
    layer: Conv2d | Linear,
    shape: tuple[int, ...],
    *,
    block: tuple[int, int],
    density: float,
    set_size: int | None = None,
    winners: int | None = None,
    pool: bool = False,
) -> None:
    """A layer alone, or behind local k-winners: uint8 and int8 in and out, accumulators out, packed and dense."""
    weight = values(rng, layer.weight.shape, "int8", 1.0) * block_mask(rng, layer.weight.shape, block, density)
    bias = rng.integers(-(2**20), 2**20, layer.kernels).astype(np.int32)
    typical = 255 * 80 * np.sqrt(max(1, np.count_nonzero(weight) / layer.kernels))
    outputs = [requantization(rng, layer.kernels, typical, dtype) for dtype in ("uint8", "int8")]
    forms = [pack(weight, block=block, set_size=set_size), weight]
    for dtype, scaling, form in itertools.product(("uint8", "int8"), (*outputs, None), forms):
        if pool and scaling is None:
            continue
        source = Input(name="x", inputs=(), shape=shape, dtype=dtype, scale=1.0)
        nodes = surround(source, replace(layer, weight=form, bias=bias, requantization=scaling), winners, pool)
        check(nodes, values(rng, (2, *shape), dtype, 0.5))


def surround(source: Input, layer: Conv2d | Linear, winners: int | None, pool: bool) -> tuple[Node, ...]:
    """A network of a layer, k-winners before it and a pooling after it, if these are wanted."""
    nodes: list[Node] = [source]
    if winners:
        nodes.append(KWTA(name="k", inputs=("x",), k=winners, scope="local"))
    nodes.append(replace(layer, inputs=(nodes[-1].name,)))
    if pool:
        nodes.append(MaxPool(name="pool", inputs=(layer.name,), kernel=(2, 2), stride=(2, 2)))
    return tuple(nodes)


def conv(kernel: tuple[int, int], channels: int, kernels: int, **options: Any) -> Conv2d:
    weight = np.zeros((kernel[0] * kernel[1] * channels, kernels), np.int8)
    return Conv2d(name="conv", inputs=("x",), weight=weight, kernel=kernel, **options)


def check_float_layer(
    rng: np.random.Generator,
    layer: Conv2d | Linear,
    shape: tuple[int, ...],
    *,
    block: tuple[int, int],
    density: float,
    winners: int | None = None,
    pool: bool = False,
) -> None:
    """A float32 layer alone, or behind local k-winners, packed and dense."""
    weight = rng.standard_normal(layer.weight.shape) * block_mask(rng, layer.weight.shape, block, density)
    weight = weight.astype(np.float32)
    bias = rng.standard_normal(layer.kernels).astype(np.float32)
    x = (rng.standard_normal((2, *shape)) * (rng.random((2, *shape)) < 0.5)).astype(np.float32)
    source = Input(name="x", inputs=(), shape=shape, dtype="float32", scale=None)
    for form in (pack(weight, block=block), weight):
        check(surround(source, replace(layer, weight=form, bias=bias), winners, pool), x)


@pytest.mark.parametrize("width", [1, 2, 13, 14, 15, 16, 17, 28, 29, 30, 33])
@pytest.mark.parametrize("pool", [False, True], ids=["plain", "pooled"])
@pytest.mark.parametrize("block", [(4, 16), (4, 8), (1, 1)], ids=["4x16", "4x8", "1x1"])
def test_convolution_widths(width: int, pool: bool, block: tuple[int, int]) -> None:
    rng = np.random.default_rng(width)
    shape = (5, width + 2 + pool, 8)
    check_layer(rng, conv((2, 3), 8, 24), shape, block=block, density=0.2, pool=pool)


GEOMETRIES = [
    ((5, 5), 1, (1, 1), (0, 0, 0, 0)),  # the paper's first layer
    ((3, 3), 1, (1, 1), (1, 1, 1, 1)),
    ((7, 7), 3, (2, 2), (3, 3, 3, 3)),  # ResNet's first layer
    ((3, 3), 3, (2, 2), (0, 0, 1, 1)),  # MobileNet's
    ((1, 1), 64, (1, 1), (0, 0, 0, 0)),
    ((1, 1), 64, (2, 2), (0, 0, 0, 0)),
    ((3, 3), 64, (1, 1), (1, 1, 1, 1)),
    ((3, 1), 20, (1, 3), (1, 0, 0, 2)),
    ((1, 4), 5, (1, 2), (0, 1, 0, 0)),
    ((2, 2), 130, (1, 1), (0, 0, 0, 0)),
    ((1, 2), 1, (1, 1), (0, 0, 0, 0)),
    ((3, 3), 70, (1, 1), (1, 0, 2, 1)),
]
"""Window, channels, stride, padding."""


@pytest.mark.parametrize("block", [(4, 16), (1, 1)], ids=["4x16", "1x1"])
@pytest.mark.parametrize(("kernel", "channels", "stride", "padding"), GEOMETRIES)
def test_convolution_geometries(
    kernel: tuple[int, int],
    channels: int,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    block: tuple[int, int],
) -> None:
    rng = np.random.default_rng(channels)
    layer = conv(kernel, channels, 17, stride=stride, padding=padding)
    check_layer(rng, layer, (9, 11, channels), block=block, density=0.3)


@pytest.mark.parametrize("block", [(1, 16), (1, 1)], ids=["1x16", "1x1"])
@pytest.mark.parametrize(("kernel", "channels", "stride", "padding"), GEOMETRIES)
def test_float_convolution_geometries(
    kernel: tuple[int, int],
    channels: int,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    block: tuple[int, int],
) -> None:
    layer = conv(kernel, channels, 17, stride=stride, padding=padding)
    check_float_layer(np.random.default_rng(channels), layer, (9, 11, channels), block=block, density=0.3)


@pytest.mark.parametrize(
    ("kernel", "channels", "stride", "padding"), [geometry for geometry in GEOMETRIES if geometry[1] > 1]
)
def test_convolutions_behind_winners(
    kernel: tuple[int, int], channels: int, stride: tuple[int, int], padding: tuple[int, int, int, int]
) -> None:
    """No winners to speak of, a few, as many as there are but one; kernels for one chunk of them and for several."""
    rng = np.random.default_rng(channels)
    for winners, kernels in itertools.product(sorted({1, min(6, channels - 1), channels - 1}), (17, 90)):
        layer = conv(kernel, channels, kernels, stride=stride, padding=padding)
        check_layer(rng, layer, (9, 11, channels), block=(4, 16), density=0.3, winners=winners)
        check_float_layer(rng, layer, (9, 11, channels), block=(1, 16), density=0.3, winners=winners)


@pytest.mark.parametrize("channels", [65, 128, 200])
@pytest.mark.parametrize(("stride", "padding"), [((1, 1), (1, 1, 1, 1)), ((2, 1), (0, 0, 2, 1))])
def test_convolutions_of_many_channels(
    channels: int, stride: tuple[int, int], padding: tuple[int, int, int, int]
) -> None:
    """In blocks of 64 inputs, most of them absent: what of a tap's channels has weights is visited, and no more."""
    rng = np.random.default_rng(channels)
    layer = conv((3, 3), channels, 40, stride=stride, padding=padding)
    for winners in (None, 9):
        check_layer(rng, layer, (5, 6, channels), block=(64, 16), density=0.1, winners=winners)
    check_float_layer(rng, layer, (5, 6, channels), block=(64, 16), density=0.1)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("winners", range(1, 12))
def test_pooled_convolutions_behind_winners(width: int, winners: int) -> None:
    rng = np.random.default_rng(width)
    shape, layer = (7, 2 * width + 2, 16), conv((2, 3), 16, 48)
    check_layer(rng, layer, shape, block=(16, 16), density=0.3, winners=winners, pool=True)
    check_float_layer(rng, layer, shape, block=(16, 16), density=0.3, winners=winners, pool=True)


@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
@pytest.mark.parametrize("padding", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (1, 1, 1, 1)])
def test_windows_beside_a_single_position(stride: tuple[int, int], padding: tuple[int, int, int, int]) -> None:
    """They read padding only: such a layer looks like a linear one and is none."""
    layer, rng = conv((1, 1), 8, 17, stride=stride, padding=padding), np.random.default_rng(1)
    check_layer(rng, layer, (1, 1, 8), block=(4, 16), density=0.5)
    check_float_layer(rng, layer, (1, 1, 8), block=(1, 8), density=0.5)


@pytest.mark.parametrize("width", [1, 2, 5, 6, 7, 11, 12, 13, 14, 15, 27, 28, 29, 30, 57])
@pytest.mark.parametrize("pool", [False, True], ids=["plain", "pooled"])
@pytest.mark.parametrize("block", [(1, 16), (1, 1)], ids=["1x16", "1x1"])
def test_float_convolution_widths(width: int, pool: bool, block: tuple[int, int]) -> None:
    layer = conv((2, 3), 3, 19)
    check_float_layer(
        np.random.default_rng(width), layer, (5, width + 2 + pool, 3), block=block, density=0.3, pool=pool
    )


@pytest.mark.parametrize("kernels", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64])
def test_convolution_kernel_counts(kernels: int) -> None:
    for block in ((4, 8), (1, 1)):
        check_layer(np.random.default_rng(kernels), conv((3, 3), 4, kernels), (6, 7, 4), block=block, density=0.3)


@pytest.mark.parametrize("kernels", [5, 8, 16, 20])
@pytest.mark.parametrize("width", [1, 2, 5, 6, 7, 11, 12, 13])
@pytest.mark.parametrize("pool", [False, True], ids=["plain", "pooled"])
def test_convolutions_of_quads(kernels: int, width: int, pool: bool) -> None:
    """Weights of eight kernels at four inputs: lists long enough to multiply those at once, lines not of fours."""
    rng, shape = np.random.default_rng(width), (4 + pool, width + 2 + pool, 7)
    check_layer(rng, conv((3, 3), 7, kernels), shape, block=(4, 8), density=0.4, pool=pool)


@pytest.mark.parametrize("block", [(4, 8), (4, 16)], ids=["4x8", "4x16"])
@pytest.mark.parametrize(
    ("kernel", "stride", "shape", "pool"),
    [
        ((3, 3), (1, 1), (14, 33, 4), False),
        ((3, 3), (1, 1), (15, 70, 4), True),
        ((2, 3), (3, 1), (31, 40, 4), False),  # some lines are not read
        ((1, 1), (1, 1), (40, 9, 8), False),
        ((1, 1), (1, 1), (3, 150, 8), False),
        ((1, 1), (2, 2), (41, 33, 8), False),
    ],
)
def test_convolutions_hold_few_lines_of_tall_images(
    kernel: tuple[int, int], stride: tuple[int, int], shape: tuple[int, int, int], pool: bool, block: tuple[int, int]
) -> None:
    padding = (kernel[0] // 2, kernel[1] // 2) * 2
    layer = conv(kernel, shape[2], 16, stride=stride, padding=padding)
    rng = np.random.default_rng(shape[1])
    check_layer(rng, layer, shape, block=block, density=0.5, pool=pool)
    check_float_layer(rng, layer, shape, block=block, density=0.5, pool=pool)


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 63, 64, 65, 127, 130, 257])
@pytest.mark.parametrize("block", [(1, 1), (4, 1), (1, 16), (4, 16), (1, 24), (4, 24), (1, 32), (4, 64), (2, 16)])
def test_linear_rows(rows: int, block: tuple[int, int]) -> None:
    layer = Linear(name="linear", inputs=("x",), weight=np.zeros((rows, 33), np.int8))
    check_layer(np.random.default_rng(rows), layer, (rows,), block=block, density=0.3)


@pytest.mark.parametrize("kernels", [1, 15, 16, 17, 31, 32, 33, 100])
def test_linear_kernel_counts(kernels: int) -> None:
    layer = Linear(name="linear", inputs=("x",), weight=np.zeros((70, kernels), np.int8))
    for block in ((1, 1), (1, 16), (4, 16)):
        check_layer(np.random.default_rng(kernels), layer, (70,), block=block, density=0.2)


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 130])
@pytest.mark.parametrize("block", [(1, 1), (1, 8), (4, 8), (1, 16), (4, 16), (4, 32), (2, 8)])
def test_float_linear_rows(rows: int, block: tuple[int, int]) -> None:
    layer = Linear(name="linear", inputs=("x",), weight=np.zeros((rows, 33), np.int8))
    check_float_layer(np.random.default_rng(rows), layer, (rows,), block=block, density=0.3)


@pytest.mark.parametrize("kernels", [1, 7, 8, 9, 63, 64, 65, 129, 287, 288, 289, 600])
def test_wide_linear_layers(kernels: int) -> None:
    """Kernels in one chunk of registers and in several."""
    layer = Linear(name="linear", inputs=("x",), weight=np.zeros((21, kernels), np.int8))
    rng = np.random.default_rng(kernels)
    check_float_layer(rng, layer, (21,), block=(1, 8), density=0.3)
    check_layer(rng, layer, (21,), block=(1, 8), density=0.3)


@pytest.mark.parametrize("set_size", [1, 2, 13, 14, 25, 26, 27, 29, 30, 52, 53, 58, 59, 255])
def test_linear_slots(set_size: int) -> None:
    """Sums of slots in one pass of registers and in several, kernels in one set and in several."""
    layer = Linear(name="linear", inputs=("x",), weight=np.zeros((90, 300), np.int8))
    for density in (0.02, 0.3):
        check_layer(np.random.default_rng(0), layer, (90,), block=(1, 1), density=density, set_size=set_size)


@pytest.mark.parametrize("rows", [511, 512, 1100])
def test_many_active_rows(rows: int) -> None:
    layer = Linear(name="linear", inputs=("x",), weight=np.zeros((rows, 20), np.int8))
    check_layer(np.random.default_rng(0), layer, (rows,), block=(1, 1), density=0.2, set_size=10)


@pytest.mark.parametrize("kernels", [65520, 65521])
def test_many_kernels(kernels: int) -> None:
    """As many as 16 bits can name beside a spare vector, and more."""
    rng = np.random.default_rng(kernels)
    sets = np.full(-(-kernels // 64) * 64, EMPTY)
    sets[:kernels] = np.arange(kernels)
    weight = values(rng, (3, kernels), "int8", 0.1)
    source = Input(name="x", inputs=(), shape=(3,), dtype="uint8", scale=1.0)
    layer = Linear(name="linear", inputs=("x",), weight=pack(weight, sets=sets.reshape(-1, 64)))
    check((source, layer), values(rng, (2, 3), "uint8", 1.0))


def test_requantization_far_outside_the_range() -> None:
    """Ratios whose results saturate, vanish, or need more than float32: kernels must agree or stand aside."""
    rng = np.random.default_rng(0)
    weight = values(rng, (2000, 16), "int8", 1.0)
    for shift in (1, 8, 15, 16, 30, 31, 39, 47):
        for dtype in ("uint8", "int8"):
            q = Requantization(
                rng.integers(2**15, 2**16, 16).astype(np.uint16), np.full(16, shift, np.uint8), dtype, 1.0
            )  # type: ignore[arg-type]
            source = Input(name="x", inputs=(), shape=(2000,), dtype="uint8", scale=1.0)
            layer = Linear(name="linear", inputs=("x",), weight=weight, requantization=q)
            check((source, layer), values(rng, (4, 2000), "uint8", 1.0))


@pytest.mark.parametrize("channels", [1, 2, 15, 16, 63, 64, 65, 127, 128, 129, 1500])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_k_winners(channels: int, dtype: str, scope: str) -> None:
    rng = np.random.default_rng(channels)
    shape = (3, 3, channels)
    source = Input(name="x", inputs=(), shape=shape, dtype=dtype, scale=1.0)  # type: ignore[arg-type]
    several = values(rng, (3, *shape), dtype, 0.8)
    ties = (several // 64).astype(dtype)  # few distinct values
    zeros = np.zeros_like(several)
    for k in sorted({1, 2, channels // 10 + 1, channels - 1, channels, channels + 1} - {0}):
        for x in (several, ties, zeros):
            check((source, KWTA(name="k", inputs=("x",), k=k, scope=scope)), x)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [2, 5, 8, 9, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 128, 255, 256, 257])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_k_winners_of_many_positions(channels: int, dtype: Any) -> None:
    """Enough positions for kernels to take many of them together, and some more."""
    rng = np.random.default_rng(channels)
    bounds = np.iinfo(dtype)
    for positions in (11, 12, 31, 32, 33, 43, 44, 77):
        shape = (1, positions, channels)
        source = Input(name="x", inputs=(), shape=shape, dtype=dtype, scale=1.0)
        several = values(rng, (2, *shape), dtype, 0.8)
        inputs = [several, (several // 64).astype(dtype)]
        inputs += [rng.choice([low, low + 1], (2, *shape)).astype(dtype) for low in (bounds.min, bounds.max - 1)]
        for k in sorted({1, 2, channels // 10 + 1, channels - 2, channels - 1} - {0}):
            for x in inputs:
                check((source, KWTA(name="k", inputs=("x",), k=k, scope="local")), x)


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 9, 15, 16, 17, 31, 64, 65, 1500])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_k_winners_by_rank(channels: int, dtype: Any, scope: Any) -> None:
    """float32 values over many magnitudes, with ties, zeros of both signs; 8-bit ones ranked by factors."""
    rng = np.random.default_rng(channels)
    shape = (3, 2, channels)
    size = channels if scope == "local" else 6 * channels
    if dtype == "float32":
        several = (rng.standard_normal((3, *shape)) * 2.0 ** rng.integers(-120, 120, (3, *shape))).astype(np.float32)
        inputs = [several, rng.choice([-1.5, -0.0, 0.0, 2.0], (3, *shape)).astype(np.float32), -np.abs(several)]
    else:
        several = values(rng, (3, *shape), dtype, 0.8)
        inputs = [several, (several // 64).astype(dtype)]
    few, many = rng.choice([0.5, 1.0, 2.0], size), rng.uniform(0.25, 4.0, size)
    factors = [few.astype(np.float32), many.astype(np.float32)] + ([None] if dtype == "float32" else [])
    scale = None if dtype == "float32" else 1.0
    source = Input(name="x", inputs=(), shape=shape, dtype=dtype, scale=scale)
    for k in sorted({1, 2, size // 10 + 1, size - 1, size} - {0}):
        for x, factor in itertools.product(inputs, factors):
            check((source, KWTA(name="k", inputs=("x",), k=k, scope=scope, factor=factor)), x)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_k_winners_of_many(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    scale = None if dtype == "float32" else 1.0
    source = Input(name="x", inputs=(), shape=(65536,), dtype=dtype, scale=scale)
    x = rng.standard_normal((2, 65536)).astype(np.float32) if scale is None else values(rng, (2, 65536), dtype, 0.8)
    for k in (1, 6553, 65535):
        check((source, KWTA(name="k", inputs=("x",), k=k, scope="global")), x)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 15, 16, 17, 31, 33, 100])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_input_quantization(size: int, dtype: Any) -> None:
    """Halves, which round to even, values far outside the range, and zeros of both signs."""
    rng = np.random.default_rng(size)
    source = Input(name="x", inputs=(), shape=(size,), dtype=dtype, scale=0.25)
    x = rng.choice([0.0, -0.0, 0.125, 0.375, -0.125, 31.875, 63.75, -32.0, 1e30, -1e30, 3e38], (40, size))
    x[20:] += rng.uniform(-70, 70, (20, size))
    for batch in (x[:5], x[-5:]):
        check((source,), batch.astype(np.float32))


EDGES = (1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
"""Numbers of channels around the widths of vectors."""


def integers(name: str, shape: tuple[int, ...], dtype: str) -> Input:
    return Input(name=name, inputs=(), shape=shape, dtype=dtype, scale=1.0)  # type: ignore[arg-type]


VECTORS = {"avx2": {"max", "add"}, "avx512": {"relu", "max", "mean", "add"}}
"""What has vector kernels, by tier."""


@pytest.mark.parametrize("tier", VECTORS)
def test_ends_of_vectors_reach_the_vector_kernels(tier: str) -> None:
    """What follows would be no test of kernels that the planner does not choose."""
    if tier not in TIERS:
        pytest.skip(f"this processor does not run {tier}")
    source = integers("x", (4, 4, 17), "int8")
    scaling = Requantization(np.array([40000], np.uint16), np.array([18], np.uint8), "int8", 1.0)
    pair = Requantization(np.array([40000, 3], np.uint16), np.array([17], np.uint8), "uint8", 1.0)
    nodes = (
        source,
        Relu(name="relu", inputs=("x",)),
        MaxPool(name="max", inputs=("relu",), kernel=(2, 2), stride=(1, 1)),
        AveragePool(name="mean", inputs=("max",), kernel=(2, 2), stride=(1, 1), requantization=scaling),
        Add(name="add", inputs=("mean", "mean"), requantization=pair),
    )
    choices = cpp.compile(Graph(nodes), "auto", 1, tier=tier, measure=False).choices()
    names = {"relu": "relu", "max": "pool", "mean": "pool", "add": "add"}
    for node, name in names.items():
        expected = (f"{name}_vector", tier) if node in VECTORS[tier] else (name, "scalar")
        assert (choices[node].kernel, choices[node].tier) == expected


def test_additions_take_the_vectors_that_hold_their_sums() -> None:
    """From a shift by 10 on; results 64 times as fine as their terms, or finer, are left to plain code."""
    for tier, shift in itertools.product(("avx2", "avx512"), (9, 10)):
        if tier in TIERS:
            pair = Requantization(np.array([40000, 3], np.uint16), np.array([shift], np.uint8), "uint8", 1.0)
            nodes = (integers("x", (40,), "int8"), Add(name="y", inputs=("x", "x"), requantization=pair))
            choice = cpp.compile(Graph(nodes), "auto", 1, tier=tier, measure=False).choices()["y"]
            assert (choice.kernel, choice.tier) == (("add", "scalar") if shift < 10 else ("add_vector", tier))


@pytest.mark.parametrize(("tier", "lanes"), [("avx2", 8), ("avx512", 16)])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_layers_reach_the_kernels_of_their_tier(tier: str, lanes: int, dtype: Any) -> None:
    if tier not in TIERS:
        pytest.skip(f"this processor does not run {tier}")
    rng = np.random.default_rng(0)
    weight_type, scale = (np.float32, None) if dtype == "float32" else (np.int8, 1.0)
    dense = rng.integers(-3, 4, (72, 32)).astype(weight_type)
    for weight, kind in ((dense, ""), (pack(dense, block=(4, lanes)), "_packed")):
        for mode in MODES:
            source = Input(name="x", inputs=(), shape=(6, 6, 8), dtype=dtype, scale=scale)
            layer = Conv2d(name="y", inputs=("x",), weight=weight, kernel=(3, 3))
            choice = cpp.compile(Graph((source, layer)), mode, 1, tier=tier, measure=False).choices()["y"]  # type: ignore[arg-type]
            form = kind if mode == "sparse-dense" else ""
            selects = "_select" if mode == "sparse-sparse" else ""
            assert (choice.kernel, choice.tier) == (f"conv{form}_lanes{lanes}{selects}", tier)
            graph = Graph(surround(source, layer, winners=3, pool=False))
            choice = cpp.compile(graph, mode, 1, tier=tier, measure=False).choices()["y"]  # type: ignore[arg-type]
            selects = selects and "_winners"
            assert (choice.kernel, choice.tier) == (f"conv{form}_lanes{lanes}{selects}", tier)
            source = Input(name="x", inputs=(), shape=(72,), dtype=dtype, scale=scale)
            linear = Linear(name="y", inputs=("x",), weight=weight)
            choice = cpp.compile(Graph((source, linear)), mode, 1, tier=tier, measure=False).choices()["y"]  # type: ignore[arg-type]
            form = "" if mode == "dense" else kind
            selects = selects and "_select"
            assert (choice.kernel, choice.tier) == (f"linear{form}_lanes{lanes}{selects}", tier)


@pytest.mark.parametrize("channels", EDGES)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_elementwise(channels: int, dtype: str) -> None:
    """ReLU, and dequantization by one scale and by one per channel."""
    rng = np.random.default_rng(channels)
    x = values(rng, (2, 2, 3, channels), dtype, 0.9)
    source = integers("x", (2, 3, channels), dtype)
    check((source, Relu(name="y", inputs=("x",))), x)
    for count in {1, channels}:
        check((source, Dequantize(name="y", inputs=("x",), scale=rng.uniform(1e-3, 3.0, count))), x)


@pytest.mark.parametrize("channels", EDGES)
def test_addition_and_concatenation(channels: int) -> None:
    """Multipliers up to the largest, shifts beyond those at which results vanish, a copy among the joined."""
    rng = np.random.default_rng(channels)
    x = values(rng, (2, 3, 2, channels), "int8", 0.9)
    source = integers("x", (3, 2, channels), "int8")
    positive = Relu(name="positive", inputs=("x",))
    to_unsigned = Requantization(np.array([65535], np.uint16), np.array([15], np.uint8), "uint8", 1.0)
    other = AveragePool(name="other", inputs=("x",), kernel=(1, 1), stride=(1, 1), requantization=to_unsigned)
    for shift, dtype in itertools.product((1, 9, 10, 11, 15, 16, 17, 25, 26, 31, 32, 47), ("uint8", "int8")):
        for multipliers in ((65535, 65535), (32768, 65535), (1, 65535), (32768, 0), (40001, 32767)):
            pair = Requantization(np.array(multipliers, np.uint16), np.array([shift], np.uint8), dtype, 1.0)  # type: ignore[arg-type]
            check((source, other, Add(name="y", inputs=("x", "other"), requantization=pair)), x)
        joined = Requantization(
            np.array([32768, 65535, 40001], np.uint16), np.array([15, shift, shift], np.uint8), dtype, 1.0
        )  # type: ignore[arg-type]
        join = Concat(name="y", inputs=("x", "other", "positive"), requantization=joined)
        check((source, positive, other, join), x)


@pytest.mark.parametrize("channels", EDGES)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_pools(channels: int, dtype: str) -> None:
    """Windows within the image, beyond it, and over all of it."""
    rng = np.random.default_rng(channels)
    shape = (7, 6, channels)
    x = values(rng, (2, *shape), dtype, 0.9)
    windows: list[dict[str, Any]] = [
        {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1)},
        {"kernel": (2, 3), "stride": (1, 2), "padding": (1, 0, 0, 2)},
        {"kernel": (7, 6), "stride": (7, 6)},
    ]
    for window in windows:
        check((integers("x", shape, dtype), MaxPool(name="y", inputs=("x",), **window)), x)
        area = window["kernel"][0] * window["kernel"][1]
        for to, counts in itertools.product(("uint8", "int8"), (True, False)):
            scaling = requantization(rng, 1 if counts else area, 60.0 * area, to)
            mean = AveragePool(name="y", inputs=("x",), requantization=scaling, count_padding=counts, **window)
            check((integers("x", shape, dtype), mean), x)


@pytest.mark.parametrize("size", [1, 15, 16, 63, 64, 65, 130])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_clips(size: int, dtype: str) -> None:
    rng = np.random.default_rng(size)
    x = values(rng, (3, size), dtype, 0.9)
    limits = np.iinfo(dtype)
    for low, high in ((None, 6.0), (3.0, None), (float(limits.min), float(limits.max)), (2.0, 2.0), (-0.0, 100.0)):
        check((integers("x", (size,), dtype), Clip(name="y", inputs=("x",), minimum=low, maximum=high)), x)


DEPTHWISE_KERNELS = {"avx2": "depthwise_lanes8", "avx512": "depthwise_lanes16", "avx512vnni": "depthwise_dot"}
DEPTHWISE_GEOMETRIES = [
    ((3, 3), (1, 1), (1, 1, 1, 1), 9),
    ((3, 3), (2, 2), (0, 0, 1, 1), 10),
    ((5, 2), (1, 3), (2, 0, 1, 1), 6),
    ((1, 1), (1, 1), (0, 0, 0, 0), 3),
    ((4, 5), (1, 1), (3, 2, 1, 2), 7),
    ((2, 3), (3, 1), (0, 4, 1, 0), 31),
]
"""Window, stride, padding, and the width of an image: rows of fewer and of more positions than a tile."""


def depthwise(weight: NDArray[Any], geometry: tuple[Any, ...], **options: Any) -> Conv2d:
    kernel, stride, padding, _ = geometry
    window = {"kernel": kernel, "stride": stride, "padding": padding, "groups": weight.shape[1]}
    return Conv2d(name="y", inputs=("x",), weight=weight, **window, **options)


def check_depthwise(nodes: tuple[Node, ...], x: NDArray[Any], kernels: dict[str, str]) -> None:
    for tier in kernels.keys() & set(TIERS):
        choice = cpp.compile(Graph(nodes), "dense", 1, tier=tier, measure=False).choices()["y"]
        assert choice.kernel == kernels[tier]
    check(nodes, x)


@pytest.mark.parametrize("channels", EDGES[1:])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_depthwise(channels: int, dtype: str) -> None:
    rng = np.random.default_rng(channels)
    for geometry in DEPTHWISE_GEOMETRIES:
        taps, shape = geometry[0][0] * geometry[0][1], (6, geometry[3], channels)
        weight = values(rng, (taps, channels), "int8", 0.9)
        bias = rng.integers(-(2**14), 2**14, channels).astype(np.int32)
        x = values(rng, (2, *shape), dtype, 0.8)
        for to in ("uint8", "int8"):
            scaling = requantization(rng, channels, 255 * 80 * np.sqrt(taps), to)
            layer = depthwise(weight, geometry, bias=bias, requantization=scaling)
            check_depthwise((integers("x", shape, dtype), layer), x, DEPTHWISE_KERNELS)


@pytest.mark.parametrize("channels", EDGES[1:])
def test_float_depthwise(channels: int) -> None:
    rng = np.random.default_rng(channels)
    for geometry in DEPTHWISE_GEOMETRIES:
        taps, shape = geometry[0][0] * geometry[0][1], (6, geometry[3], channels)
        weight, bias, x = (
            rng.standard_normal(size).astype(np.float32) for size in ((taps, channels), channels, (2, *shape))
        )
        source = Input(name="x", inputs=(), shape=shape)
        kernels = {"avx2": "depthwise_lanes8", "avx512": "depthwise_lanes16"}
        check_depthwise((source, depthwise(weight, geometry, bias=bias)), x, kernels)


@pytest.mark.parametrize("columns", [1, 7, 8, 33])
@pytest.mark.parametrize("depth", [1, 5, 16, 65])
def test_products_of_activations(depth: int, columns: int) -> None:
    """The rows of images times parts of the same rows, transposed while they are multiplied, or before."""
    width = columns + 4
    source = Input(name="x", inputs=(), shape=(3, width, depth))
    part = MaxPool(name="part", inputs=("x",), kernel=(1, 5), stride=(1, 1))
    turned = Transpose(name="turned", inputs=("part",), axes=(0, 2, 1))
    x = np.random.default_rng(depth).standard_normal((2, 3, width, depth)).astype(np.float32)
    check((source, part, MatMul(name="y", inputs=("x", "part"), transposed=True)), x)
    check((source, part, turned, MatMul(name="y", inputs=("x", "turned"))), x)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_transposes(axes: tuple[int, int, int], dtype: str) -> None:
    scale = None if dtype == "float32" else 1.0
    source = Input(name="x", inputs=(), shape=(2, 5, 7), dtype=dtype, scale=scale)  # type: ignore[arg-type]
    x = values(np.random.default_rng(0), (3, 2, 5, 7), "int8" if scale is None else dtype, 1.0)
    check((source, Transpose(name="y", inputs=("x",), axes=axes)), x.astype(dtype))


@pytest.mark.parametrize("channels", [1, 2, 17, 768])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_layer_normalization(channels: int, offset: float) -> None:
    """Also where the mean is large against the spread."""
    rng = np.random.default_rng(channels)
    scale, shift = rng.standard_normal((2, channels)).astype(np.float32)
    source = Input(name="x", inputs=(), shape=(2, 3, channels))
    x = (rng.standard_normal((2, 2, 3, channels)) + offset).astype(np.float32)
    check((source, LayerNorm(name="y", inputs=("x",), scale=scale, shift=shift)), x)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: Any) -> None:
    x = np.concatenate([np.linspace(-12, 12, 2001), [-1e30, 1e30, 0.0]]).astype(np.float32)[None]
    source = Input(name="x", inputs=(), shape=(x.size,))
    for limit in (1, 4, 100):  # tolerance grows with the largest result
        check((source, Gelu(name="y", inputs=("x",), approximate=approximate)), np.clip(x, -limit, limit))
    for value in (-2, -3.7, -5, -8, -10.3, -13, -30):  # and so does not forgive what is lost by cancellation
        check((source, Gelu(name="y", inputs=("x",), approximate=approximate)), np.full_like(x, value))
    assert np.isfinite(reference.run(Graph((source, Gelu(name="y", inputs=("x",), approximate=approximate))), x)).all()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("alpha", [0.01, 1.0, 1.7])
def test_activations(function: Any, alpha: float) -> None:
    alpha = alpha if FUNCTIONS[function] else 1.0
    x = np.concatenate([np.linspace(-12, 12, 2001), [-1e30, 1e30, -100.0, 100.0, 0.0]]).astype(np.float32)[None]
    source = Input(name="x", inputs=(), shape=(x.size,))
    activation = Activation(name="y", inputs=("x",), function=function, alpha=alpha)
    for limit in (1e-3, 1, 4, 100):  # tolerance grows with the largest result
        check((source, activation), np.clip(x, -limit, limit))
    for value in (-2, -5.5, -13, -30):
        check((source, activation), np.full_like(x, value))
    check((source, activation), x)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 64, 65, 700])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("to", ["uint8", "int8"])
def test_tables(size: int, dtype: Any, to: Any) -> None:
    rng = np.random.default_rng(size)
    table = rng.permutation(256).astype(np.uint8).view(to)
    source = Input(name="x", inputs=(), shape=(size,), dtype=dtype, scale=1.0)
    node = Activation(name="y", inputs=("x",), function="tanh", table=table, scale=1.0)
    check((source, node), np.resize(np.arange(256, dtype=np.uint8).view(dtype), (3, size)))
    check((source, node), values(rng, (2, size), dtype, 0.9))


@pytest.mark.parametrize("channels", [1, 7, 16, 33])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
@pytest.mark.parametrize("is_gate", [True, False])
def test_products(channels: int, dtype: Any, is_gate: bool) -> None:
    """An image by its own largest values, whose type another table makes, and by itself."""
    rng, is_float = np.random.default_rng(channels), dtype == "float32"
    source = Input(name="x", inputs=(), shape=(3, 2, channels), dtype=dtype, scale=None if is_float else 1.0)
    best = MaxPool(name="best", inputs=("x",), kernel=(3, 2) if is_gate else (1, 1), stride=(1, 1))
    x = values(rng, (2, 3, 2, channels), "int8" if is_float else dtype, 0.9).astype(dtype)
    if is_float:
        check((source, best, Product(name="y", inputs=("x", "best"))), x)
        return
    for of, to in itertools.product(("uint8", "int8"), repeat=2):
        table = rng.permutation(256).astype(np.uint8).view(of)
        gate = Activation(name="gate", inputs=("best",), function="sigmoid", table=table, scale=1.0)
        for typical in (100.0, 1e4):
            product = Product(name="y", inputs=("x", "gate"), requantization=requantization(rng, 1, typical, to))
            check((source, best, gate, product), x)


@pytest.mark.parametrize("channels", [1, 2, 15, 16, 17, 33])
@pytest.mark.parametrize("size", [1, 3, 5, 41])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.75, 2.0])
def test_local_response_normalization(channels: int, size: int, beta: float) -> None:
    """Windows within the channels and wider than all of them; values whose squares leave float32."""
    rng = np.random.default_rng(channels)
    x = rng.standard_normal((2, 2, 3, channels)) * 10.0 ** rng.choice([0, 1, 2], (2, 1, 1, 1))
    x[1, 0, 0, 0] = 1e30
    source = Input(name="x", inputs=(), shape=(2, 3, channels))
    norm = LocalResponseNorm(name="y", inputs=("x",), size=size, alpha=0.3, beta=beta, bias=2.0)
    check((source, norm), x.astype(np.float32))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("size", [1, 7, 8, 9, 15, 16, 17, 70])
def test_quantization_within_a_network(dtype: Any, size: int) -> None:
    """Halves, both ends, what lies beyond them, and infinity minus infinity."""
    source = Input(name="x", inputs=(), shape=(size,))
    x = np.resize(np.array([0.5, 1.5, -0.5, 127.5, 254.5, 1e30, -1e30, -128.5, 3.25], np.float32), (3, size))
    x[2, 0] = 3e38
    one, shift = np.ones(size, np.float32), np.zeros(size, np.float32)
    huge = Affine(name="huge", inputs=("x",), scale=one * np.float32(1e30), shift=shift)
    negative = Affine(name="negative", inputs=("huge",), scale=-one, shift=shift)
    nothing = Add(name="nothing", inputs=("huge", "negative"))
    for scale in (1.0, 0.3):
        check((source, Quantize(name="y", inputs=("x",), dtype=dtype, scale=scale)), x)
    with np.errstate(over="ignore", invalid="ignore"):
        check((source, huge, negative, nothing, Quantize(name="y", inputs=("nothing",), dtype=dtype, scale=1.0)), x)
