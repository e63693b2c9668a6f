"""The figures of docs/fpga.md: clocks per word of the three pipelines, measured, and the resources of ours, counted.

    python FPGA/synth/report.py cycles        Verilator: minutes per pipeline
    python FPGA/synth/report.py resources     Yosys: up to an hour
    python FPGA/synth/report.py tables        from FPGA/synth/results into docs/fpga.md

Every pipeline's results are compared with the reference before its clocks count.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from csengine import container, reference
from csengine.fpga import devices, generate, synthesis
from csengine.fpga.plan import Plan, plan
from csengine.graph import Graph

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests" / "fpga"))
from verilated import Bench, compile_top  # noqa: E402

RESULTS = HERE / "results"
WORDS = 8
CLOCKS_MHZ = (200, 250)
#: Words per second of one network on a U250 in the paper, as far as they could be read (docs and README say which).
PAPER = {"dense": 3_049, "sparse-dense": 35_714, "sparse-sparse": 102_564}


def _graph(name: str) -> Graph:
    return container.load(ROOT / "csengine" / "models" / f"{name}.safetensors").graph


def pipelines() -> dict[str, tuple[str, str, Callable[[Graph], Plan]]]:
    """Name: model, mode, plan. The others make at most as many products per clock as the sparse-sparse one."""
    products = plan(_graph("kws_paper")).products
    return {
        "sparse-sparse": ("kws_paper", "sparse-sparse", plan),
        "sparse-sparse, 2,400 clocks": ("kws_paper", "sparse-sparse", lambda graph: plan(graph, 2400)),
        "sparse-sparse, blocks": ("kws", "sparse-sparse", plan),
        "sparse-dense": ("kws_paper", "sparse-dense", lambda g: plan(g, mode="sparse-dense", products=products)),
        "dense": ("kws_paper", "dense", lambda g: plan(g, mode="dense", products=products)),
    }


def measure(name: str) -> dict[str, Any]:
    """Clocks per word in a stream, and of one word alone, bus included."""
    model, mode, planned = pipelines()[name]
    graph = _graph(model)
    made = planned(graph)
    x = np.random.default_rng(0).integers(0, 256, (WORDS, *graph.input.shape), np.uint8)
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(made, compile_top(generate.top(made), Path(place)), WORDS)
        bench.put_image(graph)
        y, _ = bench.run(x, load=True)
        expected = reference.trace(graph, x)[made.output_name]
        if not np.array_equal(y, expected):
            raise AssertionError(f"{name} does not compute what the reference does")
        one, two, many = (bench.run(x[:n])[1] for n in (1, 2, WORDS))
        bench.close()
    return {
        "model": model,
        "mode": mode,
        "clocks_per_word": (many - two) / (WORDS - 2),
        "latency": one,
        "predicted": made.cycles,
        "bottleneck": made.bottleneck,
        "products": made.products,
        "weight_bits": made.weight_bits,
    }


def count(name: str) -> dict[str, Any]:
    """Resources of a pipeline, and how many fit."""
    model, _, planned = pipelines()[name]
    report = synthesis.synthesize(planned(_graph(model)), timeout=6 * 3600)
    return {
        "total": asdict(report.total),
        "modules": {module: asdict(resources) for module, resources in report.modules.items()},
    }


def tables() -> str:
    """Markdown of what was recorded."""
    cycles, resources = (_read(kind) for kind in ("cycles", "resources"))
    lines = [
        "| pipeline | model | products per clock | clocks per word, measured | predicted | latency, clocks | "
        + " | ".join(f"words/s at an assumed {mhz} MHz" for mhz in CLOCKS_MHZ)
        + " | the paper's, U250 |",
        "|---|---|---|---|---|---|" + "---|" * (len(CLOCKS_MHZ) + 1),
    ]
    for name, it in cycles.items():
        speeds = [f"{1e6 * mhz / it['clocks_per_word']:,.0f}" for mhz in CLOCKS_MHZ]
        numbers = [f"{it['clocks_per_word']:,.1f}", f"{it['predicted']:,}", f"{it['latency']:,}", *speeds]
        lines.append(
            "| " + " | ".join([name, it["model"], str(it["products"]), *numbers, f"{PAPER[it['mode']]:,}"]) + " |"
        )
    if resources:
        names = list(next(iter(resources.values()))["total"])
        lines += ["", f"| pipeline | {' | '.join(names)} | " + " | ".join(devices.DEVICES) + " |"]
        lines.append("|---" * (len(names) + 1 + len(devices.DEVICES)) + "|")
        for name, it in resources.items():
            need = devices.Resources(**it["total"])
            fits = [
                f"{device.resources.fits(need)} ({device.resources.scarcest(need)})"
                for device in devices.DEVICES.values()
            ]
            lines.append("| " + " | ".join([name, *(f"{it['total'][n]:,g}" for n in names), *fits]) + " |")
        lines += ["", "The last columns: how many fit by counts alone, and what limits them."]
    return "\n".join(lines)


def _read(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in pipelines():
        path = _path(kind, name)
        if path.exists():
            found[name] = json.loads(path.read_text())
    return found


def _path(kind: str, name: str) -> Path:
    return RESULTS / f"{kind}-{name.replace(', ', '-').replace(' ', '-').replace(',', '')}.json"


def _write_docs(text: str) -> None:
    path = ROOT / "docs" / "fpga.md"
    begin, end = "<!-- fpga results -->\n", "<!-- /fpga results -->"
    before, rest = path.read_text().split(begin)
    path.write_text(f"{before}{begin}{text}\n{end}{rest.split(end)[1]}")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cycles", "resources", "tables"))
    parser.add_argument("--pipeline", action="append", choices=list(pipelines()), help="by default all")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if arguments.what != "tables":
        for name in arguments.pipeline or pipelines():
            record = (measure if arguments.what == "cycles" else count)(name)
            _path(arguments.what, name).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    _write_docs(tables())


if __name__ == "__main__":
    main()
