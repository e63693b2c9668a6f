"""Pruning keeps the strongest weights of complementary patterns, and says what it lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csengine import Engine, container, reference
from csengine.cli import main
from csengine.container import Model
from csengine.convert import convert, pack_graph
from csengine.errors import PackingError
from csengine.graph import Affine, Conv2d, Graph, Input, Linear, Relu, Reshape
from csengine.masks import magnitude_mask
from csengine.packing import PackedMatrix
from csengine.pruning import complementary_mask, first_and_last, prune

RNG = np.random.default_rng(5)


def network() -> Graph:
    """Stem, two convolutions of which one is grouped, two linear layers."""

    def matrix(rows: int, kernels: int) -> Any:
        return (RNG.standard_normal((rows, kernels)) * RNG.lognormal(0, 1, kernels)).astype(np.float32)

    nodes: list[Any] = [
        Input(name="input", inputs=(), shape=(10, 10, 3)),
        Conv2d(name="stem", inputs=("input",), weight=matrix(27, 16), kernel=(3, 3)),
        Affine(name="norm", inputs=("stem",), scale=matrix(1, 16)[0], shift=matrix(1, 16)[0]),
        Relu(name="relu", inputs=("norm",)),
        Conv2d(name="grouped", inputs=("relu",), weight=matrix(9, 16), kernel=(3, 3), groups=16),
        Conv2d(name="conv", inputs=("grouped",), weight=matrix(144, 32), kernel=(3, 3)),
        Relu(name="relu2", inputs=("conv",)),
        Reshape(name="flatten", inputs=("relu2",), shape=(512,)),
        Linear(name="hidden", inputs=("flatten",), weight=matrix(512, 64)),
        Relu(name="relu3", inputs=("hidden",)),
        Linear(name="output", inputs=("relu3",), weight=matrix(64, 10)),
    ]
    return Graph(tuple(nodes), "NCHW")


def layers(graph: Graph) -> dict[str, Any]:
    return {node.name: node for node in graph.nodes if isinstance(node, (Conv2d, Linear))}


def test_the_first_the_last_and_grouped_layers_stay() -> None:
    assert first_and_last(network()) == {"stem", "output"}
    pruned, losses = prune(network(), 0.75)
    assert [loss.name for loss in losses] == ["conv", "hidden"]
    before, after = layers(network()), layers(pruned)
    assert {name for name in after if np.count_nonzero(after[name].weight) == before[name].weight.size} == {
        "stem",
        "grouped",
        "output",
    }


@pytest.mark.parametrize("block", [(1, 1), (4, 4)])
@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
def test_pruned_layers_fill_their_sets(block: tuple[int, int], sparsity: float) -> None:
    graph = network()
    pruned, losses = prune(graph, sparsity, block=block)
    packed = layers(pack_graph(pruned))
    dense = layers(graph)
    for loss in losses:
        weight = packed[loss.name].weight
        assert isinstance(weight, PackedMatrix)
        assert weight.statistics().overflow_sets == 0
        assert loss.density == pytest.approx(1 - sparsity, rel=0.12)
        left = weight.unpack()
        assert np.array_equal(left[left != 0], dense[loss.name].weight[left != 0])
        assert 0 < loss.kept <= loss.unstructured <= 1
    x = RNG.random((2, 10, 10, 3), np.float32)
    np.testing.assert_allclose(reference.run(pack_graph(pruned), x), reference.run(pruned, x), rtol=1e-4, atol=1e-4)


def test_magnitude_and_the_search_keep_more() -> None:
    weight = RNG.standard_normal((256, 128)) * RNG.lognormal(0, 1, (256, 1))
    kept = []
    for sweeps in (0, 10):
        mask = complementary_mask(weight, 0.1, (1, 1), np.random.default_rng(0), sweeps)
        kept.append(np.square(weight[mask.matrix]).sum())
    neighbours = magnitude_mask(weight, 10, rng=np.random.default_rng(0))
    assert kept[1] > 1.01 * kept[0]
    assert kept[0] > 2.5 * np.square(weight).sum() * 0.1
    assert sorted(mask.members[mask.members >= 0]) == sorted(neighbours.members[neighbours.members >= 0])


def test_spreading_removes_the_same_share_but_not_from_every_layer_alike() -> None:
    graph = network()
    even, spread = prune(graph, 0.8)[1], prune(graph, 0.8, spread=True)[1]

    def total(losses: Any) -> float:
        return sum(loss.density * loss.rows * loss.kernels for loss in losses)

    assert total(spread) == pytest.approx(total(even), rel=0.15)
    assert spread[0].density > 1.3 * spread[1].density


def test_the_zeros_between_dilated_taps_count_as_nothing() -> None:
    taps = RNG.standard_normal((64, 32)).astype(np.float32)
    dilated = np.concatenate([taps[:32], np.zeros((96, 32), np.float32), taps[32:]])
    nodes: list[Any] = [
        Input(name="input", inputs=(), shape=(1, 20, 32)),
        Conv2d(name="plain", inputs=("input",), weight=taps, kernel=(1, 2)),
        Conv2d(name="dilated", inputs=("plain",), weight=dilated, kernel=(1, 5)),
    ]
    for spread in (False, True):
        pruned, (plain, wide) = prune(Graph(tuple(nodes)), 0.8, keep=(), spread=spread)
        left = [np.count_nonzero(layers(pruned)[name].weight) for name in ("plain", "dilated")]
        assert left[1] == pytest.approx(left[0], rel=0.2)
        assert wide.unstructured == pytest.approx(plain.unstructured, rel=0.15)


def test_single_layers_have_their_own_sparsity() -> None:
    losses = {loss.name: loss for loss in prune(network(), 0.5, layers={"output": 0.75, "conv": 0.9})[1]}
    assert losses["output"].density == pytest.approx(0.25)
    assert losses["conv"].density == pytest.approx(0.1, rel=0.1)
    assert losses["hidden"].density == pytest.approx(0.5)
    assert {loss.name for loss in prune(network(), 0.5, keep=["conv"])[1]} == {"stem", "hidden", "output"}


def test_what_cannot_be_pruned_says_why() -> None:
    with pytest.raises(PackingError, match="no layer 'other'; the network has stem"):
        prune(network(), 0.5, keep=["other"])
    for sparsity in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(PackingError, match="expected above 0 and below 1"):
            prune(network(), sparsity)
    integers = convert(network(), RNG.random((8, 10, 10, 3), np.float32))[0].graph
    with pytest.raises(PackingError, match="prune the float32 network"):
        prune(integers, 0.5)


def test_a_packed_float_network_is_quantized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, written, samples = (str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "x.npy"))
    graph, x = pack_graph(prune(network(), 0.75, block=(4, 4))[0]), RNG.random((8, 3, 10, 10), np.float32)
    container.save(Model(graph, tuple("abcdefghij"), {"kind": "log-mel"}), source)
    np.save(samples, x)
    assert main(["convert", source, "-o", written, "--calibrate", samples]) == 0
    assert "the source is a packed file" in capsys.readouterr().out
    model = container.load(written)
    assert (model.labels, model.preprocessing) == (tuple("abcdefghij"), {"kind": "log-mel"})
    assert [node.weight.block for node in layers(model.graph).values() if isinstance(node.weight, PackedMatrix)] == [
        node.weight.block for node in layers(graph).values() if isinstance(node.weight, PackedMatrix)
    ]
    expected = Engine.load(source).run(x)
    assert np.abs(Engine.load(written).run(x) - expected).max() < 0.05 * np.abs(expected).max()
    assert main(["convert", written, "-o", source, "--calibrate", samples]) == 2
    assert "holds integers already" in capsys.readouterr().err


def test_the_command_prunes_quantizes_and_packs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, pruned, samples = (str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "x.npy"))
    labels, preprocessing = tuple("abcdefghij"), {"kind": "log-mel"}
    container.save(Model(network(), labels, preprocessing, {"float32": 0.9}), source)
    x = RNG.random((8, 3, 10, 10), np.float32)
    np.save(samples, x)
    command = ["prune", source, "-o", pruned, "--sparsity", "0.75", "--block", "4x4", "--layer", "hidden=0.875"]
    assert main([*command, "--calibrate", samples, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [round(layer["density"], 2) for layer in report["layers"]] == [0.25, 0.12]
    assert Engine.load(pruned).run(x).shape == (8, 10)
    model = container.load(pruned)
    assert (model.labels, model.preprocessing, model.accuracy) == (labels, preprocessing, {})  # of the dense network
    assert main([*command, "--float"]) == 0
    assert "at best" in capsys.readouterr().out
    assert main(["prune", source, "-o", pruned, "--sparsity", "0.5", "--keep", "nothing", "--float"]) == 2
    for wrong in (["--sparsity", "2"], ["--sparsity", "0.5", "--layer", "x"]):
        with pytest.raises(SystemExit):
            main(["prune", source, "-o", pruned, "--float", *wrong])
