"""How csengine's time grows: with non-zero weights and winners, with the size of a layer, with threads.

    .venv/bin/python bench/scaling.py [--quick]     # five minutes; writes bench/results/scaling.json

The paper's claim is that resources fall with the product of both sparsities; here the resource is time. All points of
one curve take turns in one process, pinned; every output is checked against the reference.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cases
import numpy as np

from csengine import Engine
from csengine.cli import machine, measure
from csengine.cli.contest import cpus_for
from csengine.cli.output import Progress, json_text
from csengine.container import Model
from csengine.graph import Linear
from csengine.resources import default_threads

RESULTS = Path(__file__).parent / "results"
SIDE = 4096
INPUTS = 8
"""Different inputs that take turns, so that neither caches nor branch predictors know them."""
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.4)
ACTIVITIES = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
SIDES = (256, 512, 1024, 2048, 4096, 8192)
TYPICAL = 0.1


@dataclass(frozen=True)
class Point:
    """A network, inputs for several batches, and where the point lies."""

    model: Model
    x: Any
    facts: dict[str, Any]
    mode: str = "sparse-sparse"
    threads: int = 1
    batch: int = 1


def products(quick: bool) -> list[Point]:
    """One layer size, every density with every activity."""
    side, found = (256 if quick else SIDE), []
    for block in ((1, 1), (1, 16), (4, 16)):
        for density in DENSITIES:
            model = cases.linear_layer(side, side, density, block)
            for activity in ACTIVITIES:
                facts = {"inputs": side, "outputs": side, "block": block, "density": density, "activity": activity}
                found.append(Point(model, _input(side, activity), facts))
    return found


def sizes(quick: bool) -> list[Point]:
    """Square layers of every size, a tenth of the weights and of the inputs not zero; dense beside it."""
    found = []
    for side in SIDES[:2] if quick else SIDES:
        model, x = cases.linear_layer(side, side, TYPICAL, (4, 16)), _input(side, TYPICAL)
        facts = {"inputs": side, "outputs": side, "block": (4, 16), "density": TYPICAL, "activity": TYPICAL}
        found += [Point(model, x, {**facts, "mode": mode}, mode) for mode in ("sparse-sparse", "dense")]
    return found


def threads(quick: bool) -> list[Point]:
    """The keyword-spotting network by batch, a large feed-forward block and image networks, on one thread and more."""
    counts = sorted({1, default_threads()})
    network = cases.keyword_network("sparse-sparse-blocked", None)
    batches = (1, 16) if quick else (1, 4, 16, 64, 256)
    named = [(f"keyword spotting, batch {b}", network, cases.recordings(b * INPUTS), b) for b in batches]
    rows, kernels = (256, 256) if quick else (4096, 16384)
    block = cases.feed_forward(rows, kernels, TYPICAL, TYPICAL, (1, 16), before=TYPICAL)
    named.append((f"feed-forward {rows}→{kernels}→{rows}, batch 1", block, _input(rows, TYPICAL), 1))
    images = cases.images(2).transpose(0, 3, 1, 2)
    for name in () if quick else cases.IMPORTED:
        named.append((f"{name}, batch 1", cases.imported_network(name, 1 - TYPICAL, (4, 16)), images, 1))
    return [
        Point(model, x, {"what": name, "threads": count}, "auto", count, batch)
        for name, model, x, batch in named
        for count in counts
    ]


def _input(side: int, activity: float) -> Any:
    return cases.active_input(np.random.default_rng(1), (INPUTS, side), activity)


CURVES: dict[str, Callable[[bool], list[Point]]] = {"products": products, "sizes": sizes, "threads": threads}


def time_points(what: str, points: Sequence[Point], runs: int, seconds: float) -> list[dict[str, Any]]:
    """The facts and times of all points, which take turns."""
    compiled: dict[tuple[int, str, int], Engine] = {}
    with measure.pinned(cpus_for(max(point.threads for point in points))):
        for point in points:
            key = id(point.model), point.mode, point.threads
            if key not in compiled:
                compiled[key] = Engine(point.model, threads=point.threads, mode=point.mode)  # type: ignore[arg-type]
        engines = [compiled[id(point.model), point.mode, point.threads] for point in points]
        for engine, point in zip(engines, points, strict=True):
            x = point.x[: point.batch]
            expected = measure.reference_engine(point.model).run(x)
            measure.require_agreement(engine, f"{what} {point.facts}", engine.run(x), expected)
        calls = [rotating(engine, point.x, point.batch) for engine, point in zip(engines, points, strict=True)]
        with Progress(what, measure.ROUNDS) as progress:
            timings = measure.interleave(calls, runs, seconds, progress)
    return [_row(*found) for found in zip(points, engines, timings, strict=True)]


def rotating(engine: Engine, x: Any, batch: int) -> Callable[[], object]:
    """A call that runs on the next batch of samples x."""
    batches = itertools.cycle([x[i : i + batch] for i in range(0, len(x), batch)])
    return lambda: engine.run(next(batches))


def _row(point: Point, engine: Engine, timing: measure.Timing) -> dict[str, Any]:
    modes = {choice.mode for choice in engine.choices().values() if choice.mode}
    return {
        **point.facts,
        "tier": measure.tiers_used(engine),
        "modes": sorted(modes),
        "macs_dense": sum(row.macs_dense for row in engine.plan()) * point.batch,
        "macs_needed": _needed(point),
        "runs": timing.runs,
        "median_seconds": timing.median,
        "p10_seconds": timing.p10,
        "p90_seconds": timing.p90,
    }


def _needed(point: Point) -> float | None:
    """Products of a non-zero weight and an active input, of one vector; None for networks of several layers."""
    if len(point.model.graph.nodes) != 2:
        return None
    (layer,) = (node for node in point.model.graph.nodes if isinstance(node, Linear))
    active = (point.x != 0).sum(axis=0)
    return float(active @ np.count_nonzero(layer.dense_weight, axis=1)) / len(point.x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small layers, few runs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    runs, seconds = (20, 0.05) if given.quick else (1000, 0.5)
    report: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
    }
    for what, points in CURVES.items():
        # Alone, a layer has no k-winners in front that tell the planner of its activity; so the mode is given.
        os.environ["CSENGINE_PLANNER"] = "measure" if what == "threads" else "model"
        # Long calls on threads of a noisy machine need more turns.
        report[what] = time_points(what, points(given.quick), runs, seconds * (4 if what == "threads" else 1))
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "scaling.json").write_text(json_text(report) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
