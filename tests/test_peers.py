"""Comparison with other runtimes: workers, contests and forms of a network, without installing any of them.

The test environment stands in for the peers' own: it has SciPy and PyTorch. Peers whose environments exist are tried as
well, the others skipped.
"""

from __future__ import annotations

import importlib
import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import random_graph

from csengine import BackendUnavailableError, container, reference
from csengine.cli import energy, main
from csengine.cli.contest import Contest, Entry, PeerError, Worker
from csengine.cli.output import Progress
from csengine.container import Model
from csengine.convert import convert
from csengine.errors import QuantizationError
from csengine.graph import (
    FUNCTIONS,
    KWTA,
    Activation,
    Affine,
    AveragePool,
    Clip,
    Conv2d,
    Graph,
    Input,
    Linear,
    MaxPool,
    Product,
    Relu,
    Reshape,
)
from csengine.peers import catalogue, functions

REAL_PLACE = catalogue.directory()
BENCH = Path(__file__).parent.parent / "bench"


def network(winners: bool = True, layout: Any = "NCHW") -> Model:
    """Two convolution-like stages in front of two linear layers, quantized and packed."""
    rng = np.random.default_rng(0)

    def matrix(rows: int, kernels: int, density: float) -> Any:
        return np.where(rng.random((rows, kernels)) < density, rng.normal(size=(rows, kernels)), 0).astype(np.float32)

    nodes: list[Any] = [
        Input(name="input", inputs=(), shape=(8, 8, 3)),
        Conv2d(name="conv", inputs=("input",), weight=matrix(27, 16, 0.5), kernel=(3, 3), padding=(1, 1, 1, 1)),
        MaxPool(name="pool", inputs=("conv",), kernel=(2, 2), stride=(2, 2)),
        Relu(name="relu", inputs=("pool",)),
        KWTA(name="winners", inputs=("relu",), k=4, scope="local"),
        AveragePool(
            name="mean",
            inputs=("winners",),
            kernel=(3, 3),
            stride=(1, 1),
            padding=(1, 1, 1, 1),
            count_padding=False,
        ),
        Clip(name="clip", inputs=("mean",), minimum=0.05),
        Reshape(name="flatten", inputs=("clip",), shape=(256,)),
        Linear(name="hidden", inputs=("flatten",), weight=matrix(256, 70, 0.1), bias=matrix(1, 70, 1.0)[0]),
        Relu(name="relu2", inputs=("hidden",)),
        KWTA(name="winners2", inputs=("relu2",), k=9, scope="global"),
        Linear(name="output", inputs=("winners2",), weight=matrix(70, 5, 1.0)),
    ]
    model, _ = convert(Graph(tuple(nodes), layout), rng.random((16, 8, 8, 3), np.float32))
    return model if winners else functions.without_winners(model)


def gated(function: Any, integer: bool = True) -> Model:
    """A convolution, an activation, squeeze and excitation, and a factor per channel."""
    rng = np.random.default_rng(4)
    alpha = {"alpha": 0.3} if FUNCTIONS[function] else {}
    weights = {name: rng.normal(size=size).astype(np.float32) for name, size in (("conv", (27, 8)), ("gate", (8, 8)))}
    scale, shift = rng.normal(size=(2, 8)).astype(np.float32)
    nodes = (
        Input(name="input", inputs=(), shape=(6, 6, 3)),
        Conv2d(name="conv", inputs=("input",), weight=weights["conv"], kernel=(3, 3)),
        Activation(name="act", inputs=("conv",), function=function, **alpha),
        AveragePool(name="mean", inputs=("act",), kernel=(4, 4), stride=(4, 4)),
        Conv2d(name="gate", inputs=("mean",), weight=weights["gate"], kernel=(1, 1)),
        Activation(name="open", inputs=("gate",), function="hard_sigmoid", alpha=1 / 6),
        Product(name="gated", inputs=("act", "open")),
        Affine(name="scaled", inputs=("gated",), scale=scale, shift=shift),
    )
    samples = rng.random((16, 6, 6, 3), np.float32) if integer else None
    return convert(Graph(nodes, "NCHW"), samples)[0]


def layer() -> Model:
    """One linear layer."""
    weight = np.where(np.random.default_rng(1).random((40, 24)) < 0.2, 1.5, 0).astype(np.float32)
    nodes = (Input(name="input", inputs=(), shape=(40,)), Linear(name="linear", inputs=("input",), weight=weight))
    return convert(Graph(nodes), np.random.default_rng(2).random((8, 40), np.float32))[0]


