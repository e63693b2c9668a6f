"""Times that can be compared: contenders take turns in one process, warmed up, and every call is kept."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csengine.cli.output import Progress
from csengine.cli.weights import unpack
from csengine.container import Model
from csengine.engine import Engine
from csengine.errors import CsengineError
from csengine.graph import KWTA, Clip, Conv2d, Dequantize, Graph, Linear, MaxPool, Quantize, Relu, Reshape, Transpose
from csengine.plan import count_macs

FLOAT_TOLERANCE = 1e-5
"""How far float32 backends may be from the reference, relative to a tensor's largest magnitude."""
REQUANTIZED_TOLERANCE = 0.02
"""The same where float32 within a network became integers again: a few of them may be one step apart."""
_EXACT = (Clip, Dequantize, KWTA, MaxPool, Relu, Reshape, Transpose)
ROUNDS = 20
"""Turns that `interleave` gives every contender, and steps that it reports."""
_FEWEST_RUNS = 5

Array = NDArray[Any]


@dataclass(frozen=True)
class Timing:
    """Seconds per call."""

    seconds: Array

    @property
    def runs(self) -> int:
        """How many calls were timed."""
        return len(self.seconds)

    @property
    def median(self) -> float:
        """Half of the calls were faster."""
        return float(np.median(self.seconds))

    @property
    def p10(self) -> float:
        """One call in ten was faster."""
        return float(np.percentile(self.seconds, 10))

    @property
    def p90(self) -> float:
        """Nine calls in ten were faster."""
        return float(np.percentile(self.seconds, 90))


def interleave(calls: Sequence[Callable[[], object]], runs: int, budget: float, progress: Progress) -> list[Timing]:
    """`take_turns` with calls in this process."""
    with _without_garbage_collection():
        return take_turns([partial(_time_calls, call) for call in calls], runs, budget, progress)


def take_turns(
    timers: Sequence[Callable[[int], list[float]]], runs: int, budget: float, progress: Progress
) -> list[Timing]:
    """Let contenders take turns: in each of `ROUNDS` every one makes its share of `runs`.

    timers: give the seconds of so many calls, made after one that is not counted. budget: seconds that one contender
    may take; who is too slow for it makes fewer runs, at least 5. The order rotates from round to round. `progress`
    advances once per round.
    """
    counts = [_affordable(timer, runs, budget) for timer in timers]
    seconds: list[list[float]] = [[] for _ in timers]
    for number in range(ROUNDS):
        for turn in range(len(timers)):
            i = (turn + number) % len(timers)
            share = counts[i] * (number + 1) // ROUNDS - counts[i] * number // ROUNDS
            if share:
                seconds[i] += timers[i](share)
        progress.step()
    return [Timing(np.array(taken)) for taken in seconds]


def _affordable(timer: Callable[[int], list[float]], runs: int, budget: float) -> int:
    """How many runs fit in the budget."""
    once = min(timer(2))
    return max(min(runs, _FEWEST_RUNS), min(runs, int(budget / max(once, 1e-9))))


def _time_calls(call: Callable[[], object], runs: int) -> list[float]:
    """Seconds of so many calls, after one that is not counted."""
    call()
    return [_time(call) for _ in range(runs)]


def _time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def pinned(cpus: Sequence[int] | None) -> Iterator[None]:
    """Keep this process, and threads that it starts, on these logical processors."""
    if cpus is None:
        yield
        return
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("this system cannot pin a process to processors; leave out --cpus")
    before = os.sched_getaffinity(0)
    if missing := set(cpus) - before:
        raise ValueError(f"processors {sorted(missing)} are not available; expected some of {sorted(before)}")
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# --- outputs ---------------------------------------------------------------------------------------------------------


def tolerance_of(graph: Graph, name: str) -> float:
    """How far backends may be from the reference at a tensor, relative to its largest magnitude.

    0 for integers, and for integers just scaled: every backend must give them bit for bit. Integers made from float32
    within a network are not exact: there a last bit may decide to which of two integers a value is rounded.
    """
    allowed: dict[str, float] = {}
    for node in graph.nodes:
        own = 0.0 if graph.types[node.name].is_integer or isinstance(node, _EXACT) else FLOAT_TOLERANCE
        allowed[node.name] = max([own, *(allowed[source] for source in node.inputs)])
        if isinstance(node, Quantize) and allowed[node.name]:
            allowed[node.name] = REQUANTIZED_TOLERANCE
    return allowed[name]


def reference_engine(model: Model) -> Engine:
    """The definition of the results, on unpacked weights: quicker in NumPy, and a check of the packing as well."""
    return Engine(replace(model, graph=unpack(model.graph)), backend="reference", threads=1)


def distance(left: Array, right: Array) -> Array:
    """|left - right| in double: 0 where both are the same infinity or not a number, infinite where only one is."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        difference = np.nan_to_num(np.abs(a - b), nan=np.inf, posinf=np.inf)
    return np.where(same, 0.0, difference)


def magnitude(values: Array) -> float:
    """The largest magnitude of what is finite; 0 of nothing."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def require_agreement(engine: Engine, what: str, got: Array, expected: Array) -> None:
    """Raise CsengineError unless an output is what the reference computes, as exactly as it is defined."""
    graph = engine.model.graph
    if got.shape == expected.shape and got.dtype == expected.dtype:
        allowed = tolerance_of(graph, graph.output.name) * magnitude(expected)
        largest = float(distance(got, expected).max(initial=0.0))
        if largest <= allowed:
            return
        found = f"differs by up to {largest:g} from the reference"
    else:
        found = f"is {got.dtype} {got.shape}; the reference gives {expected.dtype} {expected.shape}"
    raise CsengineError(f"{what}: the output {found}; no time is reported (see `csengine compare`)")


def tiers_used(engine: Engine) -> str:
    """The instruction sets of the kernels that run, as one text."""
    return "+".join(sorted({choice.tier for choice in engine.choices().values() if choice.tier}))


def macs(engine: Engine, x: Array) -> tuple[int, int]:
    """Multiply-accumulates of a batch: every weight and activation counted, and those that the engine really does."""
    graph, rows = engine.model.graph, engine.plan()
    if not any(isinstance(node, (Conv2d, Linear)) for node in graph.nodes):
        return 0, 0
    done = count_macs(graph, engine.trace(x), {row.name: row.mode for row in rows})
    return sum(row.macs_dense for row in rows) * len(x), sum(done.values())
