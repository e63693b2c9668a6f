"""What csengine was to reach against other runtimes, and what it reached in the recorded runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from comparison import (
    OWN,
    TYPICAL,
    WITH_WINNERS,
    Report,
    Row,
    best_own,
    contest_of,
    fastest,
    inside,
    own_network,
    own_time,
    peers_of,
    rivals,
)

from csengine.cli.output import markdown

Aim = tuple[str, str, str, str]
"""Case, against what, aim, reached."""


def table(reports: Mapping[str, Report]) -> str:
    """One line per aim of which there are results; reports by suite."""
    suites = {"networks": networks, "linear": linear, "convolutions": convolutions, "imported": imported}
    lines = [aim for name, aims in suites.items() if name in reports for aim in aims(reports[name])]
    return markdown(("case", "against", "aim", "reached"), lines)


def networks(report: Report) -> Iterator[Aim]:
    """The keyword-spotting network with CPU-friendly blocks."""
    for batch, aims in ((1, ("40×", "7×", "60×")), (64, (None, "2.5×", None))):
        rows = contest_of(report, batch, 1)
        own = own_network(rows, WITH_WINNERS[0])
        case = f"keyword spotting, batch {batch}, CPU-friendly blocks"
        for aim, (name, rival) in zip(aims, rivals(rows).items(), strict=True):
            if aim:
                yield case, name, aim, _gain(rival, own)


def linear(report: Report) -> Iterator[Aim]:
    """The large layer at the typical sparsity."""
    for contest in report["contests"]:
        if (contest["inputs"], contest["density"]) == (4096, TYPICAL):
            for block, aim in (("1×16", "12×"), ("1×1", "3×")):
                own = {"median_seconds": own_time(contest, block, TYPICAL)}
                case = f"linear {contest['inputs']}→{contest['outputs']}, 10 % of weights and inputs, {block} blocks"
                yield case, "the fastest peer", aim, _gain(fastest(peers_of(contest["rows"])), own)


def convolutions(report: Report) -> Iterator[Aim]:
    """Every kernel at the typical sparsity."""
    for contest in report["contests"]:
        if contest["density"] == TYPICAL:
            rows = inside(contest)
            case = f"{contest['name']}, 10 % of the weights, ReLU"
            yield case, "the fastest peer", "1×", _gain(fastest(peers_of(rows)), best_own(rows, False))


def imported(report: Report) -> Iterator[Aim]:
    """ResNet-50 for one image, and the feed-forward blocks."""
    for contest in report["contests"]:
        own = [row for row in contest["rows"] if row["peer"] == OWN]
        rival = fastest(peers_of(contest["rows"]))
        if contest["density"] != TYPICAL or contest["batch"] != 1:
            continue
        if contest["name"] == "ResNet-50":
            pruned = fastest(row for row in own if row["variant"].endswith("/auto"))
            yield "ResNet-50, int8, 10 % of the weights, batch 1", "the fastest peer", "1.5×", _gain(rival, pruned)
        elif "→" in contest["name"]:
            for function in dict.fromkeys(row["function"] for row in own if "winners" in row["function"]):
                best = fastest(row for row in own if row["function"] == function)
                case = f"feed-forward {contest['name']}, {function}"
                yield case, "the fastest peer, ReLU", "10×", _gain(rival, best)


def _gain(rival: Row | None, own: Row | Mapping[str, Any] | None) -> str:
    return f"{rival['median_seconds'] / own['median_seconds']:.2g}×" if rival and own else ""
