"""The C++ kernels at the edges of their vectors, tiles and blocks, over the full range of values."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from csengine import reference
from csengine.backends import cpp
from csengine.graph import (
    KWTA,
    Add,
    AveragePool,
    Concat,
    Conv2d,
    Dequantize,
    Graph,
    Input,
    Linear,
    MaxPool,
    Node,
    Relu,
    Requantization,
)
from csengine.packing import pack

TIERS = [name for name, runs in cpp.tiers().items() if runs and name != "scalar"]
MODES = ("dense", "sparse-dense", "sparse-sparse")


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


def check(nodes: tuple[Node, ...], x: NDArray[Any]) -> None:
    """Every tier and mode gives the reference's bits, over memory of any content, and keeps to its own."""
    graph = Graph(nodes)
    expected = reference.run(graph, x)
    for tier, mode in itertools.product(TIERS, MODES):
        program = cpp.compile(graph, mode, 1, tier=tier, measure=False)  # type: ignore[arg-type]
        for poison in (0x00, 0xFF, 0x81):
            got, guilty = program.audit(x, poison)
            assert not guilty, (tier, mode)
            np.testing.assert_array_equal(got, expected[: len(got)], err_msg=f"{tier} {mode}")


def check_layer(
    rng: np.random.Generator,
    layer: Conv2d | Linear,
    shape: tuple[int, ...],
    *,
    block: tuple[int, int],
    density: float,
    set_size: int | None = None,
    pool: bool = False,
) -> None:
    """A layer alone: uint8 and int8 in and out, accumulators out, packed and dense."""
    weight = values(rng, layer.weight.shape, "int8", 1.0) * block_mask(rng, layer.weight.shape, block, density)
    bias = rng.integers(-(2**20), 2**20, layer.kernels).astype(np.int32)
    typical = 255 * 80 * np.sqrt(max(1, np.count_nonzero(weight) / layer.kernels))
    outputs = [requantization(rng, layer.kernels, typical, dtype) for dtype in ("uint8", "int8")]
    forms = [pack(weight, block=block, set_size=set_size), weight]
    for dtype, scaling, form in itertools.product(("uint8", "int8"), (*outputs, None), forms):
        if pool and scaling is None:
            continue
        source = Input(name="x", inputs=(), shape=shape, dtype=dtype, scale=1.0)
        nodes: list[Node] = [source, replace(layer, weight=form, bias=bias, requantization=scaling)]
        if pool:
            nodes.append(MaxPool(name="pool", inputs=(layer.name,), kernel=(2, 2), stride=(2, 2)))
        check(tuple(nodes), values(rng, (2, *shape), dtype, 0.5))


def conv(kernel: tuple[int, int], channels: int, kernels: int, **options: Any) -> Conv2d:
    weight = np.zeros((kernel[0] * kernel[1] * channels, kernels), np.int8)
    return Conv2d(name="conv", inputs=("x",), weight=weight, kernel=kernel, **options)


@pytest.mark.parametrize("width", [1, 2, 13, 14, 15, 16, 17, 28, 29, 30, 33])
@pytest.mark.parametrize("pool", [False, True], ids=["plain", "pooled"])
@pytest.mark.parametrize("block", [(4, 16), (4, 8)], ids=["4x16", "4x8"])
def test_convolution_widths(width: int, pool: bool, block: tuple[int, int]) -> None:
    rng = np.random.default_rng(width)
    shape = (5, width + 2 + pool, 8)
    check_layer(rng, conv((2, 3), 8, 24), shape, block=block, density=0.2, pool=pool)


@pytest.mark.parametrize(
    ("kernel", "channels", "stride", "padding"),
    [
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
    ],
)
def test_convolution_geometries(
    kernel: tuple[int, int], channels: int, stride: tuple[int, int], padding: tuple[int, int, int, int]
) -> None:
    rng = np.random.default_rng(channels)
    layer = conv(kernel, channels, 17, stride=stride, padding=padding)
    check_layer(rng, layer, (9, 11, channels), block=(4, 16), density=0.3)