def batch(model: Model, size: int) -> Any:
    x = np.random.default_rng(3).random((size, *model.graph.input.shape), np.float32)
    to_nchw = model.graph.layout == "NCHW" and x.ndim == 4
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if to_nchw else x


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Make an environment for a peer, whose interpreter is this one, or a shell script."""
    monkeypatch.setenv("CSENGINE_PEERS", str(tmp_path / "peers"))

    def make(peer: str, script: str = f'exec "{sys.executable}" "$@"') -> None:
        path = tmp_path / "peers" / peer / "bin" / "python"
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return make


def hold(*entries: Entry, runs: int = 3) -> list[Any]:
    with Contest(1) as contest, Progress("test", 1) as progress:
        return contest.hold(entries, runs, 0.1, progress)


# --- contests --------------------------------------------------------------------------------------------------------


def test_csengine_against_scipy_and_torch(environments: Callable[..., None]) -> None:
    environments("scipy")
    environments("torch")
    model = layer()
    one, several = batch(model, 2), batch(model, 6)
    variants = [("csengine", "reference/auto"), ("csengine", "cpp/dense/exact"), ("scipy", "fp32-csr")]
    variants += [("torch", "fp32"), ("torch", "bf16")]
    outcomes = hold(*(Entry(*name, "layer", model, x, len(x) // 2) for name in variants for x in (one, several)))
    for outcome in outcomes:
        assert not outcome.failure
        assert outcome.timing.runs == 3
        assert 0 < outcome.timing.p10 <= outcome.timing.median <= outcome.timing.p90
    assert [outcome.error for outcome in outcomes[:4]] == [0.0] * 4
    assert outcomes[0].tier == "numpy"
    assert 0 < outcomes[4].error < 1e-6


def test_torch_computes_the_same_network(environments: Callable[..., None]) -> None:
    environments("torch")
    models = [network(winners, layout) for winners in (True, False) for layout in ("NCHW", "NHWC")]
    models += [gated(function, integer) for function in FUNCTIONS for integer in (True, False)]
    for outcome in hold(*(Entry("torch", "fp32", "f", model, batch(model, 6), 3) for model in models), runs=1):
        assert outcome.failure == ""
        assert outcome.error < 1e-6


def test_a_wrong_output_gets_no_time(environments: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    environments("scipy")
    monkeypatch.setitem(catalogue.TOLERANCE, "fp32", -1.0)
    model = layer()
    own, peer = (
        Entry(*name, "layer", model, batch(model, 1), 1) for name in (("csengine", "cpp/auto"), ("scipy", "fp32-csr"))
    )
    first, second = hold(own, peer)
    assert first.timing is not None
    assert second.timing is None
    assert "the output is off by" in second.failure


def test_a_peer_that_fails_does_not_stop_the_others(environments: Callable[..., None]) -> None:
    environments("openvino", """echo '{"versions": {}}'; read line; echo "no memory" >&2; exit 4""")
    environments("scipy")
    model = network()
    x = batch(model, 1)
    entries = [
        Entry(*name, "f", model, x, 1)
        for name in (("openvino", "int8"), ("scipy", "fp32-csr"), ("csengine", "cpp/auto"))
    ]
    dead, unable, own = hold(*entries)
    assert "ended with status 4 (no memory)" in dead.failure
    assert unable.failure  # it has no form of a network of several layers
    assert own.timing is not None


def test_a_worker_that_hangs_is_ended(environments: Callable[..., None], tmp_path: Path) -> None:
    environments("scipy", """echo '{"versions": {}}'; exec sleep 100""")
    worker = Worker("scipy", 1, (), tmp_path / "log")
    with pytest.raises(PeerError, match="status -9"):
        worker.ask(0.2, do="time", key="0", runs=1)
    assert not worker.is_alive
    worker.close()


def test_workers_are_pinned_and_talk_only_json(environments: Callable[..., None], tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    worker = Worker(catalogue.OWN, 1, (cpu,), tmp_path / "log")
    status = Path(f"/proc/{worker._process.pid}/status").read_text()
    assert f"Cpus_allowed_list:\t{cpu}\n" in status
    with pytest.raises(PeerError, match="KeyError"):
        worker.ask(10, do="time", key="never loaded", runs=1)
    assert worker.is_alive
    worker.close()
    assert not worker.is_alive


def test_energy_is_read_where_there_are_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert energy.counters() == ()
    assert "not measured" in energy.describe()
    for number, name in enumerate(("package-0", "core", "package-1")):
        domain = tmp_path / f"intel-rapl:{number}"
        domain.mkdir()
        for file, text in (("name", name), ("energy_uj", "900"), ("max_energy_range_uj", "1000")):
            (domain / file).write_text(f"{text}\n")
    (tmp_path / "intel-rapl:3").mkdir()  # one that may not be read
    first, second = energy.counters()
    assert "RAPL" in energy.describe()

    def work() -> None:
        first.file.write_text("950")
        second.file.write_text("100")  # it wrapped

    assert energy.joules((first, second), work) == pytest.approx((50 + 200) / 1e6)
    (outcome,) = hold(Entry("csengine", "reference/auto", "layer", layer(), batch(layer(), 1), 1))
    assert outcome.joules == 0  # these counters stand still


# --- what peers are given --------------------------------------------------------------------------------------------


def quantized(seed: int) -> tuple[Model, Any]:
    """A random network, quantized, and inputs for it in NHWC."""
    graph = random_graph(seed, integer=False)
    x = np.random.default_rng(seed).normal(size=(16, *graph.input.shape)).astype(np.float32)
    return convert(graph, x)[0], x[:3]


@pytest.mark.parametrize("winners", [True, False])
def test_the_real_function_is_near_the_integers(winners: bool) -> None:
    model = network(winners)
    x = batch(model, 5)
    exact, real = (functions.expected(model.graph, x, exact=exact) for exact in (True, False))
    assert functions.relative_error(real, exact) < (0.2 if winners else 0.05)
    assert not any(kind.is_integer for kind in functions.real(model.graph).types.values())
    assert functions.has_winners(model.graph) == winners


def test_padding_keeps_the_function() -> None:
    changed = 0
    for seed in range(80):
        try:
            model, x = quantized(seed)
        except QuantizationError:  # nothing in it has an integer form
            continue
        for graph in (model.graph, functions.real(model.graph)):
            padded = functions.padded(graph, 4)
            changed += padded.types != graph.types
            expected, got = reference.run(graph, x), reference.run(padded, x)
            np.testing.assert_allclose(got[..., : expected.shape[-1]], expected, rtol=1e-5, atol=1e-5)
    assert changed


def test_suited_variants() -> None:
    assert catalogue.suited("scipy", network().graph) == ()
    assert catalogue.suited("scipy", layer().graph) == ("fp32-csr",)
    assert "fp32-scatter" in catalogue.suited("openvino", network().graph)
    assert "fp32-scatter" not in catalogue.suited("openvino", network(winners=False).graph)
    assert catalogue.suited("deepsparse", functions.real(network().graph)) == ("fp32",)


def unoptimized(ort: Any, model: Any) -> Any:
    """A session of ONNX Runtime that computes in float sums, which cannot saturate."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def test_weights_of_seven_bits() -> None:
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    onnx_form = importlib.import_module("csengine.peers.onnx_form")
    model = network(winners=False)
    x = batch(model, 4)
    wanted = reference.run(model.graph, x.transpose(0, 2, 3, 1))
    errors = []
    for bits in (8, 7):
        written = onnx_form.write(model.graph, "qdq", len(x), weight_bits=bits)
        largest = max(
            int(np.abs(onnx.numpy_helper.to_array(constant).astype(int)).max())
            for constant in written.model.graph.initializer
            if constant.data_type == onnx.TensorProto.INT8
        )
        assert largest == (127 if bits == 8 else 64)
        session = unoptimized(ort, written.model)
        errors.append(functions.relative_error(session.run(None, {"input": x})[0], wanted))
    assert errors[0] < 0.01 < errors[1] < catalogue.TOLERANCE["int8"]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_onnx_forms_of_activations_and_products(function: str) -> None:
    pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    onnx_form = importlib.import_module("csengine.peers.onnx_form")
    for form, integer in (("float", False), ("float", True), ("qdq", True)):
        graph = gated(function, integer).graph
        x = batch(Model(graph), 4)
        written = onnx_form.write(graph, form, len(x))
        got = unoptimized(ort, written.model).run(None, {"input": x})[0]
        error = functions.relative_error(got, functions.expected(graph, x, exact=form == "qdq"))
        assert error < (0.02 if form == "qdq" else 1e-5)


