"""`csengine fpga`: from a packed model to an FPGA."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from csengine.cli import options, output, pipeline, shipped

_MAX_UNITS = 64
_TARGETS = ("emulation", "hw")
_BUILD_EXAMPLES = """\
  csengine fpga build kws                            the emulated device, kept for every model of this shape
  csengine fpga build kws -o kws.xclbin --units 2    the same with two compute units, as a file
  csengine fpga build kws --device ZU3EG -o small.xclbin   a pipeline that fits this device
  csengine fpga build kws --target hw -o project     a project for AMD's Vitis, which makes a card's xclbin

A build is for a shape: layers, sizes, packing. Parameters are loaded at run time.
"""


def register(commands: options.Commands) -> None:
    """Add the subcommand and its own subcommands."""
    text = "plan, build and run a model's hardware"
    parser = commands.add_parser("fpga", help=text, description=f"{text[0].upper()}{text[1:]}.")
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP", title="steps")
    pipeline.register(steps)
    _register_build(steps)


def _register_build(steps: options.Commands) -> None:
    text = "build an emulated device, or write the Vitis project of a card's xclbin"
    parser = options.add_command(steps, "build", text, _BUILD_EXAMPLES, build)
    pipeline.add_budget(parser)
    parser.add_argument("--target", choices=_TARGETS, default="emulation", help="what to build (default: emulation)")
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="file of the xclbin (emulation), directory of the project"
    )
    units = options.integer(1, _MAX_UNITS)
    parser.add_argument("--units", type=units, default=1, metavar="N", help="compute units (default: 1)")


def build(arguments: argparse.Namespace) -> int:
    """Run `fpga build`."""
    from csengine.backends.fpga import pipeline_for
    from csengine.fpga import build as builds

    packed = shipped.load_model(arguments.model)
    if arguments.target == "hw" and arguments.output is None:
        raise ValueError("--target hw writes a project; give its new directory with -o")
    hardware = pipeline_for(packed.model.graph, pipeline.planned(arguments)).hardware
    if arguments.target == "hw":
        made = Path(arguments.output)
        builds.write_project(hardware, made, arguments.units)
    else:
        made = builds.emulated(hardware, arguments.units)
        if arguments.output is not None:
            made = Path(shutil.copy(made, arguments.output))
    report = {
        "model": packed.name,
        "target": arguments.target,
        "shape": f"{hardware.fingerprint:016x}",
        "units": arguments.units,
        "made": str(made),
    }
    print(
        output.json_text(report) if arguments.json else output.facts([(name, str(it)) for name, it in report.items()])
    )
    return 0
