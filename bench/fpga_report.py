"""Tables and pictures of docs/fpga.md, from what `bench/fpga.py` recorded; `report.py` puts them into the page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pictures

from csengine.cli.output import markdown
from csengine.fpga.devices import DEVICES, Resources

Record = Mapping[str, Any]
CLOCKS_MHZ = (200, 250)
NAMES = {"lut": "LUT", "ff": "FF", "dsp": "DSP", "bram": "block RAM", "uram": "URAM"}
#: Words per second in the paper: one network on a U250, all that fit on it (4, 24, 20 networks), and on a ZU3EG.
PAPER = {
    "dense": (3_049, 12_195, 0),
    "sparse-dense": (35_714, 689_655, 21_053),
    "sparse-sparse": (102_564, 1_369_863, 45_455),
}
MODES = tuple(PAPER)
ACCENT = "#c2455d"


def sections(results: Path, images: Path) -> dict[str, str]:
    """The Markdown of every section whose results are there; draws the pictures as well."""
    found = {}
    for what in ("clocks", "resources", "chips", "kernels", "words", "mutants", "waves"):
        path = results / f"fpga-{what}.json"
        found[what] = json.loads(path.read_text()) if path.is_file() else {}
    made = {}
    if all(mode in found["clocks"] for mode in MODES):
        parts = [clocks_table(found["clocks"]), three_ways(found["clocks"]), thin_text(found["clocks"])]
        made["fpga-clocks"] = "\n\n".join(parts)
        pipeline_picture(found["clocks"]["sparse-sparse"], images / "fpga-pipeline.png")
        made["fpga-pipeline"] = "![The pipeline of the keyword-spotting network](images/fpga-pipeline.png)"
    if found["resources"]:
        resources_picture(found["resources"]["sparse-sparse"], images / "fpga-resources.png")
        made["fpga-resources"] = resources_section(found["resources"])
    if found["resources"] and found["resources"].keys() <= found["clocks"].keys():
        made["fpga-devices"] = devices_table(found["resources"], found["clocks"])
    if all(mode in found["chips"] for mode in MODES):
        made["fpga-chips"] = chips_section(found["chips"])
    if found["kernels"]:
        kernels_picture(found["kernels"], images / "fpga-kernels.png")
        made["fpga-kernels"] = (
            f"![Resources against sparsity](images/fpga-kernels.png)\n\n{kernels_table(found['kernels'])}"
        )
    if found["words"]:
        made["fpga-words"] = words_text(found["words"])
    if found["mutants"]:
        made["fpga-mutants"] = mutants_table(found["mutants"]["all"]["rows"])
    if found["waves"]:
        waves_picture(found["waves"]["all"], images / "fpga-waves.png")
        made["fpga-waves"] = "![Stages and buses while four words run](images/fpga-waves.png)"
    return made


# --- the keyword-spotting network ------------------------------------------------------------------------------------


def clocks_table(clocks: Mapping[str, Record]) -> str:
    header = ["pipeline", "model", ">products per clock", ">multipliers", ">clocks per word", ">predicted"]
    header += [">latency, clocks", *(f">words/s at an assumed {mhz} MHz" for mhz in CLOCKS_MHZ), ">the paper's, U250"]
    rows = []
    for name, it in clocks.items():
        speeds = [f"{1e6 * mhz / it['clocks_per_word']:,.0f}" for mhz in CLOCKS_MHZ]
        counts = [f"{it['products']:,}", f"{it['multipliers']:,}", f"{it['clocks_per_word']:,.1f}"]
        counts += [f"{it['predicted']:,}", f"{it['latency']:,}", *speeds, f"{PAPER[it['mode']][0]:,}"]
        model = f"`{it['model']}`" + (f", S = {it['first']} in the first layer" if it["first"] else "")
        rows.append([name, model, *counts])
    return markdown(header, rows)


def three_ways(clocks: Mapping[str, Record]) -> str:
    """What the two sparsities gain at equal multipliers, and where the gain comes from."""
    dense, half, ours = (clocks[mode] for mode in MODES)
    ratio = dense["clocks_per_word"] / ours["clocks_per_word"]
    by_layer = {
        mode: {layer["name"]: layer["products"] * layer["cycles"] for layer in clocks[mode]["layers"]} for mode in MODES
    }
    rows = []
    for name, work in by_layer["dense"].items():
        both = [by_layer[mode][name] for mode in MODES[1:]]
        rows.append([name, f"{work:,}", *(f"{w:,}" for w in both), *(f"{work / w:.1f}×" for w in both)])
    totals = [sum(by_layer[mode].values()) for mode in MODES]
    rows.append(["together", *(f"{n:,}" for n in totals), *(f"{totals[0] / n:.1f}×" for n in totals[1:])])
    twice = [name for name in by_layer["dense"] if name != ours["layers"][0]["name"]]
    without = [sum(by_layer[mode][name] for name in twice) for mode in MODES]
    header = ["layer", *(f">{mode}" for mode in MODES), ">sparse-dense gains", ">sparse-sparse gains"]
    return (
        f"**At equal multipliers** ({dense['products']}, {half['products']} and {ours['products']} 8-bit products per "
        f"clock) the dense pipeline takes {ratio:.1f} times as many clocks as the sparse-sparse one, and "
        f"{dense['clocks_per_word'] / half['clocks_per_word']:.1f} times as many as the sparse-dense one. What bounds "
        "the ratio is the first layer, whose input is dense and whose weights are half there. Lanes × columns × clocks "
        f"of every layer, idle ones included:\n\n{markdown(header, rows)}\n\nThe layers whose input is sparse, too "
        f"({', '.join(twice)}), need {without[0] / without[2]:.0f} times fewer multipliers × clocks."
    )


def thin_text(clocks: Mapping[str, Record]) -> str:
    """The same comparison with a sparser first layer."""
    thin, dense = clocks["sparse-sparse, 5 of 25"], clocks["dense, 5 of 25"]
    work = [layer["products"] * layer["cycles"] for layer in thin["layers"]]
    share = f"{work[0] / sum(work):.0%}".replace("%", " %")
    return (
        "**The same network with 5 of 25 weights in the first layer**, five kernels to a set instead of two, all else "
        f"as it is: at equal multipliers ({dense['products']} and {thin['products']} products per clock) the dense "
        f"pipeline takes {dense['clocks_per_word'] / thin['clocks_per_word']:.1f} times as many clocks. The first "
        f"layer is then {share} of the work. These weights are random: clocks do not depend on them, and the results "
        "have the reference's bits; what such a network recognizes is a matter of training "
        "(`examples/keyword_spotting`)."
    )


def resources_section(resources: Mapping[str, Record]) -> str:
    names = list(NAMES)
    whole = [[name, *_counts(it["total"])] for name, it in resources.items()]
    header = ["pipeline", *(f">{NAMES[it]}" for it in names)]
    default = resources["sparse-sparse"]
    modules = [[name, *_counts(it)] for name, it in _modules(default).items()]
    return (
        f"{markdown(header, whole)}\n\nThe modules of the default pipeline, each with what is below it:\n\n"
        f"![Resources by module](images/fpga-resources.png)\n\n{markdown(['module', *header[1:]], modules)}"
    )


def _counts(resources: Record) -> list[str]:
    return [f"{resources[name]:,g}" for name in NAMES]


def _modules(record: Record) -> dict[str, Record]:
    """The top's instances in the order of the pipeline: module and the layer that it is for."""
    layers = [layer["name"] for layer in record["layers"]]
    found: list[tuple[tuple[int, str], str, Record]] = []
    for path, it in record["modules"].items():
        module, _, place = path.partition("$csengine_top.u_")
        if not place or "." in place:
            continue
        number = re.match(r"n(\d+)", place)
        where = int(number[1]) if number else {"input": -1, "shell": -2}.get(place, len(layers))
        name = f"{layers[where]}: {module}" if number else module
        found.append(((where, place), name, it))
    return {name: it for _, name, it in sorted(found, key=lambda item: item[0])}