def test_relative_error() -> None:
    wanted = np.array([[3.0, 4.0]])
    assert functions.relative_error(wanted, wanted) == 0
    assert functions.relative_error(1.1 * wanted, wanted) == pytest.approx(0.1)
    assert functions.relative_error(wanted[0], wanted) == float("inf")
    assert functions.relative_error(np.array([[np.nan, 4.0]]), wanted) == float("inf")


# --- the command line ------------------------------------------------------------------------------------------------


def test_bench_against(environments: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environments("scipy")
    container.save(layer(), tmp_path / "layer.safetensors")
    command = ("bench", str(tmp_path / "layer.safetensors"), "--against", "scipy", "--mode", "dense,auto")
    command += ("--runs", "3", "--seconds", "0.1")
    assert main([*command, "-b", "1,2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(row["batch"], row["contender"]) for row in report["rows"]] == [
        (size, name) for size in (1, 2) for name in ("csengine", "csengine", "scipy")
    ]
    assert report["peers"][1]["versions"]["scipy"]
    assert all(row["median_seconds"] > 0 and not row["failure"] for row in report["rows"])
    for form in ("text", "md", "csv"):
        assert main([*command, "--format", form]) == 0
        assert "fp32-csr" in capsys.readouterr().out


def test_bench_against_shows_what_failed(
    environments: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environments("scipy", "echo '{\"versions\": {}}'; exit 5")
    container.save(layer(), tmp_path / "layer.safetensors")
    command = ("bench", str(tmp_path / "layer.safetensors"), "--mode", "auto", "--runs", "3", "--against", "scipy")
    assert main(command) == 0
    assert "failed: scipy: ended with status 5" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][1]["median_seconds"] is None


def test_bench_against_a_peer_that_is_not_installed(
    environments: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    container.save(layer(), tmp_path / "layer.safetensors")
    assert main(["bench", str(tmp_path / "layer.safetensors"), "--against", "openvino"]) == 2
    assert "openvino has no environment" in (error := capsys.readouterr().err)
    assert "make peers PEERS=openvino" in error
    with pytest.raises(SystemExit):
        main(["bench", "m", "--against", "tensorrt"])


# --- the suites ------------------------------------------------------------------------------------------------------


def test_the_suites_run_and_their_report_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpl = pytest.importorskip("matplotlib")
    mpl.use("agg")
    monkeypatch.syspath_prepend(str(BENCH))
    against_peers, report = importlib.import_module("against_peers"), importlib.import_module("report")
    peers = catalogue.installed()[:1]
    command = ["--quick", "--output", str(tmp_path), "--checkpoints", str(tmp_path), "--peers", " ".join(peers)]
    assert against_peers.main(command) == 0
    for suite in against_peers.SUITES:
        results = json.loads((tmp_path / f"peers-{suite}.json").read_text())
        assert [row["failure"] for contest in results["contests"] for row in contest["rows"] if row["failure"]] == []
        assert results["machine"]["cpu"]
        assert results["peers"][0]["peer"] == "csengine"
    sections = report.sections(tmp_path, tmp_path)
    assert {"main", *(f"peers-{suite}" for suite in against_peers.SUITES)} <= set(sections)
    pictures = ("peers", "batches", "linear", "convolutions")
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in pictures)
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("before\n<!-- begin main -->\nold\n<!-- end main -->\nafter\n")
    monkeypatch.setattr(report, "IMAGES", page.parent / "images")
    report.insert(page, sections)
    text = page.read_text()
    assert "old" not in text
    assert "](images/peers.png)" in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- end main -->\nafter\n")


# --- peers that are installed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", catalogue.PEERS)
def test_installed_peers_compute_the_function(peer: str) -> None:
    try:
        catalogue.interpreter(peer)
    except BackendUnavailableError:
        pytest.skip(f"{peer} is not installed in {REAL_PLACE}")
    entries = []
    models = [network(), network(winners=False), layer()]
    if peer != "deepsparse":  # which knows integer convolutions only in front of the functions that it fuses
        models += [gated("hard_swish"), gated("silu", integer=False)]
    for model in models:
        variants = [name for name in catalogue.suited(peer, model.graph) if "compiled" not in name]
        entries += [Entry(peer, variant, "f", model, batch(model, 4), 2) for variant in variants]
    assert [outcome.failure for outcome in hold(*entries, runs=1) if outcome.failure] == []
