"""Every kernel of the table on the layers it is for: speed, after its output was found right.

    make bench-kernels, or: python -m pytest bench --benchmark-enable --benchmark-columns=median,iqr,rounds

The cases are made from the kernel table: every layer is compiled for every tier in every mode, and what kernels that
gives is measured. `test_no_kernel_is_forgotten` fails if a kernel of the table is not among them.

What pytest-benchmark shows is a call from Python. Beside it the results hold the time of the kernel alone, by the
program's own clock, and its work (`roofline.Work`), from which its bound follows.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import cases
import numpy as np
import pytest
import roofline
from numpy.typing import NDArray
from roofline import EMPTY

from csengine import _native, reference
from csengine.backends import MODES, KernelChoice, cpp
from csengine.graph import (
    KWTA,
    Add,
    AveragePool,
    Concat,
    Conv2d,
    Graph,
    Input,
    Linear,
    MaxPool,
    Node,
    Product,
    Requantization,
)
from csengine.packing import PackedMatrix, pack

Array = NDArray[Any]
TIERS = [name for name, runs in cpp.tiers().items() if runs]
INPUTS = 8
"""Different inputs that take turns, so that neither caches nor branch predictors know them."""
MEASURED = ("layer", "kwta", "add", "concat", "pool")
"""Operations that matter; the others take a few microseconds in any network."""


def _source(shape: tuple[int, ...]) -> Input:
    return Input(name="input", inputs=(), shape=shape, dtype="uint8", scale=1.0)


def _winners(shape: tuple[int, ...], k: int, scope: Any) -> Graph:
    return Graph((_source(shape), KWTA(name="winners", inputs=("input",), k=k, scope=scope)))


def _follows(shape: tuple[int, ...], node: Node) -> Graph:
    """An operation of a larger network alone; it reads `input`."""
    return Graph((_source(shape), node))


def _scaling(*multipliers: int, shift: int, shifts: int = 1) -> Requantization:
    return Requantization(np.array(multipliers, np.uint16), np.full(shifts, shift, np.uint8), "uint8", 1.0)


def _residual() -> Graph:
    return _follows(
        (56, 56, 256), Add(name="sum", inputs=("input",) * 2, requantization=_scaling(33000, 40000, shift=17))
    )


def _gated() -> Graph:
    """An image by its largest values: squeeze and excitation without layers."""
    pool = MaxPool(name="best", inputs=("input",), kernel=(28, 28), stride=(28, 28))
    product = Product(name="gated", inputs=("input", "best"), requantization=_scaling(33000, shift=23))
    return Graph((_source((28, 28, 256)), pool, product))


def _joined() -> Graph:
    scaling = _scaling(33000, 40000, shift=16, shifts=2)
    return _follows((28, 28, 256), Concat(name="joined", inputs=("input",) * 2, requantization=scaling))


def _pooled() -> Graph:
    pool = MaxPool(name="pool", inputs=("input",), kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    return _follows((112, 112, 64), pool)


def _averaged() -> Graph:
    scaling = _scaling(42799, shift=21)  # 1 / 49
    pool = AveragePool(name="pool", inputs=("input",), kernel=(7, 7), stride=(7, 7), requantization=scaling)
    return _follows((7, 7, 2048), pool)


def _second_convolution(block: tuple[int, int]) -> Graph:
    """The keyword-spotting network's, with the pooling after it."""
    source, layer = cases.Convolution("", "", 14, 5, (64,)).chain(1, 0.125, block, None).graph.nodes
    unpadded = replace(layer, padding=(0, 0, 0, 0))  # type: ignore[call-arg]
    return Graph((source, unpadded, MaxPool(name="pool", inputs=(layer.name,), kernel=(2, 2), stride=(2, 2))))


def _behind_winners(graph: Graph, k: int) -> Graph:
    """The same network, a k-winners before it."""
    source, layer, *rest = graph.nodes
    winners = KWTA(name="winners", inputs=("input",), k=k, scope="local")
    return Graph((source, winners, replace(layer, inputs=("winners",)), *rest))


def _unpacked(graph: Graph) -> Graph:
    source, layer = graph.nodes
    return Graph((source, replace(layer, weight=layer.dense_weight)))  # type: ignore[attr-defined, call-arg]


