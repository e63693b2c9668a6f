"""Tables of the kernels, of what bounds them, and of what one core can do; `roofline.py` has the bounds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import comparison
import pictures
import roofline
from roofline import Bound, Report, Row

from csengine import _native
from csengine.cli.output import markdown


@dataclass(frozen=True)
class Measured:
    """A kernel on a layer: its row of the results, and its bound."""

    row: Row
    bound: Bound

    @property
    def share(self) -> float:
        """Of the bound that is reached."""
        return self.bound.seconds / float(self.row["seconds"])

    @property
    def name(self) -> str:
        """Kernel, and tier where other tiers have one of that name."""
        return f"`{self.row['kernel']}`" + (f" ({self.row['tier']})" if _TIERS_OF[self.row["kernel"]] > 1 else "")


_TIERS_OF = Counter(kernel for kernel, _ in {(kernel, tier) for _, kernel, tier, _ in _native.kernel_table()})
"""In how many tiers there is a kernel of a name."""


def sections(results: Path, images: Path) -> dict[str, str]:
    """The Markdown of what `make bench-kernels` measured, by the names of the markers; nothing without both results."""
    paths = {name: results / f"{name}.json" for name in ("bounds", "kernels")}
    if not all(path.is_file() for path in paths.values()):
        return {}
    bounds, kernels = (json.loads(path.read_text(encoding="utf-8")) for path in paths.values())
    measured = with_bounds(kernels, bounds)
    pictures.shares([(m.row["tier"], m.row["kernel"], m.share) for m in measured], images / "kernels.png")
    picture = "![Share of the bound that every kernel reaches](images/kernels.png)"
    one_core = (conditions(bounds), loops_table(bounds), memory_table(bounds))
    best = "Every kernel on the layer where it comes nearest to its bound:"
    return {
        "bounds": "\n\n".join((*one_core, picture, best, best_table(measured))),
        "kernels": "\n\n".join(("## Kernels", picture, kernels_table(measured), note(kernels))),
    }


def with_bounds(kernels: Report, bounds: Report) -> list[Measured]:
    """Every kernel on every layer, in the order in which they were measured."""
    rows = [row for row in kernels["benchmarks"] if row["layer"] != roofline.EMPTY]
    return [Measured(row, roofline.bound_of(row, bounds)) for row in rows]


# --- what one core can do ---------------------------------------------------------------------------------------------


def cycles_per_ns(bounds: Report) -> float:
    """By the loop of additions that wait for one another, one a cycle."""
    return float(bounds["loops"][0]["per_ns"])


def conditions(bounds: Report) -> str:
    sizes = ", ".join(f"{level} {size // 1024:,} KB" for level, size in bounds["caches"].items())
    return (
        f"One core of {bounds['machine']['cpu']}, {bounds['date'][:10]}, at {cycles_per_ns(bounds):.2f} GHz (additions "
        f"that wait for one another, one a cycle); {sizes}. The fastest of many runs."
    )


def loops_table(bounds: Report) -> str:
    rows = []
    for loop in bounds["loops"][1:]:
        products = _short(loop["per_ns"] * loop["products"]) if loop["products"] else ""
        rate = loop["per_ns"]
        cells = (loop["dtype"], _short(rate), _short(rate / cycles_per_ns(bounds)), products)
        rows.append((loop["tier"], loop["name"], *cells))
    return markdown(("tier", "repeated", "numbers", ">per ns", ">per cycle", ">products per ns"), rows)


def memory_table(bounds: Report) -> str:
    """Bytes per nanosecond of every level: read straight, in rows at random places, and written."""
    sizes = sorted({row["row_bytes"] for row in bounds["memory"]})
    rows = []
    for level in dict.fromkeys(row["level"] for row in bounds["memory"]):
        found = {(m["access"], m["row_bytes"]): m["bytes_per_ns"] for m in bounds["memory"] if m["level"] == level}
        reads = [_short(found["read", size]) if ("read", size) in found else "" for size in sizes]
        rows.append((level, *reads, _short(found["write", 0])))
    names = [f">in rows of {size:,} B" for size in sizes[1:]]
    return markdown(("bytes per ns of", ">read straight", *names, ">written"), rows)


# --- kernels ----------------------------------------------------------------------------------------------------------


def kernels_table(measured: Sequence[Measured]) -> str:
    """Every kernel on every layer."""
    rows = []
    for m in measured:
        rate = _short(m.row["products"] / m.row["seconds"] * 1e-9) if m.row["products"] else ""
        rows.append((m.row["layer"], m.name, _micro(m.row["seconds"]), rate, *_bound_cells(m)))
    return markdown(("layer", "kernel", ">µs", ">products per ns", *_BOUND_HEADER), rows)


def best_table(measured: Sequence[Measured]) -> str:
    """Every kernel on the layer where it comes nearest to its bound, by tier."""
    found: dict[str, Measured] = {}
    for m in sorted(measured, key=lambda m: -m.share):
        found.setdefault(m.name, m)
    order = {m.name: place for place, m in enumerate(measured)}
    rows = [
        (m.name, m.row["tier"], m.row["layer"], _micro(m.row["seconds"]), *_bound_cells(m))
        for m in sorted(found.values(), key=lambda m: (roofline.TIERS.index(m.row["tier"]), order[m.name]))
    ]
    return markdown(("kernel", "tier", "layer", ">µs", *_BOUND_HEADER), rows)


_BOUND_HEADER = (">bound, µs", "by", ">reached")


def _bound_cells(m: Measured) -> tuple[str, str, str]:
    return _micro(m.bound.seconds), m.bound.by, comparison.percent(m.share) if m.share >= 0.01 else "< 1 %"


def note(kernels: Report) -> str:
    """How the times were taken, and what a call adds to them."""
    (empty,) = (row for row in kernels["benchmarks"] if row["layer"] == roofline.EMPTY)
    return (
        f"{kernels['machine_info']['cpu']}, {kernels['datetime'][:10]}. One layer alone, one sample, one thread: the "
        f"kernel by the program's own clock, which takes {_micro(empty['seconds'])} µs of it; all kernels take turns, "
        "each turn gives a median, the fastest counts; every output checked. A call from Python copies input and "
        f"result, and takes at least {_micro(empty['min'])} µs besides. *Products* are those that the mode of the "
        "kernel has to make: of all weights (dense), of those that are not zero (sparse-dense), of these and active "
        "inputs (sparse-sparse). The *bound* is the larger of two times: the products at the rate of the instruction "
        "named, and the bytes of weights, input and output at the rate of the level of memory that holds them all. "
        "Operations that multiply no weights have the second only: k-winners take many instructions a byte, and stay "
        "far from it."
    )


def _micro(seconds: float) -> str:
    return comparison.micro(seconds) if seconds >= 1e-6 else f"{seconds * 1e6:.2f}"


def _short(rate: float) -> str:
    """Three digits."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"
