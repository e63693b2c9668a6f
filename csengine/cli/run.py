"""`csengine run`: outputs of a model for inputs in files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csengine.cli import options, output, shipped
from csengine.cli.samples import Answer, Samples, read_samples, top_answers
from csengine.engine import Engine

_EXAMPLES = """\
  csengine run kws hello.wav                 what the shipped network hears
  csengine run kws one.wav two.wav --top 5   several files at once
  csengine run model.safetensors x.npy       one sample, or a batch of any size
  csengine run model.safetensors x.npz --array images -o y.npy
  csengine run kws hello.wav --json
  csengine run kws hello.wav --backend fpga --emulate
"""
_MOST_LINES = 20


def register(commands: options.Commands) -> None:
    """Add the subcommand."""
    parser = options.add_command(commands, "run", "run a model on inputs from files", _EXAMPLES, execute)
    options.add_model(parser)
    parser.add_argument("input", metavar="INPUT", nargs="+", help=".npy, .npz or .wav (wav: models that take sound)")
    parser.add_argument("-o", "--output", metavar="OUT", help="write the outputs to OUT.npy or OUT.json")
    parser.add_argument(
        "--top", type=options.integer(1, 10**6), default=3, metavar="N", help="labels shown (default: 3)"
    )
    options.add_array(parser)
    options.add_backend(parser)
    options.add_fpga(parser)
    options.add_mode(parser)
    options.add_threads(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    target = _checked_target(arguments.output)
    packed = shipped.load_model(arguments.model)
    engine = Engine(
        packed.model,
        backend=arguments.backend,
        threads=arguments.threads,
        mode=arguments.mode,
        **options.fpga(arguments),
    )
    samples = read_samples(arguments.input, engine, arguments.array)
    y = engine.run(samples.values)
    if target is not None and target.suffix == ".npy":
        np.save(target, y[0] if samples.is_single else y)
    if arguments.json or (target is not None and target.suffix == ".json"):
        text = output.json_text(_report(packed.name, engine, samples, y, arguments.top))
        if target is not None and target.suffix == ".json":
            target.write_text(text + "\n", encoding="utf-8")
        if arguments.json:
            print(text)
    if not arguments.json:
        print(
            f"{target}: {len(y)} outputs of shape {y.shape[1:]}" if target else _text(engine, samples, y, arguments.top)
        )
    return 0


def _checked_target(name: str | None) -> Path | None:
    target = None if name is None else Path(name)
    if target is not None and target.suffix not in (".npy", ".json"):
        raise ValueError(f"output {name} has suffix {target.suffix or '(none)'}; expected .npy or .json")
    return target


def _answers(engine: Engine, y: NDArray[Any], top: int) -> list[Answer]:
    """The largest outputs of one sample; none where the output is an image."""
    return top_answers(engine, y, top) if y.ndim == 1 else []


def _report(model: str, engine: Engine, samples: Samples, y: NDArray[Any], top: int) -> dict[str, Any]:
    results = [
        {"input": name, "top": _answers(engine, row, top), "output": row}
        for name, row in zip(samples.names, y, strict=True)
    ]
    return {"model": model, "backend": engine.backend, "shape": y.shape[1:], "dtype": str(y.dtype), "results": results}


def _text(engine: Engine, samples: Samples, y: NDArray[Any], top: int) -> str:
    if not len(y):
        return "no samples, no outputs"
    rows = []
    for name, values in list(zip(samples.names, y, strict=True))[:_MOST_LINES]:
        shown = [_shown(answer) for answer in _answers(engine, values, top)]
        rows.append((name, "  ".join(shown) if shown else f"{values.dtype} {values.shape}, mean {values.mean():.6g}"))
    more = f"\n… {len(y) - _MOST_LINES} more samples; -o OUT.npy writes all" if len(y) > _MOST_LINES else ""
    return output.table(("input", "outputs, largest first"), rows) + more


def _shown(answer: Answer) -> str:
    value = json.dumps(round(answer.value, 4)) if answer.confidence is None else f"{answer.confidence:.1%}"
    return f"{answer.label} {value}"
