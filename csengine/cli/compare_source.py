"""`csengine compare model.onnx model.safetensors`: a packed model against the ONNX model it came from."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from csengine.cli import output, shipped
from csengine.cli.samples import read_array
from csengine.cli.source import read_source

if TYPE_CHECKING:
    from csengine.importers.check import Check, TensorCheck

_FLOAT_TOLERANCE, _INTEGER_TOLERANCE = 1e-4, 0.1  # of the result, relative, root mean square


def execute(arguments: argparse.Namespace) -> int:
    """Compare A, an ONNX model, with B, a packed one; or with its own import if there is no B."""
    source = read_source(arguments.a)
    values = None if arguments.input is None else source.samples(read_array(arguments.input, arguments.array))
    x = source.random(arguments.batch or 1, arguments.seed) if values is None else values[: arguments.batch]
    packed = None if arguments.b is None else shipped.load_model(arguments.b)
    graph = source.imported.graph if packed is None else packed.model.graph
    check = source.check(x, graph)
    is_integer = any(kind.is_integer for kind in graph.types.values())
    default = _INTEGER_TOLERANCE if is_integer else _FLOAT_TOLERANCE
    tolerance = default if arguments.tolerance is None else arguments.tolerance
    report = {
        "a": f"{arguments.a} (ONNX Runtime)",
        "b": f"{packed.name if packed else f'{arguments.a} as imported'} (reference)",
        "batch": len(x),
        "tolerance": tolerance,
        "equal": check.result.relative_error <= tolerance,
        "result": check.result,
        "rows": check.tensors,
    }
    if arguments.plot is not None:
        _draw(check, arguments.plot)
    print(output.json_text(report) if arguments.json else _text(report))
    return 0 if report["equal"] else 1


def _text(report: dict[str, Any]) -> str:
    head = output.facts([("A", report["a"]), ("B", report["b"]), ("batch", str(report["batch"]))])
    rows = [_cells(row) for row in (*report["rows"], report["result"])]
    table = output.table(("tensor in B", "in A", ">elements", ">error", ">largest"), rows)
    verdict = "within" if report["equal"] else "beyond"
    found = f"the result differs by {report['result'].relative_error:.2e}, {verdict} {report['tolerance']:g}"
    return f"{head}\n\n{table}\n\n{found}"


def _cells(row: TensorCheck) -> tuple[str, ...]:
    source = "" if row.source == row.name else row.source
    return row.name, source, f"{row.elements:,}", f"{row.relative_error:.2e}", f"{row.largest:.2e}"


def _draw(check: Check, path: str) -> None:
    """The error of every tensor, and the results against each other."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"a picture needs pip install 'csengine[report]' ({error})") from error
    rows = (*check.tensors, check.result)
    figure = Figure(figsize=(11, max(3.0, 0.16 * len(rows) + 1)), layout="constrained")
    errors, results = figure.subplots(1, 2)
    floor = 1e-9  # so that tensors without any error show on a logarithmic axis
    errors.barh([row.name for row in rows], [max(row.relative_error, floor) for row in rows])
    errors.set(xscale="log", xlabel="error, relative root mean square")
    errors.invert_yaxis()
    errors.tick_params(axis="y", labelsize=6)
    results.plot(check.wanted.ravel(), check.got.ravel(), ".", markersize=3)
    results.axline((0, 0), slope=1, linewidth=0.5, color="grey")
    results.set(xlabel="result of ONNX Runtime", ylabel="result of csengine")
    figure.savefig(path)
