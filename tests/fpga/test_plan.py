"""Plans, shapes and parameter images, without simulation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from networks import Spec, network, thinned

from csengine import cli, container
from csengine.errors import UnsupportedModelError
from csengine.fpga import devices, generate, image, shape, synthesis
from csengine.fpga.estimate import estimate
from csengine.fpga.plan import Plan, holds, plan
from csengine.graph import Activation, Dequantize, Graph, Linear, Node, Product, Quantize, Requantization

MODELS = Path(__file__).parents[2] / "csengine" / "models"
BENCH = Path(__file__).parents[2] / "bench"


def _kws(name: str = "kws_paper") -> Graph:
    return container.load(MODELS / f"{name}.safetensors").graph


@pytest.mark.parametrize("name", ["kws", "kws_paper"])
@pytest.mark.parametrize("cycles", [1569, 2400, 20000])
def test_a_plan_meets_its_budget(name: str, cycles: int) -> None:
    made = plan(_kws(name), cycles)
    assert made.cycles <= cycles
    cheaper = plan(_kws(name), 2 * cycles)
    assert cheaper.products < made.products


def test_three_ways_at_equal_products() -> None:
    graph = _kws()
    sparse = plan(graph)
    others = [plan(graph, mode=mode, products=sparse.products) for mode in ("sparse-dense", "dense")]
    assert all(other.products <= sparse.products for other in others)
    assert sparse.cycles < others[0].cycles / 2
    assert others[0].cycles < others[1].cycles / 5
    assert len({shape.fingerprint(made) for made in (sparse, *others)}) == 3


def test_plans_survive_json() -> None:
    made = plan(_kws())
    assert Plan.from_json(made.to_json()) == made
    for text in ("{}", '{"layers": 3}', "[1]", made.to_json().replace("interval", "internal")):
        with pytest.raises(ValueError, match="no plan"):
            Plan.from_json(text)


def test_shapes_that_differ_are_named() -> None:
    made = plan(_kws())
    assert shape.difference(made, made) == ""
    other = replace(made, layers=(replace(made.layers[0], kernels=65), *made.layers[1:]))
    assert shape.difference(made, other) == "conv1.kernels is 65 instead of 64"
    assert shape.fingerprint(other) != shape.fingerprint(made)
    assert "3 layers instead of 4" in shape.difference(made, replace(made, layers=made.layers[1:]))


def test_retraining_keeps_the_shape() -> None:
    layers = [Spec(8, (2, 2), slots=1, k=3), Spec(12, slots=4, k=5), Spec(3, dtype=None)]
    one, two = (network((5, 5, 1), "uint8", layers, seed) for seed in (1, 2))
    assert plan(one) == plan(two)
    assert not np.array_equal(image.build(one, plan(one)), image.build(two, plan(two)))


def test_an_image_has_its_header_and_length() -> None:
    graph = _kws()
    made = plan(graph)
    words = image.build(graph, made).view("<u8")
    assert bytes(words[:1].view(np.uint8)) == image.MAGIC
    assert words[1] == shape.fingerprint(made)
    assert words[2] == len(words) == image.words(made)
    assert words[3] == words[8:].sum(dtype=np.uint64)
    assert not words[4:8].any()


def test_generated_text_is_the_same_every_time() -> None:
    text = generate.top(plan(_kws()))
    assert text == generate.top(plan(_kws()))
    assert max(map(len, (line for line in text.splitlines() if "ChannelOf" not in line))) <= 120


def _changed(graph: Graph, name: str, **changes: object) -> Graph:
    nodes: list[Node] = [replace(node, **changes) if node.name == name else node for node in graph.nodes]
    return Graph(tuple(nodes), "NHWC")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda graph: _changed(graph, "winners1", factor=np.ones(64, np.float32)), "winners1 ranks by a factor"),
        (lambda graph: _changed(graph, "winners1", scope="global"), "local after a convolution"),
        (lambda graph: _changed(graph, "pool1", kernel=(1, 1)), "pools 2 x 2"),
        (lambda graph: Graph(graph.nodes[:5], "NHWC"), "ends with a linear layer"),
    ],
)
def test_what_a_pipeline_cannot_hold_is_refused(change: object, message: str) -> None:
    small = network((8, 8, 1), "uint8", [Spec(64, (3, 3), k=5, pool="before"), Spec(4, dtype=None)])
    renamed = {"k0": "winners1", "pool0": "pool1"}
    nodes = [
        replace(n, name=renamed.get(n.name, n.name), inputs=tuple(renamed.get(i, i) for i in n.inputs))
        for n in small.nodes
    ]
    with pytest.raises(UnsupportedModelError, match=message):
        plan(change(Graph(tuple(nodes), "NHWC")))  # type: ignore[operator]


def test_float32_within_a_network_is_refused() -> None:
    graph = network((8, 8, 1), "uint8", [Spec(64, (3, 3), k=5), Spec(4, dtype=None)])
    ends = graph.output.name
    again = [
        Dequantize(name="real", inputs=(ends,), scale=np.ones(1)),
        Quantize(name="again", inputs=("real",), dtype="int8", scale=1.0),
        Linear(name="more", inputs=("again",), weight=np.ones((4, 2), np.int8)),
    ]
    with pytest.raises(UnsupportedModelError, match="again quantizes float32 within the network"):
        plan(Graph((*graph.nodes, *again), "NHWC"))


def test_activations_and_products_are_refused() -> None:
    graph = network((8, 8, 1), "uint8", [Spec(64, (3, 3)), Spec(4, dtype=None)])
    first, layer, *rest = graph.nodes
    table = Activation(name="act", inputs=(layer.name,), function="silu", table=np.zeros(256, np.uint8), scale=1.0)
    to = Requantization(np.full(1, 40000, np.uint16), np.full(1, 24, np.uint8), "uint8", 1.0)
    square = Product(name="act", inputs=(layer.name, layer.name), requantization=to)
    after = [replace(n, inputs=tuple("act" if i == layer.name else i for i in n.inputs)) for n in rest]
    for node, reason in ((table, "act: a pipeline holds no Activation"), (square, "a pipeline holds chains only")):
        with pytest.raises(UnsupportedModelError, match=reason):
            plan(Graph((first, layer, node, *after)))


def test_impossible_budgets_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="clocks per sample"):
        plan(_kws(), 1000)
    with pytest.raises(UnsupportedModelError, match="products per clock"):
        plan(_kws(), products=1)


@pytest.mark.parametrize("name", ["kws", "kws_paper"])
def test_a_device_gets_the_fastest_plan_that_fits(name: str) -> None:
    graph, board = _kws(name), replace(devices.DEVICES["ZU3EG"].resources, lut=40_000)

    def fits(made: Plan) -> bool:
        return board.fits(estimate(made)) > 0

    made = plan(graph, fits=fits)
    assert fits(made)
    assert made.cycles > plan(graph).cycles
    assert not fits(plan(graph, made.cycles - 1))
    with pytest.raises(UnsupportedModelError, match="too much for the device"):
        plan(graph, mode="dense", fits=fits)


def test_estimates_are_near_what_was_counted() -> None:
    counted = json.loads((BENCH / "results" / "fpga-resources.json").read_text())
    assert {"sparse-sparse", "sparse-dense", "dense"} <= set(counted)
    for record in counted.values():
        graph = _kws(record["model"])
        if record["first"]:
            graph = thinned(graph, "conv1", record["first"])
        made = plan(graph, record["predicted"], record["mode"], ultra=record["ultra"])
        assert made.multipliers == record["multipliers"], "record again: make fpga-report"
        needs = estimate(made)
        for resource, share in (("lut", 0.2), ("ff", 0.25), ("dsp", 0.02), ("bram", 0.25), ("uram", 0.25)):
            expected = record["total"][resource]
            assert abs(getattr(needs, resource) - expected) <= share * expected, (record["model"], resource)


def test_every_way_to_build_a_network_holds_it_and_no_other() -> None:
    graph, other = _kws(), _kws("kws")
    for mode in ("sparse-sparse", "sparse-dense", "dense"):
        made = plan(graph, 40_000, mode)  # type: ignore[arg-type]
        assert holds(made, graph)
        assert not holds(made, other) or mode == "dense"
        first = made.layers[0]
        assert not holds(replace(made, layers=(replace(first, interval=first.interval + 1), *made.layers[1:])), graph)
    wider = replace(made, layers=tuple(replace(layer, total_bits=32) for layer in made.layers))
    assert holds(wider, graph)
    assert not holds(replace(made, output_name="elsewhere"), graph)


def test_large_memories_are_ultraram_where_there_is_some() -> None:
    graph = _kws()
    without, made = (plan(graph, 30_000, "dense", ultra=ultra) for ultra in (False, True))
    assert {layer.name for layer in made.layers if layer.ultra} == {"linear", "output"}
    assert made == replace(without, layers=made.layers)
    assert holds(made, graph)
    assert holds(without, graph)
    assert (generate.top(made).count('.RamStyle("ultra")'), generate.top(without).count('"ultra"')) == (2, 0)
    assert estimate(without).uram == 0
    assert 0 < 4 * estimate(made).uram < estimate(without).bram - estimate(made).bram


def test_resources_add_up_along_the_hierarchy() -> None:
    modules = {
        "\\csengine_top": {"num_cells_by_type": {"inner": 3, "FDRE": 2, "URAM288": 1}},
        "inner": {
            "num_cells_by_type": {"LUT6": 4, "RAM32M16": 1, "SRL16E": 2, "RAMB18E2": 1, "DSP48E2": 1, "CARRY4": 9}
        },
    }
    report = synthesis.count(modules)
    assert report.modules["inner"] == devices.Resources(lut=14, ff=0, dsp=1, bram=0.5, uram=0)
    assert report.total == devices.Resources(lut=42, ff=2, dsp=3, bram=1.5, uram=1)
    board = devices.Resources(lut=420, ff=100, dsp=10, bram=6, uram=0)
    assert board.fits(report.total) == 0
    assert board.scarcest(report.total) == "uram"
    assert replace(board, uram=9).fits(report.total) == 3


def test_the_plan_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fpga", "plan", "kws_paper"]) == 0
    text = capsys.readouterr().out
    assert "1,569, set by conv1" in text
    assert "<- sets the pace" in text
    assert cli.main(["fpga", "plan", "kws_paper", "--cycles", "2400", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cycles"] <= 2400
    assert cli.main(["fpga", "plan", "kws_paper", "--cycles", "10"]) != 0
