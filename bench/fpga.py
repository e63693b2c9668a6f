"""The figures of docs/fpga.md, recorded: clocks, resources, held-out words, mutants. `bench/report.py` makes the page.

    python bench/fpga.py clocks        Verilator: clocks per word of the pipelines, results compared with the reference
    python bench/fpga.py resources     Yosys: the same pipelines, module by module
    python bench/fpga.py chips         estimates: the pipelines that make the most of a whole U250
    python bench/fpga.py kernels       Yosys: single layers of ResNet-50 and MobileNetV2, by non-zeros and winners
    python bench/fpga.py words         through XRT: shipped recordings and held-out words, both shipped networks
    python bench/fpga.py mutants       the RTL broken on purpose, all of the list
    python bench/fpga.py waves         the buses and stages of a run, clock by clock, for the pictures

Each writes `bench/results/fpga-*.json`. What was recorded for the same hardware is kept; --again measures it anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from csengine import Engine, reference
from csengine.cli import shipped
from csengine.cli.output import json_text
from csengine.cli.samples import read_recording
from csengine.errors import UnsupportedModelError
from csengine.fpga import cache, generate, image, shape, synthesis
from csengine.fpga.devices import DEVICES
from csengine.fpga.estimate import estimate
from csengine.fpga.plan import Layer, Mode, Plan, cheapest_layer, plan
from csengine.graph import Graph

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
TESTS = ROOT / "tests" / "fpga"
sys.path.insert(0, str(TESTS))
import spoken  # noqa: E402
from networks import Spec, network, thinned  # noqa: E402
from test_mutations import MUTANTS  # noqa: E402
from verilated import Bench, compile_top  # noqa: E402

WORDS = 8
#: Clocks of the slowest pipelines that may fill a device.
_SLOWEST = 20_000
_ESTIMATES = [ROOT / "csengine" / "fpga" / f"{name}.py" for name in ("plan", "estimate")]
HELD_OUT = 200
MODES: tuple[Mode, ...] = ("dense", "sparse-dense", "sparse-sparse")

Record = dict[str, Any]


# --- the keyword-spotting network in several pipelines ---------------------------------------------------------------


@dataclass(frozen=True)
class Pipeline:
    """A shipped model and what its plan is asked for."""

    model: str
    mode: Mode = "sparse-sparse"
    ultra: bool = False
    """UltraRAM for large memories of weights."""
    cycles: int | None = None
    matches: str = ""
    """The pipeline that makes at least as many 8-bit products per clock."""
    first: int = 0
    """Random weights in the first layer instead of the model's, so many kernels to a set; 0: the model's."""

    @property
    def graph(self) -> Graph:
        graph = shipped.load_model(self.model).model.graph
        return thinned(graph, graph.nodes[1].name, self.first) if self.first else graph

    def plan(self) -> Plan:
        products = PIPELINES[self.matches].plan().products if self.matches else None
        return plan(self.graph, self.cycles, self.mode, products, ultra=self.ultra)


THIN = "sparse-sparse, 5 of 25"
PIPELINES = {
    "sparse-sparse": Pipeline("kws_paper"),
    "sparse-dense": Pipeline("kws_paper", "sparse-dense", True, matches="sparse-sparse"),
    "dense": Pipeline("kws_paper", "dense", True, matches="sparse-sparse"),
    "sparse-sparse, blocks": Pipeline("kws"),
    THIN: Pipeline("kws_paper", cycles=4501, first=5),
    "dense, 5 of 25": Pipeline("kws_paper", "dense", True, matches=THIN, first=5),
}
#: Pipelines whose resources say nothing new.
UNCOUNTED = ("sparse-sparse, blocks", "dense, 5 of 25")


def facts(name: str) -> Record:
    """What a pipeline is. Of which kernels its channels are made says nothing about its size."""
    made = PIPELINES[name].plan()
    plain = replace(made, layers=tuple(replace(layer, channel_of=()) for layer in made.layers))
    return {
        "model": PIPELINES[name].model,
        "mode": PIPELINES[name].mode,
        "ultra": PIPELINES[name].ultra,
        "first": PIPELINES[name].first,
        "structure": f"{shape.fingerprint(plain):016x}",
        "predicted": made.cycles,
        "bottleneck": made.bottleneck,
        "stages": made.stages,
        "products": made.products,
        "multipliers": made.multipliers,
        "weight_bits": made.weight_bits,
        "layers": [
            {
                "name": layer.name,
                "lanes": layer.lanes,
                "outputs": layer.outputs,
                "slots": layer.slots,
                "passes": layer.passes,
                "cycles": layer.cycles,
                "products": layer.products,
                "weight_bits": layer.weight_bits,
            }
            for layer in made.layers
        ],
    }


def clocks(name: str) -> Record:
    """Clocks per word in a stream, and of one word alone, buses included."""
    graph, made = PIPELINES[name].graph, PIPELINES[name].plan()
    x = np.random.default_rng(0).integers(0, 256, (WORDS, *graph.input.shape), np.uint8)
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(made, compile_top(generate.top(made), Path(place)), WORDS)
        bench.put_image(graph)
        y, _ = bench.run(x, load=True)
        if not np.array_equal(y, reference.trace(graph, x)[made.output_name]):
            raise AssertionError(f"{name} does not compute what the reference does")
        one, two, many = (bench.run(x[:n])[1] for n in (1, 2, WORDS))
        bench.close()
    return {"clocks_per_word": (many - two) / (WORDS - 2), "latency": one}


def resources(name: str) -> Record:
    """Yosys' counts of a pipeline, and of all of its modules with what is below them."""
    return _counts(synthesis.synthesize(PIPELINES[name].plan(), timeout=4 * 3600))


