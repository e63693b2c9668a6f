"""Tables and pictures of csengine against its peers, and of how it scales; `report.py` puts them into the pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from csengine.cli.output import markdown

Row = Mapping[str, Any]
Report = Mapping[str, Any]
OWN = "csengine"
NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "PyTorch", "scipy": "SciPy"}
NAMES |= {"deepsparse": "DeepSparse", OWN: "csengine"}
COLOURS = {OWN: "#12805c", "onnxruntime": "#5b8def", "openvino": "#8e6bbf", "torch": "#e07b39", "scipy": "#9aa5b1"}
COLOURS |= {"deepsparse": "#c2455d"}
NETWORKS = {
    "sparse-sparse-blocked": "k-winners, CPU-friendly blocks",
    "sparse-sparse": "k-winners, paper-exact",
    "sparse-dense": "ReLU, sparse weights",
    "sparse-dense, convolutions dense": "ReLU, sparse linear layer",
    "dense": "ReLU, dense weights",
}
WITH_WINNERS = ("sparse-sparse-blocked", "sparse-sparse")
TYPICAL = 0.1
BLOCKS = ("1×1", "1×16", "4×16")
SHADES = ("#8fd0b5", "#3fa67f", "#0b5a40")


def sections(results: Path, images: Path) -> dict[str, str]:
    """The Markdown of every table whose results are there, by the name of its markers; draws the pictures as well."""
    makers: dict[str, Callable[[Report, Path], dict[str, str]]] = {
        "peers-networks": networks,
        "peers-linear": linear,
        "peers-convolutions": convolutions,
        "scaling": scaling,
        "kernels": kernels,
    }
    mpl.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    found: dict[str, str] = {}
    for name, make in makers.items():
        path = results / f"{name}.json"
        if path.is_file():
            found |= make(json.loads(path.read_text(encoding="utf-8")), images)
    return found


def conditions(report: Report) -> str:
    """Under what conditions a report was measured, in one paragraph."""
    machine = report["machine"]
    versions = {name: number for peer in report["peers"] for name, number in peer["versions"].items()}
    shown = ", ".join(f"{name} {number}" for name, number in versions.items())
    notes = "".join(f" {peer['note']}." for peer in report["peers"] if peer["note"])
    busy = machine["load_average"] is not None and machine["load_average"] > 1
    load = f" **The machine was busy (load {machine['load_average']}).**" if busy else ""
    return (
        f"{machine['cpu']}, {report['date'][:10]}; {shown}. Each runtime in a process of its own, pinned to the same "
        "cores, one at a time, in turns; medians; every output checked before its time counts. Energy was "
        f"{report['energy']}.{notes}{load}"
    )


def timed(rows: Iterable[Row]) -> list[Row]:
    """Those that did not fail."""
    return [row for row in rows if not row["failure"]]


def fastest(rows: Iterable[Row]) -> Row | None:
    return min(timed(rows), key=lambda row: row["median_seconds"], default=None)


def peers_of(rows: Iterable[Row]) -> list[Row]:
    return [row for row in timed(rows) if row["peer"] != OWN]


def name_of(row: Row) -> str:
    """Runtime and variant; csengine's tells its mode only where that was forced."""
    if row["peer"] != OWN:
        return f"{NAMES[row['peer']]} {row['variant']}"
    mode = row["variant"].split("/")[1]
    return OWN if mode == "auto" else f"{OWN}, {mode}"


def micro(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150)
    plt.close(figure)


# --- keyword spotting ------------------------------------------------------------------------------------------------


def networks(report: Report, images: Path) -> dict[str, str]:
    draw_networks(report, images / "peers.png")
    return {
        "peers-networks": f"{networks_table(report)}\n\n{conditions(report)}",
        "peers-ratios": ratios_table(report),
        "peers-failures": failures(report),
    }


def contest_of(report: Report, batch: int, threads: int) -> list[Row]:
    for contest in report["contests"]:
        if (contest["batch"], contest["threads"]) == (batch, threads):
            return list(contest["rows"])
    return []


def networks_table(report: Report) -> str:
    """Time per word of every contender at the batches that tell most."""
    columns = [(batch, threads) for batch, threads in ((1, 1), (16, 1), (64, 1), (256, 1), (1, 2), (64, 2))]
    found: dict[tuple[str, str], dict[tuple[int, int], str]] = {}
    order: dict[tuple[str, str], float] = {}
    for column in columns:
        for row in contest_of(report, *column):
            key = name_of(row), row["function"]
            cells = found.setdefault(key, {})
            cells[column] = "failed" if row["failure"] else micro(row["median_seconds"] / column[0])
            if column == (1, 1):
                order[key] = float("inf") if row["failure"] else row["median_seconds"]
                if not row["failure"]:
                    cells[column] += f" ({micro(row['p10_seconds'])}–{micro(row['p90_seconds'])})"
    header = (
        "runtime",
        "network",
        ">1 word, µs (p10–p90)",
        ">16",
        ">64",
        ">256",
        ">1, two threads",
        ">64, two threads",
    )
    rows = [
        (name, NETWORKS[function], *(found[name, function].get(column, "") for column in columns))
        for name, function in sorted(order, key=lambda key: order[key])
    ]
    return markdown(header, rows) + "\n\nBatches: µs per word."


