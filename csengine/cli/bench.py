"""`csengine bench`: modes, backends, batch sizes and threads against each other."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from csengine.backends import MODES
from csengine.cli import against, machine, measure, options, output, shipped
from csengine.cli.samples import samples_for
from csengine.engine import Engine
from csengine.peers import catalogue

_EXAMPLES = """\
  csengine bench kws                                        every mode, batch 1, one thread
  csengine bench kws -b 1,8,64 -t 1,2 --backend cpp,numba   a grid
  csengine bench kws --mode dense,sparse-sparse --format md   a Markdown table
  csengine bench kws --cpus 0 --runs 2000                   pinned, with more runs
  csengine bench model.safetensors --input x.npy --json
  csengine bench kws --mode auto --against onnxruntime,openvino   other runtimes on the same network

Contenders of one batch size take turns in one process, warmed up; each output is checked against the reference before
any time is reported. With --against every contender, csengine too, has a process of its own, pinned to the same
processors, and only one runs at a time. Random input is spread over the input's whole range; what is active after a
ReLU depends on it (after k-winners it does not), so give real input with --input where that matters.
"""
_FORMATS = ("text", "md", "csv", "json")


@dataclass(frozen=True)
class Row:
    """What was measured of one contender. Seconds per call of `run`; rates count the whole batch."""

    batch: int
    backend: str
    mode: str
    threads: int
    tier: str
    runs: int
    median_seconds: float
    p10_seconds: float
    p90_seconds: float
    samples_per_second: float
    speedup_over_first: float
    macs_dense: int
    macs_done: int
    effective_macs_per_second: float
    real_macs_per_second: float


def register(commands: options.Commands) -> None:
    """Add the subcommand."""
    parser = options.add_command(commands, "bench", "time a model over a grid of settings", _EXAMPLES, execute)
    options.add_model(parser)
    batches, threads = options.integers(1, options.MAX_BATCH), options.integers(1, options.MAX_THREADS)
    parser.add_argument("-b", "--batch", type=batches, default=(1,), metavar="N,...", help="batch sizes (default: 1)")
    parser.add_argument("-t", "--threads", type=threads, default=(1,), metavar="N,...", help="threads (default: 1)")
    backends = options.names(options.ALL_BACKENDS)
    parser.add_argument("--backend", type=backends, default=("auto",), metavar="B,...", help="backends (default: auto)")
    modes = MODES[1:]
    help = f"modes (default: {','.join(modes)})"
    parser.add_argument("--mode", type=options.names(MODES), default=modes, metavar="M,...", help=help)
    peers = options.names(tuple(catalogue.PEERS))
    help = f"other runtimes ({', '.join(catalogue.PEERS)}), installed by `make peers`"
    parser.add_argument("--against", type=peers, metavar="P,...", help=help)
    parser.add_argument("--input", metavar="FILE", help="samples to run on, repeated to the batch (default: random)")
    options.add_array(parser)
    options.add_seed(parser)
    _add_measuring(parser)


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    runs, seconds = options.integer(1, 10**6), options.positive_seconds
    parser.add_argument("--runs", type=runs, default=500, metavar="N", help="timed runs of a contender (default: 500)")
    help = "a contender that needs longer makes fewer runs, at least 5 (default: 5)"
    parser.add_argument("--seconds", type=seconds, default=5.0, metavar="S", help=help)
    cpus = options.integers(0, 4095)
    help = "pin to these logical processors (default: do not pin; with --against as many as threads)"
    parser.add_argument("--cpus", type=cpus, metavar="N,...", help=help)
    parser.add_argument("--format", choices=_FORMATS, default="text", help="default: text")
    parser.add_argument("-o", "--output", metavar="OUT", help="write to a file instead")


def execute(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    packed = shipped.load_model(arguments.model)
    with measure.pinned(arguments.cpus):
        report = {
            "model": packed.name,
            "input": arguments.input or f"random, seed {arguments.seed}",
            "machine": machine.describe(),
            "pinned_cpus": arguments.cpus,
            "outputs_checked": True,
        }
        if arguments.against:
            report["rows"], report["peers"] = against.compare(packed.model, arguments)
        else:
            engines = _compile(packed, arguments)
            report["rows"] = [row for batch in arguments.batch for row in _measure(engines, batch, arguments)]
    text = _FORMATTERS["json" if arguments.json else arguments.format](report)
    if arguments.output:
        Path(arguments.output).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    return 0


def _compile(packed: shipped.Packed, arguments: argparse.Namespace) -> list[Engine]:
    """One engine per contender; a backend that is not here is an error."""
    grid = list(itertools.product(arguments.backend, arguments.threads, arguments.mode))
    engines = []
    with output.Progress("compiling", len(grid)) as progress:
        for backend, threads, mode in grid:
            engines.append(Engine(packed.model, backend=backend, threads=threads, mode=mode))
            progress.step(f"{backend} {mode}")
    return engines


def _measure(engines: Sequence[Engine], batch: int, arguments: argparse.Namespace) -> list[Row]:
    """Check, then time all contenders on one batch."""
    x = samples_for(engines[0], batch, arguments.seed, arguments.input, arguments.array)
    with output.Progress(f"batch {batch}", len(engines) + measure.ROUNDS) as progress:
        expected = measure.reference_engine(engines[0].model).run(x)
        for engine in engines:
            measure.require_agreement(engine, f"{engine.backend} {engine.mode}", engine.run(x), expected)
            progress.step(f"checked {engine.backend} {engine.mode}")
        calls = [partial(engine.run, x) for engine in engines]
        timings = measure.interleave(calls, arguments.runs, arguments.seconds, progress)
    return [_row(engine, x, timing, timings[0]) for engine, timing in zip(engines, timings, strict=True)]


def _row(engine: Engine, x: NDArray[Any], timing: measure.Timing, first: measure.Timing) -> Row:
    dense, done = measure.macs(engine, x)
    return Row(
        batch=len(x),
        backend=engine.backend,
        mode=engine.mode,
        threads=engine.threads,
        tier=measure.tiers_used(engine),
        runs=timing.runs,
        median_seconds=timing.median,
        p10_seconds=timing.p10,
        p90_seconds=timing.p90,
        samples_per_second=len(x) / timing.median,
        speedup_over_first=first.median / timing.median,
        macs_dense=dense,
        macs_done=done,
        effective_macs_per_second=dense / timing.median,
        real_macs_per_second=done / timing.median,
    )


# --- output ----------------------------------------------------------------------------------------------------------

_HEADER: tuple[str, ...] = (">batch", "backend", "mode", ">threads", "tier", ">runs", ">median µs", ">p10", ">p90")
_HEADER += (">samples/s", ">vs first", ">effective GMAC/s", ">real GMAC/s")


def _cells(row: Row) -> tuple[str, ...]:
    times = (row.median_seconds, row.p10_seconds, row.p90_seconds)
    return (
        *(str(row.batch), row.backend, row.mode, str(row.threads), row.tier, str(row.runs)),
        *map(output.microseconds, times),
        *(f"{row.samples_per_second:,.0f}", f"{row.speedup_over_first:.2f}x"),
        *(output.giga(row.effective_macs_per_second), output.giga(row.real_macs_per_second)),
    )


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    found, peers = report["machine"], report.get("peers", [])
    pinned = ", ".join(map(str, report["pinned_cpus"] or ()))
    place = f"pinned to {pinned}" if pinned else "pinned, a processor for each thread" if peers else "not pinned"
    versions = found["versions"] | {name: number for peer in peers for name, number in peer["versions"].items()}
    checked = "is as near the reference's as its precision allows" if peers else "equals the reference's"
    return [
        ("model", f"{report['model']}; input {report['input']}"),
        ("machine", f"{machine.summary(found)}; {place}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in versions.items())),
        ("method", f"contenders took turns, warmed up; every output {checked}"),
        *(("note", peer["note"]) for peer in peers if peer["note"]),
    ]


def _table(report: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and cells."""
    if "peers" in report:
        return against.HEADER, [against.cells(row) for row in report["rows"]]
    return _HEADER, [_cells(row) for row in report["rows"]]


def _text(report: dict[str, Any]) -> str:
    return output.facts(_facts(report)) + "\n\n" + output.table(*_table(report))


def _markdown(report: dict[str, Any]) -> str:
    head = "\n".join(f"- {name}: {output.printable(text)}" for name, text in _facts(report))
    return head + "\n\n" + output.markdown(*_table(report))


def _csv(report: dict[str, Any]) -> str:
    found = report["machine"]
    common = {"model": report["model"], "input": report["input"], "cpu": found["cpu"]}
    common |= {f"{name}_version": number for name, number in found["versions"].items()}
    return output.csv_text([{**asdict(row), **common} for row in report["rows"]])


_FORMATTERS = {"text": _text, "md": _markdown, "csv": _csv, "json": output.json_text}
