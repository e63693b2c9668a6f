"""The process of one runtime: reads requests from standard input, a line of JSON each, and answers on standard output.

    {"do": "load", "key": K, "model": PATH, "input": PATH, "batch": B, "variant": V, "output": PATH}
    {"do": "time", "key": K, "runs": N}
    {"do": "drop", "key": K}

"load" takes the input as batches of B samples, writes the result of the last one and answers {"tier": ...}. "time"
answers {"nanoseconds": [...]}, N calls after one that is not counted. Times are taken here, around each call, so that
no talk between processes is in them; before each the next batch is put in place, so that neither caches nor branch
predictors know the input. Between requests the process sleeps. What the runtime itself prints goes to standard error.
`{"error": ...}` answers what went wrong.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from csengine import container
from csengine.container import Model
from csengine.peers.catalogue import OWN, PEERS
from csengine.peers.runtime import Loaded

#: Starts a worker in any environment: makes csengine importable there, and of its surroundings nothing else.
BOOTSTRAP = """\
import importlib.util, sys
place, peer, threads, cpus = sys.argv[1:]
spec = importlib.util.spec_from_file_location("csengine", place + "/__init__.py", submodule_search_locations=[place])
sys.modules["csengine"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from csengine.peers.worker import serve
serve(peer, int(threads), [int(cpu) for cpu in cpus.split(",") if cpu])
"""


def serve(peer: str, threads: int, cpus: Sequence[int]) -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if cpus:
        os.sched_setaffinity(0, cpus)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    gc.disable()
    print(json.dumps({"versions": _versions(peer)}), file=answers, flush=True)
    held: dict[str, Contender] = {}
    for line in sys.stdin:
        print(json.dumps(_answer(peer, threads, held, json.loads(line))), file=answers, flush=True)


def _versions(peer: str) -> dict[str, str]:
    packages = ("csengine",) if peer == OWN else PEERS[peer].packages
    found = {"numpy": np.__version__}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _answer(peer: str, threads: int, held: dict[str, Contender], request: dict[str, Any]) -> dict[str, Any]:
    try:
        match request["do"]:
            case "load":
                held[request["key"]] = made = _load(peer, threads, request)
                return {"tier": made.loaded.tier}
            case "time":
                return {"nanoseconds": held[request["key"]].time(request["runs"])}
            case "drop":
                held.pop(request["key"], None)
                gc.collect()
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises, the process that asked must learn it
        lines = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0]}"}
    return {}


def _load(peer: str, threads: int, request: dict[str, Any]) -> Contender:
    runtime = importlib.import_module(f"csengine.peers.{'engine' if peer == OWN else peer}")
    x = np.load(request["input"])
    batches = x.reshape(-1, request["batch"], *x.shape[1:])
    loaded: Loaded = runtime.load(_model(request["model"]), request["variant"], batches, threads)
    loaded.feed(len(batches) - 1)
    loaded.call()
    np.save(request["output"], loaded.output())
    return Contender(loaded, len(batches))


@lru_cache(maxsize=1)
def _model(path: str) -> Model:
    """The network of a file. Files do not change, and one network may come with several inputs in a row."""
    return container.load(path)


class Contender:
    """A loaded network and the number of the batch whose turn it is."""

    def __init__(self, loaded: Loaded, batches: int) -> None:
        self.loaded = loaded
        self._numbers = itertools.cycle(range(batches))

    def time(self, runs: int) -> list[int]:
        """Nanoseconds of so many calls, after one that is not counted."""
        call, feed = self.loaded.call, self.loaded.feed
        call()
        taken = []
        for _ in range(runs):
            feed(next(self._numbers))
            start = time.perf_counter_ns()
            call()
            taken.append(time.perf_counter_ns() - start)
        return taken
