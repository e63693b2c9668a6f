"""Runtimes in processes of their own take turns on the same function: one runs, the others sleep."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import csengine
from csengine import container
from csengine.cli import energy, measure
from csengine.cli.output import Progress
from csengine.cli.weights import unpack
from csengine.container import Model
from csengine.errors import CsengineError
from csengine.graph import Graph
from csengine.peers import catalogue, functions
from csengine.peers.worker import BOOTSTRAP
from csengine.resources import allowed_cpus

Array = NDArray[Any]
_SECONDS_TO_LOAD = 600.0
_SECONDS_TO_RUN = 120.0
_SECONDS_OF_ENERGY = 0.3  # the counters advance once in a millisecond
_SECONDS_TO_CALM_DOWN = 0.005  # threads of a pool look for more work for some time before they sleep


class PeerError(CsengineError):
    """A runtime failed, or answered nothing."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A contender: a runtime (a peer, or `catalogue.OWN`) in one of its variants, a network and its input.

    function: what the network is called. x: one or more batches of the size `batch` `[n * batch, ...]`, which it gets
    in turns, in the user's layout, float32 or the network's integer type. facts: what else to say of it.
    """

    peer: str
    variant: str
    function: str
    model: Model
    x: Array
    batch: int
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of an entry: times, or the reason why there are none.

    error: relative, of the output. tier: instruction sets used, where the runtime says so. joules: of one call, where
    the machine has counters.
    """

    entry: Entry
    error: float
    timing: measure.Timing | None = None
    failure: str = ""
    tier: str = ""
    joules: float | None = None


def cpus_for(threads: int) -> tuple[int, ...]:
    """As many of the processors allowed, the last ones: systems put their own work on the first."""
    return tuple(sorted(allowed_cpus())[-threads:])


class Worker:
    """A process that runs one peer, pinned, with so many threads."""

    def __init__(self, peer: str, threads: int, cpus: Sequence[int], log: Path) -> None:
        """Start it. Raises BackendUnavailableError without its environment, PeerError if it does not start."""
        package = str(Path(csengine.__file__).parent)
        pinned = ",".join(map(str, cpus)) if hasattr(os, "sched_setaffinity") else ""
        more = {} if peer == catalogue.OWN else dict(catalogue.PEERS[peer].environment)
        self.peer, self._log = peer, log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [str(catalogue.interpreter(peer)), "-I", "-c", BOOTSTRAP, package, peer, str(threads), pinned],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **more},
                text=True,
            )
        self.versions: dict[str, str] = self._answer(_SECONDS_TO_LOAD)["versions"]

    @property
    def is_alive(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    def ask(self, seconds: float, **request: object) -> dict[str, Any]:
        """The answer to a request. Raises PeerError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise PeerError(f"{self.peer}: {self._last_words()}") from error
        return self._answer(seconds)

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        alarm = threading.Timer(seconds, self._process.kill)
        alarm.start()
        line = self._process.stdout.readline()
        alarm.cancel()
        if not line:
            self._process.wait()
            raise PeerError(f"{self.peer}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self.peer}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        """Why the process ended, as far as it said so."""
        lines = self._log.read_text(errors="replace").strip().splitlines()[-1:]
        return f"ended with status {self._process.wait()}" + "".join(f" ({line[:200]})" for line in lines)

    def close(self) -> None:
        """Let it end; nothing if it has."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Contest:
    """Workers that live through several rounds of entries, with the same threads and processors for all."""

    def __init__(self, threads: int, cpus: Sequence[int] | None = None) -> None:
        """cpus: None takes as many as threads; see `cpus_for`."""
        self.threads = threads
        self.cpus = tuple(cpus) if cpus is not None else cpus_for(threads)
        self.versions: dict[str, dict[str, str]] = {}
        self._workers: dict[str, Worker] = {}
        self._numbers = itertools.count()
        self._stack = ExitStack()

    def __enter__(self) -> Contest:
        self._place = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="csengine-bench-")))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers.values():
            worker.close()
        self._stack.close()

    def hold(self, entries: Sequence[Entry], runs: int, seconds: float, progress: Progress) -> list[Outcome]:
        """Load and check every entry, then time those that are right, in turns (see `measure.take_turns`).

        seconds: what one entry may take. A runtime that fails does not stop the others: its outcome says why.
        `progress` advances once per entry and `measure.ROUNDS` times. Raises BackendUnavailableError.
        """
        with self._loaded(entries, progress) as outcomes:
            running = [i for i, outcome in enumerate(outcomes) if not outcome.failure]
            pause = _SECONDS_TO_CALM_DOWN if self.threads > 1 else 0.0
            timers = [_Timer(self._workers[_worker_name(entries[i], str(i))], str(i), pause) for i in running]
            timings = measure.take_turns(timers, runs, seconds, progress)
            for i, timer, timing in zip(running, timers, timings, strict=True):
                used = timer.joules(timing.median)
                timed = None if timer.failure else timing
                outcomes[i] = replace(outcomes[i], timing=timed, failure=timer.failure, joules=used)
        return outcomes

    @contextmanager
    def _loaded(self, entries: Sequence[Entry], progress: Progress) -> Iterator[list[Outcome]]:
        files = _Files(self._place, self._numbers)
        outcomes = []
        for i, entry in enumerate(entries):
            progress.step(f"{entry.peer} {entry.variant}")
            outcomes.append(self._load(str(i), entry, files))
        yield outcomes
        for i, entry in enumerate(entries):
            self._drop(_worker_name(entry, str(i)), str(i))
        files.remove()

    def _drop(self, name: str, key: str) -> None:
        worker = self._workers.get(name)
        if worker is None:
            return
        if worker.is_alive and name == worker.peer:
            worker.ask(_SECONDS_TO_RUN, do="drop", key=key)
        else:
            self._workers.pop(name).close()

    def _load(self, key: str, entry: Entry, files: _Files) -> Outcome:
        output = self._place / f"{key}.npy"
        paths = {"model": str(files.model(entry.model)), "input": str(files.array(entry.x)), "output": str(output)}
        try:
            worker = self._worker(_worker_name(entry, key), entry.peer)
            answer = worker.ask(_SECONDS_TO_LOAD, do="load", key=key, variant=entry.variant, batch=entry.batch, **paths)
        except PeerError as reason:
            return Outcome(entry, math.inf, failure=str(reason))
        error, allowed = functions.relative_error(np.load(output), files.expected(entry)), _tolerance(entry)
        failure = f"the output is off by {error:.3g}, allowed is {allowed:.3g}" if error > allowed else ""
        return Outcome(entry, error, failure=failure, tier=answer["tier"])

    def _worker(self, name: str, peer: str) -> Worker:
        if name in self._workers and not self._workers[name].is_alive:
            self._workers.pop(name).close()
        if name not in self._workers:
            self._workers[name] = Worker(peer, self.threads, self.cpus, self._place / f"{name}.log")
            self.versions[peer] = self._workers[name].versions
        return self._workers[name]