def _first_convolution() -> Graph:
    """The keyword-spotting network's, with the pooling after it; all weights are there."""
    weight = np.random.default_rng(0).integers(1, 128, (25, 64)).astype(np.int8)
    scaling = _scaling(*[40000] * 64, shift=25, shifts=64)
    layer = Conv2d(name="conv", inputs=("input",), weight=weight, kernel=(5, 5), requantization=scaling)
    pool = MaxPool(name="pool", inputs=("conv",), kernel=(2, 2), stride=(2, 2))
    return Graph((_source((32, 32, 1)), layer, pool))


def _in_float32(graph: Graph) -> Graph:
    """The same network of float32 numbers."""
    nodes: list[Node] = []
    for node in graph.nodes:
        if isinstance(node, Input):
            node = replace(node, dtype="float32", scale=None)
        elif isinstance(node, (Conv2d, Linear)):
            weight = node.dense_weight.astype(np.float32) / 127
            block = node.weight.block if isinstance(node.weight, PackedMatrix) else None
            node = replace(node, weight=pack(weight, block=block) if block else weight, bias=None, requantization=None)
        nodes.append(node)
    return Graph(tuple(nodes))


LAYERS: dict[str, tuple[Any, float]] = {
    **{
        f"linear {rows}→{kernels}, 10 % in {u}×{v} blocks, 10 % active": (
            lambda rows=rows, kernels=kernels, block=(u, v): cases.linear_layer(rows, kernels, 0.1, block).graph,
            0.1,
        )
        for (rows, kernels), (u, v) in itertools.product(((1600, 1500), (4096, 4096)), cases.BLOCKS)
    },
    **{
        f"conv 5×5 64→64 at 14², 12 % in {u}×{v} blocks, 10 % active": (
            lambda block=(u, v): _second_convolution(block),
            0.1,
        )
        for u, v in ((1, 1), (4, 8), (64, 16))
    },
    **{
        f"conv 5×5 64→64 at 14², 12 % in {u}×{v} blocks, 6 winners": (
            lambda block=(u, v): _behind_winners(_second_convolution(block), 6),
            1.0,
        )
        for u, v in ((1, 1), (64, 16))
    },
    **{
        f"{shape.name}, 10 %, half active": (lambda shape=shape: shape.chain(1, 0.1, (4, 8), None).graph, 0.5)
        for shape in (cases.CONVOLUTIONS[2], *cases.CONVOLUTIONS[-2:])
    },
    "conv 5×5 1→64 at 32²": (_first_convolution, 1.0),
    "conv 5×5 64→64 at 14², 12 % in 64×16 blocks, 6 winners, float32": (
        lambda: _in_float32(_behind_winners(_second_convolution((64, 16)), 6)),
        1.0,
    ),
    "conv 5×5 64→64 at 14², 12 % in 4×8 blocks, 10 % active, float32": (
        lambda: _in_float32(_second_convolution((4, 8))),
        0.1,
    ),
    **{
        f"linear 1600→1500, 10 % in {u}×{v} blocks, 10 % active, float32": (
            lambda block=(u, v): _in_float32(cases.linear_layer(1600, 1500, 0.1, block).graph),
            0.1,
        )
        for u, v in ((1, 16), (4, 16))
    },
    "linear 1600→1500, dense weights, 10 % active": (
        lambda: _unpacked(cases.linear_layer(1600, 1500, 1.0, (1, 16)).graph),
        0.1,
    ),
    "residual addition, 256 at 56²": (_residual, 0.5),
    "product, 256 at 28² by one position": (_gated, 0.5),
    "concatenation, 256 and 256 at 28²": (_joined, 0.5),
    "max-pool 3×3 by 2, 64 at 112²": (_pooled, 0.5),
    "mean of 7×7, 2048": (_averaged, 0.5),
    "k-winners, 6 of 64 at 14²": (lambda: _winners((14, 14, 64), 6, "local"), 1.0),
    "k-winners, 150 of 1500": (lambda: _winners((1500,), 150, "global"), 1.0),
    "k-winners, 6554 of 65,536": (lambda: _winners((65536,), 6554, "global"), 1.0),
    "k-winners, 6 of 64 at 14², float32": (lambda: _in_float32(_winners((14, 14, 64), 6, "local")), 1.0),
    "k-winners, 150 of 1500, float32": (lambda: _in_float32(_winners((1500,), 150, "global")), 1.0),
    "k-winners, 6554 of 65,536, float32": (lambda: _in_float32(_winners((65536,), 6554, "global")), 1.0),
}


