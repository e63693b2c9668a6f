"""The command line: every subcommand in this process, and what only a process of its own can show."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import random_graph, random_input
from scipy.io import wavfile

from csengine import Engine, container, reference
from csengine.cli import app, main, measure, options, output, shipped
from csengine.cli.samples import random_samples, top_answers
from csengine.container import Model
from csengine.convert import convert
from csengine.graph import KWTA, Conv2d, Graph, Input, Linear, MaxPool, Packing, Relu, Reshape
from csengine.packing import PackedMatrix

COMMANDS = ("demo", "run", "info", "bench", "compare", "profile", "pack", "fpga build")
LABELS = ("silence", "yes", "no")
QUICK = ("--runs", "3", "--seconds", "0.1")


def keyword_graph(seed: int = 0) -> Graph:
    """A float network of the shipped ones' kind: sound image in, three labels out; small."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, kernels: int, density: float) -> Any:
        return np.where(rng.random((rows, kernels)) < density, rng.normal(size=(rows, kernels)), 0).astype(np.float32)

    return Graph(
        (
            Input(name="input", inputs=(), shape=(32, 32, 1)),
            Conv2d(name="conv", inputs=("input",), weight=matrix(25, 16, 0.5), kernel=(5, 5), stride=(3, 3)),
            MaxPool(name="pool", inputs=("conv",), kernel=(2, 2), stride=(2, 2)),
            Relu(name="relu", inputs=("pool",)),
            KWTA(name="winners", inputs=("relu",), k=4, scope="local"),
            Reshape(name="flatten", inputs=("winners",), shape=(400,)),
            Linear(name="linear", inputs=("flatten",), weight=matrix(400, 48, 0.1), packing=Packing((1, 16), 2)),
            Linear(name="output", inputs=("linear",), weight=matrix(48, 3, 1.0)),
        ),
        "NCHW",
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with models and inputs, laid out like the package's own."""
    root = tmp_path_factory.mktemp("models")
    calibration = np.random.default_rng(1).random((8, 32, 32, 1), np.float32)
    sound = {"kind": "log-mel", "sample_rate": 16000}
    kws, _ = convert(
        keyword_graph(), calibration, labels=LABELS, preprocessing=sound, accuracy={"test": {"int8": 0.987654321}}
    )
    container.save(kws, root / "kws.safetensors")
    container.save(convert(keyword_graph(), None, labels=LABELS)[0], root / "float.safetensors")
    for seed, integer in enumerate((True, False)):
        container.save(Model(random_graph(seed + 5, integer=integer)), root / f"random-{seed}.safetensors")
    _write_recordings(root)
    np.save(root / "x.npy", calibration.transpose(0, 3, 1, 2))
    np.savez(root / "x.npz", one=calibration[0].transpose(2, 0, 1), two=np.zeros(2))
    return root


def _write_recordings(root: Path) -> None:
    (root / "recordings").mkdir()
    rng = np.random.default_rng(2)
    entries = []
    for label, word in zip(LABELS, (None, "yes", "nope"), strict=True):
        file = f"{label}.wav"
        wavfile.write(root / "recordings" / file, 16000, rng.integers(-9000, 9000, 16000).astype(np.int16))
        entries.append({"file": file, "label": label, "word": word, "voice": None, "synthesizer": None})
    (root / "recordings" / "recordings.json").write_text(json.dumps({"seed": 2, "recordings": entries}))


@pytest.fixture
def csengine(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command line in the directory of models; returns what it printed, or fails unless the status is right."""
    monkeypatch.chdir(place)

    def run(*arguments: str, status: int = 0) -> str:
        got = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert got == status, captured.err
        if status == 2:
            assert not captured.out
            assert captured.err.startswith(f"csengine {arguments[0]}: ")
            assert captured.err.count("\n") == 1
            return captured.err
        assert not captured.err
        return captured.out

    return run


@pytest.fixture
def shipped_here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test's models be those of the package."""
    monkeypatch.setattr(shipped, "directory", lambda: place)


# --- the program -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--json" in text
    examples = [line.split("   ")[0].strip() for line in text.splitlines() if line.startswith("  csengine ")]
    assert len(examples) >= 3
    for example in examples:
        words = shlex.split(example.split(" > ")[0])
        assert app.build_parser().parse_args(words[1:]).command == command.split()[0]


def test_every_module_of_a_subcommand_is_reachable() -> None:
    parser = app.build_parser()
    assert all(f"    {command.split()[0]} " in parser.format_help() for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["bench", "m", "-b", "0"],
        ["bench", "m", "-b", "1,x"],
        ["bench", "m", "--mode", "fast"],
        ["bench", "m", "--backend", "cpp,gpu"],
        ["bench", "m", "--seconds", "nan"],
        ["compare", "m", "--tolerance", "-1"],
        ["pack", "m"],
        ["pack", "m", "-o", "x", "--block", "4"],
        ["pack", "m", "-o", "x", "--block", "0x4"],
        ["pack", "m", "-o", "x", "--set-size", "256"],
        ["run", "m"],
        ["info", "m", "-t", "0"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: csengine" in capsys.readouterr().err


def test_lists_drop_repetitions() -> None:
    assert options.integers(1, 9)("3,1,3") == (3, 1)
    assert options.names(("a", "b"))("b,a,b") == ("b", "a")


def _process(*arguments: str, code: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
    command = ["-c", code] if code else ["-m", "csengine"]
    process = [sys.executable, "-W", "error", *command, *arguments]
    return subprocess.run(process, capture_output=True, text=True, timeout=60, check=False, **more)


def test_python_dash_m_runs_it_and_prints_the_version() -> None:
    done = _process("--version")
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "csengine", "")


def test_a_closed_pipe_and_an_ascii_terminal_are_no_errors(place: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [sys.executable, "-m", "csengine", "info", str(place / "kws.safetensors")]
    done = subprocess.run(arguments, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    profile = _process("profile", str(place / "kws.safetensors"), "--passes", "2", env=ascii_only)
    assert (profile.returncode, profile.stderr) == (0, "")
    assert ">?s" not in profile.stdout
    assert "?s" in profile.stdout


def test_an_interrupt_is_status_130_without_a_traceback(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "run", interrupted)
    assert main(["run", str(place / "kws.safetensors"), str(place / "x.npy")]) == 130
    assert capsys.readouterr() == ("", "")


def test_an_error_is_one_line_and_debug_shows_where(
    csengine: Callable[..., str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    assert "broken.safetensors: " in csengine("info", "broken.safetensors", status=2)
    assert "no such model: nowhere" in csengine("info", "nowhere", status=2)
    assert "no such model" in csengine("info", ".", status=2)
    monkeypatch.setenv("CSENGINE_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["info", "nowhere"])


def test_a_backend_that_is_not_here_is_an_error(csengine: Callable[..., str]) -> None:
    assert "needs a card's xclbin" in csengine("bench", "kws.safetensors", "--backend", "fpga", status=2)


# --- output ----------------------------------------------------------------------------------------------------------


def test_tables_align_and_keep_control_characters_from_the_terminal() -> None:
    header, rows = ("name", ">count"), [("a", "10"), ("long\x1b[2J", "5")]
    assert output.table(header, rows).splitlines() == ["name      count", "a            10", "long?[2J      5"]
    assert output.markdown(header, rows).splitlines()[1:3] == ["| --- | ---: |", "| a | 10 |"]
    assert output.markdown(("a",), [("x|y",)]).endswith("| x\\|y |")


def test_sizes_are_readable() -> None:
    assert [output.size(n) for n in (0, 999, 1500, 2.5e6, 7e9)] == ["0 B", "999 B", "1.5 kB", "2.5 MB", "7.0 GB"]


def test_json_refuses_what_it_cannot_hold() -> None:
    assert json.loads(output.json_text({"a": np.int8(3), "b": np.ones(2), "c": measure.Timing(np.ones(1))})) == {
        "a": 3,
        "b": [1.0, 1.0],
        "c": {"seconds": [1.0]},
    }
    with pytest.raises(TypeError, match="object"):
        output.json_text(object())


def test_progress_shows_on_a_terminal_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with output.Progress("work", 2) as progress:
        progress.step()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with output.Progress("work", 2) as progress:
        progress.step("next")
    shown = capsys.readouterr().err
    assert "work: 1 of 2 next" in shown
    assert shown.endswith("\r\x1b[K")


# --- run -------------------------------------------------------------------------------------------------------------


def expected_output(place: Path, name: str = "kws") -> Any:
    graph = container.load(place / f"{name}.safetensors").graph
    return reference.run(graph, np.load(place / "x.npy").transpose(0, 2, 3, 1))


def test_run_writes_what_the_reference_computes(csengine: Callable[..., str], place: Path, tmp_path: Path) -> None:
    csengine("run", "kws.safetensors", "x.npy", "-o", tmp_path / "y.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected_output(place))
    csengine("run", "kws.safetensors", "x.npz", "--array", "one", "-o", tmp_path / "one.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "one.npy"), expected_output(place)[0])
    csengine("run", "kws.safetensors", "x.npy", "x.npy", "-o", tmp_path / "y.json")
    results = json.loads((tmp_path / "y.json").read_text())["results"]
    assert [result["input"] for result in results[7:9]] == ["x.npy[7]", "x.npy[0]"]
    np.testing.assert_array_equal(np.float32([result["output"] for result in results[8:]]), expected_output(place))


def test_run_names_the_most_likely_labels(csengine: Callable[..., str], place: Path) -> None:
    best = expected_output(place).argmax(axis=1)
    results = json.loads(csengine("run", "kws.safetensors", "x.npy", "--json", "--top", "2"))["results"]
    assert [result["top"][0]["label"] for result in results] == [LABELS[i] for i in best]
    assert all(len(result["top"]) == 2 for result in results)
    text = csengine("run", "kws.safetensors", "x.npy")
    assert [line.split()[1] for line in text.splitlines()[1:]] == [LABELS[i] for i in best]


def test_run_takes_sound_and_an_empty_batch(csengine: Callable[..., str], tmp_path: Path) -> None:
    text = csengine("run", "kws.safetensors", "recordings/yes.wav", "recordings/no.wav", "--top", "3")
    assert text.count("%") == 6
    np.save(tmp_path / "none.npy", np.zeros((0, 1, 32, 32), np.float32))
    assert "no samples" in csengine("run", "kws.safetensors", tmp_path / "none.npy")
    assert json.loads(csengine("run", "kws.safetensors", tmp_path / "none.npy", "--json"))["results"] == []


def test_run_shows_images_and_long_batches_in_short(csengine: Callable[..., str], tmp_path: Path) -> None:
    image = Input(name="input", inputs=(), shape=(2, 2, 1))
    graph = Graph((image, Relu(name="relu", inputs=("input",))))
    container.save(Model(graph), tmp_path / "image.safetensors")
    np.save(tmp_path / "x.npy", np.ones((30, 2, 2, 1), np.float32))
    text = csengine("run", tmp_path / "image.safetensors", tmp_path / "x.npy")
    assert text.count("float32 (2, 2, 1), mean 1") == 20
    assert "10 more" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kws.safetensors", "missing.npy"], "no such input file: missing.npy"),
        (["kws.safetensors", "x.npz"], "holds one, two; choose one with --array"),
        (["kws.safetensors", "x.npz", "--array", "three"], "choose one with --array"),
        (["kws.safetensors", "x.npz", "--array", "two"], "expected (1, 32, 32) for one sample"),
        (["kws.safetensors", "kws.safetensors"], "expected .npy, .npz or .wav"),
        (["kws.safetensors", "x.npy", "-o", "y.txt"], "expected .npy or .json"),
        (["kws.safetensors", "damaged.npy"], "not a readable NumPy file"),
        (["kws.safetensors", "pickled.npy"], "not a readable NumPy file"),
        (["kws.safetensors", "nan.npy"], "expected finite"),
        (["kws.safetensors", "words.npy"], "expected real numbers"),
        (["kws.safetensors", "x.npy", "bytes.npy"], "expected one type"),
        (["kws.safetensors", "damaged.wav"], "not a readable WAV file"),
        (["float.safetensors", "recordings/yes.wav"], "does not take sound"),
        (["kws.safetensors", "x.npy", "-o", "no/where.npy"], "no/where.npy"),
    ],
)
def test_run_explains_wrong_input(
    csengine: Callable[..., str], place: Path, arguments: Sequence[str], message: str
) -> None:
    (place / "damaged.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'")
    (place / "damaged.wav").write_bytes(b"RIFF")
    np.save(place / "pickled.npy", np.array([{}]), allow_pickle=True)
    np.save(place / "nan.npy", np.full((1, 32, 32), np.nan, np.float32))
    np.save(place / "words.npy", np.full((1, 32, 32), "a"))
    np.save(place / "bytes.npy", np.zeros((1, 32, 32), np.uint8))
    assert message in csengine("run", *arguments, status=2)


def test_sound_at_another_rate_than_the_model_wants_is_refused(csengine: Callable[..., str], tmp_path: Path) -> None:
    model = container.load("kws.safetensors")
    slow = replace(model, preprocessing={"kind": "log-mel", "sample_rate": 8000})
    container.save(slow, tmp_path / "slow.safetensors")
    assert "8000 Hz" in csengine("run", tmp_path / "slow.safetensors", "recordings/yes.wav", status=2)


def test_confidence_is_softmax_unless_the_network_has_one(place: Path) -> None:
    engine = Engine.load(place / "kws.safetensors", backend="reference")
    answers = top_answers(engine, np.float32([0, np.log(2), 0]), 3)
    assert [(answer.label, round(answer.confidence or 0, 6)) for answer in answers] == [
        ("yes", 0.5),
        ("silence", 0.25),
        ("no", 0.25),
    ]
    assert top_answers(engine, np.int32([1, 2, 3]), 1)[0].confidence is None


# --- info ------------------------------------------------------------------------------------------------------------


def test_info_tells_what_the_file_holds(csengine: Callable[..., str], place: Path) -> None:
    report = json.loads(csengine("info", "kws.safetensors", "--json"))
    assert report["file_bytes"] == (place / "kws.safetensors").stat().st_size
    assert (report["input"]["shape"], report["input"]["dtype"]) == ([1, 32, 32], "uint8")
    assert report["labels"] == list(LABELS)
    assert report["backends"]["reference"] == ""
    linear = next(row for row in report["weights"] if row["name"] == "linear")
    node = next(node for node in container.load(place / "kws.safetensors").graph.nodes if node.name == "linear")
    assert isinstance(node, Linear)
    assert linear["nonzeros"] == np.count_nonzero(node.dense_weight)
    assert (linear["block"], linear["set_size"], linear["bytes_dense"]) == ([1, 16], 2, 400 * 48)
    assert report["totals"]["parameters"] == sum(row["rows"] * row["kernels"] for row in report["weights"])
    winners = next(row for row in report["graph"] if row["name"] == "winners")
    assert (winners["attributes"]["k"], winners["expected_activity"]) == (4, 0.25)
    assert sum(row["macs_dense"] for row in report["plan"]) == 100 * 25 * 16 + 400 * 48 + 48 * 3


def test_info_as_text_covers_every_part(csengine: Callable[..., str]) -> None:
    text = csengine("info", "kws.safetensors")
    for part in ("graph", "weights", "plan for backend", "this machine", "accuracy test.int8", "0.987654", "1x16"):
        assert part in text
    assert "not recorded" in csengine("info", "float.safetensors", "--backend", "reference")


def test_info_of_random_networks(csengine: Callable[..., str]) -> None:
    for seed in range(2):
        assert json.loads(csengine("info", f"random-{seed}.safetensors", "--json"))["graph"]


# --- bench -----------------------------------------------------------------------------------------------------------


def test_bench_measures_the_whole_grid(csengine: Callable[..., str]) -> None:
    grid = ("-b", "1,3", "-t", "1,2", "--backend", "cpp,reference", "--mode", "dense,auto")
    report = json.loads(csengine("bench", "kws.safetensors", *grid, *QUICK, "--json"))
    assert len(report["rows"]) == 2 * 2 * 2 * 2
    assert report["outputs_checked"] is True
    assert {"cpu", "versions", "tiers", "cores"} <= report["machine"].keys()
    for row in report["rows"]:
        assert 1 <= row["runs"] <= 5
        assert 0 < row["p10_seconds"] <= row["median_seconds"] <= row["p90_seconds"]
        assert row["macs_done"] <= row["macs_dense"]
        assert row["tier"]
    assert [row["speedup_over_first"] for row in report["rows"][::8]] == [1, 1]


def test_bench_writes_markdown_csv_and_text(csengine: Callable[..., str], tmp_path: Path) -> None:
    common = ("bench", "kws.safetensors", "--mode", "dense,sparse-sparse", *QUICK)
    markdown = csengine(*common, "--format", "md", "--input", "x.npy", "-b", "9")
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "input x.npy" in markdown
    rows = list(csv.DictReader(io.StringIO(csengine(*common, "--format", "csv"))))
    assert [row["mode"] for row in rows] == ["dense", "sparse-sparse"]
    assert float(rows[0]["median_seconds"]) > 0
    assert rows[0]["cpu"]
    assert csengine(*common, "-o", tmp_path / "bench.txt") == ""
    assert "vs first" in (tmp_path / "bench.txt").read_text()


def test_bench_of_random_networks(csengine: Callable[..., str]) -> None:
    for seed in range(2):
        arguments = ("--backend", "cpp", "--input", str(_save_input(seed)), "--json")
        assert json.loads(csengine("bench", f"random-{seed}.safetensors", *QUICK, *arguments))["rows"]


def _save_input(seed: int) -> Path:
    """An input of the random network, for which the reference defines the result well."""
    engine = Engine.load(f"random-{seed}.safetensors", backend="reference")
    x = random_input(engine.model.graph, 3, seed)
    nchw = x.transpose(0, 3, 1, 2) if engine.input_shape != x.shape[1:] else x
    path = Path(f"random-{seed}.npy")
    np.save(path, nchw)
    return path


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin processes")
def test_bench_pins_and_releases(csengine: Callable[..., str]) -> None:
    before = os.sched_getaffinity(0)
    cpu = min(before)
    text = csengine("bench", "kws.safetensors", *QUICK, "--cpus", str(cpu))
    assert f"pinned to {cpu}" in text
    assert os.sched_getaffinity(0) == before
    assert "not available" in csengine("bench", "kws.safetensors", "--cpus", "4095", status=2)


def test_bench_reports_no_time_for_a_wrong_output(
    csengine: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Engine.run
    monkeypatch.setattr(Engine, "run", lambda self, x: right(self, x) + (self.mode == "sparse-dense"))
    error = csengine("bench", "kws.safetensors", *QUICK, status=2)
    assert "sparse-dense: the output differs by up to 1 " in error
    monkeypatch.setattr(Engine, "run", lambda self, x: right(self, x).astype("f8" if self.mode == "auto" else "f4"))
    assert "the reference gives float64" in csengine("bench", "kws.safetensors", *QUICK, status=2)


def test_contenders_take_turns_and_all_runs_are_counted() -> None:
    calls: list[str] = []
    with output.Progress("timing", measure.ROUNDS) as progress:
        timings = measure.interleave([lambda: calls.append("a"), lambda: calls.append("b")], 50, 60.0, progress)
    assert [timing.runs for timing in timings] == [50, 50]
    half = calls[: len(calls) // 2]
    assert 0.3 < half.count("a") / len(half) < 0.7


def test_random_samples_fill_the_input_range(place: Path) -> None:
    engine = Engine.load(place / "kws.safetensors", backend="reference")
    scale = engine.model.graph.input.scale or 0
    x = random_samples(engine, 4, seed=0)
    assert x.dtype == np.float32
    assert 0 <= x.min() < 0.01 * 255 * scale
    assert 0.99 * 255 * scale < x.max() <= 255 * scale
    np.testing.assert_array_equal(x, random_samples(engine, 4, seed=0))


# --- compare ---------------------------------------------------------------------------------------------------------


def test_compare_of_equal_sides(csengine: Callable[..., str]) -> None:
    assert "nothing differs" in csengine("compare", "kws.safetensors", "--backend", "cpp,reference")
    report = json.loads(csengine("compare", "kws.safetensors", "--mode", "dense,sparse-sparse", "--json"))
    assert report["equal"] is True
    assert {row["status"] for row in report["rows"]} == {"equal"}
    assert report["rows"][-1]["name"] == "(result of run)"


def test_compare_finds_the_first_layer_and_element(csengine: Callable[..., str], tmp_path: Path) -> None:
    model = container.load("kws.safetensors")
    changed = []
    for node in model.graph.nodes:
        if isinstance(node, Linear) and node.name == "linear":
            bias = np.zeros(48, np.int32)
            bias[7] = 2**24
            node = replace(node, bias=bias)
        changed.append(node)
    container.save(replace(model, graph=Graph(tuple(changed), "NCHW")), tmp_path / "b.safetensors")
    arguments = ("compare", "kws.safetensors", tmp_path / "b.safetensors", "--input", "x.npy")
    report = json.loads(csengine(*arguments, "--json", status=1))
    assert report["first"]["name"] == "linear"
    assert report["first"]["first"] == [0, 7]
    statuses = {row["name"]: row["status"] for row in report["rows"]}
    assert statuses["winners"] == "equal"
    assert "first difference: linear at (0, 7)" in csengine(*arguments, status=1)


def test_compare_a_float_network_with_its_integers(csengine: Callable[..., str]) -> None:
    arguments = ("compare", "float.safetensors", "kws.safetensors", "--input", "x.npy", "--json")
    report = json.loads(csengine(*arguments, status=1))
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["relu"]["note"] == "only in A"
    assert rows["output"]["status"] == "not comparable"
    assert rows["input"]["max_difference"] < 1 / 255
    assert rows["(result of run)"]["status"] == "different"
    tolerant = json.loads(csengine(*arguments, "--tolerance", "0.99"))
    assert (tolerant["equal"], tolerant["rows"][0]["status"]) == (True, "close")


def test_compare_other_shapes_and_infinities(csengine: Callable[..., str], tmp_path: Path) -> None:
    for name, width, value in (("a", 4, 3e38), ("b", 5, 3e38), ("c", 4, 1)):
        weight = np.full((3, width), value, np.float32)
        source = Input(name="input", inputs=(), shape=(3,))
        graph = Graph((source, Linear(name="linear", inputs=("input",), weight=weight)))
        container.save(Model(graph), tmp_path / f"{name}.safetensors")
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    np.save(tmp_path / "x.npy", np.full((1, 3), 2, np.float32))
    given = ("--backend", "reference", "--input", tmp_path / "x.npy")
    with np.errstate(over="ignore"):
        assert "linear: shapes (1, 4) and (1, 5)" in csengine("compare", a, b, *given, status=1)
        assert "nothing differs" in csengine("compare", a, a, *given)
        assert "linear at (0, 0): inf in A, 6 in B" in csengine("compare", a, c, *given, status=1)
        first = json.loads(csengine("compare", a, c, *given, "--json", status=1))["first"]
    assert (first["name"], first["max_difference"]) == ("linear", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kws.safetensors"], "nothing to compare"),
        (["kws.safetensors", "--mode", "dense,auto,sparse-dense"], "two sides"),
        (["kws.safetensors", "random-0.safetensors"], "expected the same shape"),
    ],
)
def test_compare_explains_what_it_needs(csengine: Callable[..., str], arguments: Sequence[str], message: str) -> None:
    assert message in csengine("compare", *arguments, status=2)


# --- profile ---------------------------------------------------------------------------------------------------------


def test_profile_times_every_step_and_writes_a_trace(csengine: Callable[..., str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    common = ("--passes", "2", "--trace", trace)
    report = json.loads(csengine("profile", "kws.safetensors", "x.npy", *common, "-b", "3", "--json"))
    assert report["batch"] == 3
    assert sum(layer["macs_dense"] for layer in report["layers"]) == 3 * (100 * 25 * 16 + 400 * 48 + 48 * 3)
    events = json.loads(trace.read_text())["traceEvents"]
    assert [event["name"] for event in events] == [layer["name"] for layer in report["layers"]]
    text = csengine("profile", "kws.safetensors", "recordings/yes.wav", *common)
    assert "together" in text
    assert "ui.perfetto.dev" in text


# --- pack ------------------------------------------------------------------------------------------------------------


def test_pack_changes_the_blocks_and_nothing_else(csengine: Callable[..., str], tmp_path: Path) -> None:
    target = tmp_path / "packed.safetensors"
    report = json.loads(
        csengine("pack", "kws.safetensors", "-o", target, "--block", "4x8", "--set-size", "5", "--json")
    )
    assert {row["name"]: (row["block"], row["set_size"]) for row in report["layers"]} == {
        "conv": ([4, 8], 5),
        "linear": ([4, 8], 5),
    }
    assert report["file_bytes"] == target.stat().st_size
    assert "nothing differs" in csengine("compare", "kws.safetensors", target)
    old, new = container.load("kws.safetensors"), container.load(target)
    assert (old.labels, old.preprocessing, old.accuracy) == (new.labels, new.preprocessing, new.accuracy)


def test_pack_one_layer_or_a_float_model(csengine: Callable[..., str], tmp_path: Path) -> None:
    target = tmp_path / "packed.safetensors"
    text = csengine("pack", "float.safetensors", "-o", target, "--block", "1x4", "--layer", "output")
    assert text.index("before") < text.index("after")
    weights: dict[str, Any] = {
        node.name: node.weight for node in container.load(target).graph.nodes if isinstance(node, (Conv2d, Linear))
    }
    assert weights["output"].block == (1, 4)
    assert weights["linear"].block == (1, 16)
    csengine("pack", target, "-o", target)
    repacked = next(node for node in container.load(target).graph.nodes if node.name == "output")
    assert isinstance(repacked, Linear)
    assert isinstance(repacked.weight, PackedMatrix)
    assert repacked.weight.block == (1, 4)


def test_pack_explains_a_wrong_layer(csengine: Callable[..., str], tmp_path: Path) -> None:
    error = csengine("pack", "kws.safetensors", "-o", tmp_path / "x", "--layer", "pool", status=2)
    assert "the model has conv, linear, output" in error
    assert not (tmp_path / "x").exists()


# --- demo ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("shipped_here")
def test_demo_on_a_small_network(csengine: Callable[..., str]) -> None:
    report = json.loads(csengine("demo", "--runs", "3", "--json"))
    assert [item["label"] for item in report["recordings"]] == list(LABELS)
    assert report["right"] == sum(item["heard"] == item["label"] for item in report["recordings"])
    assert [row["mode"] for row in report["timing"]["modes"]] == ["dense", "sparse-dense", "sparse-sparse"]
    text = csengine("demo", "--runs", "3", "--backend", "reference")
    assert "no (nope)" in text
    assert text.count("✓") + text.count("✗") == 3
    assert f"{report['right']} of 3 right" in text


@pytest.mark.usefixtures("shipped_here")
def test_shipped_models_go_by_name(csengine: Callable[..., str]) -> None:
    assert "kws" in shipped.model_names()
    assert json.loads(csengine("info", "kws", "--json"))["labels"] == list(LABELS)


def test_demo_without_package_data_says_what_to_do(
    csengine: Callable[..., str], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "directory", lambda: tmp_path / "nothing")
    assert "kws.safetensors is missing from the package; reinstall" in csengine("demo", status=2)
    (tmp_path / "kws.safetensors").write_bytes((place / "kws.safetensors").read_bytes())
    monkeypatch.setattr(shipped, "directory", lambda: tmp_path)
    assert "recordings" in csengine("demo", status=2)


@pytest.mark.parametrize("model", ["kws", "kws_paper"])
def test_demo_of_the_shipped_network(csengine: Callable[..., str], model: str) -> None:
    if model not in shipped.model_names():
        pytest.skip(f"the package holds no {model}.safetensors yet")
    report = json.loads(csengine("demo", "--model", model, "--runs", "3", "--json"))
    assert len(report["recordings"]) >= 12
    assert report["right"] >= 0.75 * len(report["recordings"])
    assert report["bytes"]["packed_file"] * 10 < report["bytes"]["weights_float32"]
