"""What bounds a kernel: its work, the rates of one core, and the tables that put both beside its time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csengine.backends import KernelChoice, cpp
from csengine.graph import Add, Conv2d, Graph, Input, Linear, Node, Requantization
from csengine.packing import pack

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(autouse=True)
def _bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


# --- work -------------------------------------------------------------------------------------------------------------


def scaling(kernels: int) -> Requantization:
    return Requantization(np.full(kernels, 33000, np.uint16), np.full(kernels, 20, np.uint8), "uint8", 1.0)


def network(shape: tuple[int, ...], node: Node) -> Graph:
    return Graph((Input(name="input", inputs=(), shape=shape, dtype="uint8", scale=1.0), node))


def linear(weight: Any) -> Graph:
    return network((4,), Linear(name="y", inputs=("input",), weight=weight, requantization=scaling(6)))


def choice(mode: str) -> KernelChoice:
    return KernelChoice("kernel", "scalar", mode)


WEIGHT = np.array([[1, 0, 0, 2, 0, 0], [0, 3, 0, 0, 4, 0], [0, 0, 5, 0, 0, 6], [7, 0, 0, 0, 0, 0]], np.int8)
X = np.array([[9, 0, 0, 9], [0, 0, 0, 0]], np.uint8)


@pytest.mark.parametrize(("mode", "products"), [("dense", 24), ("sparse-dense", 7), ("sparse-sparse", 3 / 2)])
def test_products_are_those_of_the_mode(mode: str, products: float) -> None:
    import roofline

    assert roofline.work_of(linear(pack(WEIGHT)), choice(mode), X).products == products


def test_selected_rows_are_read_in_blocks() -> None:
    import roofline

    packed = pack(WEIGHT, block=(2, 1))
    work = roofline.work_of(linear(packed), choice("sparse-sparse"), X)
    assert work.bytes_read == packed.nbytes / 2 + 4  # both blocks for the first sample, none for the second
    assert work.row_bytes == packed.weights[0].nbytes
    assert (work.bytes_written, work.bytes_held) == (6, packed.nbytes + 4 + 6)


def test_other_modes_read_all_weights_straight() -> None:
    import roofline

    work = roofline.work_of(linear(pack(WEIGHT)), choice("dense"), X)
    assert (work.bytes_read, work.row_bytes) == (24 + 4, 0)
    packed = pack(WEIGHT)
    assert roofline.work_of(linear(packed), choice("sparse-dense"), X).bytes_read == packed.nbytes + 4


def test_a_row_of_a_convolution_is_read_if_any_window_needs_it() -> None:
    import roofline

    weight = np.ones((4, 6), np.int8)
    layer = Conv2d(name="y", inputs=("input",), weight=weight, kernel=(2, 2), requantization=scaling(6))
    x = np.zeros((1, 3, 3, 1), np.uint8)
    x[0, 1, 0] = 5  # the left inputs of two windows, none of the right ones
    work = roofline.work_of(network((3, 3, 1), layer), choice("sparse-sparse"), x)
    assert (work.products, work.bytes_read, work.row_bytes) == (2 * 6, 2 * 6 + 9, 0)


def test_operations_without_weights_move_bytes_only() -> None:
    import roofline

    pair = Requantization(np.array([33000, 40000], np.uint16), np.full(1, 17, np.uint8), "uint8", 1.0)
    graph = network((8,), Add(name="sum", inputs=("input",) * 2, requantization=pair))
    work = roofline.work_of(graph, choice(""), np.ones((2, 8), np.uint8))
    assert (work.products, work.bytes_read, work.bytes_written, work.bytes_held) == (0, 8, 8, 16)


# --- bounds -----------------------------------------------------------------------------------------------------------

BOUNDS: dict[str, Any] = {
    "date": "2026-01-01T00:00:00+00:00",
    "machine": {"cpu": "a processor"},
    "caches": {"L1": 1000, "L2": 10_000, "L3": 100_000},
    "loops": [
        {"tier": "scalar", "name": "a cycle", "dtype": "", "products": 0, "per_ns": 3.0},
        {"tier": "avx2", "name": "half", "dtype": "int8", "products": 8, "per_ns": 3.0},
        {"tier": "avx2", "name": "whole", "dtype": "int8", "products": 16, "per_ns": 2.0},
        {"tier": "avx2", "name": "float", "dtype": "float32", "products": 8, "per_ns": 1.0},
    ],
    "memory": [
        {"access": access, "level": level, "row_bytes": row, "of_bytes": 0, "bytes_per_ns": rate}
        for access, level, row, rate in (
            *(("read", "L1", 0, 100.0), ("write", "L1", 0, 50.0), ("read", "L2", 0, 40.0), ("write", "L2", 0, 30.0)),
            *(("read", "L2", 512, 10.0), ("read", "L2", 4096, 60.0), ("read", "L3", 0, 20.0), ("write", "L3", 0, 10.0)),
            *(("read", "memory", 0, 4.0), ("write", "memory", 0, 2.0)),
        )
    ],
}


def kernel(**facts: Any) -> dict[str, Any]:
    nothing = {"tier": "avx2", "dtype": "int8", "products": 0, "bytes_read": 0, "bytes_written": 0, "row_bytes": 0}
    return {"layer": "a layer", "kernel": "a_kernel", "bytes_held": 500, "seconds": 1e-6, **nothing, **facts}


@pytest.mark.parametrize(
    ("facts", "nanoseconds", "by"),
    [
        ({"products": 3200, "bytes_read": 100}, 100, "whole"),
        ({"products": 800, "dtype": "float32"}, 100, "float"),
        ({"products": 3200, "bytes_read": 20_000}, 200, "reading from L1"),
        ({"bytes_read": 500, "bytes_written": 500}, 10, "writing to L1"),
        ({"bytes_read": 600, "bytes_held": 1001}, 10, "reading from L2"),
        ({"bytes_read": 600, "bytes_held": 1001, "row_bytes": 700}, 60, "reading from L2 in rows of 700 B"),
        ({"bytes_read": 600, "bytes_held": 1001, "row_bytes": 9000}, 10, "reading from L2 in rows of 9000 B"),
        ({"bytes_read": 600, "bytes_held": 100_001}, 150, "reading from memory"),
    ],
)
def test_the_longer_of_products_and_bytes_bounds(facts: dict[str, Any], nanoseconds: float, by: str) -> None:
    import roofline

    bound = roofline.bound_of(kernel(**facts), BOUNDS)
    assert bound.by == by
    assert bound.seconds == pytest.approx(nanoseconds * 1e-9)


# --- what one core can do ---------------------------------------------------------------------------------------------


def test_cache_sizes_are_those_of_data(tmp_path: Path) -> None:
    import bounds

    found = (("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K"), ("3", "Unified", "36864K"))
    for i, facts in enumerate(found):
        place = tmp_path / "cpu3" / "cache" / f"index{i}"
        place.mkdir(parents=True)
        for name, text in zip(("level", "type", "size"), facts, strict=True):
            (place / name).write_text(f"{text}\n")
    assert bounds.cache_sizes(3, tmp_path) == {"L1": 49152, "L2": 2097152, "L3": 37748736}
    assert bounds.cache_sizes(0, tmp_path) == {}


def test_the_loops_compute_what_they_should(tmp_path: Path) -> None:
    import bounds

    caches = {"L1": 1 << 15, "L2": 1 << 18, "L3": 1 << 20}
    report = bounds.run(bounds.build(tmp_path), caches, 1)  # the program checks its results itself
    assert {loop["tier"] for loop in report["loops"]} == {tier for tier, runs in cpp.tiers().items() if runs}
    rates = [loop["per_ns"] for loop in report["loops"]] + [row["bytes_per_ns"] for row in report["memory"]]
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)
    assert {row["level"] for row in report["memory"]} == {"L1", "L2", "L3", "memory"}


# --- tables -----------------------------------------------------------------------------------------------------------


def test_tables_show_times_beside_bounds(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import kernel_report
    import roofline

    empty = {"layer": roofline.EMPTY, "kernel": "", "min": 1.5e-6, "seconds": 3e-8}
    rows = [
        kernel(products=3200),
        kernel(products=16_000, layer="where it is better"),
        kernel(bytes_read=5, kernel="add_vector"),
        empty,
    ]
    report = {"machine_info": {"cpu": "a processor"}, "datetime": "2026-01-02T00:00:00", "benchmarks": rows}
    (tmp_path / "bounds.json").write_text(json.dumps(BOUNDS))
    assert kernel_report.sections(tmp_path, tmp_path) == {}
    (tmp_path / "kernels.json").write_text(json.dumps(report))
    found = kernel_report.sections(tmp_path, tmp_path)
    assert "| a layer | `a_kernel` | 1.0 | 3.20 | 0.10 | whole | 10 % |" in found["kernels"]
    assert "| a layer | `add_vector` (avx2) | 1.0 |  | 0.00 | reading from L1 | < 1 % |" in found["kernels"]
    assert "at least 1.5 µs besides" in found["kernels"]
    assert "| `a_kernel` | avx2 | where it is better | 1.0 | 0.50 | whole | 50 % |" in found["bounds"]
    assert "a layer | 1.0 | 0.10" not in found["bounds"]
    assert "| avx2 | whole | int8 | 2.00 | 0.67 | 32.0 |" in found["bounds"]
    assert "| L2 | 40.0 | 10.0 | 60.0 | 30.0 |" in found["bounds"]
    assert (tmp_path / "kernels.png").stat().st_size > 1000
