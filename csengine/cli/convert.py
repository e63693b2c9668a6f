"""`csengine convert`: an ONNX model becomes a packed file, and is compared with its source."""

from __future__ import annotations

import argparse

import numpy as np

from csengine import container, reference
from csengine.cli import options, output, shipped
from csengine.convert import convert
from csengine.errors import ShapeError, UnsupportedModelError
from csengine.graph import Graph, Packing

_EXAMPLES = """\
  csengine convert model.onnx -o model.safetensors --float
  csengine convert model.onnx -o model.safetensors --calibrate samples.npy --block 4x16

Sparse layers are packed. With --calibrate the network becomes an integer one; the report says what that changed, per
layer. Needs the extra csengine[onnx].
"""


def register(commands: options.Commands) -> None:
    """Add the subcommand."""
    text = "convert an ONNX model to a packed file"
    parser = options.add_command(commands, "convert", text, _EXAMPLES, execute)
    parser.add_argument("model", metavar="MODEL.onnx", help="an ONNX file")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the packed file to write")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--float", action="store_true", help="keep float32")
    how.add_argument("--calibrate", metavar="FILE", help="quantize with the samples of a .npy file [B, ...]")
    parser.add_argument("--block", type=options.block, metavar="UxV", help="of sparse layers (default: 1x1)")


def execute(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    try:
        from csengine.importers import onnx
    except ImportError as error:
        raise UnsupportedModelError(f"reading ONNX needs pip install 'csengine[onnx]' ({error})") from error
    graph = onnx.load(arguments.model)
    samples = None if arguments.float else _samples(arguments.calibrate, graph)
    packing = None if arguments.block is None else Packing(block=arguments.block)
    model, errors = convert(graph, samples, default=packing)
    container.save(model, arguments.output)
    written = shipped.load_model(arguments.output)
    x = _random(graph) if samples is None else samples[:4]
    difference = _difference(reference.run(graph, x), reference.run(written.model.graph, x))
    report = {"output": arguments.output, "bytes": written.bytes, "difference": difference, "layers": errors}
    print(output.json_text(report) if arguments.json else _text(report))
    return 0


def _samples(path: str, graph: Graph) -> np.ndarray:
    """The samples of a file, NHWC."""
    values = np.load(path, allow_pickle=False)
    if not isinstance(values, np.ndarray):
        raise ShapeError(f"{path}: holds several arrays; expected a .npy file")
    values = values.astype(np.float32)
    is_image = values.ndim == 4 and graph.layout == "NCHW"
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1) if is_image else values)


def _random(graph: Graph) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, *graph.input.shape), np.float32)


def _difference(wanted: np.ndarray, got: np.ndarray) -> float:
    """Root of the mean squared difference over the root mean square of what is wanted."""
    return float(np.sqrt(((got - wanted) ** 2).mean()) / (np.sqrt((wanted**2).mean()) or 1.0))


def _text(report: dict[str, object]) -> str:
    facts = [("written", str(report["output"])), ("result differs by", f"{report['difference']:.3%}")]
    errors = report["layers"]
    assert isinstance(errors, tuple)
    rows = [(e.name, e.dtype, f"{e.relative_error:.3%}", f"{e.saturated:.3%}") for e in errors]
    table = output.table(("tensor", "type", ">error", ">saturated"), rows)
    return output.facts(facts) + (f"\n\n{table}" if rows else "")