def ratios_table(report: Report) -> str:
    """What a user gains over today's choice, in one run."""
    lines = []
    for batch in (1, 64):
        rows = contest_of(report, batch, 1)
        own = fastest(row for row in rows if row["peer"] == OWN and row["function"] == WITH_WINNERS[0])
        paper = fastest(row for row in rows if row["peer"] == OWN and row["function"] == WITH_WINNERS[1])
        relu = [row for row in peers_of(rows) if row["function"] not in WITH_WINNERS]
        rivals = {
            "ONNX Runtime fp32, dense": fastest(
                r for r in relu if (r["peer"], r["variant"]) == ("onnxruntime", "fp32")
            ),
            "the fastest peer, ReLU network, any precision": fastest(relu),
            "the fastest peer, the same k-winners": fastest(
                row for row in peers_of(rows) if row["function"] in WITH_WINNERS
            ),
        }
        for name, rival in rivals.items():
            if rival and own and paper:
                gains = [f"{rival['median_seconds'] / row['median_seconds']:.1f}×" for row in (own, paper)]
                lines.append((str(batch), f"{name} ({name_of(rival)})", micro(rival["median_seconds"] / batch), *gains))
    return markdown((">batch", "against", ">its µs per word", ">CPU-friendly blocks", ">paper-exact"), lines)


def failures(report: Report) -> str:
    """What was not timed, and why."""
    found = dict.fromkeys(
        f"- {name_of(row)}, {NETWORKS[row['function']]}, batch {contest['batch']}: {row['failure']}"
        for contest in report["contests"]
        for row in contest["rows"]
        if row["failure"]
    )
    return "\n".join(found) or "Nothing failed."


def draw_networks(report: Report, path: Path) -> None:
    """Left: time of one word, the best variant of every runtime. Right: words per second by batch."""
    figure, (bars, lines) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", width_ratios=(3, 2))
    draw_one_word(bars, contest_of(report, 1, 1))
    draw_batches(lines, report)
    save(figure, path)


def draw_one_word(axes: Any, rows: Sequence[Row]) -> None:
    groups: list[Row] = []
    for function in NETWORKS:
        for peer in NAMES:
            best = fastest(row for row in rows if (row["peer"], row["function"]) == (peer, function))
            groups += [best] if best else []
    groups.sort(key=lambda row: row["median_seconds"])
    for place, row in enumerate(groups):
        value = row["median_seconds"] * 1e6
        axes.barh(place, value, color=COLOURS[row["peer"]])
        axes.text(value * 1.06, place, f"{value:,.0f} µs", va="center", fontsize=9)
    axes.set_yticks(range(len(groups)), [f"{name_of(row)}: {NETWORKS[row['function']]}" for row in groups], fontsize=9)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("µs per word (log scale; batch 1, one thread)")
    axes.set_title("One spoken word, the best of each runtime", loc="left", weight="bold")


