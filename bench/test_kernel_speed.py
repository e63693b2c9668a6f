"""Every kernel of the table on the layers it is for: speed, after its output was found right.

    make bench, or: python -m pytest bench --benchmark-enable --benchmark-columns=median,iqr,rounds

The cases are made from the kernel table: every layer is compiled for every tier in every mode, and what kernels that
gives is measured. `test_no_kernel_is_forgotten` fails if a kernel of the table is not among them.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from typing import Any

import cases
import numpy as np
import pytest
from numpy.typing import NDArray

from csengine import _native, reference
from csengine.backends import MODES, cpp
from csengine.graph import KWTA, Add, AveragePool, Concat, Graph, Input, MaxPool, Node, Requantization

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


def _unpacked(graph: Graph) -> Graph:
    source, layer = graph.nodes
    return Graph((source, replace(layer, weight=layer.dense_weight)))  # type: ignore[attr-defined, call-arg]


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
        for u, v in ((1, 1), (4, 8))
    },
    **{
        f"{shape.name}, 10 %, half active": (lambda shape=shape: shape.chain(1, 0.1, (4, 8), None).graph, 0.5)
        for shape in (cases.CONVOLUTIONS[2], *cases.CONVOLUTIONS[-2:])
    },
    "linear 1600→1500, dense weights, 10 % active": (
        lambda: _unpacked(cases.linear_layer(1600, 1500, 1.0, (1, 16)).graph),
        0.1,
    ),
    "residual addition, 256 at 56²": (_residual, 0.5),
    "concatenation, 256 and 256 at 28²": (_joined, 0.5),
    "max-pool 3×3 by 2, 64 at 112²": (_pooled, 0.5),
    "mean of 7×7, 2048": (_averaged, 0.5),
    "k-winners, 6 of 64 at 14²": (lambda: _winners((14, 14, 64), 6, "local"), 1.0),
    "k-winners, 150 of 1500": (lambda: _winners((1500,), 150, "global"), 1.0),
}


@cache
def _prepared(layer: str) -> tuple[Graph, Array, Array]:
    """The network of a layer, its input, and what it should give."""
    make, activity = LAYERS[layer]
    graph: Graph = make()
    x = cases.active_input(np.random.default_rng(1), (INPUTS, *graph.input.shape), activity)
    return graph, x, reference.run(graph, x)


@cache
def _programs() -> dict[tuple[str, str], Any]:
    """A program for each layer and each kernel that can run it."""
    found: dict[tuple[str, str], Any] = {}
    for layer, tier, mode in itertools.product(LAYERS, TIERS, MODES[1:]):
        graph, _, _ = _prepared(layer)
        program = cpp.compile(graph, mode, 1, tier=tier, measure=False)
        choice = list(program.choices().values())[-1]
        found.setdefault((layer, choice.kernel), program)
    return found


@pytest.mark.parametrize(("layer", "kernel"), list(_programs()))
def test_kernel(benchmark: Any, layer: str, kernel: str) -> None:
    _, x, expected = _prepared(layer)
    program = _programs()[layer, kernel]
    np.testing.assert_array_equal(program.run(x), expected)
    benchmark.group, benchmark.name = layer, kernel
    benchmark.extra_info["tier"] = list(program.choices().values())[-1].tier
    batches = itertools.cycle([x[i : i + 1] for i in range(INPUTS)])
    benchmark(lambda: program.run(next(batches)))


def test_no_kernel_is_forgotten() -> None:
    runnable = {
        kernel for operation, kernel, tier, _ in _native.kernel_table() if operation in MEASURED and tier in TIERS
    }
    assert runnable <= {kernel for _, kernel in _programs()}
