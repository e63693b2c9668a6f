"""`csengine compare`: two backends, modes or models against each other, or against their source, tensor by tensor."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csengine.backends import MODES
from csengine.cli import compare_source, measure, options, output, shipped
from csengine.cli.samples import samples_for
from csengine.cli.source import is_source
from csengine.engine import Engine
from csengine.graph import TensorType

_EXAMPLES = """\
  csengine compare kws --backend cpp,reference          every layer, bit for bit
  csengine compare kws --mode dense,sparse-sparse
  csengine compare float.safetensors int8.safetensors   what quantization changed
  csengine compare a.safetensors b.safetensors --input x.npy --json
  csengine compare model.onnx model.safetensors --plot errors.png   against ONNX Runtime; needs csengine[onnx]

Integers are compared bit for bit, float32 within --tolerance, and integers that were made from float32 within the
network, whose rounding a last bit may decide, within 2 % of the largest. Tensors of different types or scales are
compared by the real numbers that they stand for. Places are (sample, row, column, channel). With an ONNX model, the
tolerance is of the result's relative error (root mean square): 1e-4, or 0.1 for integers. Exit status 1 says that
something differs.
"""
_RESULT, _NEITHER = "(result of run)", "not comparable"

Array = NDArray[Any]


@dataclass(frozen=True)
class Row:
    """One tensor of both sides.

    status: "equal" (bit for bit), "close" (float32 within the tolerance), "different", or "not comparable". note: why,
    if not for an element. first: place of the first element that differs (beyond the tolerance if "different"), and
    its values in A and B.
    """

    name: str
    status: str
    note: str = ""
    elements: int = 0
    differing: int = 0
    max_difference: float = 0.0
    first: tuple[int, ...] | None = None
    first_values: tuple[float, float] | None = None


def register(commands: options.Commands) -> None:
    """Add the subcommand."""
    text = "compare two models, or one model on two backends or in two modes, layer by layer"
    parser = options.add_command(commands, "compare", text, _EXAMPLES, execute)
    options.add_model(parser, "a")
    options.add_model(parser, "b", nargs="?")
    backends, modes = options.names(options.ALL_BACKENDS), options.names(MODES)
    parser.add_argument(
        "--backend", type=backends, default=("auto",), metavar="B[,B]", help="of A and of B (default: auto)"
    )
    parser.add_argument("--mode", type=modes, default=("auto",), metavar="M[,M]", help="of A and of B (default: auto)")
    parser.add_argument("--input", metavar="FILE", help="samples to run on (default: random)")
    batch = options.integer(1, options.MAX_BATCH)
    parser.add_argument("-b", "--batch", type=batch, metavar="N", help="batch size (default: all of FILE, or 4)")
    help = "of float32, relative to a tensor's largest magnitude (default: 1e-5, see below)"
    parser.add_argument("--tolerance", type=_tolerance, metavar="X", help=help)
    help = "draw the errors into this file (against an ONNX model only)"
    parser.add_argument("--plot", metavar="FILE", help=help)
    options.add_array(parser)
    options.add_seed(parser)
    options.add_threads(parser)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no tolerance; expected 0 or more, below 1")
    return value


def execute(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    if is_source(arguments.a):
        return compare_source.execute(arguments)
    if is_source(arguments.b) or arguments.plot is not None:
        raise ValueError("an ONNX model comes first: compare model.onnx model.safetensors; --plot needs one")
    sides = _sides(arguments)
    x = samples_for(sides[0][1], arguments.batch, arguments.seed, arguments.input, arguments.array, random=4)
    rows = _compare(sides[0][1], sides[1][1], x, arguments.tolerance)
    first = next((row for row in rows if row.status == "different"), None)
    report = {"a": sides[0][0], "b": sides[1][0], "batch": len(x), "equal": first is None, "first": first, "rows": rows}
    print(output.json_text(report) if arguments.json else _text(report))
    return 0 if first is None else 1


def _sides(arguments: argparse.Namespace) -> list[tuple[str, Engine]]:
    """Both sides with what to call them."""
    choices = (arguments.backend, arguments.mode)
    if any(len(choice) > 2 for choice in choices):
        raise ValueError("compare has two sides; give at most two backends and two modes")
    if arguments.b is None and all(len(choice) == 1 for choice in choices):
        raise ValueError("nothing to compare; give a second model, --backend with two names or --mode with two names")
    a = shipped.load_model(arguments.a)
    b = a if arguments.b is None else shipped.load_model(arguments.b)
    sides = []
    for side, packed in enumerate((a, b)):
        backend, mode = (choice[min(side, len(choice) - 1)] for choice in choices)
        engine = Engine(packed.model, backend=backend, mode=mode, threads=arguments.threads)
        sides.append((f"{packed.name} ({engine.backend}, {engine.mode})", engine))
    return sides


def _compare(a: Engine, b: Engine, x: Array, tolerance: float | None) -> list[Row]:
    """Every tensor that both have, in the order of A, then the result of `run`, in which steps may be fused."""
    if a.input_shape != b.input_shape:
        raise ValueError(f"A takes inputs {a.input_shape}, B takes {b.input_shape}; expected the same shape")
    left, right = _tensors(a, x), _tensors(b, x)
    rows = [
        _compare_tensors(name, tensor, right[name], tolerance) if name in right else Row(name, _NEITHER, "only in A")
        for name, tensor in left.items()
    ]
    rows += [Row(name, _NEITHER, "only in B") for name in right if name not in left]
    rows.append(rows.pop([row.name for row in rows].index(_RESULT)))
    return rows


@dataclass(frozen=True)
class _Tensor:
    """Values, what they stand for, and how exactly they are defined (`measure.tolerance_of`)."""

    values: Array
    kind: TensorType
    tolerance: float

    def real(self) -> Array | None:
        """The real numbers that it stands for; None for accumulators, whose scale no one recorded."""
        if self.kind.dtype == "float32":
            return self.values.astype(np.float64)
        return None if self.kind.scale is None else self.values * self.kind.scale


def _tensors(engine: Engine, x: Array) -> dict[str, _Tensor]:
    """Every tensor of a network, and the result."""
    graph = engine.model.graph
    values = dict(engine.trace(x))
    kinds = {name: (graph.types[name], measure.tolerance_of(graph, name)) for name in values}
    found = {name: _Tensor(values[name], *kinds[name]) for name in values}
    return {**found, _RESULT: _Tensor(engine.run(x), *kinds[graph.output.name])}


def _compare_tensors(name: str, a: _Tensor, b: _Tensor, tolerance: float | None) -> Row:
    """How two tensors compare: as they are if they are of one type and scale, else as real numbers.

    tolerance: None takes the tensors' own.
    """
    if a.values.shape != b.values.shape:
        return Row(name, "different", f"shapes {a.values.shape} and {b.values.shape}")
    alike = (a.kind.dtype, a.kind.scale) == (b.kind.dtype, b.kind.scale)
    left, right = (t.values.astype(np.float64) if alike else t.real() for t in (a, b))
    if left is None or right is None:
        return Row(name, _NEITHER, f"{a.kind.dtype} and {b.kind.dtype} without a common scale")
    difference = measure.distance(left, right)
    largest, count = float(difference.max(initial=0.0)), int(np.count_nonzero(difference))
    if not count:
        return Row(name, "equal", elements=difference.size)
    own = max(a.tolerance, b.tolerance)
    given = max(own, measure.FLOAT_TOLERANCE) if tolerance is None else tolerance
    allowed = 0.0 if alike and own == 0 else given * measure.magnitude(left)
    is_close = largest <= allowed
    first = tuple(int(i) for i in np.argwhere(difference > (0.0 if is_close else allowed))[0])
    status, values = "close" if is_close else "different", (float(left[first]), float(right[first]))
    return Row(name, status, "", difference.size, count, largest, first, values)


# --- text ------------------------------------------------------------------------------------------------------------


def _text(report: dict[str, Any]) -> str:
    head = output.facts([("A", report["a"]), ("B", report["b"]), ("batch", str(report["batch"]))])
    header = ("tensor", "status", ">elements", ">differing", ">max difference", "first")
    table = output.table(header, [_cells(row) for row in report["rows"]])
    return f"{head}\n\n{table}\n\n{_verdict(report['first'])}"


def _cells(row: Row) -> tuple[str, ...]:
    if not row.elements:
        return (row.name, row.status, "", "", "", row.note)
    counts = (f"{row.elements:,}", f"{row.differing:,}")
    if row.first is None:
        return (row.name, row.status, *counts, "", "")
    return (row.name, row.status, *counts, f"{row.max_difference:.6g}", str(row.first))


def _verdict(first: Row | None) -> str:
    if first is None:
        return "nothing differs"
    if first.first_values is None:
        return f"first difference: {first.name}: {first.note}"
    a, b = first.first_values
    return f"first difference: {first.name} at {first.first}: {a:.9g} in A, {b:.9g} in B"