def devices_table(resources: Mapping[str, Record], clocks: Mapping[str, Record]) -> str:
    header = ["pipeline", "device", ">fit", "limited by", *(f">words/s, {mhz} MHz assumed" for mhz in CLOCKS_MHZ)]
    rows = []
    for name, it in resources.items():
        if name not in clocks:
            continue
        need = Resources(**it["total"])
        for place, (key, device) in enumerate(DEVICES.items()):
            fit = device.resources.fits(need)
            speeds = [f"{fit * 1e6 * mhz / clocks[name]['clocks_per_word']:,.0f}" for mhz in CLOCKS_MHZ]
            papers = PAPER[it["mode"]][1 + place]
            paper = "" if it["first"] else f"{papers:,}" if papers else "does not fit"
            share = _limit(device.resources, need)
            rows.append([name, key, str(fit), share, *speeds, paper])
    sources = "; ".join(f"{device.name}: {device.source}" for device in DEVICES.values())
    return f"{markdown([*header, '>the paper, full chip'], rows)}\n\nCounts of the devices: {sources}."


def _limit(device: Resources, need: Resources) -> str:
    """The resource of which a design takes the largest share, and that share."""
    share = device.share(need)
    return NAMES[device.scarcest(need)] + (f", {100 * share:.1f} % each" if share < float("inf") else ", has none")


