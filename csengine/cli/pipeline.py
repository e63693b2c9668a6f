"""`csengine fpga plan` and `csengine fpga synth`: what a model's pipeline would be, and what it would take."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, get_args

from csengine.cli import options, output, shipped

if TYPE_CHECKING:
    from csengine.fpga.plan import Plan
    from csengine.fpga.synthesis import Report

_BAR = 40
#: Assumed, not measured: no card and no timing analysis was at hand.
_CLOCKS_MHZ = (200, 250)
_PLAN_EXAMPLES = """\
  csengine fpga plan kws                        the default pipeline: lanes, passes, clocks, the bottleneck
  csengine fpga plan kws --cycles 2400          the smallest that takes at most 2,400 clocks per sample
  csengine fpga plan kws --device ZU3EG         the fastest that this device can hold, by estimate
  csengine fpga plan kws --mode dense --products 506   the fastest dense one with as many products per clock
"""
_SYNTH_EXAMPLES = """\
  csengine fpga synth kws                       resources of every module, and how many pipelines fit a device
"""


def register(steps: options.Commands) -> None:
    """Add both to the steps of `csengine fpga`."""
    parser = options.add_command(steps, "plan", "choose a model's pipeline for a budget", _PLAN_EXAMPLES, plan)
    add_budget(parser)
    text = "count the resources of a model's pipeline with Yosys (minutes)"
    add_budget(options.add_command(steps, "synth", text, _SYNTH_EXAMPLES, synth))


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Add the model and what its plan may be asked for."""
    from csengine.fpga.devices import DEVICES
    from csengine.fpga.plan import Mode

    options.add_model(parser)
    budget = parser.add_mutually_exclusive_group()
    count = options.integer(1, 2**40)
    budget.add_argument("--cycles", type=count, metavar="N", help="clocks that a sample may take")
    budget.add_argument(
        "--device",
        choices=tuple(DEVICES),
        help="a device that must hold the pipeline, by estimate; the fastest such plan",
    )
    budget.add_argument("--products", type=count, metavar="N", help="8-bit products per clock; the fastest such plan")
    parser.add_argument("--mode", choices=get_args(Mode), default="sparse-sparse", help="sparsity used")


def plan(arguments: argparse.Namespace) -> int:
    """Run `fpga plan`."""
    made = planned(arguments)
    print(output.json_text(_record(made)) if arguments.json else _text(made))
    return 0


def synth(arguments: argparse.Namespace) -> int:
    """Run `fpga synth`."""
    from csengine.fpga import synthesis

    made = planned(arguments)
    report = synthesis.synthesize(made)
    if arguments.json:
        record = {"total": asdict(report.total), "modules": {name: asdict(r) for name, r in report.modules.items()}}
        print(output.json_text({**_record(made), "resources": record}))
    else:
        print(_resources(made, report))
    return 0


def planned(arguments: argparse.Namespace) -> Plan:
    """The plan that the arguments ask for."""
    from csengine.fpga import plan as plans
    from csengine.fpga.devices import DEVICES
    from csengine.fpga.estimate import estimate

    graph = shipped.load_model(arguments.model).model.graph
    device = None if arguments.device is None else DEVICES[arguments.device].resources
    fits = None if device is None else lambda made: device.fits(estimate(made)) > 0
    ultra = device is not None and device.uram > 0
    return plans.plan(graph, arguments.cycles, arguments.mode, arguments.products, fits, ultra)


def _record(made: Plan) -> dict[str, object]:
    from csengine.fpga import image, shape
    from csengine.fpga.estimate import estimate

    return {
        "shape": f"{shape.fingerprint(made):016x}",
        "cycles": made.cycles,
        "bottleneck": made.bottleneck,
        "stages": made.stages,
        "products": made.products,
        "multipliers": made.multipliers,
        "weight_bits": made.weight_bits,
        "image_bytes": 8 * image.words(made),
        "estimate": asdict(estimate(made)),
        "layers": [asdict(layer) for layer in made.layers],
    }


def _text(made: Plan) -> str:
    from csengine.fpga.devices import DEVICES
    from csengine.fpga.estimate import estimate

    needs = estimate(made)
    rows = [
        [
            layer.name,
            f"{layer.tap_lanes} x {layer.entry_lanes}",
            str(layer.outputs),
            str(layer.slots),
            str(layer.passes),
            str(layer.interval),
            f"{layer.products:,}",
            output.size(layer.weight_bits / 8),
        ]
        for layer in made.layers
    ]
    header = ["layer", "lanes (taps x entries)", "columns", "S", "passes", "clocks per pass", "products", "weights"]
    speeds = ", ".join(f"{1e6 * mhz / made.cycles:,.0f} at an assumed {mhz} MHz" for mhz in _CLOCKS_MHZ)
    facts = output.facts(
        [
            ("clocks per sample", f"{made.cycles:,}, set by {made.bottleneck}"),
            ("samples per second", speeds),
            ("products per clock", f"{made.products:,}"),
            ("multipliers", f"{made.multipliers:,}, requantization included"),
            ("estimated", f"{needs.lut:,.0f} LUT, {needs.ff:,.0f} FF, {needs.dsp:,} DSP"),
            ("estimated memory", f"{needs.bram:,g} block RAMs, {needs.uram:,g} UltraRAMs"),
            ("fit by estimate", ", ".join(f"{it.resources.fits(needs)} on {it.name}" for it in DEVICES.values())),
        ]
    )
    return "\n\n".join([facts, output.table(header, rows), _drawing(made)])


def _drawing(made: Plan) -> str:
    """The pipeline's stages with their clocks: all work at once, the longest bar sets the pace."""
    widest = max(map(len, made.stages))
    longest = max(made.stages.values())
    lines = [
        f"{name:<{widest}}  {clocks:>9,}  {'#' * max(1, round(_BAR * clocks / longest))}"
        f"{'  <- sets the pace' if name == made.bottleneck else ''}"
        for name, clocks in made.stages.items()
    ]
    return "\n".join(["clocks per sample of every stage", *lines])


def _resources(made: Plan, report: Report) -> str:
    from csengine.fpga.devices import DEVICES

    names = list(asdict(report.total))
    rows = [
        [name, *(f"{getattr(resources, it):,g}" for it in names)]
        for name, resources in [*report.modules.items(), ("together", report.total)]
    ]
    fits = [
        (
            device.name,
            f"{device.resources.fits(report.total)} pipelines by counts, limited by "
            f"{device.resources.scarcest(report.total)} ({device.source})",
        )
        for device in DEVICES.values()
    ]
    parts = [output.table(["module", *names], rows), output.facts(fits), f"{made.cycles:,} clocks per sample"]
    return "\n\n".join(parts)
