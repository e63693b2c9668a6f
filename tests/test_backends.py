"""Every backend, tier and mode computes what the reference defines."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from graphs import assert_matches, graphs, random_graph, random_input
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csengine import reference
from csengine.backends import MODES, Mode, Program, cpp
from csengine.graph import Graph

BATCHES = (0, 1, 2, 7, 64)


def contenders() -> Iterator[Any]:
    """Every backend, the C++ one in every tier; a tier that this processor lacks is a visible skip."""
    for tier, runs in cpp.tiers().items():
        skip = pytest.mark.skipif(not runs, reason=f"this processor does not run {tier}")
        for measure in (True, False):
            name = f"cpp-{tier}-{'measured' if measure else 'exact'}"
            yield pytest.param("cpp", {"tier": tier, "measure": measure}, id=name, marks=skip)
    yield pytest.param("numba", {}, id="numba")
    yield pytest.param("reference", {}, id="reference")


def compile_for(backend: str, graph: Graph, mode: Mode, threads: int, options: dict[str, Any]) -> Program:
    program: Program = importlib.import_module(f"csengine.backends.{backend}").compile(graph, mode, threads, **options)
    return program


@pytest.mark.parametrize(("backend", "options"), list(contenders()))
@pytest.mark.parametrize("integer", [True, False], ids=["integer", "float32"])
@pytest.mark.parametrize("seed", range(12))
def test_every_mode_and_batch_size_equals_the_reference(
    backend: str, options: dict[str, Any], integer: bool, seed: int
) -> None:
    graph = random_graph(seed, integer=integer)
    programs = [compile_for(backend, graph, mode, 1 + seed % 2, options) for mode in MODES]
    for batch in BATCHES:
        for direct in (False, True):
            x = random_input(graph, batch, seed, direct=direct)
            expected = reference.run(graph, x)
            for program in programs:
                assert_matches(graph, graph.output.name, program.run(x), expected)


@pytest.mark.parametrize(("backend", "options"), list(contenders()))
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(graph=graphs(), seed=st.integers(0, 2**16), mode=st.sampled_from(MODES))
def test_every_layer_of_random_networks_equals_the_reference(
    backend: str, options: dict[str, Any], graph: Graph, seed: int, mode: Mode
) -> None:
    x = random_input(graph, 3, seed)
    program = compile_for(backend, graph, mode, 1, options)
    expected = reference.trace(graph, x)
    traced = program.trace(x)
    assert traced.keys() == expected.keys()
    for name, values in traced.items():
        assert_matches(graph, name, values, expected[name])
    assert_matches(graph, graph.output.name, program.run(x), expected[graph.output.name])


@pytest.mark.parametrize(("backend", "options"), list(contenders()))
def test_the_plan_names_the_forced_mode_and_tier(backend: str, options: dict[str, Any]) -> None:
    graph = random_graph(1, integer=True, weights="packed")
    for mode in ("dense", "sparse-dense"):
        choices = compile_for(backend, graph, mode, 1, options).choices()  # type: ignore[arg-type]
        modes = {choice.mode for choice in choices.values()} - {""}
        if backend != "reference":
            assert modes <= {mode, "dense"}
        if "tier" in options:
            order = list(cpp.tiers())
            assert all(order.index(choice.tier) <= order.index(options["tier"]) for choice in choices.values())


@pytest.mark.parametrize(("backend", "options"), list(contenders()))
def test_profile_times_every_step(backend: str, options: dict[str, Any]) -> None:
    graph = random_graph(3, integer=True)
    program = compile_for(backend, graph, "auto", 1, options)
    seconds = program.profile(random_input(graph, 2, 3))
    assert seconds.keys() == program.choices().keys()
    assert all(value >= 0 for value in seconds.values())


def test_every_kernel_of_the_table_is_reached() -> None:
    """The random networks above would be no test of a kernel that they never use."""
    from csengine import _native

    reached = set()
    for tier, runs in cpp.tiers().items():
        for seed in range(120):
            graph = random_graph(seed, integer=seed % 2 == 0)
            for mode in MODES:
                if runs:
                    choices = cpp.compile(graph, mode, 1, tier=tier, measure=False).choices().values()
                    reached |= {(choice.kernel, choice.tier) for choice in choices}
    runnable = {name for name, runs in cpp.tiers().items() if runs}
    table = {(kernel, tier) for _, kernel, tier, _ in _native.kernel_table() if tier in runnable}
    assert reached == table


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tier", [name for name, runs in cpp.tiers().items() if runs])
def test_kernels_write_only_their_own_memory_and_read_no_garbage(tier: str, mode: Mode) -> None:
    for seed in range(40):
        graph = random_graph(seed, integer=seed % 4 != 0)
        program = cpp.compile(graph, mode, 1, tier=tier, measure=False)
        x = random_input(graph, 3, seed)
        for poison in (0x00, 0x7F, 0xA5, 0xFF):
            got, guilty = program.audit(x, poison)
            assert not guilty
            assert_matches(graph, graph.output.name, got, reference.run(graph, x[: len(got)]))


def test_an_impossible_tier_is_refused() -> None:
    from csengine.errors import BackendUnavailableError

    with pytest.raises(BackendUnavailableError, match="'avx9' cannot run here; this machine runs scalar"):
        cpp.compile(random_graph(0, integer=True), "auto", 1, tier="avx9")


def test_batches_do_not_disturb_each_other() -> None:
    graph = random_graph(5, integer=True)
    program = cpp.compile(graph, "auto", 2)
    x = random_input(graph, 64, 5)
    together = program.run(x)
    alone = np.concatenate([program.run(x[i : i + 1]) for i in range(64)])
    np.testing.assert_array_equal(together, alone)