def chips(name: str) -> Record:
    """Of pipelines of all speeds, the one of which a whole device computes the most, by estimate."""
    pipeline = PIPELINES[name]
    graph, board = pipeline.graph, DEVICES["U250"].resources
    best: Record = {"words_per_clock": 0.0}
    cycles = _SLOWEST
    while cycles > 0:
        try:
            made = plan(graph, cycles, pipeline.mode, ultra=True)
        except UnsupportedModelError:  # no pipeline is as fast
            break
        need = estimate(made)
        fit = board.fits(need)
        if fit / made.cycles > best["words_per_clock"]:
            best = {
                "words_per_clock": fit / made.cycles,
                "cycles": made.cycles,
                "products": made.products,
                "fit": fit,
                "need": asdict(need),
            }
        cycles = min(made.cycles - 1, int(cycles / 1.06))
    return best


def _counts(report: synthesis.Report) -> Record:
    return {"total": asdict(report.total), "modules": {name: asdict(it) for name, it in report.modules.items()}}


# --- single layers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """A layer of another network; every unit computes a position in at most so many clocks."""

    size: int
    inputs: int
    outputs: int
    clocks: int
    slots: tuple[int, ...]
    winners: tuple[int, ...]
    """The second slots and the second winners are those that stay while the others change."""

    @property
    def rows(self) -> int:
        return self.size**2 * self.inputs

    def layer(self, mode: Mode, slots: int, winners: int) -> Layer:
        """The cheapest unit for it, in a network that gives it its input."""
        side = 7 + self.size
        made = network(
            (side, side, 1),
            "uint8",
            [
                Spec(self.inputs, (1, 1), k=winners),
                Spec(self.outputs, (self.size, self.size), slots=slots, k=1),
                Spec(1, dtype=None),
            ],
        )
        return cheapest_layer(made, "layer1", 64 * self.clocks + 1, mode)


KERNELS = {
    "1×1, 64→64": Kernel(1, 64, 64, 16, (4, 8, 16), (32, 8, 4)),
    "1×1, 256→64": Kernel(1, 256, 64, 32, (8, 16, 32), (64, 16, 8)),
    "3×3, 64→64": Kernel(3, 64, 64, 64, (8, 16, 32), (32, 8, 4)),
    "1×1, 960→160": Kernel(1, 960, 160, 320, (10, 20, 40), (240, 120, 60)),
}


def kernel_units(kernel: Kernel) -> Iterator[tuple[Mode, int, int]]:
    """(mode, slots, winners) of every unit."""
    slots, winners = kernel.slots[1], kernel.winners[1]
    yield "dense", 1, winners
    yield from (("sparse-dense", each, winners) for each in kernel.slots)
    yield from (("sparse-sparse", each, winners) for each in kernel.slots)
    yield from (("sparse-sparse", slots, each) for each in kernel.winners if each != winners)


def kernels(name: str) -> Record:
    """Clocks and resources of every unit of a kernel: sequencer, memory of positions, engine."""
    kernel = KERNELS[name]
    units = list(kernel_units(kernel))
    layers = [kernel.layer(*unit) for unit in units]
    counted = synthesis.synthesize_text(generate.side_by_side(layers), timeout=4 * 3600).modules
    rows = []
    for i, ((mode, slots, winners), layer) in enumerate(zip(units, layers, strict=True)):
        found = counted[f"cs_layer$csengine_top.u_n{i}"]
        rows.append(
            {
                "mode": mode,
                "nonzeros": kernel.rows // slots,
                "winners": winners if mode == "sparse-sparse" else kernel.inputs,
                "clocks": layer.passes * layer.interval,
                "products": layer.products,
                "multipliers": layer.multipliers,
                "weight_bits": layer.weight_bits,
                "resources": asdict(found),
            }
        )
    return {"units": rows}