def _worker_name(entry: Entry, key: str) -> str:
    """Entries of the same name share a process."""
    alone = entry.peer != catalogue.OWN and catalogue.PEERS[entry.peer].aborts
    return f"{entry.peer}-{key}" if alone else entry.peer


class _Timer:
    """Asks a worker for the seconds of some calls; from the first failure on it gives infinity.

    pause: seconds before each turn in which whoever had the last one can go to sleep.
    """

    def __init__(self, worker: Worker, key: str, pause: float) -> None:
        self.failure = ""
        self._worker, self._key, self._pause = worker, key, pause

    def __call__(self, runs: int) -> list[float]:
        if not self.failure:
            time.sleep(self._pause)
            try:
                answer = self._worker.ask(_SECONDS_TO_RUN, do="time", key=self._key, runs=runs)
                return [nanoseconds / 1e9 for nanoseconds in answer["nanoseconds"]]
            except PeerError as error:
                self.failure = str(error)
        return [math.inf] * runs

    def joules(self, seconds: float) -> float | None:
        """What one call uses, the packages' idle power included; None without counters. seconds: that it takes."""
        counters = energy.counters()
        if not counters or self.failure:
            return None
        runs = max(1, round(_SECONDS_OF_ENERGY / seconds))
        return energy.joules(counters, lambda: self(runs)) / (runs + 1)  # one call is not timed


class _Files:
    """Networks and inputs as the workers read them, and what each entry should give; every one made once."""

    def __init__(self, place: Path, numbers: Iterator[int]) -> None:
        self._place, self._numbers = place, numbers
        self._made: dict[int, tuple[object, Path]] = {}  # holds the object, so that its id stays its own
        self._graphs: dict[int, Graph] = {}
        self._expected: dict[tuple[int, int, int, bool], Array] = {}

    def model(self, model: Model) -> Path:
        return self._once(model, "safetensors", lambda path: container.save(model, path))

    def array(self, x: Array) -> Path:
        return self._once(x, "npy", lambda path: np.save(path, x))

    def _once(self, value: object, suffix: str, write: Callable[[Path], None]) -> Path:
        if id(value) not in self._made:
            path = self._place / f"in{next(self._numbers)}.{suffix}"
            write(path)
            self._made[id(value)] = value, path
        return self._made[id(value)][1]

    def expected(self, entry: Entry) -> Array:
        exact = catalogue.precision_of(entry.peer, entry.variant) in ("own", "int8")
        key = id(entry.model), id(entry.x), entry.batch, exact
        if key not in self._expected:
            if id(entry.model) not in self._graphs:
                self._graphs[id(entry.model)] = unpack(entry.model.graph)
            last = entry.x[-entry.batch :]
            self._expected[key] = functions.expected(self._graphs[id(entry.model)], last, exact=exact)
        return self._expected[key]

    def remove(self) -> None:
        for _, path in self._made.values():
            path.unlink()


def _tolerance(entry: Entry) -> float:
    if entry.peer == catalogue.OWN:
        graph = entry.model.graph
        return max(measure.FLOAT_TOLERANCE, measure.tolerance_of(graph, graph.output.name))
    winners = functions.has_winners(entry.model.graph)
    allowed = catalogue.TOLERANCE_WITH_WINNERS if winners else catalogue.TOLERANCE
    return allowed[catalogue.precision_of(entry.peer, entry.variant)]
