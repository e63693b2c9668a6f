"""What is particular to the Numba backend: its cache, its threads, and that it says what it ran.

That it computes what the reference computes is tested with all backends; here only where a path is its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from graphs import assert_matches, random_graph, random_input
from numba import get_num_threads

import csengine
from csengine import reference
from csengine.backends import MODES, Mode, numba_kernels
from csengine.backends import numba as backend
from csengine.errors import ShapeError
from csengine.graph import KWTA, Conv2d, Dequantize, Graph, Input, Linear, MaxPool, Node, Relu, Requantization, Reshape
from csengine.packing import pack

PACKAGE = Path(csengine.__file__).parent
#: No directory can be made at these places, by root either.
NOWHERE = {"NUMBA_CACHE_DIR": "/dev/null/cache", "XDG_CACHE_HOME": "/dev/null/cache", "HOME": "/dev/null/home"}

#: What processes of their own run first.
PREAMBLE = f"""
import os, sys, threading
sys.path.insert(1, {str(Path(__file__).parent)!r})
from graphs import assert_matches, random_input
from test_numba import small_network, tiny_network
from csengine import reference
from csengine.backends import numba as backend
from csengine.backends.numba_kernels import Kernel

def check(program, graph):
    x = random_input(graph, 7, seed=1)
    assert_matches(graph, graph.output.name, program.run(x), reference.run(graph, x))

def forms():
    return [form for kernel in Kernel._all for form in kernel._forms.values()]