def chips_section(chips: Mapping[str, Record]) -> str:
    """The pipelines that make the most of a whole U250, and what the sparsities gain there."""
    device = DEVICES["U250"].resources
    header = ["pipeline", ">clocks per word", ">products per clock", ">fit", "limited by"]
    header += [*(f">words/s, {mhz} MHz assumed" for mhz in CLOCKS_MHZ), ">the paper, full chip"]
    rows = []
    for name, it in chips.items():
        need = Resources(**it["need"])
        share = _limit(device, need)
        speeds = [f"{it['words_per_clock'] * 1e6 * mhz:,.0f}" for mhz in CLOCKS_MHZ]
        paper = f"{PAPER[name][1]:,}" if name in PAPER else ""
        rows.append([name, f"{it['cycles']:,}", f"{it['products']:,}", str(it["fit"]), share, *speeds, paper])
    dense, half, ours = (chips[mode]["words_per_clock"] for mode in MODES)
    return (
        f"{markdown(header, rows)}\n\n**At equal resources**, a whole U250, sparse-sparse pipelines compute "
        f"{ours / dense:.1f} times as many words as dense ones, sparse-dense ones {half / dense:.1f} times as many."
    )


# --- single layers ---------------------------------------------------------------------------------------------------


def kernels_table(kernels: Mapping[str, Record]) -> str:
    header = [
        "kernel",
        "unit",
        ">non-zeros per kernel",
        ">active inputs",
        ">clocks per position",
        ">products per clock",
    ]
    header += [">DSP", ">LUT", ">FF", ">weights, kbit", ">dense DSP ÷", ">dense LUT ÷"]
    rows = []
    for name, it in kernels.items():
        dense = next(unit for unit in it["units"] if unit["mode"] == "dense")["resources"]
        for unit in sorted(it["units"], key=_order):
            own = unit["resources"]
            gains = [f"{dense[what] / own[what]:.1f}" if own[what] else "–" for what in ("dsp", "lut")]
            counts = [str(unit[what]) for what in ("nonzeros", "winners", "clocks", "products")]
            sizes = [f"{own['dsp']:,g}", f"{own['lut']:,g}", f"{own['ff']:,g}", f"{unit['weight_bits'] / 1000:,.0f}"]
            rows.append([name, unit["mode"], *counts, *sizes, *gains])
    return markdown(header, rows)


def _order(unit: Record) -> tuple[int, int, int]:
    return MODES.index(unit["mode"]), -unit["nonzeros"], -unit["winners"]


