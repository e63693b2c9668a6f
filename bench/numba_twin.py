"""The Numba backend beside the C++ one, on the same networks; how long it takes to compile, and to load from its cache.

    .venv/bin/python bench/numba_twin.py     # a minute; writes bench/results/numba.json

Contenders take turns in one process, pinned, on changing inputs; every output is checked against the reference. C++
runs twice: with all that the processor can, and on the best tier that Numba's compiler makes use of.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cases
import scaling

from csengine import Engine
from csengine.cli import machine, measure
from csengine.cli.contest import cpus_for
from csengine.cli.output import Progress, json_text

RESULTS = Path(__file__).parent / "results"
NETWORKS = ("sparse-sparse-blocked", "sparse-sparse")
MODES = ("auto", "dense")
BATCHES = (1, 64)
INPUTS = 8
"""Different batches that take turns."""
COMPARABLE = ("avx512", "avx2", "scalar")
"""Instruction sets that Numba's compiler makes use of, the best first."""


def contenders() -> list[tuple[str, str, str | None]]:
    """Names, backends, and the instruction set they are confined to."""
    tier = next(tier for tier in COMPARABLE if machine.tiers()[tier])
    return [("cpp", "cpp", None), (f"cpp {tier}", "cpp", tier), ("numba", "numba", None)]


def compare(network: str, mode: str, batch: int, runs: int) -> dict[str, Any]:
    """Median seconds of a call per contender."""
    model = cases.keyword_network(network, None)
    x = cases.recordings(batch * INPUTS)
    expected = measure.reference_engine(model).run(x[:batch])
    names, calls = [], []
    for name, backend, tier in contenders():
        os.environ.pop("CSENGINE_ISA", None)
        if tier:
            os.environ["CSENGINE_ISA"] = tier
        engine = Engine(model, backend=backend, threads=1, mode=mode)  # type: ignore[arg-type]
        measure.require_agreement(engine, f"{network} {name}", engine.run(x[:batch]), expected)
        names.append(name)
        calls.append(scaling.rotating(engine, x, batch))
    with Progress(f"{network} {mode} {batch}", measure.ROUNDS) as progress:
        timings = measure.interleave(calls, runs, 2.0, progress)
    seconds = {name: timing.median for name, timing in zip(names, timings, strict=True)}
    return {"network": network, "mode": mode, "batch": batch, "median_seconds": seconds}


def first_result(network: str, cache: str) -> float:
    """Seconds that a new process takes to load a model and run it once, its imports not counted."""
    code = (
        "import time; from csengine import Engine; import csengine.backends.numba, cases\n"
        f"model, x = cases.keyword_network({network!r}, None), cases.recordings(1)\n"
        "start = time.perf_counter(); Engine(model, backend='numba', threads=1).run(x)\n"
        "print(time.perf_counter() - start)"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=600
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few runs, one network")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    networks, runs = (NETWORKS[:1], 20) if given.quick else (NETWORKS, 1000)
    start = {}
    with tempfile.TemporaryDirectory() as cache:
        for what in ("compiling", "cached"):
            start[what] = first_result(networks[0], cache)
    with measure.pinned(cpus_for(1)):
        rows = [compare(*case, runs) for case in itertools.product(networks, MODES, BATCHES)]
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "seconds_to_first_result": start,
        "rows": rows,
    }
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "numba.json").write_text(json_text(report) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
