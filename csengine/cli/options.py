"""The arguments that several subcommands share, and how their values are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from csengine.backends import MODES
from csengine.cli.shipped import model_names
from csengine.engine import BACKENDS

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

MAX_BATCH = 2**20
MAX_THREADS = 1024
ALL_BACKENDS = ("auto", *BACKENDS)


def add_command(
    commands: Commands, name: str, help: str, examples: str, execute: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """A subcommand with examples in its help, and --json."""
    parser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(execute=execute)
    return parser


def add_model(parser: argparse.ArgumentParser, name: str = "model", **more: Any) -> None:
    """A packed model, by path or shipped name."""
    help = f"a packed file, or the name of a shipped model ({', '.join(model_names()) or 'none is installed'})"
    parser.add_argument(name, metavar=name.upper(), help=help, **more)


def add_backend(parser: argparse.ArgumentParser) -> None:
    """--backend with one value."""
    parser.add_argument("--backend", choices=ALL_BACKENDS, default="auto", help="what computes (default: auto)")


def add_fpga(parser: argparse.ArgumentParser) -> None:
    """--emulate, --xclbin and --device of the backend fpga."""
    group = parser.add_argument_group("with --backend fpga")
    help = "run the hardware's RTL here, behind XRT; the first time for a shape, build it (a minute or two)"
    group.add_argument("--emulate", action="store_true", default=None, help=help)
    group.add_argument("--xclbin", metavar="FILE", help="the hardware, built for the model's shape")
    group.add_argument("--device", metavar="N|BDF[,…]", help="cards by index or address (default: all)")


def fpga(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_fpga` was given, as arguments of `Engine`."""
    return {"emulate": arguments.emulate, "xclbin": arguments.xclbin, "device": arguments.device}


def add_mode(parser: argparse.ArgumentParser) -> None:
    """--mode with one value."""
    parser.add_argument("--mode", choices=MODES, default="auto", help="sparsity that may be used (default: auto, both)")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """--threads with one value."""
    help = "threads (default: CSENGINE_NUM_THREADS, else the physical cores)"
    parser.add_argument("-t", "--threads", type=integer(1, MAX_THREADS), metavar="N", help=help)


def add_seed(parser: argparse.ArgumentParser) -> None:
    """--seed of random input."""
    parser.add_argument(
        "--seed", type=integer(0, 2**32 - 1), default=0, metavar="N", help="of random input (default: 0)"
    )


def add_array(parser: argparse.ArgumentParser) -> None:
    """--array, for .npz files."""
    parser.add_argument("--array", metavar="NAME", help="which array of a .npz file (default: its only one)")


def add_packed_output(parser: argparse.ArgumentParser, is_required: bool) -> None:
    """-o OUT for a packed file, and how its numbers are represented: --float or --calibrate, and --array for that."""
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the packed file to write")
    how = parser.add_mutually_exclusive_group(required=is_required)
    how.add_argument("--float", action="store_true", help="keep float32")
    help = "quantize with the samples of a .npy or .npz file [B, ...], in the model's order of axes"
    how.add_argument("--calibrate", metavar="FILE", help=help)
    add_array(parser)


def add_input_shape(parser: argparse.ArgumentParser) -> None:
    """--input-shape, for models that leave it open."""
    help = "of one sample, where the model leaves it open, such as 3,224,224"
    parser.add_argument("--input-shape", type=_shape, metavar="N,N,N", help=help)


def _shape(text: str) -> tuple[int, ...]:
    extent = integer(1, 2**20)
    return tuple(extent(item) for item in text.split(","))


def share(text: str) -> float:
    """A number above 0 and below 1."""
    return _number(text, lambda value: 0 < value < 1, "is no share; expected above 0 and below 1, such as 0.9")


def layer_share(text: str) -> tuple[str, float]:
    """A layer's name and a share, as in fc=0.95."""
    name, found, number = text.rpartition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=X; expected such as fc=0.95")
    return name, share(number)


def percentile(text: str) -> float:
    """A percentile above 50, up to 100."""
    return _number(text, lambda value: 50 < value <= 100, "is no percentile above 50, up to 100")


def integer(lowest: int, highest: int) -> Callable[[str], int]:
    """A parser of whole numbers in a range."""

    def parse(text: str) -> int:
        if not text.strip().isdecimal() or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {lowest} to {highest}")
        return int(text)

    return parse


def positive_seconds(text: str) -> float:
    """A time above 0, up to a day."""
    return _number(text, lambda value: 0 < value <= 86400, "is not a time in seconds above 0")


def _number(text: str, is_valid: Callable[[float], bool], complaint: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")  # which is in no range
    if not is_valid(value):
        raise argparse.ArgumentTypeError(f"{text!r} {complaint}")
    return value


def integers(lowest: int, highest: int) -> Callable[[str], tuple[int, ...]]:
    """A parser of lists such as 1,8,64."""
    parse_one = integer(lowest, highest)

    def parse(text: str) -> tuple[int, ...]:
        return tuple(dict.fromkeys(parse_one(item) for item in text.split(",")))

    return parse


def names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """A parser of lists such as dense,auto."""

    def parse(text: str) -> tuple[str, ...]:
        items = tuple(item.strip() for item in text.split(","))
        for item in items:
            if item not in known:
                raise argparse.ArgumentTypeError(f"{item!r} is unknown; expected {', '.join(known)}")
        return tuple(dict.fromkeys(items))

    return parse


def block(text: str) -> tuple[int, int]:
    """A block shape such as 4x16: rows by kernels."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and 1 <= int(part) <= 1024 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no block; expected rows x kernels, such as 4x16")
    return int(parts[0]), int(parts[1])
