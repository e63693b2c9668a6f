"""`csengine profile`: where the time goes, layer by layer."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from csengine.cli import machine, measure, options, output, shipped
from csengine.cli.samples import samples_for
from csengine.engine import Engine, LayerProfile, Profile

_EXAMPLES = """\
  csengine profile kws                            one random sample
  csengine profile kws hello.wav --trace t.json   a trace for ui.perfetto.dev
  csengine profile model.safetensors x.npy -b 8 --mode dense
"""


def register(commands: options.Commands) -> None:
    """Add the subcommand."""
    parser = options.add_command(commands, "profile", "time every layer of a model, on one thread", _EXAMPLES, execute)
    options.add_model(parser)
    parser.add_argument("input", metavar="INPUT", nargs="?", help=".npy, .npz or .wav (default: random)")
    batch = options.integer(1, options.MAX_BATCH)
    parser.add_argument("-b", "--batch", type=batch, metavar="N", help="batch size (default: all of INPUT, or 1)")
    passes = options.integer(1, 10**6)
    parser.add_argument(
        "--passes", type=passes, default=200, metavar="N", help="passes to take medians of (default: 200)"
    )
    parser.add_argument("--trace", metavar="OUT", help="write a Perfetto trace (JSON)")
    options.add_array(parser)
    options.add_seed(parser)
    options.add_backend(parser)
    options.add_fpga(parser)
    options.add_mode(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    packed = shipped.load_model(arguments.model)
    engine = Engine(packed.model, backend=arguments.backend, threads=1, mode=arguments.mode, **options.fpga(arguments))
    x = samples_for(engine, arguments.batch, arguments.seed, arguments.input, arguments.array)
    with output.Progress("profiling", 1 + measure.ROUNDS) as progress:
        profile = engine.profile(x, arguments.passes)
        progress.step()
        (whole,) = measure.interleave([partial(engine.run, x)], arguments.passes, 5.0, progress)
    if arguments.trace:
        profile.save_trace(arguments.trace)
    report = {
        "model": packed.name,
        "machine": machine.describe(),
        "backend": engine.backend,
        "mode": engine.mode,
        "batch": profile.batch,
        "seconds": profile.seconds,
        "run_seconds": whole.median,
        "layers": [_layer(layer) for layer in profile.layers],
    }
    print(output.json_text(report) if arguments.json else _text(report, profile))
    if arguments.trace and not arguments.json:
        print(f"\nwrote {arguments.trace}; open it in ui.perfetto.dev")
    return 0


def _layer(layer: LayerProfile) -> dict[str, Any]:
    return {
        "name": layer.name,
        "mode": layer.mode,
        "kernel": layer.kernel,
        "tier": layer.tier,
        "seconds": layer.seconds,
        "macs_dense": layer.macs_dense,
        "macs_done": layer.macs_done,
        "cycles": layer.cycles,
        "effective_macs_per_second": layer.effective_rate,
        "real_macs_per_second": layer.real_rate,
    }


_HEADER: tuple[str, ...] = ("step", "mode", "kernel", "tier", ">µs", ">share", ">MACs dense", ">MACs done")
_HEADER += (">effective GMAC/s", ">real GMAC/s")


def _text(report: dict[str, Any], profile: Profile) -> str:
    head = [
        (
            "model",
            f"{report['model']}; backend {report['backend']}, mode {report['mode']}, batch {profile.batch}, one thread",
        ),
        ("machine", machine.summary(report["machine"])),
    ]
    rows = [_cells(layer, profile.seconds) for layer in profile.layers]
    rows.append(("together", "", "", "", output.microseconds(profile.seconds), "", "", "", "", ""))
    median = output.microseconds(report["run_seconds"])
    whole = f"one call of run takes {median} µs (median, without the clock between steps)"
    clocks = [
        f"; {layer.name}: {layer.cycles:,.1f} clock cycles per sample" for layer in profile.layers if layer.cycles
    ]
    return f"{output.facts(head)}\n\n{output.table(_HEADER, rows)}\n\n{whole}{''.join(clocks)}"


def _cells(layer: LayerProfile, together: float) -> tuple[str, ...]:
    share = f"{layer.seconds / together:.1%}" if together else ""
    plain = (layer.name, layer.mode, layer.kernel, layer.tier, output.microseconds(layer.seconds), share)
    if not layer.macs_dense:
        return (*plain, "", "", "", "")
    rates = output.giga(layer.effective_rate), output.giga(layer.real_rate)
    return (*plain, f"{layer.macs_dense:,}", f"{layer.macs_done:,}", *rates)
