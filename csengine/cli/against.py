"""`csengine bench --against`: a model in csengine and in other runtimes, every contender in a process of its own."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from csengine.cli import measure, output
from csengine.cli.contest import Contest, Entry, Outcome, PeerError
from csengine.cli.samples import samples_for
from csengine.container import Model
from csengine.engine import Engine
from csengine.peers import catalogue, functions

WHOLE = "as packed"
WITHOUT_WINNERS = "without k-winners"
BATCHES = 4
"""Different batches that every contender gets in turns."""


@dataclass(frozen=True)
class Row:
    """What was measured of one contender; NaN where it failed.

    function: the model as packed, or without k-winners, which other runtimes have no fast form of. relative_error: of
    the output, as `csengine.peers.functions.relative_error` defines it. Seconds per call; rates count the whole batch.
    """

    batch: int
    threads: int
    contender: str
    variant: str
    function: str
    tier: str
    runs: int
    median_seconds: float
    p10_seconds: float
    p90_seconds: float
    samples_per_second: float
    speedup_over_first: float
    relative_error: float
    failure: str


def compare(model: Model, arguments: argparse.Namespace) -> tuple[list[Row], list[dict[str, Any]]]:
    """All rows of the grid, and the peers that took part. Raises BackendUnavailableError if one is not installed."""
    for peer in arguments.against:
        catalogue.interpreter(peer)
    rows: list[Row] = []
    versions: dict[str, dict[str, str]] = {}
    shaped = Engine(model, backend="reference", threads=1)
    for threads in arguments.threads:
        with Contest(threads, arguments.cpus) as contest:
            for batch in arguments.batch:
                x = samples_for(shaped, batch * BATCHES, arguments.seed, arguments.input, arguments.array)
                rows += _rows(_hold(contest, list(_entries(model, x, batch, arguments)), arguments), threads)
            versions |= contest.versions
    return rows, catalogue.describe(versions)


def _entries(model: Model, x: NDArray[Any], batch: int, arguments: argparse.Namespace) -> Iterator[Entry]:
    for backend, mode in itertools.product(arguments.backend, arguments.mode):
        yield Entry(catalogue.OWN, catalogue.own_variant(backend, mode), WHOLE, model, x, batch)
    forms = {WHOLE: model}
    if functions.has_winners(model.graph):
        forms[WITHOUT_WINNERS] = functions.without_winners(model)
    for peer, (function, form) in itertools.product(arguments.against, forms.items()):
        for variant in catalogue.suited(peer, form.graph):
            yield Entry(peer, variant, function, form, x, batch)


def _hold(contest: Contest, entries: Sequence[Entry], arguments: argparse.Namespace) -> list[Outcome]:
    with output.Progress(f"batch {entries[0].batch}", len(entries) + measure.ROUNDS) as progress:
        outcomes = contest.hold(entries, arguments.runs, arguments.seconds, progress)
    for outcome in outcomes:
        if outcome.failure and outcome.entry.peer == catalogue.OWN:
            raise PeerError(f"{outcome.entry.variant}: {outcome.failure}; no time is reported")
    return outcomes


def _rows(outcomes: Sequence[Outcome], threads: int) -> list[Row]:
    first = outcomes[0].timing
    assert first is not None  # csengine's own, which cannot fail
    return [_row(outcome, threads, first.median) for outcome in outcomes]


def _row(outcome: Outcome, threads: int, first: float) -> Row:
    entry, timing = outcome.entry, outcome.timing
    median = math.nan if timing is None else timing.median
    return Row(
        batch=entry.batch,
        threads=threads,
        contender=entry.peer,
        variant=entry.variant,
        function=entry.function,
        tier=outcome.tier,
        runs=0 if timing is None else timing.runs,
        median_seconds=median,
        p10_seconds=math.nan if timing is None else timing.p10,
        p90_seconds=math.nan if timing is None else timing.p90,
        samples_per_second=entry.batch / median,
        speedup_over_first=first / median,
        relative_error=outcome.error,
        failure=outcome.failure,
    )


HEADER: tuple[str, ...] = (
    ">batch",
    ">threads",
    "contender",
    "variant",
    "function",
    "tier",
    ">runs",
    ">median µs",
    ">p10",
)
HEADER += (">p90", ">samples/s", ">vs first", ">output error", "")


def cells(row: Row) -> tuple[str, ...]:
    """A row under `HEADER`."""
    names = (str(row.batch), str(row.threads), row.contender, row.variant, row.function, row.tier, str(row.runs))
    if row.failure:
        return (*names, *("",) * 6, f"failed: {row.failure}")
    times = map(output.microseconds, (row.median_seconds, row.p10_seconds, row.p90_seconds))
    rates = (f"{row.samples_per_second:,.0f}", f"{row.speedup_over_first:.3f}x", f"{row.relative_error:.1e}")
    return (*names, *times, *rates, "")