def kernels_picture(kernels: Mapping[str, Record], path: Path) -> None:
    """Multipliers and logic of every unit against the products that must be made, both relative to the dense unit."""
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    markers = dict(zip(kernels, ("o", "s", "^", "D"), strict=False))
    for axes, (what, title) in zip(panels, (("products", "8-bit products per clock"), ("lut", "LUT")), strict=True):
        for name, it in kernels.items():
            dense = next(unit for unit in it["units"] if unit["mode"] == "dense")
            for mode in MODES:
                units = [unit for unit in it["units"] if unit["mode"] == mode]
                x = [_needed(unit) / _needed(dense) for unit in units]
                y = [_amount(unit, what) / _amount(dense, what) for unit in units]
                axes.scatter(x, y, 34, marker=markers[name], color=pictures.MODES[mode], alpha=0.85)
        axes.set_xscale("log")
        axes.set_yscale("log")
        low = axes.get_xlim()[0]
        axes.plot([low, 1], [low, 1], "--", color=pictures.GREY, zorder=0)
        axes.set_xlabel("non-zero weights × active inputs, relative to dense (log scale)")
        axes.set_ylabel("relative to the dense unit of equal throughput")
        pictures.titled(axes, title)
    handles = [plt.Line2D([], [], marker=m, linestyle="", color="#555555", label=name) for name, m in markers.items()]
    handles += [plt.Line2D([], [], marker="o", linestyle="", color=pictures.MODES[m], label=m) for m in MODES]
    handles += [plt.Line2D([], [], linestyle="--", color=pictures.GREY, label="proportional")]
    panels[1].legend(handles=handles, frameon=False, fontsize=9, loc="lower right")
    pictures.save(figure, path)


def _needed(unit: Record) -> float:
    return float(unit["nonzeros"] * unit["winners"])


def _amount(unit: Record, what: str) -> float:
    return float(unit[what] if what == "products" else unit["resources"][what])


# --- tests -----------------------------------------------------------------------------------------------------------


def words_text(words: Mapping[str, Record]) -> str:
    rows = [
        [f"`{name}`", str(it["recordings"]), str(it["held_out"]), f"{it['cycles']:,.1f}", f"{it['seconds']:.0f}"]
        for name, it in words.items()
    ]
    header = ["model", ">recordings", ">held-out words", ">clocks per word, chunks of 16", ">seconds, emulated"]
    return f"{markdown(header, rows)}\n\nEvery result has the reference's bits; otherwise nothing is recorded."


def mutants_table(rows: Sequence[Record]) -> str:
    caught = sum(row["caught"] for row in rows)
    lines = [
        [row["module"], f"`{row['line']}`", f"`{row['mutant']}`", "yes" if row["caught"] else "no"] for row in rows
    ]
    return f"{caught} of {len(rows)} are noticed.\n\n{markdown(['module', 'line', 'mutant', 'noticed'], lines)}"


# --- pictures of a pipeline ------------------------------------------------------------------------------------------


def pipeline_picture(record: Record, path: Path) -> None:
    """Boxes in a row, below each its clocks per word."""
    layers = {layer["name"]: layer for layer in record["layers"]}
    stages, slowest = record["stages"], max(record["stages"].values())
    figure, axes = plt.subplots(figsize=(12, 3), layout="constrained")
    for place, (name, cycles) in enumerate(stages.items()):
        colour = ACCENT if name == record["bottleneck"] else pictures.COLOURS[pictures.OWN]
        axes.add_patch(plt.Rectangle((place - 0.4, 0), 0.8, 1, facecolor="white", edgecolor=colour, linewidth=2))
        axes.text(place, 0.85, name, ha="center", va="center", weight="bold", color=colour)
        axes.text(place, 0.4, _description(layers.get(name), name), ha="center", va="center", fontsize=9)
        axes.add_patch(plt.Rectangle((place - 0.4, -0.22), 0.8 * cycles / slowest, 0.14, color=colour))
        note = f"{cycles:,} clocks" + (", sets the pace" if name == record["bottleneck"] else "")
        axes.text(place - 0.4, -0.32, note, fontsize=9, va="top", color=colour)
        if place:
            axes.annotate("", (place - 0.4, 0.5), (place - 0.6, 0.5), arrowprops={"arrowstyle": "->"})
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.set_ylim(-0.5, 1.15)
    axes.axis("off")
    pictures.titled(axes, f"{record['predicted']:,} clocks per word, {record['products']} products per clock")
    pictures.save(figure, path)