# --- through XRT, mutants, waves -------------------------------------------------------------------------------------


def words(name: str) -> Record:
    """A shipped network on emulated hardware, through XRT, against the reference: recordings and held-out words."""
    model = shipped.load_model(name).model
    with tempfile.TemporaryDirectory() as place:
        files = [recording.file for recording in shipped.recordings()]
        held_out = list(spoken.held_out(HELD_OUT, Path(place)))
        engine = Engine(model, backend="fpga", emulate=True)
        x = np.concatenate([read_recording(file, model, engine.input_shape) for file in [*files, *held_out]])
    start = time.perf_counter()
    y = engine.run(x)
    seconds = time.perf_counter() - start
    (cycles,) = (row.cycles for row in engine.plan() if row.cycles)
    different = int((y != reference.run(model.graph, x.transpose(0, 2, 3, 1))).any(axis=1).sum())
    if different:
        raise AssertionError(f"{name}: {different} of {len(x)} words differ from the reference")
    return {"recordings": len(files), "held_out": len(held_out), "cycles": cycles, "seconds": seconds}


def mutants() -> list[Record]:
    """Every mutant of the list in a test of its own; the RTL as it is must pass first."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", str(TESTS / "test_mutations.py")]
        environment = {**os.environ, "CSENGINE_FPGA_MUTANTS": "all"}
        subprocess.run(command, cwd=ROOT, env=environment, check=False, timeout=3600)
        cases = {case.get("name"): case for case in ElementTree.parse(report).iter("testcase")}
    caught = {name: case.find("failure") is None and case.find("error") is None for name, case in cases.items()}
    if not caught["test_mutant[-1]"]:
        raise AssertionError("the RTL as it is does not pass")
    return [
        {"module": module, "line": line, "mutant": mutant, "caught": caught[f"test_mutant[{i}]"]}
        for i, (module, line, mutant) in enumerate(MUTANTS)
    ]


#: When a stage of the pipeline of `kws_paper` works, by a signal, and where a word ends if that does not tell.
_STAGES = {
    "input": ("n0_write", "n0_last"),
    "conv1": ("u_n0.u_sequencer.busy_q", None),
    "conv2": ("u_n1.u_sequencer.busy_q", None),
    "linear": ("u_n2.u_sequencer.busy_q", None),
    "k-WTA": ("n2_winner_valid", "n2_winner_last"),
    "output": ("u_n3.u_sequencer.busy_q", None),
}
_BUSES = (
    "arvalid",
    "arready",
    "rvalid",
    "rready",
    "rlast",
    "awvalid",
    "awready",
    "wvalid",
    "wready",
    "wlast",
    "bvalid",
)


def waves() -> Record:
    """When stages work and bus signals change while four words run, in clocks since the registers were set."""
    graph = shipped.load_model("kws_paper").model.graph
    made = plan(graph)
    x = np.random.default_rng(0).integers(0, 256, (4, *graph.input.shape), np.uint8)
    signals = [signal for pair in _STAGES.values() for signal in pair if signal]
    signals += [f"m_axi_gmem_{name}" for name in _BUSES]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        bench = Bench(made, compile_top(generate.top(made), place, traced=True), len(x))
        bench.put_image(graph)
        bench.start(0, load=True)
        bench.wait()
        bench.put_samples(x)
        bench.trace(place / "run.vcd")
        bench.start(len(x), load=False)
        clocks_taken = bench.wait()
        bench.close()
        found = _changes((place / "run.vcd").open(), {f"csengine_top.{name}": name for name in signals})
    stages = {name: _spans(found[busy], found[end] if end else None) for name, (busy, end) in _STAGES.items()}
    if any(len(spans) != len(x) for spans in stages.values()):
        raise AssertionError(f"stages do not show {len(x)} words: {stages}")
    buses = {name: found[f"m_axi_gmem_{name}"] for name in _BUSES}
    return {"clocks": clocks_taken, "words": len(x), "stages": stages, "buses": buses}


def _spans(busy: list[list[int]], ends: list[list[int]] | None) -> list[tuple[int, int]]:
    """(begin, end) of every word: while a signal is 1, or from its first 1 to the pulse that ends the word."""
    starts = [clock for clock, value in busy if value]
    if ends is None:
        return list(zip(starts, [clock for clock, value in busy if not value and clock > starts[0]], strict=True))
    pulses = [clock for clock, value in ends if value]
    begins = [starts[0]]
    for pulse in pulses[:-1]:  # the signal may stay 1 from word to word
        later = next((clock for clock in starts if clock > pulse), pulse + 1)
        drops = any(pulse < clock <= pulse + 1 and not value for clock, value in busy)
        begins.append(later if drops else pulse + 1)
    return list(zip(begins, [pulse + 1 for pulse in pulses], strict=True))


def _changes(lines: Iterable[str], wanted: dict[str, str]) -> dict[str, list[list[int]]]:
    """[[clock, value], ...] of one-bit signals in a VCD file; wanted: the name of each path."""
    paths: dict[str, list[str]] = {}
    scope: list[str] = []
    found: dict[str, list[list[int]]] = {name: [] for name in wanted.values()}
    clock = 0
    for line in lines:
        if line.lstrip().startswith("$"):
            parts = line.split()
            if parts[0] == "$scope":
                scope.append(parts[2])
            elif parts[0] == "$upscope":
                scope.pop()
            elif parts[0] == "$var" and (path := ".".join([*scope[1:], parts[4]])) in wanted:
                paths.setdefault(parts[3], []).append(wanted[path])
        elif line.startswith("#"):
            clock = int(line[1:])
        elif line[:1] in ("0", "1") and line[1:].strip() in paths:
            for name in paths[line[1:].strip()]:
                found[name].append([clock, int(line[0])])
    if missing := [name for name, changes in found.items() if not changes]:
        raise AssertionError(f"no such signals in the waves: {missing}")
    return found


# --- records ---------------------------------------------------------------------------------------------------------


def _record(what: str, name: str, key: Record, measure: Callable[[], Any], again: bool) -> None:
    """Measure one item of a file and store it under its name, unless it is there with the same key."""
    path = RESULTS / f"fpga-{what}.json"
    kept = _read(path).get(name)
    if not again and kept and {**kept, **json.loads(json_text(key))} == kept:
        print(f"{what} of {name}: recorded", flush=True)
        return
    start = time.perf_counter()
    measured = measure()
    record = {**key, **(measured if isinstance(measured, dict) else {"rows": measured})}
    found = {**_read(path), name: record}  # others may have been stored meanwhile
    path.write_text(json_text(found) + "\n")
    print(f"{what} of {name}: {time.perf_counter() - start:.0f} s", flush=True)


def _read(path: Path) -> Record:
    found: Record = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _graph_and_plan(name: str) -> tuple[Graph, Plan]:
    graph = shipped.load_model(name).model.graph
    return graph, plan(graph)


def _sources() -> str:
    """What all hardware is made of."""
    return cache.key(*(path.read_bytes() for path in generate.sources()))


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("clocks", "resources", "chips", "kernels", "words", "mutants", "waves"))
    parser.add_argument("--only", action="append", metavar="NAME", help="a pipeline, kernel or network; by default all")
    parser.add_argument("--again", action="store_true", help="measure what is recorded already, too")
    arguments = parser.parse_args()
    what, again = arguments.what, arguments.again
    rtl = {"rtl": _sources()}
    if what in ("clocks", "resources"):
        measure = {"clocks": clocks, "resources": resources}[what]
        for name in arguments.only or (it for it in PIPELINES if what == "clocks" or it not in UNCOUNTED):
            _record(what, name, {**rtl, **facts(name)}, lambda name=name: measure(name), again)  # type: ignore[misc]
    elif what == "chips":
        for name in arguments.only or ("dense", "sparse-dense", "sparse-sparse", THIN):
            key = {"estimates": cache.key(*(path.read_bytes() for path in _ESTIMATES))}
            _record(what, name, key, lambda name=name: chips(name), again)  # type: ignore[misc]
    elif what == "kernels":
        for name in arguments.only or KERNELS:
            kernel = KERNELS[name]
            selects = [kernel.layer(*unit).selects for unit in kernel_units(kernel)]
            key = {**rtl, "kernel": asdict(kernel), "selects": selects}
            _record(what, name, key, lambda name=name: kernels(name), again)  # type: ignore[misc]
    elif what == "words":
        for name in arguments.only or ("kws", "kws_paper"):
            key = {**rtl, "parameters": cache.key(image.build(*_graph_and_plan(name)).tobytes())}
            _record(what, name, key, lambda name=name: words(name), again)  # type: ignore[misc]
    else:
        _record(what, "all", rtl, {"mutants": mutants, "waves": waves}[what], again)


if __name__ == "__main__":
    main()
