"""The pictures of the documentation, one message each, drawn from recorded results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import comparison
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from comparison import BLOCKS, NAMES, OWN, TYPICAL, WITH_WINNERS, Report, Row

COLOURS = {OWN: "#12805c", "onnxruntime": "#3f74d9", "openvino": "#8e6bbf", "torch": "#e07b39", "scipy": "#6b7683"}
COLOURS |= {"deepsparse": "#c2455d"}
SHADES = ("#7cc9a9", "#3fa67f", "#0b5a40")
GREY = "#9aa5b1"
MODES = {"dense": GREY, "sparse-dense": "#5b8def", "sparse-sparse": COLOURS[OWN]}
PEERS = tuple(name for name in NAMES if name != OWN)

mpl.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150)
    plt.close(figure)


def titled(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", weight="bold")


def label_ends(axes: Any, labels: Iterable[tuple[float, str, str]]) -> None:
    """(y, text, colour) beside the right edge of an axis of logarithmic y, moved apart where they would touch."""
    axes.set_ylim(axes.get_ylim())  # final from here on
    lowest = 0.0
    to_axes = axes.transData + axes.transAxes.inverted()
    for y, text, colour in sorted(labels):
        height = max(float(to_axes.transform((1, y))[1]), lowest)
        axes.text(1.02, height, text, color=colour, transform=axes.transAxes, va="center", fontsize=8.5)
        lowest = height + 0.062


# --- csengine alone --------------------------------------------------------------------------------------------------


def modes(rows: Sequence[tuple[str, Mapping[str, float]]], path: Path) -> None:
    """Time of one word by mode. rows: what a network is called, and seconds by mode."""
    figure, axes = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
    places, names = [], []
    for group, (name, seconds) in enumerate(rows):
        for offset, (mode, colour) in enumerate(MODES.items()):
            place = group * (len(MODES) + 0.7) + offset
            value = seconds[mode] * 1e6
            axes.barh(place, value, color=colour)
            axes.text(value, place, f" {value:.1f} µs", va="center")
            places.append(place)
            names.append(f"{name}: {mode}")
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("µs per word (batch 1, one thread; all bars are csengine)")
    titled(axes, "One spoken word: what each sparsity gains")
    save(figure, path)


def accuracy(study: Mapping[str, Any], path: Path) -> None:
    """Accuracy by variant, before and after quantization and packing."""
    figure, axes = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    for place, result in enumerate(study["variants"].values()):
        for shift, precision, marker, colour in ((-0.16, "float", "o", "#555555"), (0.16, "int8", "s", COLOURS[OWN])):
            values = result[precision]["test"]
            label = {"float": "float32", "int8": "int8, packed"}[precision] if place == 0 else None
            spread = 100 * (values["deviation"] or 0)
            axes.errorbar(100 * values["mean"], place + shift, xerr=spread, fmt=marker, color=colour, label=label)
    axes.set_yticks(range(len(study["variants"])), study["variants"])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy on held-out voices, %")
    titled(axes, "Accuracy of dense and sparse networks")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, loc="best")
    save(figure, path)


# --- keyword spotting ------------------------------------------------------------------------------------------------


def networks(report: Report, path: Path) -> None:
    """The best of every runtime, for one word and for a batch."""
    sizes = [batch for batch in (1, 64) if comparison.contest_of(report, batch, 1)]
    figure, panels = plt.subplots(1, len(sizes), figsize=(12, 4.6), layout="constrained", sharey=True, squeeze=False)
    for axes, batch in zip(panels[0], sizes, strict=True):
        _network_bars(axes, comparison.contest_of(report, batch, 1), batch)
    figure.suptitle("Keyword spotting: time per word on one core, each runtime at its best", weight="bold")
    save(figure, path)


def _network_bars(axes: Any, rows: Sequence[Row], batch: int) -> None:
    places, names = [], []
    place = 0.0
    for function, name in zip(WITH_WINNERS, ("CPU-friendly blocks", "paper-exact"), strict=True):
        row = comparison.fastest(r for r in rows if (r["peer"], r["function"]) == (OWN, function))
        _network_bar(axes, place, row, batch, COLOURS[OWN], "")
        places.append(place)
        names.append(f"csengine, {name}")
        place += 1
    for peer in PEERS:
        found = [row for row in rows if row["peer"] == peer]
        if not found:
            continue
        winners = comparison.fastest(row for row in found if row["function"] in WITH_WINNERS)
        relu = comparison.fastest(row for row in found if row["function"] not in WITH_WINNERS)
        _network_bar(axes, place, relu, batch, COLOURS[peer], "ReLU instead, ")
        _network_bar(axes, place + 0.8, winners, batch, COLOURS[peer], "k-winners as ours, ")
        places.append(place + 0.4)
        names.append(NAMES[peer])
        place += 2
    axes.set_yticks(places, names)
    axes.set_ylim(place - 0.4, -0.7)
    axes.set_xlim(0, axes.dataLim.x1 * 1.7)
    axes.set_xlabel("µs per word")
    titled(axes, "One word at a time" if batch == 1 else f"Batches of {batch}")


def _network_bar(axes: Any, place: float, row: Row | None, batch: int, colour: str, what: str) -> None:
    if row is None:
        return
    value = row["median_seconds"] / batch * 1e6
    axes.barh(place, value, 0.75, color=colour, alpha=1.0 if row["function"] not in WITH_WINNERS or not what else 0.55)
    precision = "" if row["peer"] == OWN else f" ({what}{row['variant']})"
    axes.text(value, place, f" {comparison.micro(value / 1e6)}{precision}", va="center", fontsize=8.5)


def batches(report: Report, path: Path) -> None:
    """Words per second by batch size."""
    figure, axes = plt.subplots(figsize=(8, 4.4), layout="constrained")
    sizes = sorted({contest["batch"] for contest in report["contests"] if contest["threads"] == 1})
    labels = []
    for name, colour, belongs in _kinds():
        best = {size: comparison.fastest(filter(belongs, comparison.contest_of(report, size, 1))) for size in sizes}
        points = [(size, size / row["median_seconds"]) for size, row in best.items() if row]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour)
            labels.append((points[-1][1], name, colour))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    ticks = [t for t in (1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5) if axes.get_ylim()[0] < t < axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.set_xlabel("batch (one thread; of each runtime the fastest network and precision)")
    axes.set_ylabel("words per second (log scale)")
    axes.grid(alpha=0.3)
    titled(axes, "Words per second by batch size")
    label_ends(axes, labels)
    save(figure, path)


def _kinds() -> list[tuple[str, str, Any]]:
    own = [
        (f"csengine, {name}", shade, lambda row, f=function: (row["peer"], row["function"]) == (OWN, f))
        for function, name, shade in zip(
            WITH_WINNERS, ("CPU-friendly blocks", "paper-exact"), (SHADES[2], SHADES[1]), strict=True
        )
    ]
    return own + [(NAMES[peer], COLOURS[peer], lambda row, p=peer: row["peer"] == p) for peer in PEERS]


# --- layers ----------------------------------------------------------------------------------------------------------


def linear(report: Report, path: Path) -> None:
    """Every layer at the typical density: time by active inputs, peers as lines across."""
    contests = [contest for contest in report["contests"] if contest["density"] == TYPICAL]
    lines = -(-len(contests) // 2)
    figure, panels = plt.subplots(lines, 2, figsize=(12, 3.9 * lines), layout="constrained", squeeze=False)
    for axes in panels.flat[len(contests) :]:
        axes.remove()
    for axes, contest in zip(panels.flat, contests, strict=False):
        _linear_panel(axes, contest)
    title = (
        f"Linear layers with {TYPICAL:.0%} of the weights: time by active inputs (the others, dashed, at {TYPICAL:.0%})"
    )
    figure.suptitle(title, weight="bold")
    save(figure, path)


def _linear_panel(axes: Any, contest: Report) -> None:
    activities = sorted({row["activity"] for row in contest["rows"] if row["peer"] == OWN})
    labels = []
    for block, shade in zip(BLOCKS, SHADES, strict=True):
        times = [comparison.own_time(contest, block, activity) * 1e6 for activity in activities]
        axes.plot([100 * a for a in activities], times, marker="o", markersize=4, color=shade)
        labels.append((times[-1], f"csengine, {block} blocks", shade))
    for peer in PEERS:
        best = comparison.fastest(row for row in comparison.peers_of(contest["rows"]) if row["peer"] == peer)
        if best:
            axes.axhline(best["median_seconds"] * 1e6, color=COLOURS[peer], linestyle="--")
            labels.append((best["median_seconds"] * 1e6, comparison.name_of(best), COLOURS[peer]))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([100 * a for a in activities], [f"{100 * a:.0f}" for a in activities])
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.set_xlabel("active inputs, %")
    axes.set_ylabel("µs per vector (log scale)")
    titled(axes, f"{contest['inputs']}→{contest['outputs']}")
    label_ends(axes, labels)


def convolutions(report: Report, path: Path) -> None:
    """A line per kernel: where each runtime is, and how far csengine is from the best of the others."""
    contests = [contest for contest in report["contests"] if contest["density"] == TYPICAL]
    figure, axes = plt.subplots(figsize=(11, 0.55 * len(contests) + 1.9), layout="constrained")
    for place, contest in enumerate(contests):
        rows = comparison.inside(contest)
        axes.axhline(place, color="#e4e7eb", zorder=0)
        for peer in reversed(NAMES):
            row = comparison.best_own(rows, False) if peer == OWN else comparison.fastest_of(rows, peer)
            if row:
                size = 80 if peer == OWN else 45
                axes.scatter(row["median_seconds"] * 1e6, place, size, color=COLOURS[peer], zorder=2)
        own, rival = comparison.best_own(rows, False), comparison.fastest(comparison.peers_of(rows))
        if own and rival:
            gain = rival["median_seconds"] / own["median_seconds"]
            axes.text(1.01, place, f"{gain:.2g}×", transform=axes.get_yaxis_transform(), va="center", weight="bold")
    seen = {row["peer"] for contest in contests for row in contest["rows"]}
    handles = [mpl.lines.Line2D([], [], marker="o", linestyle="", color=COLOURS[p]) for p in NAMES if p in seen]
    names = [NAMES[peer] for peer in NAMES if peer in seen]
    axes.legend(handles, names, frameon=False, ncols=5, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=9)
    axes.set_yticks(range(len(contests)), [contest["name"] for contest in contests])
    axes.set_ylim(len(contests) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlabel(
        f"µs inside a network (log scale; {TYPICAL:.0%} of the weights, ReLU between, each runtime at its best)\n"
        "right: how many times as fast csengine is as the fastest of the others"
    )
    figure.suptitle("Convolutions of ResNet-50 and MobileNetV2", weight="bold")
    save(figure, path)


def imported(report: Report, path: Path) -> None:
    """Whole networks at the typical sparsity: each runtime at its best."""
    contests = [c for c in comparison.whole_networks(report) if c["density"] == TYPICAL]
    columns = max(1, len(contests))
    figure, panels = plt.subplots(1, columns, figsize=(3.4 * columns, 3.2), layout="constrained", squeeze=False)
    for axes, contest in zip(panels[0], contests, strict=False):
        best = {peer: comparison.fastest_of(contest["rows"], peer) for peer in (OWN, *PEERS)}
        shown = {peer: row for peer, row in best.items() if row}
        for place, (peer, row) in enumerate(shown.items()):
            value = row["median_seconds"] / contest["batch"] * 1e3
            axes.barh(place, value, color=COLOURS[peer])
            precision = "" if peer == OWN else f" ({row['variant']})"
            axes.text(value, place, f" {value:.2f}{precision}", va="center", fontsize=8.5)
        axes.set_yticks(range(len(shown)), [NAMES[peer] for peer in shown])
        axes.invert_yaxis()
        axes.set_xlim(0, axes.dataLim.x1 * 1.75)
        axes.set_xlabel("ms per image")
        titled(axes, f"{contest['name']},\nbatch {contest['batch']}")
    figure.suptitle(f"{TYPICAL:.0%} of the weights, one core, each runtime at its best", weight="bold")
    save(figure, path)


# --- kernels ---------------------------------------------------------------------------------------------------------


def shares(measured: Iterable[tuple[str, str, float]], path: Path) -> None:
    """How near every kernel comes to its bound. measured: tier, kernel and share of every kernel on every layer."""
    found: dict[tuple[str, str], list[float]] = {}
    for tier, kernel, share in measured:
        found.setdefault((tier, kernel), []).append(100 * share)
    kernels = sorted(found, key=lambda key: (key[0] == "scalar", -max(found[key])))
    figure, axes = plt.subplots(figsize=(9, 0.3 * len(found) + 1.7), layout="constrained")
    axes.axvline(100, color=GREY, linestyle="--", zorder=0)
    for place, (tier, kernel) in enumerate(kernels):
        values = found[tier, kernel]
        axes.barh(place, max(values), color="#d5dae0" if tier == "scalar" else SHADES[0])
        axes.scatter(values, [place] * len(values), 14, color="#6b7683" if tier == "scalar" else SHADES[2], zorder=2)
        label = axes.text(max(values) + 1.5, place, f"{max(values):.0f} %", va="center", fontsize=9)
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.set_yticks(range(len(kernels)), [f"{kernel} ({tier})" for tier, kernel in kernels])
    axes.set_ylim(len(kernels) - 0.5, -0.5)
    axes.set_xlim(0, max(112, axes.dataLim.x1 + 10))
    axes.set_xlabel(
        "% of the bound that is reached\n(dots: every layer measured; bar: the one where a kernel comes nearest)"
    )
    figure.suptitle("How near every kernel comes to what one core can do", weight="bold")
    save(figure, path)


# --- scaling ---------------------------------------------------------------------------------------------------------


def products(points: Sequence[Row], path: Path) -> None:
    """Is time proportional to the product of both sparsities?"""
    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for block, shade in zip(BLOCKS, SHADES, strict=True):
        chosen = sorted((p for p in points if comparison.block_of(p) == block), key=lambda p: p["macs_needed"])
        times = [p["median_seconds"] * 1e6 for p in chosen]
        axes.scatter([p["macs_needed"] for p in chosen], times, color=shade, s=18, label=f"{block} blocks")
    each = sorted(p["median_seconds"] * 1e6 / p["macs_needed"] for p in points)[len(points) // 2]
    ends = [min(p["macs_needed"] for p in points), max(p["macs_needed"] for p in points)]
    axes.plot(ends, [each * end for end in ends], color=GREY, linestyle="--", label="proportional", zorder=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("products of a non-zero weight and an active input (log scale)")
    axes.set_ylabel("µs (log scale)")
    axes.legend(frameon=False)
    titled(axes, f"Time against products that must be made, {points[0]['inputs']}→{points[0]['outputs']}")
    save(figure, path)


def sizes(points: Sequence[Row], path: Path) -> None:
    """Dense and sparse layers of growing size."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    labels = []
    for mode, name in (("dense", "dense"), ("sparse-sparse", "10 % weights × 10 % active")):
        chosen = [p for p in points if p["mode"] == mode]
        times = [p["median_seconds"] * 1e6 for p in chosen]
        axes.plot([p["inputs"] for p in chosen], times, marker="o", color=MODES[mode])
        labels.append((times[-1], name, MODES[mode]))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([p["inputs"] for p in points], [str(p["inputs"]) for p in points])
    axes.set_xlabel("inputs and outputs of a square layer")
    axes.set_ylabel("µs (log scale)")
    titled(axes, "Time against the size of a linear layer")
    label_ends(axes, labels)
    save(figure, path)


