"""Parse the command line, run the subcommand, turn what goes wrong into one line and an exit status."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence

from csengine import __version__
from csengine.cli import bench, compare, convert, demo, fpga, info, pack, profile, prune, run
from csengine.cli.output import printable
from csengine.errors import CsengineError

_COMMANDS = (demo, run, info, bench, compare, profile, pack, convert, prune, fpga)
_FAILED, _INTERRUPTED, _PIPE_CLOSED = 2, 130, 141  # the last two as shells report SIGINT and SIGPIPE

_DESCRIPTION = "Inference for networks that are sparse twice: packed sparse weights times sparse activations."
_EPILOG = """\
Every command has --help with examples, and --json. MODEL is a packed file or the name of a shipped model.

environment:
  CSENGINE_BACKEND, CSENGINE_ISA, CSENGINE_NUM_THREADS   defaults; arguments win over the first and the last
  CSENGINE_FPGA_EMULATE=1, CSENGINE_FPGA_XCLBIN, CSENGINE_FPGA_DEVICE   defaults of the backend fpga
  CSENGINE_CACHE                                         where builds of emulated hardware are kept
  CSENGINE_PLANNER=model                                 mode auto chooses by a cost model instead of by measuring
  CSENGINE_PLAN_CACHE                                    a file that keeps what was measured, for the next time
  CSENGINE_DEBUG                                         show where an error arose

exit status: 0 success, 1 compare found a difference, 2 an error, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default the process's own; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names and labels may hold what the terminal cannot show
            stream.reconfigure(errors="replace")
    parsed = build_parser().parse_args(arguments)
    log, news = logging.getLogger("csengine"), logging.StreamHandler()  # what the library has to say: builds
    log.addHandler(news)
    log.setLevel(logging.INFO)
    try:
        status: int = parsed.execute(parsed)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        return _PIPE_CLOSED
    except (CsengineError, OSError, ValueError, MemoryError) as error:
        if os.environ.get("CSENGINE_DEBUG"):
            raise
        print(f"csengine {parsed.command}: {_message(error)}", file=sys.stderr)
        return _FAILED
    finally:
        log.removeHandler(news)
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("csengine", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=formatter)
    parser.add_argument("--version", action="version", version=f"csengine {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for command in _COMMANDS:
        command.register(commands)
    return parser


def _message(error: BaseException) -> str:
    """What went wrong, in one line; a list has a line for each of its items."""
    lines = [printable(line.strip()) for line in str(error).splitlines() if line.strip()]
    is_list = bool(lines) and lines[0].endswith(":")
    return ("\n  " if is_list else "; ").join(lines) or type(error).__name__