"""


def small_network(*, packed: bool = True) -> Graph:
    """Integer: convolution, max-pool, k-WTA, linear layer; both layers packed, and large enough for two threads."""
    rng = np.random.default_rng(0)

    def layer(rows: int, kernels: int) -> dict[str, object]:
        weight = (rng.integers(-128, 128, (rows, kernels)) * (rng.random((rows, kernels)) < 0.1)).astype(np.int8)
        bias = rng.integers(-1000, 1000, kernels).astype(np.int32)
        return {"weight": pack(weight) if packed else weight, "bias": bias}

    scaling = Requantization(np.full(70, 40000, np.uint16), np.full(70, 22, np.uint8), "uint8", 0.1)
    nodes: tuple[Node, ...] = (
        Input(name="x", inputs=(), shape=(20, 20, 3), dtype="int8", scale=0.05),
        Conv2d(name="conv", inputs=("x",), kernel=(5, 5), requantization=scaling, **layer(75, 70)),
        MaxPool(name="pool", inputs=("conv",), kernel=(2, 2), stride=(2, 2)),
        KWTA(name="winners", inputs=("pool",), k=7, scope="local"),
        Reshape(name="flat", inputs=("winners",), shape=(4480,)),
        Linear(name="fc", inputs=("flat",), **layer(4480, 10)),
        Dequantize(name="y", inputs=("fc",), scale=np.array([0.01])),
    )
    return Graph(nodes)


def tiny_network() -> Graph:
    """Float32, and quickly compiled."""
    return Graph((Input(name="x", inputs=(), shape=(9,)), Relu(name="y", inputs=("x",))))


def run_python(code: str, package: Path = PACKAGE, **environment: str) -> str:
    """Standard output of a process that runs PREAMBLE and then code."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    environment = {**inherited, "PYTHONPATH": str(package.parent), **environment}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + code],
        cwd=package.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks use all threads, too."""
    monkeypatch.setattr(backend, "_WORTH_THREADS", -1)


# --- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES[1:])
def test_forced_mode_runs_in_every_packed_layer(mode: Mode) -> None:
    choices = backend.compile(small_network(), mode, threads=1).choices()
    assert choices["pool"].mode == mode  # the convolution is fused into it
    assert choices["fc"].mode == mode
    assert all(choice.tier == "numba" for choice in choices.values())


@pytest.mark.parametrize(
    ("mode", "conv", "linear"),
    [
        ("dense", "dense", "dense"),
        ("sparse-dense", "packed_planes", "packed"),
        ("sparse-sparse", "packed_select", "packed_select"),
    ],
)
def test_forced_mode_runs_its_kernel(mode: Mode, conv: str, linear: str) -> None:
    choices = backend.compile(small_network(), mode, threads=1).choices()
    assert (choices["pool"].kernel, choices["fc"].kernel) == (conv, linear)


@pytest.mark.parametrize(
    ("mode", "kernel", "ran"),
    [
        ("dense", "dense", "dense"),
        ("sparse-dense", "dense", "dense"),
        ("sparse-sparse", "dense_select", "sparse-sparse"),
    ],
)
def test_dense_weights_run_what_they_can(mode: Mode, kernel: str, ran: str) -> None:
    choices = backend.compile(small_network(packed=False), mode, threads=1).choices()
    assert {(choices[name].kernel, choices[name].mode) for name in ("pool", "fc")} == {(kernel, ran)}


def test_auto_takes_the_cheapest_kernel() -> None:
    graph = small_network()
    kernel = backend.compile(graph, "auto", threads=1).choices()["fc"].kernel
    fc = next(node for node in graph.nodes if isinstance(node, Linear))
    costs = {name: backend._cost(fc, name, 0.1) for name in ("dense", "dense_select", "packed", "packed_select")}
    assert kernel == min(costs, key=costs.__getitem__)


def test_active_rows_of_unpacked_weights_do_not_count_as_sparse_sparse() -> None:
    rng = np.random.default_rng(0)
    weight = pack((rng.integers(1, 100, (1600, 64)) * (rng.random((1600, 64)) < 0.12)).astype(np.int8))
    nodes = (
        Input(name="x", inputs=(), shape=(14, 14, 64), dtype="uint8", scale=1.0),
        KWTA(name="winners", inputs=("x",), k=6, scope="local"),
        Conv2d(name="conv", inputs=("winners",), kernel=(5, 5), weight=weight),
    )
    choice = backend.compile(Graph(nodes), "auto", threads=1).choices()["conv"]
    assert (choice.kernel, choice.mode) == ("dense_select", "dense")


def test_profile_and_trace_name_what_ran() -> None:
    graph = small_network()
    program = backend.compile(graph, "auto", threads=1)
    x = random_input(graph, 3, seed=0)
    assert program.profile(x).keys() == program.choices().keys()
    assert all(seconds > 0 for seconds in program.profile(x).values())
    expected = reference.trace(graph, x)
    assert program.trace(x).keys() == expected.keys()
    for name, tensor in program.trace(x).items():
        assert_matches(graph, name, tensor, expected[name])


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_requantization_in_double_is_exact() -> None:
    rng = np.random.default_rng(0)
    acc = np.concatenate([rng.integers(-(2**31) + 1, 2**31, 500), [-(2**31) + 1, 2**31 - 1, -1, 0, 1] * 20])
    multiplier = rng.integers(2**15, 2**16, acc.size).astype(np.uint16)
    multiplier[::7] = 2**15
    multiplier[::11] = 2**16 - 1
    shift = rng.integers(1, 48, acc.size).astype(np.uint8)
    expected = reference.requantize(acc, multiplier, shift, "int8")
    ratio = np.ldexp(multiplier.astype(np.float64), -shift.astype(np.int64))
    got = [numba_kernels._requantize(a, r, (-128.0, 127.0)) for a, r in zip(acc, ratio, strict=True)]
    np.testing.assert_array_equal(got, expected)


def test_sums_beyond_float32_are_exact() -> None:
    weight = np.full((2000, 3), 127, np.int8)
    weight[::2, 1] = -128
    nodes = (
        Input(name="x", inputs=(), shape=(1, 1, 2000), dtype="uint8", scale=1.0),
        Conv2d(name="y", inputs=("x",), kernel=(1, 1), weight=pack(weight)),
    )
    graph = Graph(nodes)
    x = np.random.default_rng(0).integers(200, 256, (3, 1, 1, 2000)).astype(np.uint8)
    assert reference.run(graph, x).max() > 2**24
    for mode in MODES:
        assert_matches(graph, "y", backend.compile(graph, mode, threads=1).run(x), reference.run(graph, x))


def test_winners_rank_zeros_of_both_signs_and_infinity() -> None:
    nodes = (Input(name="x", inputs=(), shape=(6,)), KWTA(name="y", inputs=("x",), k=3, scope="local"))
    graph = Graph(nodes)
    x = np.array([[-1, -0.0, 0.0, -2, 5, 5], [-3, -1, -2, -9, -7, -8]], np.float32)
    np.testing.assert_array_equal(backend.compile(graph, "auto", 1).run(x), reference.run(graph, x))


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_any_memory_layout_of_the_input_gives_the_same_result() -> None:
    graph = small_network()
    program = backend.compile(graph, "auto", threads=1)
    x = random_input(graph, 4, seed=0)
    expected = program.run(x)
    fixed = x.copy()
    fixed.flags.writeable = False
    strided = np.stack([x, x], axis=-1)[..., 0]
    for same in (fixed, strided, np.asfortranarray(x), x.astype(np.float64), x[::-1].copy()[::-1]):
        np.testing.assert_array_equal(program.run(same), expected)


def test_batch_larger_than_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_MAX_PART", 3)
    graph = small_network()
    x = random_input(graph, 8, seed=0)
    program = backend.compile(graph, "auto", threads=1)
    for _ in range(2):  # the second run finds workspaces
        assert_matches(graph, graph.output.name, program.run(x), reference.run(graph, x))
    assert program.trace(x)["winners"].shape == (8, 8, 8, 70)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("every_thread")
def test_input_that_is_not_finite_or_of_another_shape_is_refused(threads: int) -> None:
    program = backend.compile(small_network(), "auto", threads)
    before = get_num_threads()
    for value in (np.nan, np.inf, -np.inf):
        x = np.zeros((3, 20, 20, 3), np.float32)
        x[2, 1, 0, 1] = value
        with pytest.raises(ShapeError, match=r"\(2, 1, 0, 1\)"):
            program.run(x)
    with pytest.raises(ShapeError, match="expected"):
        program.run(np.zeros((3, 20, 20, 4), np.float32))
    assert get_num_threads() == before
    assert program.run(np.zeros((3, 20, 20, 3), np.float32)).shape == (3, 10)


# --- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("every_thread")
@pytest.mark.parametrize(("seed", "integer"), [*product(range(3), (True, False))])
def test_kernels_for_many_threads_match_the_reference(seed: int, integer: bool) -> None:
    graph = random_graph(seed, integer=integer)
    for mode in MODES:
        program = backend.compile(graph, mode, threads=2)
        for batch in (0, 1, 7):
            x = random_input(graph, batch, seed)
            assert_matches(graph, graph.output.name, program.run(x), reference.run(graph, x))


def test_number_of_threads_is_set_for_the_call_only() -> None:
    before = get_num_threads()
    with backend._numba_threads(1):
        assert get_num_threads() == 1
    assert get_num_threads() == before


@pytest.mark.parametrize(("threads", "layer"), [(1, "default"), (2, "default"), (2, "workqueue")])
def test_one_program_serves_many_threads(threads: int, layer: str) -> None:
    code = f"""