def threads(points: Sequence[Row], path: Path) -> None:
    """What more threads gain."""
    single = {p["what"]: p["median_seconds"] for p in points if p["threads"] == 1}
    chosen = [p for p in points if p["threads"] > 1]
    figure, axes = plt.subplots(figsize=(7.5, 0.5 * len(chosen) + 1.4), layout="constrained")
    for place, p in enumerate(chosen):
        gain = single[p["what"]] / p["median_seconds"]
        axes.barh(place, gain, color=COLOURS[OWN])
        axes.text(gain, place, f" {gain:.2f}×", va="center")
    most = max((p["threads"] for p in chosen), default=1)
    axes.axvline(most, color=GREY, linestyle="--")
    axes.text(most, -0.55, f"{most} threads: ideal", ha="center", va="bottom", fontsize=9, color="#555555")
    axes.set_yticks(range(len(chosen)), [p["what"] for p in chosen])
    axes.set_ylim(len(chosen) - 0.5, -0.5)
    axes.set_xlim(0, max(most, axes.dataLim.x1) * 1.15)
    axes.set_xlabel("times as fast as one thread")
    figure.suptitle(f"What {most} threads gain", weight="bold")
    save(figure, path)


# --- accuracy --------------------------------------------------------------------------------------------------------


def sparsity(results: Sequence[Row], path: Path, title: str, error: float = 0.0) -> None:
    """Accuracy against sparsity: mean, and range of the seeds, a standard error wider where one is given."""
    found = comparison.accuracies(results)
    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    (dense,) = found["dense"].values()
    axes.axhline(100 * sum(dense) / len(dense), color=GREY, linestyle="--", label="dense")
    for method in (method for method in comparison.METHODS if method in found):
        points = sorted(found[method].items())
        x = [100 * (1 - sparsity) for sparsity, _ in points]
        axes.plot(x, [100 * sum(values) / len(values) for _, values in points], "o-", label=comparison.METHODS[method])
        lowest, highest = ([100 * pick(values) for _, values in points] for pick in (min, max))
        axes.fill_between(x, np.subtract(lowest, 100 * error), np.add(highest, 100 * error), alpha=0.15)
    axes.set_xscale("log")
    axes.invert_xaxis()
    ticks = sorted({100 * (1 - result["sparsity"]) for result in results if result["sparsity"]})
    axes.set_xticks(ticks, [f"{100 - tick:.0f} %" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set(xlabel="sparsity of the two middle layers", ylabel="accuracy, %")
    axes.legend()
    titled(axes, title)
    save(figure, path)
