"""`csengine info`: what a packed model holds and how it would run here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from csengine.backends import KernelTiming
from csengine.cli import machine, options, output, shipped
from csengine.cli.weights import HEADER, LayerWeights, Totals, describe_weights, total, weight_cells
from csengine.container import Model
from csengine.engine import Engine
from csengine.graph import KWTA, OPERATION_NAMES, AveragePool, Conv2d, Graph, MaxPool, Node
from csengine.plan import LayerPlan, expected_activity

_EXAMPLES = """\
  csengine info kws   the shipped model
  csengine info model.safetensors --json
  csengine info kws --backend numba --mode sparse-sparse
"""


def register(commands: options.Commands) -> None:
    """Add the subcommand."""
    text = "show a model's graph, sparsity, packing, sizes, accuracy and plan, and what can run it here"
    parser = options.add_command(commands, "info", text, _EXAMPLES, execute)
    options.add_model(parser)
    options.add_backend(parser)
    options.add_fpga(parser)
    options.add_mode(parser)
    options.add_threads(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    packed = shipped.load_model(arguments.model)
    engine = Engine(
        packed.model,
        backend=arguments.backend,
        threads=arguments.threads,
        mode=arguments.mode,
        **options.fpga(arguments),
    )
    report = _report(packed, engine)
    print(output.json_text(report) if arguments.json else _text(report))
    return 0


def _report(packed: shipped.Packed, engine: Engine) -> dict[str, Any]:
    model = packed.model
    weights = describe_weights(model.graph)
    return {
        "model": packed.name,
        "file_bytes": packed.bytes,
        "producer": model.producer,
        "layout": model.graph.layout,
        "input": _tensor(engine.input_shape, model.graph, model.graph.input),
        "output": _tensor(engine.output_shape, model.graph, model.graph.output),
        "labels": model.labels,
        "preprocessing": model.preprocessing,
        "accuracy": model.accuracy,
        "graph": _nodes(model),
        "weights": weights,
        "totals": total(model.graph, weights),
        "plan": engine.plan(),
        "engine": {"backend": engine.backend, "mode": engine.mode, "threads": engine.threads},
        "backends": machine.backends(),
        "machine": machine.describe(),
    }


def _tensor(shape: tuple[int, ...], graph: Graph, node: Node) -> dict[str, Any]:
    """A tensor at the network's border, as the caller sees its shape."""
    kind = graph.types[node.name]
    return {"shape": shape, "dtype": kind.dtype, "scale": kind.scale}


def _nodes(model: Model) -> list[dict[str, Any]]:
    """The graph: what each node is, reads and makes, and how much of it should be active."""
    graph, activity = model.graph, expected_activity(model.graph)
    return [
        {
            "name": node.name,
            "operation": OPERATION_NAMES[type(node)],
            "inputs": node.inputs,
            "attributes": _attributes(node),
            "shape": graph.types[node.name].shape,
            "dtype": graph.types[node.name].dtype,
            "expected_activity": activity[node.name],
        }
        for node in graph.nodes
    ]


def _attributes(node: Node) -> dict[str, Any]:
    """What is particular about a node, for people."""
    if isinstance(node, KWTA):
        return {"k": node.k, "scope": node.scope, "boosted": node.factor is not None}
    if not isinstance(node, (Conv2d, MaxPool, AveragePool)):
        return {}
    found: dict[str, Any] = {"kernel": node.kernel, "stride": node.stride}
    if any(node.padding):
        found["padding"] = node.padding
    if isinstance(node, Conv2d) and node.groups > 1:
        found["groups"] = node.groups
    return found


# --- text ------------------------------------------------------------------------------------------------------------


def _text(report: dict[str, Any]) -> str:
    parts = [
        output.facts(_head(report)),
        "graph\n" + _graph_text(report["graph"]),
        "weights\n" + _weights_text(report["weights"], report["totals"]),
        f"plan for backend {report['engine']['backend']} on {report['engine']['threads']} thread(s), per sample\n"
        + _plan_text(report["plan"]),
        "this machine\n" + output.facts(_machine(report)),
    ]
    return "\n\n".join(parts)


