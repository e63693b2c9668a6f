"""`csengine convert`: an ONNX model becomes a packed file, and is compared with its source."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from csengine import container
from csengine.cli import options, output, shipped
from csengine.cli.samples import read_array
from csengine.cli.source import Network, Source, read_network, read_source
from csengine.container import Model
from csengine.convert import convert
from csengine.graph import Packing
from csengine.quantization import KnownScales, LayerError

_EXAMPLES = """\
  csengine convert model.onnx -o model.safetensors --float
  csengine convert model.onnx -o model.safetensors --calibrate samples.npz --block 4x16
  csengine convert quantized.onnx -o model.safetensors   keep the scales of a quantized model (QDQ)
  csengine convert float.safetensors -o model.safetensors --calibrate samples.npz   quantize a packed float32 network

Sparse layers are packed. With --calibrate the network becomes an integer one, but for what has no integer form; the
report says what that changed, per layer, and whose scale each tensor has. Where ONNX Runtime is installed, the import
and the packed model are compared with the source (`csengine compare` shows every tensor). Needs the extra
csengine[onnx].
"""

Array = NDArray[Any]


def register(commands: options.Commands) -> None:
    """Add the subcommand."""
    text = "convert an ONNX model to a packed file"
    parser = options.add_command(commands, "convert", text, _EXAMPLES, execute)
    parser.add_argument("model", metavar="MODEL.onnx", help="an ONNX file, or a packed file of float32 (.safetensors)")
    options.add_packed_output(parser, is_required=False)
    help = "scale tensors to this percentile of their non-zero magnitudes, such as 99.9 (default: to the largest)"
    parser.add_argument("--percentile", type=options.percentile, metavar="P", help=help)
    parser.add_argument("--block", type=options.block, metavar="UxV", help="of sparse layers (default: 1x1)")
    options.add_input_shape(parser)
    parser.add_argument("--no-check", action="store_true", help="do not compare with ONNX Runtime")


def execute(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    is_packed = Path(arguments.model).suffix.lower() == ".safetensors"
    source = (read_network if is_packed else read_source)(arguments.model, arguments.input_shape)
    known = source.imported.scales if isinstance(source, Source) else KnownScales()
    is_quantized = bool(known.activations)
    if not arguments.float and arguments.calibrate is None and not is_quantized:
        raise ValueError("say how to represent numbers: --float, or --calibrate FILE to quantize")
    if arguments.percentile is not None and arguments.calibrate is None:
        raise ValueError("--percentile is of the samples' values; give --calibrate FILE, too")
    samples = None if arguments.calibrate is None else source.samples(read_array(arguments.calibrate, arguments.array))
    model, errors = convert(
        source.graph,
        samples,
        known=None if arguments.float or not is_quantized else known,
        percentile=arguments.percentile,
        default=None if arguments.block is None else Packing(block=arguments.block),
        labels=source.labels,
        preprocessing=source.preprocessing,
    )
    x = source.random(1) if samples is None else samples[:4]
    checks = _checks(source, model, x, arguments.no_check)  # a wrong import is not written
    container.save(model, arguments.output)
    report = {
        "output": arguments.output,
        "bytes": shipped.load_model(arguments.output).bytes,
        **checks,
        "layers": errors,
        "scales": _origins(known, model),
    }
    print(output.json_text(report) if arguments.json else _text(report))
    return 0


def _checks(source: Network, model: Model, x: Array, is_off: bool) -> dict[str, Any]:
    """How far the import and the packed model are from ONNX Runtime, or why nobody knows. Raises if it is too far."""
    if not isinstance(source, Source):
        return {"unchecked": "the source is a packed file; csengine compare shows both"}
    if is_off or not source.can_check:
        return {"unchecked": "as asked" if is_off else "ONNX Runtime is not installed (pip install onnxruntime)"}
    imported = source.check(x)
    is_quantized = bool(source.imported.scales.activations)
    imported.raise_if_far(0.1 if is_quantized else 1e-3)  # the float import of a quantized model does not round
    packed = imported if model.graph is source.imported.graph else source.check(x, model.graph)
    return {"import_error": imported.result.relative_error, "result_error": packed.result.relative_error}


def _origins(scales: KnownScales, model: Model) -> dict[str, str]:
    """Whose scale the integer tensors have: of the source itself, made from its ranges, or calibrated."""
    known = scales.activations.values()
    exact = {(scale.dtype, scale.scale) for scale in known if scale.is_exact}
    made = {(scale.dtype, scale.scale) for scale in known if not scale.is_exact}
    origins = {}
    for name, kind in model.graph.types.items():
        if kind.scale is not None:
            key = (kind.dtype, kind.scale)
            origins[name] = "the source's" if key in exact else "from its range" if key in made else "calibrated"
    return origins


def _text(report: dict[str, Any]) -> str:
    facts = [("written", f"{report['output']} ({output.size(report['bytes'])})")]
    if "unchecked" in report:
        facts.append(("not checked", report["unchecked"]))
    else:
        facts.append(("import differs by", f"{report['import_error']:.1e} (ONNX Runtime; relative, RMS)"))
        facts.append(("result differs by", f"{report['result_error']:.3%}"))
    errors: dict[str, LayerError] = {error.name: error for error in report["layers"]}
    rows = [(name, origin, *_error_cells(errors.get(name))) for name, origin in report["scales"].items()]
    table = output.table(("tensor", "scale", "type", ">error", ">saturated"), rows)
    return output.facts(facts) + (f"\n\n{table}" if rows else "")


def _error_cells(error: LayerError | None) -> tuple[str, ...]:
    return ("", "", "") if error is None else (error.dtype, f"{error.relative_error:.3%}", f"{error.saturated:.3%}")
