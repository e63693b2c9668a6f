"""csengine itself as a contender."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, cast

from numpy.typing import NDArray

from csengine.container import Model
from csengine.engine import Engine
from csengine.peers.functions import real_values
from csengine.peers.runtime import Loaded, Source


def load(model: Model, variant: str, batches: Sequence[NDArray[Any]], threads: int) -> Loaded:
    """variant: backend and mode, such as "cpp/auto"; with "/exact" behind it, layers take exactly that mode."""
    engine = _compile(model, variant, threads)
    source = Source(batches)
    call = partial(engine.run, source.buffer)
    tiers = {choice.tier for choice in engine.choices().values() if choice.tier}
    return Loaded(source.feed, call, lambda: real_values(model.graph, call()), "+".join(sorted(tiers)))


@lru_cache(maxsize=1)
def _compile(model: Model, variant: str, threads: int) -> Engine:
    """One network may come with several inputs in a row."""
    backend, mode, *exact = variant.split("/")
    with _planner("model" if exact else os.environ.get("CSENGINE_PLANNER", "measure")):
        return Engine(model, backend=cast(Any, backend), mode=cast(Any, mode), threads=threads)


@contextmanager
def _planner(name: str) -> Iterator[None]:
    before = os.environ.get("CSENGINE_PLANNER")
    os.environ["CSENGINE_PLANNER"] = name
    try:
        yield
    finally:
        del os.environ["CSENGINE_PLANNER"]
        if before is not None:
            os.environ["CSENGINE_PLANNER"] = before