def _description(layer: Record | None, name: str) -> str:
    if layer is None:
        return "from memory\n1 position per clock" if name == "input" else "histogram\n1 value per clock"
    lanes, passes = layer["lanes"], layer["passes"]
    return (
        f"{lanes} {'lane' if lanes == 1 else 'lanes'} × {layer['outputs']} columns\n"
        f"S = {layer['slots']}, {passes} {'pass' if passes == 1 else 'passes'}\n"
        f"weights {layer['weight_bits'] / 8000:,.1f} kB"
    )


def resources_picture(record: Record, path: Path) -> None:
    """Shares of the pipeline's instances."""
    modules = _modules(record)
    shown = sorted(modules, key=lambda name: -modules[name]["lut"])[:10]
    figure, panels = plt.subplots(1, 3, figsize=(12, 0.34 * len(shown) + 1.2), layout="constrained", sharey=True)
    for axes, what in zip(panels, ("lut", "ff", "dsp"), strict=True):
        values = [modules[name][what] for name in shown]
        axes.barh(range(len(shown)), values, color=pictures.COLOURS[pictures.OWN])
        for place, value in enumerate(values):
            axes.text(value, place, f" {value:,.0f}", va="center", fontsize=9)
        axes.margins(x=0.22)
        axes.locator_params(axis="x", nbins=4)
        pictures.titled(axes, NAMES[what])
    panels[0].set_yticks(range(len(shown)), shown, fontsize=9)
    panels[0].invert_yaxis()
    pictures.save(figure, path)


def waves_picture(record: Record, path: Path) -> None:
    """When stages work on which word, and the bus clock by clock."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(12, 6.6), layout="constrained", height_ratios=(3, 3))
    shades = (*pictures.SHADES, pictures.GREY)
    start = record["stages"]["input"][0][0]
    for place, spans in enumerate(record["stages"].values()):
        for word, (begin, end) in enumerate(spans):
            above.barh(place, end - begin, left=begin - start, color=shades[word % len(shades)], height=0.7)
            colour = "white" if shades[word % len(shades)] == pictures.SHADES[-1] else "black"
            middle = (begin + end) / 2 - start
            above.text(middle, place, f"word {word + 1}", ha="center", va="center", fontsize=9, color=colour)
    above.set_yticks(range(len(record["stages"])), record["stages"])
    above.invert_yaxis()
    above.set_xlabel("clocks since the first input")
    pictures.titled(above, f"{record['words']} words in {record['clocks']:,} clocks")
    shown = ("arvalid", "arready", "rvalid", "rready", "rlast")
    first = min(clock for clock, value in record["buses"]["arvalid"] if value)
    for place, name in enumerate(shown):
        clocks, values = _steps(record["buses"][name], first - 2, first + 110)
        below.step(clocks, [0.7 * v - place for v in values], where="post", color=pictures.COLOURS[pictures.OWN])
    below.set_yticks([0.3 - i for i in range(len(shown))], shown)
    below.set_xlabel("clocks since two before the first address")
    pictures.titled(below, "The first reads on m_axi_gmem: four bursts under way, eight bytes taken every eight clocks")
    pictures.save(figure, path)


def _steps(changes: Sequence[Sequence[int]], begin: int, end: int) -> tuple[list[int], list[int]]:
    value = next((v for clock, v in reversed(changes) if clock <= begin), 0)
    clocks, values = [0], [value]
    for clock, new in changes:
        if begin < clock <= end:
            clocks.append(clock - begin)
            values.append(new)
    return [*clocks, end - begin], [*values, values[-1]]