def _head(report: dict[str, Any]) -> list[tuple[str, str]]:
    source, result, totals = report["input"], report["output"], report["totals"]
    scale = "" if source["scale"] is None else f", held as {source['dtype']} in steps of {source['scale']:.6g}"
    head = [
        ("model", f"{report['model']} (made by {report['producer']})"),
        ("input", f"{source['shape']}{scale}"),
        ("output", f"{result['shape']} {result['dtype']}"),
        ("labels", ", ".join(report["labels"]) or "none"),
        ("parameters", f"{totals.parameters:,}; {totals.nonzeros:,} weights are not zero ({totals.density:.1%})"),
        ("file", f"{output.size(report['file_bytes'])}, all included"),
    ]
    for title in ("preprocessing", "accuracy"):
        leaves = list(output.flatten(report[title])) or [("", "not recorded")]
        head += [(f"{title} {name}".strip(), text) for name, text in leaves]
    return head


def _graph_text(nodes: Sequence[dict[str, Any]]) -> str:
    rows = []
    for node in nodes:
        attributes = ", ".join(f"{key} {value}" for key, value in node["attributes"].items() if value is not False)
        active = f"{node['expected_activity']:.1%}"
        rows.append((node["name"], node["operation"], ", ".join(node["inputs"]), attributes, _shape(node), active))
    return output.table(("node", "operation", "reads", "attributes", "makes", ">active"), rows)


def _shape(node: dict[str, Any]) -> str:
    return f"{node['dtype']} {' x '.join(map(str, node['shape']))}"


def _weights_text(weights: Sequence[LayerWeights], totals: Totals) -> str:
    if not weights:
        return "none"
    against = "; ".join(
        f"{output.size(count)} {name} ({count / max(1, totals.bytes):.1f}x)"
        for count, name in (
            (totals.bytes_dense, "dense"),
            (totals.bytes_float32, "dense float32"),
            (totals.bytes_csr, "CSR"),
        )
    )
    table = output.table(HEADER, [weight_cells(row) for row in weights])
    return f"{table}\ntogether {output.size(totals.bytes)} as stored; the same weights would take {against}"


def _plan_text(plan: Sequence[LayerPlan]) -> str:
    rows = []
    for row in plan:
        counts = (f"{row.macs_dense:,}", f"{row.macs_done:,}") if row.macs_dense else ("", "")
        times = (_microseconds(next(iter(row.measured), None)), _microseconds(row.dense), _timing(row.runner_up))
        rows.append((row.name, row.mode, row.kernel or "(with a later step)", row.tier, *counts, *times))
    dense, done = sum(row.macs_dense for row in plan), sum(row.macs_done for row in plan)
    rows.append(("together", "", "", "", f"{dense:,}", f"{done:,}", "", "", ""))
    header = ("node", "mode", "kernel", "tier", ">MACs dense", ">MACs done", ">µs", ">µs if dense", "runner-up")
    clocks = [f"\n{row.name}: {row.cycles:,.1f} clock cycles per sample, measured" for row in plan if row.cycles]
    return output.table(header, rows) + "".join(clocks)


def _microseconds(timing: KernelTiming | None) -> str:
    return "" if timing is None else f"{timing.seconds * 1e6:.1f}"


def _timing(timing: KernelTiming | None) -> str:
    return "" if timing is None else f"{timing.kernel} {_microseconds(timing)} µs"


def _machine(report: dict[str, Any]) -> list[tuple[str, str]]:
    tiers = report["machine"]["tiers"]
    runs = [f"{name} {'yes' if can_run else 'no'}" for name, can_run in tiers.items()]
    facts = [("cpu", machine.summary(report["machine"])), ("tiers", ", ".join(runs) or "none (no C++ backend)")]
    return facts + [(f"backend {name}", reason or "runs") for name, reason in report["backends"].items()]
