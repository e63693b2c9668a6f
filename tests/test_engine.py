"""`Engine`: what it accepts, what it refuses, and that it can be shared between threads."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from graphs import random_input

from csengine import BackendUnavailableError, Engine, ModelFormatError, ShapeError, reference
from csengine.container import Model, save
from csengine.graph import KWTA, Conv2d, Dequantize, Graph, Input, Linear, MaxPool, Relu, Requantization, Reshape
from csengine.packing import pack


def small_graph(layout: str = "NCHW") -> Graph:
    """A sparse network of every kind of layer that matters, 2 x 8 x 8 in, 5 out."""
    rng = np.random.default_rng(0)
    conv = rng.integers(-127, 128, (18, 16)).astype(np.int8) * (rng.random((18, 16)) < 0.3)
    linear = rng.integers(-127, 128, (144, 5)).astype(np.int8) * (rng.random((144, 5)) < 0.2)
    q = Requantization(np.full(16, 40000, np.uint16), np.full(16, 24, np.uint8), "uint8", 0.1)
    return Graph(
        (
            Input(name="input", inputs=(), shape=(8, 8, 2), dtype="uint8", scale=1 / 255),
            Conv2d(name="conv", inputs=("input",), weight=pack(conv), kernel=(3, 3), requantization=q),
            MaxPool(name="pool", inputs=("conv",), kernel=(2, 2), stride=(2, 2)),
            KWTA(name="winners", inputs=("pool",), k=4, scope="local"),
            Reshape(name="flatten", inputs=("winners",), shape=(144,)),
            Linear(name="linear", inputs=("flatten",), weight=pack(linear)),
            Dequantize(name="output", inputs=("linear",), scale=np.array([0.01])),
        ),
        layout,  # type: ignore[arg-type]
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "small.safetensors"
    save(Model(small_graph(), ("a", "b", "c", "d", "e")), file)
    return file


@pytest.fixture
def engine(path: Path) -> Engine:
    return Engine.load(path)


def test_load_and_run(engine: Engine) -> None:
    assert engine.input_shape == (2, 8, 8)
    assert engine.output_shape == (5,)
    assert engine.labels == ("a", "b", "c", "d", "e")
    assert engine.backend == "cpp"
    x = np.random.default_rng(1).random((3, 2, 8, 8), np.float32)
    expected = reference.run(engine.model.graph, x.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(engine.run(x), expected)
    np.testing.assert_array_equal(engine.run(x[1]), expected[1])


def test_accepts_real_numbers_of_any_width_lists_views_and_the_own_type(engine: Engine) -> None:
    x = np.random.default_rng(1).random((2, 2, 8, 8), np.float32)
    expected = engine.run(x)
    np.testing.assert_array_equal(engine.run(x.astype(np.float64)), expected)
    np.testing.assert_array_equal(engine.run(x.tolist()), expected)
    np.testing.assert_array_equal(engine.run(np.asfortranarray(x)), expected)
    np.testing.assert_array_equal(engine.run(np.repeat(x, 2, axis=0)[::2]), expected)
    np.testing.assert_array_equal(engine.run(np.rint(x * np.float32(255)).astype(np.uint8)), expected)


def test_image_outputs_keep_the_layout_of_the_source() -> None:
    graph = Graph(small_graph().nodes[:3], "NCHW")
    engine = Engine(Model(graph))
    x = np.random.default_rng(1).random((2, 2, 8, 8), np.float32)
    assert engine.output_shape == (16, 3, 3)
    expected = reference.run(graph, x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(engine.run(x), expected)


@pytest.mark.parametrize("shape", [(5, 4, 1), (1, 1, 6), (1, 4, 3), (5, 1, 3)])
def test_images_of_the_source_are_turned_unless_they_lie_alike(shape: tuple[int, int, int]) -> None:
    graph = Graph((Input(name="x", inputs=(), shape=shape), Relu(name="y", inputs=("x",))), "NCHW")
    engine = Engine(Model(graph))
    inside = np.random.default_rng(1).standard_normal((3, *shape)).astype(np.float32)
    x, y = inside.transpose(0, 3, 1, 2), np.maximum(inside, 0).transpose(0, 3, 1, 2)
    for given in (np.ascontiguousarray(x), np.asfortranarray(x)):
        np.testing.assert_array_equal(engine.run(given), y)
        np.testing.assert_array_equal(engine.run(given[1]), y[1])
    assert engine.run(x[:0]).shape == (0, shape[2], *shape[:2])


def test_nhwc_networks_take_nhwc() -> None:
    engine = Engine(Model(small_graph("NHWC")))
    assert engine.input_shape == (8, 8, 2)
    assert engine.run(np.zeros((8, 8, 2), np.float32)).shape == (5,)


def test_an_empty_batch_gives_an_empty_result(engine: Engine) -> None:
    assert engine.run(np.zeros((0, 2, 8, 8), np.float32)).shape == (0, 5)


@pytest.mark.parametrize("shape", [(8, 8, 2), (3, 8, 8, 2), (2, 8), (), (1, 1, 2, 8, 8), (128,)])
def test_a_wrong_shape_is_explained(engine: Engine, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(2, 8, 8\) for one sample or \(B, 2, 8, 8\) for a batch"):
        engine.run(np.zeros(shape, np.float32))


@pytest.mark.parametrize("backend", ["cpp", "numba", "reference"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_explained(path: Path, backend: str, value: float) -> None:
    x = np.zeros((2, 2, 8, 8), np.float32)
    x[1, 0, 3, 4] = value
    with pytest.raises(ShapeError, match=r"input holds .* at \(1, 3, 4, 0\).*finite"):
        Engine.load(path, backend=backend).run(x)  # type: ignore[arg-type]


def test_a_double_too_large_for_float32_is_not_finite(engine: Engine) -> None:
    with pytest.raises(ShapeError, match="finite"):
        engine.run(np.full((2, 8, 8), 1e300))


@pytest.mark.parametrize("dtype", [np.complex64, "U1", object])
def test_a_wrong_type_is_explained(engine: Engine, dtype: object) -> None:
    with pytest.raises(ShapeError, match="expected real numbers or uint8"):
        engine.run(np.zeros((2, 8, 8), dtype))  # type: ignore[call-overload]


def test_another_integer_type_is_refused_because_its_meaning_is_unclear(engine: Engine) -> None:
    with pytest.raises(ShapeError, match=r"integer type int64; expected uint8 \(quantized values\) or float32"):
        engine.run(np.zeros((2, 8, 8), np.int64))


def test_many_threads_share_one_engine(path: Path) -> None:
    for threads in (1, 2):
        engine = Engine.load(path, threads=threads)
        inputs = [random_input(engine.model.graph, batch, seed) for seed, batch in enumerate([1, 7, 64, 3] * 8)]
        expected = [reference.run(engine.model.graph, x) for x in inputs]
        inputs = [x.transpose(0, 3, 1, 2) for x in inputs]
        with ThreadPoolExecutor(16) as pool:
            for _ in range(5):
                for got, wanted in zip(pool.map(engine.run, inputs), expected, strict=True):
                    np.testing.assert_array_equal(got, wanted)


def test_an_engine_survives_a_fork(path: Path) -> None:
    engine = Engine.load(path, threads=2)
    x = np.random.default_rng(1).random((64, 2, 8, 8), np.float32)
    expected = engine.run(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(engine.run(x), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(engine.run(x), expected)


def test_backends_by_argument_and_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSENGINE_BACKEND", "reference")
    assert Engine.load(path).backend == "reference"
    assert Engine.load(path, backend="cpp").backend == "cpp"
    monkeypatch.setenv("CSENGINE_BACKEND", "gpu")
    with pytest.raises(
        ValueError, match="CSENGINE_BACKEND: backend is 'gpu'; expected auto, cpp, numba, reference, fpga"
    ):
        Engine.load(path)


def test_the_instruction_set_by_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSENGINE_ISA", "scalar")
    assert {choice.tier for choice in Engine.load(path).choices().values()} == {"scalar"}
    monkeypatch.setenv("CSENGINE_ISA", "mmx")
    for backend in ("cpp", "auto"):
        with pytest.raises(BackendUnavailableError, match="'mmx' cannot run here"):
            Engine.load(path, backend=backend)  # type: ignore[arg-type]


def test_the_planner_by_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSENGINE_PLANNER", "model")
    modes = {choice.mode for choice in Engine.load(path, mode="sparse-sparse").choices().values()}
    assert modes == {"", "sparse-sparse"}
    monkeypatch.setenv("CSENGINE_PLANNER", "guess")
    with pytest.raises(ValueError, match="CSENGINE_PLANNER is 'guess'; expected measure or model"):
        Engine.load(path)


def test_threads_by_argument_and_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Engine.load(path).threads >= 1
    monkeypatch.setenv("CSENGINE_NUM_THREADS", "3")
    assert Engine.load(path).threads == 3
    assert Engine.load(path, threads=1).threads == 1
    assert Engine.load(path, threads=np.int64(1)).threads == 1  # type: ignore[arg-type]
    for bad in ("0", "many", "2.5"):
        monkeypatch.setenv("CSENGINE_NUM_THREADS", bad)
        with pytest.raises(ValueError, match="CSENGINE_NUM_THREADS"):
            Engine.load(path)
    with pytest.raises(ValueError, match="threads is 0"):
        Engine.load(path, threads=0)


def test_an_unknown_mode_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="mode is 'fast'; expected auto, dense"):
        Engine.load(path, mode="fast")  # type: ignore[arg-type]


def test_a_missing_and_a_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such model file"):
        Engine.load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="is a directory; expected a packed file"):
        Engine.load(tmp_path)
    for name, remedy in (
        ("bad.safetensors", "it is cut off or damaged"),
        ("model.onnx", "csengine convert .*model.onnx"),
        ("state.pt", "importers.torch.load"),
    ):
        (tmp_path / name).write_bytes(b"not a model")
        with pytest.raises(ModelFormatError, match=f"not a readable safetensors file.*{remedy}"):
            Engine.load(tmp_path / name)


def test_a_file_that_may_not_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)  # root may read whatever it likes
    with pytest.raises(PermissionError, match=r"small\.safetensors"):
        Engine.load(path)


def test_plan_counts_work(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSENGINE_PLANNER", "model")
    rows = {row.name: row for row in Engine.load(path, mode="sparse-sparse").plan()}
    graph = small_graph()
    nonzeros = np.count_nonzero(graph.nodes[5].dense_weight)  # type: ignore[attr-defined]
    assert rows["linear"].macs_dense == 144 * 5
    assert rows["linear"].macs_done == round(nonzeros * 0.25)
    assert rows["linear"].mode == "sparse-sparse"
    assert rows["conv"].macs_dense == 18 * 16 * 36


def test_profile_counts_the_work_done_and_writes_a_trace(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSENGINE_PLANNER", "model")
    engine = Engine.load(path, mode="sparse-sparse")
    x = np.random.default_rng(1).random((4, 2, 8, 8), np.float32)
    profile = engine.profile(x, passes=3)
    layers = {layer.name: layer for layer in profile.layers}
    active = engine.trace(x)["flatten"] != 0
    weights = engine.model.graph.nodes[5].dense_weight != 0  # type: ignore[attr-defined]
    assert layers["linear"].macs_done == int((active @ weights.sum(axis=1)).sum())
    assert profile.seconds == sum(layer.seconds for layer in profile.layers)
    profile.save_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [event["name"] for event in events] == [layer.name for layer in profile.layers]


def test_import_has_no_side_effects() -> None:
    """No backend, no compiler, no optional package is loaded by `import csengine`."""
    heavy = ("torch", "numba", "matplotlib", "csengine._native")
    code = f"import sys, csengine; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_relu_on_signed_values() -> None:
    graph = Graph(
        (Input(name="x", inputs=(), shape=(4,), dtype="int8", scale=1.0), Relu(name="y", inputs=("x",))),
        "NHWC",
    )
    np.testing.assert_array_equal(Engine(Model(graph)).run(np.array([-3.0, 2.0, -128.0, 127.0])), [0, 2, 0, 127])


def test_kernels_can_be_named(path: Path) -> None:
    engine = Engine.load(path, backend="cpp", kernels={"linear": "dense"})
    chosen = {row.name: row for row in engine.plan()}["linear"]
    assert (chosen.kernel, chosen.mode, chosen.measured) == ("dense", "dense", ())
    x = np.random.default_rng(0).random((2, *engine.input_shape), np.float32)
    np.testing.assert_array_equal(engine.run(x), Engine.load(path, backend="reference").run(x))


def test_impossible_kernels_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"'conv_tiles' cannot run this layer here; expected one of dense, .*packed"):
        Engine.load(path, backend="cpp", kernels={"linear": "conv_tiles"})
    with pytest.raises(ValueError, match=r"kernels are given for nothing; the layers are conv, linear"):
        Engine.load(path, backend="cpp", kernels={"nothing": "dense"})
    with pytest.raises(ValueError, match="only 'cpp' has several"):
        Engine.load(path, backend="numba", kernels={"linear": "dense"})


def test_plan_says_what_was_tried(path: Path) -> None:
    rows = {row.name: row for row in Engine.load(path, backend="cpp").plan()}
    measured = rows["conv"].measured
    assert [t.seconds for t in measured] == sorted(t.seconds for t in measured)
    assert rows["conv"].dense is not None
    assert rows["conv"].dense.seconds >= measured[0].seconds
    assert rows["conv"].runner_up == measured[1]
    assert rows["winners"].measured == ()


def test_plans_are_cached(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep" / "plans.json"
    first = Engine.load(path, backend="cpp", plan_cache=file).plan()
    kept = json.loads(file.read_text())
    assert len(kept) == 2
    second = Engine.load(path, backend="cpp", plan_cache=file).plan()
    assert [row.kernel for row in second] == [row.kernel for row in first]
    assert not any(row.measured for row in second)  # nothing was measured again
    assert any(row.measured for row in Engine.load(path, backend="cpp", mode="dense", plan_cache=file).plan())
    for damage in ("", "{", '{"a":'):
        file.write_text(damage)
        monkeypatch.setenv("CSENGINE_PLAN_CACHE", str(file))
        assert [row.operation for row in Engine.load(path, backend="cpp").plan()] == [row.operation for row in first]
        assert len(json.loads(file.read_text())) == 2


def test_a_plan_cache_overwrites_nothing_else(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    settings = tmp_path / "settings.json"
    settings.write_text('{"depth": 3}')
    for taken in (path, tmp_path, settings):
        with pytest.raises(ValueError, match="is no plan cache; expected"):
            Engine.load(path, backend="cpp", plan_cache=taken)
    assert path.read_bytes() == content
    assert settings.read_text() == '{"depth": 3}'
    assert sorted(tmp_path.iterdir()) == sorted((path, settings))


def test_an_empty_variable_counts_as_not_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Engine.load(path)
    for name in ("BACKEND", "ISA", "NUM_THREADS", "PLANNER", "PLAN_CACHE"):
        monkeypatch.setenv(f"CSENGINE_{name}", "")
    engine = Engine.load(path)
    assert (engine.backend, engine.threads) == (expected.backend, expected.threads)


def test_what_is_no_array_is_explained(engine: Engine) -> None:
    class Tensor:
        def __array__(self, dtype: object = None, copy: object = None) -> None:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")

    for x, reason in (([[1.0, 2.0], [3.0]], "inhomogeneous"), (Tensor(), "requires grad")):
        with pytest.raises(ShapeError, match=rf"NumPy cannot take .*{reason}.*; expected an array"):
            engine.run(x)  # type: ignore[arg-type]


def test_an_engine_says_why_it_cannot_be_pickled_and_its_model_can(engine: Engine) -> None:
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="share it between threads, and in every process load the file"):
            duplicate(engine)
    other = Engine(pickle.loads(pickle.dumps(engine.model)))
    x = np.random.default_rng(1).random((3, 2, 8, 8), np.float32)
    np.testing.assert_array_equal(other.run(x), engine.run(x))


def test_a_variable_that_says_neither_yes_nor_no(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSENGINE_FPGA_EMULATE", "false")
    with pytest.raises(ValueError, match="CSENGINE_FPGA_EMULATE is 'false'; expected 0 or 1"):
        Engine.load(path, backend="fpga")