@cache
def _prepared(layer: str) -> tuple[Graph, Array, Array]:
    """The network of a layer, its input, and what it should give."""
    make, activity = LAYERS[layer]
    graph: Graph = make()
    x = cases.active_input(np.random.default_rng(1), (INPUTS, *graph.input.shape), activity)
    if len(graph.nodes) > 2 and isinstance(graph.nodes[1], KWTA):
        x = reference.run(Graph(graph.nodes[:2]), x)  # what the layer sees
    if graph.input.dtype == "float32":
        x = x * np.random.default_rng(2).uniform(0.01, 0.02, x.shape).astype(np.float32)
    return graph, x, reference.run(graph, x)


@cache
def _programs() -> dict[tuple[str, str, str], Any]:
    """A program for each layer and each kernel, by its name and tier, that can run it."""
    found: dict[tuple[str, str, str], Any] = {}
    for layer, tier, mode in itertools.product(LAYERS, TIERS, MODES[1:]):
        graph, _, _ = _prepared(layer)
        program = cpp.compile(graph, mode, 1, tier=tier, measure=False)
        choice = _choice(program)
        found.setdefault((layer, choice.kernel, choice.tier), program)
    return found


def _choice(program: Any) -> KernelChoice:
    """Of the step that is measured, the last one."""
    choice: KernelChoice = list(program.choices().values())[-1]
    return choice


@cache
def _seconds_alone(turns: int, seconds: float) -> dict[tuple[str, str, str], float]:
    """Of the last step of every program, and of an empty network.

    All take turns of about so many seconds, in which samples do. A turn gives its median, the fastest turn counts: the
    machine may be slow for a while, and that is nobody's time.
    """
    programs = {key: (program, _samples(key[0])) for key, program in _programs().items()}
    programs[EMPTY, "", ""] = (_empty_program(), [np.ones((1, 1), np.uint8)])
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(turns):
        for key, (program, samples) in programs.items():
            best[key] = min(best[key], _time_step(program, samples, seconds))
    return best


def _time_step(program: Any, samples: list[Array], seconds: float) -> float:
    """The median of the last step's seconds."""
    taken: list[float] = []
    turns, end = itertools.cycle(samples), time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        taken.append(list(program.profile(next(turns)).values())[-1])
    return float(np.median(taken))


def _samples(layer: str) -> list[Array]:
    _, x, _ = _prepared(layer)
    return [x[i : i + 1] for i in range(INPUTS)]


@cache
def _empty_program() -> Any:
    return cpp.compile(Graph((_source((1,)),)), "auto", 1, measure=False)


@pytest.mark.parametrize(("layer", "kernel", "tier"), list(_programs()))
def test_kernel(benchmark: Any, layer: str, kernel: str, tier: str) -> None:
    graph, x, expected = _prepared(layer)
    program = _programs()[layer, kernel, tier]
    # float32 sums may differ in their order; integers and what moves no value may not.
    tolerance = 1e-5 * np.abs(expected).max() if expected.dtype == np.float32 else 0
    np.testing.assert_allclose(program.run(x), expected, rtol=0, atol=tolerance)
    benchmark.group, benchmark.name = layer, kernel
    batches = itertools.cycle(_samples(layer))
    benchmark(lambda: program.run(next(batches)))
    benchmark.extra_info["tier"] = tier
    benchmark.extra_info["seconds"] = _seconds_alone(*_turns(benchmark))[layer, kernel, tier]
    benchmark.extra_info |= asdict(roofline.work_of(graph, _choice(program), x))


def test_empty_network(benchmark: Any) -> None:
    """What a call, and the clock of a step, take by themselves."""
    program, x = _empty_program(), np.ones((1, 1), np.uint8)
    np.testing.assert_array_equal(program.run(x), x)
    benchmark.group, benchmark.name = EMPTY, ""
    benchmark(lambda: program.run(x))
    benchmark.extra_info["seconds"] = _seconds_alone(*_turns(benchmark))[EMPTY, "", ""]


def _turns(benchmark: Any) -> tuple[int, float]:
    """How often kernels are measured alone, and for how many seconds each."""
    return (7, 0.02) if benchmark.enabled else (1, 0.0)


def test_no_kernel_is_forgotten() -> None:
    runnable = {
        (kernel, tier)
        for operation, kernel, tier, _ in _native.kernel_table()
        if operation in MEASURED and tier in TIERS
    }
    assert runnable <= {(kernel, tier) for _, kernel, tier in _programs()}