graph = small_network()
program = backend.compile(graph, "auto", {threads})
x = random_input(graph, 5, seed=1)
expected = reference.run(graph, x).tobytes()
failures = []
def work():
    try:
        for _ in range(100):
            assert program.run(x).tobytes() == expected
    except BaseException as failure:
        failures.append(failure)
workers = [threading.Thread(target=work) for _ in range(8)]
for worker in workers: worker.start()
for worker in workers: worker.join()
assert not failures, failures
if {threads} > 1:
    from numba import threading_layer
    assert {layer!r} in ("default", threading_layer()), threading_layer()
"""
    run_python(code, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2")


@pytest.mark.parametrize("threads", [1, 2])
def test_programs_survive_a_fork(threads: int) -> None:
    code = f"""
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forks of a process with threads, which is the point
backend._WORTH_THREADS = -1
graph = small_network()
program, double = backend.compile(graph, "auto", {threads}), backend.compile(graph, "auto", 2)
check(program, graph)
check(double, graph)
child = os.fork()
if child == 0:
    check(program, graph)
    check(backend.compile(graph, "auto", 2), graph)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
check(program, graph)
"""
    run_python(code, NUMBA_NUM_THREADS="2")


# --- cache -----------------------------------------------------------------------------------------------------------


def test_import_compiles_and_writes_nothing(tmp_path: Path) -> None:
    run_python("assert Kernel._all and not forms()", NUMBA_CACHE_DIR=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_both_forms_of_a_kernel_are_kept(tmp_path: Path) -> None:
    code = """
backend._WORTH_THREADS = -1
for threads in (1, 2):
    check(backend.compile(tiny_network(), "auto", threads), tiny_network())
print(sum(sum(form.stats.cache_hits.values()) for form in forms()))
print(sum(sum(form.stats.cache_misses.values()) for form in forms()))
"""
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "2"}
    assert run_python(code, **environment).split() == ["0", "4"]  # quantize and relu, in two forms
    assert run_python(code, **environment).split() == ["4", "0"]


def test_no_writable_directory_means_no_cache(tmp_path: Path) -> None:
    copy = tmp_path / "csengine"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "models", "*.so"))
    (copy / "backends" / "__pycache__").touch()  # a file in the way of the directory
    code = f"""
assert backend.__file__.startswith({str(tmp_path)!r})
check(backend.compile(tiny_network(), "auto", 1), tiny_network())
assert forms() and all(type(form._cache).__name__ == "NullCache" for form in forms())
"""
    run_python(code, copy, PYTHONDONTWRITEBYTECODE="1", **NOWHERE)


@pytest.mark.parametrize("damage", ["full disk", "truncated"])
def test_damaged_cache_means_no_cache(damage: str, tmp_path: Path) -> None:
    code = """
check(backend.compile(tiny_network(), "auto", 1), tiny_network())
assert not Kernel._is_cached
"""
    if damage == "full disk":
        patch = """
from numba.core.caching import IndexDataCacheFile
def save(self, key, data):
    raise OSError(28, "No space left on device")
IndexDataCacheFile.save = save
"""
        code = patch + code
    else:
        run_python('backend.compile(tiny_network(), "auto", 1)', NUMBA_CACHE_DIR=str(tmp_path))
        for file in tmp_path.rglob("*.nbi"):
            file.write_bytes(b"")
    run_python(code, NUMBA_CACHE_DIR=str(tmp_path))