@pytest.mark.parametrize("kernels", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64])
def test_convolution_kernel_counts(kernels: int) -> None:
    check_layer(np.random.default_rng(kernels), conv((3, 3), 4, kernels), (6, 7, 4), block=(4, 8), density=0.3)


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 63, 64, 65, 127, 130, 257])
@pytest.mark.parametrize("block", [(1, 1), (4, 1), (1, 16), (4, 16), (1, 32), (4, 64), (2, 16)])
def test_linear_rows(rows: int, block: tuple[int, int]) -> None:
    layer = Linear(name="linear", inputs=("x",), weight=np.zeros((rows, 33), np.int8))
    check_layer(np.random.default_rng(rows), layer, (rows,), block=block, density=0.3)


@pytest.mark.parametrize("kernels", [1, 15, 16, 17, 31, 32, 33, 100])
def test_linear_kernel_counts(kernels: int) -> None:
    layer = Linear(name="linear", inputs=("x",), weight=np.zeros((70, kernels), np.int8))
    for block in ((1, 1), (1, 16), (4, 16)):
        check_layer(np.random.default_rng(kernels), layer, (70,), block=block, density=0.2)


@pytest.mark.parametrize("set_size", [1, 2, 25, 26, 27, 52, 53, 255])
def test_linear_slots(set_size: int) -> None:
    """Sums of slots in one pass of registers and in several, kernels in one set and in several."""
    layer = Linear(name="linear", inputs=("x",), weight=np.zeros((90, 300), np.int8))
    for density in (0.02, 0.3):
        check_layer(np.random.default_rng(0), layer, (90,), block=(1, 1), density=density, set_size=set_size)


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


EDGES = (1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
"""Numbers of channels around the widths of vectors."""


def integers(name: str, shape: tuple[int, ...], dtype: str) -> Input:
    return Input(name=name, inputs=(), shape=shape, dtype=dtype, scale=1.0)  # type: ignore[arg-type]


def test_ends_of_vectors_reach_the_vector_kernels() -> None:
    """What follows would be no test of kernels that the planner does not choose."""
    if "avx512" not in TIERS:
        pytest.skip("this processor does not run avx512")
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
    choices = cpp.compile(Graph(nodes), "auto", 1, tier="avx512", measure=False).choices()
    names = {name: (choice.kernel, choice.tier) for name, choice in choices.items() if name != "x"}
    assert names == {
        "relu": ("relu_vector", "avx512"),
        "max": ("pool_vector", "avx512"),
        "mean": ("pool_vector", "avx512"),
        "add": ("add_vector", "avx512"),
    }


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
    for shift, dtype in itertools.product((1, 8, 15, 16, 17, 25, 26, 31, 32, 47), ("uint8", "int8")):
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
        for to in ("uint8", "int8"):
            scaling = requantization(rng, 1, 60.0 * area, to)
            check(
                (integers("x", shape, dtype), AveragePool(name="y", inputs=("x",), requantization=scaling, **window)), x
            )


@pytest.mark.parametrize("channels", EDGES[1:])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_depthwise(channels: int, dtype: str) -> None:
    """Tall and wide windows, strides, padding, rows of fewer and more positions than a tile."""
    rng = np.random.default_rng(channels)
    geometries: list[tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int], int]] = [
        ((3, 3), (1, 1), (1, 1, 1, 1), 9),
        ((3, 3), (2, 2), (0, 0, 1, 1), 10),
        ((5, 2), (1, 3), (2, 0, 1, 1), 6),
        ((1, 1), (1, 1), (0, 0, 0, 0), 3),
    ]
    for kernel, stride, padding, width in geometries:
        taps = kernel[0] * kernel[1]
        weight = values(rng, (taps, channels), "int8", 0.9)
        bias = rng.integers(-(2**14), 2**14, channels).astype(np.int32)
        x = values(rng, (2, 6, width, channels), dtype, 0.8)
        for to in ("uint8", "int8"):
            layer = Conv2d(
                name="y",
                inputs=("x",),
                weight=weight,
                bias=bias,
                requantization=requantization(rng, channels, 255 * 80 * np.sqrt(taps), to),
                kernel=kernel,
                stride=stride,
                padding=padding,
                groups=channels,
            )
            nodes = (integers("x", (6, width, channels), dtype), layer)
            if "avx512vnni" in TIERS:
                choice = cpp.compile(Graph(nodes), "dense", 1, tier="avx512vnni", measure=False).choices()["y"]
                assert choice.kernel == "depthwise_dot"
            check(nodes, x)
