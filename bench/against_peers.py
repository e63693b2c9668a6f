"""csengine against what one would pick today, on the same functions, in turns, on the same cores.

    make bench-peers                                          # environments, all suites, report
    .venv/bin/python bench/against_peers.py --only networks   # one suite
    .venv/bin/python bench/against_peers.py --quick           # every case once, briefly: is everything right?

Suites: `networks` (keyword spotting, batches 1 to 256, 1 and 2 threads), `linear` (single layers, by sparsity of
weights and activations), `convolutions` (kernels of ResNet-50 and MobileNetV2: chains of 9 and of 1, whose difference
is what 8 cost inside a network), `imported` (ResNet-50 and MobileNetV2 whole, feed-forward blocks of transformers).
Writes `bench/results/peers-SUITE.json` after every contest. Each peer runs in its own process and environment, takes
turns with the others, and has its output checked before any time is reported.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cases
import numpy as np

from csengine.cli import energy, machine
from csengine.cli.contest import Contest, Entry, Outcome
from csengine.cli.output import Progress, json_text
from csengine.container import Model
from csengine.peers import catalogue
from csengine.resources import default_threads

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 2, 3, 7, 16, 64, 256)
COMPILED_BATCHES = (1, 64)  # compiling for a batch size takes PyTorch most of a minute
DENSITIES = (0.25, 0.1, 0.05, 0.02)
ACTIVITIES = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
TYPICAL = 0.1  # density and activity at which all peers run; where neither matters to them they run only there
CONVOLUTION_DENSITIES = (0.25, 0.1, 0.05)
UNITS = 9
INPUTS = 8
"""Different inputs that every contender gets in turns."""
SPARSE = {"openvino": ("int8-sparse",), "scipy": ("fp32-csr",), "torch": ("fp32-csr",), "deepsparse": ("fp32", "int8")}
FASTEST_DENSE = {"onnxruntime": ("int8",), "openvino": ("int8",)}


@dataclass(frozen=True)
class Case:
    """One contest: what it is about, and who takes part."""

    facts: dict[str, Any]
    threads: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Settings:
    """peers: who may take part. runs, seconds: of one entry."""

    peers: tuple[str, ...]
    runs: int
    seconds: float
    quick: bool
    checkpoints: Path | None


def own(
    function: str, model: Model, x: Any, batch: int = 1, mode: str = "auto", exact: bool = False, **facts: Any
) -> Entry:
    """csengine as contender."""
    return Entry(catalogue.OWN, catalogue.own_variant("auto", mode, exact=exact), function, model, x, batch, facts)


def entries_of(
    settings: Settings,
    function: str,
    model: Model,
    x: Any,
    batch: int = 1,
    only: dict[str, tuple[str, ...]] | None = None,
    without: str = "",
    **facts: Any,
) -> list[Entry]:
    """Every peer in every variant that suits the network, or only in those named; none whose name has `without`."""
    return [
        Entry(peer, variant, function, model, x, batch, facts)
        for peer in settings.peers
        for variant in catalogue.suited(peer, model.graph)
        if (only is None or variant in only.get(peer, ())) and not (without and without in variant)
    ]


# --- the suites ------------------------------------------------------------------------------------------------------


def networks(settings: Settings) -> Iterator[Case]:
    """The four variants of the keyword-spotting network; peers run its ReLU variants and the one with k-winners."""
    variants = ("sparse-sparse-blocked", "sparse-sparse", "sparse-dense", "dense")
    models = {name: cases.keyword_network(name, settings.checkpoints) for name in variants}
    blocked, sparse, dense = (models[name] for name in ("sparse-sparse-blocked", "sparse-dense", "dense"))
    # DeepSparse aborts on small batches of sparse 5×5 convolutions in int8: it also gets them without zeros.
    filled = cases.with_dense_convolutions(sparse)
    for threads in (1,) if settings.quick else range(1, min(2, default_threads()) + 1):
        for batch in (1, 3) if settings.quick else BATCHES:
            x = cases.recordings(batch * INPUTS)
            compiles = threads == 1 and batch in COMPILED_BATCHES and not settings.quick
            without = "" if compiles else "compiled"
            entries = [own(name, model, x, batch) for name, model in models.items()]
            entries.append(own("sparse-sparse-blocked", blocked, x, batch, "dense"))
            for name, model in (("dense", dense), ("sparse-sparse-blocked", blocked)):
                entries += entries_of(settings, name, model, x, batch, without=without)
            only = SPARSE if batch >= 16 else {**SPARSE, "deepsparse": ("fp32",)}  # see `filled`
            entries += entries_of(settings, "sparse-dense", sparse, x, batch, only)
            only = {"deepsparse": ("int8",)}
            entries += entries_of(settings, "sparse-dense, convolutions dense", filled, x, batch, only)
            yield Case({"batch": batch}, threads, tuple(entries))


def linear(settings: Settings) -> Iterator[Case]:
    """Single linear layers, one vector: csengine in three block shapes and every mode, peers at one activity.

    The planner knows activity from the k-winners in front of a layer, which are missing here: the mode is given.
    """
    for rows, kernels in cases.LINEARS[:1] if settings.quick else cases.LINEARS:
        for density in (0.1,) if settings.quick else DENSITIES:
            yield Case(
                {"inputs": rows, "outputs": kernels, "density": density},
                1,
                tuple(_linear_entries(settings, rows, kernels, density)),
            )


def _linear_entries(settings: Settings, rows: int, kernels: int, density: float) -> list[Entry]:
    rng = np.random.default_rng(1)
    inputs = {share: cases.active_input(rng, (INPUTS, rows), share) for share in ACTIVITIES}
    entries = []
    for block in cases.BLOCKS:
        model = cases.linear_layer(rows, kernels, density, block)
        name = f"{block[0]}×{block[1]} blocks"
        own_facts = {"exact": True, "block": block}
        for share, x in inputs.items():
            entries.append(own(name, model, x, mode="sparse-sparse", **own_facts, activity=share))
        for mode in ("sparse-dense", "dense"):
            entries.append(own(name, model, inputs[TYPICAL], mode=mode, **own_facts, activity=TYPICAL))
        if block == (1, 1):
            only = None if density == TYPICAL else {**SPARSE, "onnxruntime": ("int8", "int8-integer")}
            x = inputs[TYPICAL]
            entries += entries_of(settings, name, model, x, only=only, without="compiled", activity=TYPICAL)
    return entries


def convolutions(settings: Settings) -> Iterator[Case]:
    """Chains of convolutions with ReLU or with k-winners (a tenth); peers run the ReLU chain."""
    chosen = cases.CONVOLUTIONS[:1] if settings.quick else cases.CONVOLUTIONS
    for convolution in chosen:
        for density in (0.1,) if settings.quick else CONVOLUTION_DENSITIES:
            facts = {**asdict(convolution), "density": density, "macs": convolution.macs, "units": UNITS}
            yield Case(facts, 1, tuple(_convolution_entries(settings, convolution, density)))


def _convolution_entries(settings: Settings, convolution: cases.Convolution, density: float) -> list[Entry]:
    shape = (INPUTS, convolution.size, convolution.size, convolution.channels[0])
    rng = np.random.default_rng(1)
    half, tenth = (cases.active_input(rng, shape, share) for share in (0.5, 0.1))
    entries = []
    for units in (1, UNITS):
        plain = convolution.chain(units, density, (4, 8), None)
        entries.append(own("ReLU", plain, half, units=units, block=(4, 8)))
        entries.append(own("ReLU", plain, half, mode="dense", units=units))
        if not convolution.depthwise:
            paper = convolution.chain(units, density, (1, 1), None)
            entries.append(own("ReLU, 1×1 blocks", paper, half, units=units, block=(1, 1)))
        if convolution.kernel > 1 and all(channels % 64 == 0 for channels in convolution.channels):
            tiles = convolution.chain(units, density, (64, 16), None)  # all channels of a place, or none
            entries.append(own("ReLU, 64×16 blocks", tiles, half, units=units, block=(64, 16)))
        winners = convolution.chain(units, density, (4, 8), 0.1)
        entries.append(own("k-winners", winners, tenth, units=units))
        only = None if density == TYPICAL else {**SPARSE, **FASTEST_DENSE, "openvino": ("int8", "int8-sparse")}
        entries += entries_of(settings, "ReLU", plain, half, only=only, without="compiled", units=units)
    return entries


def imported(settings: Settings) -> Iterator[Case]:
    """Whole networks of others, pruned and int8, and transformers' feed-forward blocks.

    Every peer gets the same pruned network, and at the typical sparsity the dense one as well.
    """
    for name, density in itertools.product(cases.IMPORTED, (0.1,) if settings.quick else (0.25, 0.1, 0.05)):
        models = {block: cases.imported_network(name, 1 - density, block) for block in cases.IMPORTED[name]}
        for batch in (1, 16) if density == TYPICAL and not settings.quick else (1,):
            x = cases.images(batch * 2).transpose(0, 3, 1, 2)
            pruned = models[cases.IMPORTED[name][0]]
            entries = []
            for block, model in models.items():
                facts = {"block": block, "plan": cases.plan_of(model)}
                entries.append(own("pruned", model, x, batch, **facts))
            entries.append(own("pruned", pruned, x, batch, "dense"))
            only = {**SPARSE, **FASTEST_DENSE, "openvino": ("int8", "int8-sparse")}
            entries += entries_of(settings, "pruned", pruned, x, batch, only)
            if density == TYPICAL and batch == 1 and not settings.quick:
                everything = {"onnxruntime": ("fp32",), "openvino": ("fp32", "bf16"), "torch": ("fp32", "bf16")}
                entries += entries_of(settings, "pruned", pruned, x, batch, everything)
            yield Case({"name": name, "density": density, "batch": batch}, 1, tuple(entries))
    yield from _feed_forward(settings)


def _feed_forward(settings: Settings) -> Iterator[Case]:
    """One position: a tenth of the weights; k-winners before both layers, between them only, or ReLU between them."""
    for inputs, hidden in cases.FEED_FORWARD[:1] if settings.quick else cases.FEED_FORWARD:
        rng = np.random.default_rng(1)
        x, chosen = (cases.active_input(rng, (INPUTS, inputs), share) for share in (1.0, TYPICAL))
        entries = []
        for block in cases.BLOCKS:
            winners = cases.feed_forward(inputs, hidden, TYPICAL, TYPICAL, block)
            relu = cases.feed_forward(inputs, hidden, TYPICAL, None, block)
            both = cases.feed_forward(inputs, hidden, TYPICAL, TYPICAL, block, before=TYPICAL)
            entries += [
                own(cases.BEFORE_BOTH, both, chosen, block=block),
                own("k-winners between", winners, x, block=block),
            ]
            entries.append(own("ReLU", relu, x, block=block))
            if block == cases.BLOCKS[0]:
                entries += entries_of(settings, "ReLU", relu, x, without="compiled")
        facts = {"name": f"{inputs}→{hidden}→{inputs}", "density": TYPICAL, "batch": 1}
        yield Case(facts, 1, tuple(entries))


SUITES: dict[str, Callable[[Settings], Iterator[Case]]] = {
    "networks": networks,
    "linear": linear,
    "convolutions": convolutions,
    "imported": imported,
}

# --- running them ----------------------------------------------------------------------------------------------------


def run(suite: str, settings: Settings, output: Path) -> dict[str, Any]:
    """All contests of a suite, recorded after each. The workers of one number of threads live through all of them."""
    started = time.monotonic()
    report: dict[str, Any] = {
        "suite": suite,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "quick": settings.quick,
        "machine": machine.describe(),
        "energy": energy.describe(),
        "contests": [],
    }
    versions: dict[str, dict[str, str]] = {}
    output.mkdir(parents=True, exist_ok=True)
    for threads, group in itertools.groupby(SUITES[suite](settings), lambda case: case.threads):
        with Contest(threads) as contest:
            for case in group:
                report["contests"].append(_hold(contest, case, settings))
                versions |= contest.versions
                report |= {"peers": catalogue.describe(versions), "seconds": round(time.monotonic() - started, 1)}
                (output / f"peers-{suite}.json").write_text(json_text(report) + "\n", encoding="utf-8")
    return report


def _hold(contest: Contest, case: Case, settings: Settings) -> dict[str, Any]:
    shown = ", ".join(f"{name} {value}" for name, value in list(case.facts.items())[:3])
    with Progress(shown, len(case.entries) + 20) as progress:
        outcomes = contest.hold(case.entries, settings.runs, settings.seconds, progress)
    rows = [_row(outcome) for outcome in outcomes]
    best = min((row for row in rows if not row["failure"]), key=lambda row: row["median_seconds"], default=None)
    failed = [f"{row['peer']} {row['variant']} ({row['function']}): {row['failure']}" for row in rows if row["failure"]]
    print(f"{shown}, threads {case.threads}: {len(rows)} contenders", *failed, sep="\n    ", flush=True)
    if best:
        name = f"{best['peer']} {best['variant']} ({best['function']})"
        print(f"    fastest: {name}, {best['median_seconds'] * 1e6:.1f} µs")
    return {**case.facts, "threads": case.threads, "cpus": contest.cpus, "rows": rows}


def _row(outcome: Outcome) -> dict[str, Any]:
    entry, timing = outcome.entry, outcome.timing
    row = {
        "peer": entry.peer,
        "variant": entry.variant,
        "function": entry.function,
        **entry.facts,
        "relative_error": outcome.error,
        "failure": outcome.failure,
        "tier": outcome.tier,
    }
    if timing is None:
        return row
    percentiles = {"median_seconds": timing.median, "p10_seconds": timing.p10, "p90_seconds": timing.p90}
    return {**row, "runs": timing.runs, **percentiles, "joules": outcome.joules}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SUITES, action="append", help="a suite (default: all)")
    parser.add_argument("--peers", help="names (default: all whose environments exist)")
    parser.add_argument("--quick", action="store_true", help="few cases, few runs: checks the outputs")
    parser.add_argument("--runs", type=int, default=300, help="of one contender (default: 300)")
    parser.add_argument("--seconds", type=float, default=0.3, help="that one contender may take (default: 0.3)")
    parser.add_argument("--checkpoints", type=Path, default=cases.ROOT / "runs", help="trained variants, if there")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    peers = catalogue.installed() if given.peers is None else tuple(given.peers.replace(",", " ").split())
    for peer in peers:
        catalogue.interpreter(peer)
    runs, seconds = (5, 0.05) if given.quick else (given.runs, given.seconds)
    settings = Settings(peers, runs, seconds, given.quick, given.checkpoints)
    for suite in given.only or SUITES:
        report = run(suite, settings, given.output)
        print(f"{suite}: {report['seconds']} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
