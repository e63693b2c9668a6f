"""`csengine demo`: the shipped network hears the shipped recordings, and races itself in three modes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csengine.backends import MODES, Mode
from csengine.cli import machine, measure, options, output, shipped
from csengine.cli.samples import read_recording, top_answers
from csengine.cli.weights import Totals, describe_weights, total
from csengine.engine import Engine

_EXAMPLES = """\
  csengine demo                     recognise the shipped recordings, then time the network
  csengine demo --model kws_paper   the same with the paper's exact packing
  csengine demo --backend numba     with another backend
  csengine demo --json > demo.json
"""
_MODES: tuple[Mode, ...] = MODES[1:]
_SECONDS = 5.0


@dataclass(frozen=True)
class Heard:
    """What the network made of one recording."""

    file: str
    heard: str
    confidence: float | None
    label: str
    truth: str
    is_right: bool


def register(commands: options.Commands) -> None:
    """Add the subcommand."""
    text = "recognise spoken words in the shipped recordings, then time dense against sparse"
    parser = options.add_command(commands, "demo", text, _EXAMPLES, execute)
    parser.add_argument("--model", default="kws", metavar="NAME", help="which shipped model (default: kws)")
    options.add_backend(parser)
    runs = options.integer(1, 10**6)
    parser.add_argument("--runs", type=runs, default=500, metavar="N", help="timed runs per mode (default: 500)")


def execute(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    packed = shipped.demo_model(arguments.model)
    recordings = shipped.recordings()
    with output.Progress("compiling", len(_MODES)) as progress:
        engines = _compile(packed, arguments.backend, progress)
    engine = engines["sparse-sparse"]
    shape = engine.input_shape
    inputs = np.concatenate([_read(recording, packed, shape) for recording in recordings])
    outputs = _check(engines, inputs)
    heard = [_hear(engine, *pair) for pair in zip(recordings, outputs, strict=True)]
    with output.Progress("timing", measure.ROUNDS) as progress:
        calls = [partial(engines[mode].run, inputs[:1]) for mode in _MODES]
        timings = measure.interleave(calls, arguments.runs, _SECONDS, progress)
    rows = [_timing_row(engines[m], m, t, timings[0], inputs[:1]) for m, t in zip(_MODES, timings, strict=True)]
    report = {
        "model": packed.name,
        "machine": machine.describe(),
        "backend": engine.backend,
        "tier": measure.tiers_used(engine),
        "recordings": heard,
        "right": sum(item.is_right for item in heard),
        "timing": {"batch": 1, "threads": 1, "outputs_identical": True, "modes": rows},
        "bytes": {"packed_file": packed.bytes, **_sizes(packed)},
    }
    print(output.json_text(report) if arguments.json else _text(report, packed))
    return 0


def _compile(packed: shipped.Packed, backend: Any, progress: output.Progress) -> dict[str, Engine]:
    """One engine per mode, on one thread."""
    engines: dict[str, Engine] = {}
    for mode in _MODES:
        engines[mode] = Engine(packed.model, backend=backend, threads=1, mode=mode)
        progress.step()
    return engines


def _read(recording: shipped.Recording, packed: shipped.Packed, shape: tuple[int, ...]) -> NDArray[Any]:
    with as_file(recording.file) as path:
        return read_recording(path, packed.model, shape)


def _check(engines: dict[str, Engine], inputs: NDArray[Any]) -> NDArray[Any]:
    """The outputs, after every mode gave what the reference gives."""
    engine = engines["sparse-sparse"]
    expected = measure.reference_engine(engine.model).run(inputs)
    for mode, contender in engines.items():
        measure.require_agreement(contender, mode, contender.run(inputs), expected)
    return engine.run(inputs)


def _hear(engine: Engine, recording: shipped.Recording, y: NDArray[Any]) -> Heard:
    (best,) = top_answers(engine, y, 1)
    is_right = best.label == recording.label
    return Heard(recording.file.name, best.label, best.confidence, recording.label, recording.truth, is_right)


def _timing_row(
    engine: Engine, mode: str, timing: measure.Timing, dense: measure.Timing, x: NDArray[Any]
) -> dict[str, Any]:
    _, done = measure.macs(engine, x)
    return {
        "mode": mode,
        "median_seconds": timing.median,
        "p10_seconds": timing.p10,
        "p90_seconds": timing.p90,
        "runs": timing.runs,
        "speedup_over_dense": dense.median / timing.median,
        "macs_done": done,
    }


def _totals(packed: shipped.Packed) -> Totals:
    graph = packed.model.graph
    return total(graph, describe_weights(graph))


def _sizes(packed: shipped.Packed) -> dict[str, int]:
    totals = _totals(packed)
    return {"weights_packed": totals.bytes, "weights_int8": totals.bytes_dense, "weights_float32": totals.bytes_float32}


# --- text ------------------------------------------------------------------------------------------------------------


def _text(report: dict[str, Any], packed: shipped.Packed) -> str:
    totals = _totals(packed)
    zeros = (
        f"{totals.nonzeros:,} of {totals.nonzeros / totals.density:,.0f} weights are not zero ({totals.density:.1%})"
    )
    head = [
        ("model", f"{packed.name}: {zeros}"),
        ("machine", machine.summary(report["machine"])),
        ("engine", f"backend {report['backend']}, kernels {report['tier']}"),
    ]
    return "\n\n".join(
        [
            output.facts(head),
            _heard_text(report["recordings"]),
            _timing_text(report["timing"]["modes"]),
            _size_text(report),
        ]
    )


def _heard_text(heard: Sequence[Heard]) -> str:
    rows = [
        (
            item.file,
            item.heard,
            "" if item.confidence is None else f"{item.confidence:.1%}",
            item.truth,
            "✓" if item.is_right else "✗ wrong",
        )
        for item in heard
    ]
    right = sum(item.is_right for item in heard)
    table = output.table(("recording", "heard", ">confidence", "said", ""), rows)
    return f"{table}\n\n{right} of {len(heard)} right"


def _timing_text(modes: Sequence[dict[str, Any]]) -> str:
    rows = []
    for row in modes:
        times = [output.microseconds(row[f"{name}_seconds"]) for name in ("median", "p10", "p90")]
        rows.append((row["mode"], *times, f"{row['speedup_over_dense']:.2f}x", f"{row['macs_done']:,}"))
    header = ("mode", ">median µs", ">p10", ">p90", ">speedup", ">multiply-accumulates")
    return (
        "One word at a time on one thread: the same packed network in our own engine, using no sparsity,\n"
        "that of the weights, and that of the activations, too; each layer takes the fastest kernel allowed\n\n"
        f"{output.table(header, rows)}\n\n"
        f"The outputs of every mode equal the reference's. At least {min(row['runs'] for row in modes)} runs each, "
        "taken in turns."
    )


def _size_text(report: dict[str, Any]) -> str:
    count = report["bytes"]
    rows = [
        (name, output.size(count[key]), f"{count[key] / count['packed_file']:.1f}x")
        for name, key in (
            ("packed file, all included", "packed_file"),
            ("weights, dense int8", "weights_int8"),
            ("weights, dense float32", "weights_float32"),
        )
    ]
    return output.table(("size", ">bytes", ">relative"), rows)