def draw_batches(axes: Any, report: Report) -> None:
    batches = sorted({contest["batch"] for contest in report["contests"] if contest["threads"] == 1})
    for peer in NAMES:
        points = [
            (batch, batch / best["median_seconds"])
            for batch in batches
            if (best := fastest(row for row in contest_of(report, batch, 1) if row["peer"] == peer))
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", color=COLOURS[peer], label=NAMES[peer])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_xlabel("batch (one thread, any network and precision)")
    axes.set_ylabel("words per second")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    axes.set_title("Batches", loc="left", weight="bold")


# --- linear layers ---------------------------------------------------------------------------------------------------


def linear(report: Report, images: Path) -> dict[str, str]:
    draw_linear(report, images / "linear.png")
    return {"peers-linear": f"{linear_table(report)}\n\n{conditions(report)}"}


def own_time(contest: Report, block: str, activity: float) -> float:
    """csengine's best mode for a block shape and activity: only sparse-sparse depends on the latter."""
    times = [
        row["median_seconds"]
        for row in timed(contest["rows"])
        if row["peer"] == OWN
        and "×".join(map(str, row["block"])) == block
        and (row["activity"] == activity or "sparse-sparse" not in row["variant"])
    ]
    return min(times, default=float("nan"))


def linear_table(report: Report) -> str:
    header = ("layer", ">weights", *(f">{block}, µs" for block in BLOCKS), "fastest peer", ">its µs", ">gain")
    rows = []
    for contest in report["contests"]:
        best = fastest(peers_of(contest["rows"]))
        own = [own_time(contest, block, TYPICAL) for block in BLOCKS]
        if best is None:
            continue
        gain = best["median_seconds"] / min(own)
        layer = f"{contest['inputs']}→{contest['outputs']}"
        cells = (name_of(best), micro(best["median_seconds"]), f"{gain:.1f}×")
        rows.append((layer, f"{contest['density']:.0%}", *map(micro, own), *cells))
    return markdown(header, rows) + (
        "\n\nOne vector, 10 % of it active, one thread. csengine int8 in three block shapes (1×1 is the paper's "
        "packing), each in its fastest mode; the peers run the weights of the first in every precision they have."
    )


def draw_linear(report: Report, path: Path) -> None:
    """One panel per layer at the typical density: time by activity, peers as lines across."""
    contests = [contest for contest in report["contests"] if contest["density"] == TYPICAL]
    figure, panels = plt.subplots(1, len(contests), figsize=(4 * len(contests), 4), layout="constrained", squeeze=False)
    for axes, contest in zip(panels[0], contests, strict=True):
        activities = sorted({row["activity"] for row in contest["rows"] if row["peer"] == OWN})
        for block, shade in zip(BLOCKS, SHADES, strict=True):
            times = [own_time(contest, block, activity) * 1e6 for activity in activities]
            axes.plot([100 * a for a in activities], times, marker="o", color=shade, label=f"csengine, {block} blocks")
        for peer in NAMES:
            best = fastest(row for row in peers_of(contest["rows"]) if row["peer"] == peer)
            if best:
                axes.axhline(best["median_seconds"] * 1e6, color=COLOURS[peer], linestyle="--", label=name_of(best))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([100 * a for a in activities], [f"{100 * a:.0f}" for a in activities])
        axes.minorticks_off()
        axes.set_xlabel("active inputs, %")
        axes.set_title(f"{contest['inputs']}→{contest['outputs']}", loc="left", weight="bold")
        axes.legend(frameon=False, fontsize=7)
    panels[0][0].set_ylabel(f"µs per vector ({TYPICAL:.0%} of the weights)")
    save(figure, path)


# --- convolutions ----------------------------------------------------------------------------------------------------


def convolutions(report: Report, images: Path) -> dict[str, str]:
    draw_convolutions(report, images / "convolutions.png")
    return {"peers-convolutions": f"{convolutions_table(report)}\n\n{conditions(report)}"}


def inside(contest: Report) -> list[dict[str, Any]]:
    """What a unit costs inside a network: the difference of a long chain and a single one, per unit."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in timed(contest["rows"]):
        key = row["peer"], row["variant"], row["function"]
        found.setdefault(key, {})[row["units"]] = row["median_seconds"]
    rows = []
    for (peer, variant, function), times in found.items():
        if len(times) == 2:
            single, chain = times[1], times[contest["units"]]
            marginal = max(0.0, chain - single) / (contest["units"] - 1)
            facts = {"peer": peer, "variant": variant, "function": function, "failure": ""}
            rows.append({**facts, "median_seconds": marginal})
    return rows


def best_own(rows: Iterable[Row], winners: bool) -> Row | None:
    return fastest(row for row in rows if row["peer"] == OWN and (row["function"] == "k-winners") == winners)


def convolutions_table(report: Report) -> str:
    header = (
        "kernel",
        ">weights",
        ">csengine, ReLU, µs",
        ">dense only",
        ">k-winners",
        "fastest peer",
        ">its µs",
        ">gain",
    )
    lines = []
    for contest in report["contests"]:
        rows = inside(contest)
        relu, winners, rival = best_own(rows, False), best_own(rows, True), fastest(peers_of(rows))
        dense = fastest(row for row in rows if row["peer"] == OWN and row["variant"].endswith("/dense"))
        if relu and winners and rival and dense:
            own = [micro(row["median_seconds"]) for row in (relu, dense, winners)]
            gain = rival["median_seconds"] / relu["median_seconds"]
            cells = (name_of(rival), micro(rival["median_seconds"]), f"{gain:.2f}×")
            lines.append((contest["name"], f"{contest['density']:.0%}", *own, *cells))
    return markdown(header, lines) + (
        "\n\nBatch 1, one thread, ReLU after each (half of the activations are 0); a chain of 9 less a chain of 1, "
        "divided by 8. The column *k-winners* keeps a tenth of the channels instead, its selection included."
    )


def draw_convolutions(report: Report, path: Path) -> None:
    contests = [contest for contest in report["contests"] if contest["density"] == TYPICAL]
    figure, axes = plt.subplots(figsize=(10, 0.9 * len(contests) + 1.2), layout="constrained")
    shown: dict[str, str] = {"csengine, ReLU": COLOURS[OWN], "csengine, k-winners": SHADES[0]}
    shown |= {NAMES[peer]: COLOURS[peer] for peer in NAMES if peer != OWN}
    height = 0.8 / len(shown)
    for group, contest in enumerate(contests):
        rows = inside(contest)
        bars = {"csengine, ReLU": best_own(rows, False), "csengine, k-winners": best_own(rows, True)}
        for peer in NAMES:
            if peer != OWN:
                bars[NAMES[peer]] = fastest(row for row in rows if row["peer"] == peer)
        for i, (label, row) in enumerate(bars.items()):
            if row:
                axes.barh(
                    group + (i - len(shown) / 2) * height, row["median_seconds"] * 1e6, height, color=shown[label]
                )
    axes.legend([plt.Rectangle((0, 0), 1, 1, color=c) for c in shown.values()], shown, frameon=False, fontsize=8)
    axes.set_yticks(range(len(contests)), [contest["name"] for contest in contests])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(f"µs inside a network (log scale; {TYPICAL:.0%} of the weights; the best variant of each runtime)")
    save(figure, path)


# --- scaling ---------------------------------------------------------------------------------------------------------


def scaling(report: Report, images: Path) -> dict[str, str]:
    figure, (products, sizes, threads) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    draw_products(products, report["products"])
    draw_sizes(sizes, report["sizes"])
    draw_threads(threads, report["threads"])
    save(figure, images / "scaling.png")
    return {"scaling": scaling_table(report)}


def draw_products(axes: Any, points: Sequence[Row]) -> None:
    for block, shade in zip(BLOCKS, SHADES, strict=True):
        chosen = [p for p in points if "×".join(map(str, p["block"])) == block]
        x = [p["macs_needed"] for p in chosen]
        axes.scatter(x, [p["median_seconds"] * 1e6 for p in chosen], color=shade, s=16, label=f"{block} blocks")
    ends = [min(p["macs_needed"] for p in points), max(p["macs_needed"] for p in points)]
    top = max(points, key=lambda p: p["macs_needed"])
    slope = top["median_seconds"] * 1e6 / top["macs_needed"]
    axes.plot(ends, [slope * end for end in ends], color="#9aa5b1", linestyle="--", label="proportional")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("products of a non-zero weight and an active input")
    axes.set_ylabel("µs")
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(f"Both sparsities, {points[0]['inputs']}→{points[0]['outputs']}", loc="left", weight="bold")


def draw_sizes(axes: Any, points: Sequence[Row]) -> None:
    for mode, colour in (("dense", "#9aa5b1"), ("sparse-sparse", COLOURS[OWN])):
        chosen = [p for p in points if p["mode"] == mode]
        axes.plot(
            [p["inputs"] for p in chosen],
            [p["median_seconds"] * 1e6 for p in chosen],
            marker="o",
            color=colour,
            label=mode,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("side of a square layer")
    axes.set_ylabel("µs")
    axes.legend(frameon=False, fontsize=9)
    axes.set_title("Size, 10 % × 10 %", loc="left", weight="bold")


def draw_threads(axes: Any, points: Sequence[Row]) -> None:
    single = {p["what"]: p["median_seconds"] for p in points if p["threads"] == 1}
    chosen = [p for p in points if p["threads"] > 1]
    gains = [single[p["what"]] / p["median_seconds"] for p in chosen]
    axes.barh(range(len(chosen)), gains, color=COLOURS[OWN])
    axes.axvline(1, color="#9aa5b1", linestyle="--")
    axes.set_yticks(range(len(chosen)), [f"{p['what']}, {p['threads']} threads" for p in chosen], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as one thread")
    axes.set_title("Threads", loc="left", weight="bold")


def scaling_table(report: Report) -> str:
    """Time per product at the corners of the grid: is it constant?"""
    rows = []
    for block in BLOCKS:
        points = [p for p in report["products"] if "×".join(map(str, p["block"])) == block]
        for p in points:
            if p["activity"] in (0.02, 0.1, 1.0) and p["density"] in (0.02, 0.1, 0.4):
                each = p["median_seconds"] / p["macs_needed"] * 1e12
                shares = (f"{p['density']:.0%}", f"{p['activity']:.0%}")
                rows.append((block, *shares, f"{p['macs_needed']:,}", micro(p["median_seconds"]), f"{each:,.0f}"))
    return markdown(("blocks", ">weights", ">active", ">products", ">µs", ">ps per product"), rows)


def kernels(report: Report, images: Path) -> dict[str, str]:
    del images
    rows = [
        (k["layer"], k["kernel"], k["tier"], f"{micro(k['median'])} ({micro(k['q1'])}–{micro(k['q3'])})")
        for k in sorted(report["benchmarks"], key=lambda k: (k["layer"], k["median"]))
    ]
    return {"kernels": markdown(("layer", "kernel", "tier", ">µs (quartiles)"), rows)}
