"""What is read from the results of a comparison, and its tables; `pictures.py` draws, `report.py` writes pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from csengine.cli.output import markdown

Row = Mapping[str, Any]
Report = Mapping[str, Any]
OWN = "csengine"
NAMES = {OWN: "csengine", "deepsparse": "DeepSparse", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
NAMES |= {"torch": "PyTorch", "scipy": "SciPy"}
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
NARROW = (
    " In ONNX Runtime and OpenVINO, 8-bit layers have weights of 7 bits: without VNNI, as on this processor, their "
    "sums of 8-bit weights saturate."
)


def conditions(report: Report) -> str:
    """Under what conditions a report was measured, in one paragraph."""
    machine = report["machine"]
    shown = ", ".join(f"{NAMES[peer['peer']]} {peer['versions'][peer['peer']]}" for peer in report["peers"])
    notes = "".join(f" {peer['note']}." for peer in report["peers"] if peer["note"])
    if not machine.get("vnni", True):
        notes += NARROW
    busy = (machine["load_average"] or 0) > 1.5  # one is what a measurement before this one leaves behind
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


def fastest_of(rows: Iterable[Row], peer: str) -> Row | None:
    return fastest(row for row in rows if row["peer"] == peer)


def peers_of(rows: Iterable[Row]) -> list[Row]:
    return [row for row in timed(rows) if row["peer"] != OWN]


def name_of(row: Row) -> str:
    """Runtime and variant; csengine's tells its mode only where that was forced."""
    if row["peer"] != OWN:
        return f"{NAMES[row['peer']]} {row['variant']}"
    mode = row["variant"].split("/")[1]
    return OWN if mode == "auto" else f"{OWN}, {mode}"


def percent(share: float, decimals: int = 0) -> str:
    """As the documentation writes it."""
    return f"{share:.{decimals}%}".replace("%", " %")


def micro(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


# --- keyword spotting -------------------------------------------------------------------------------------------------


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


def rivals(rows: Iterable[Row]) -> dict[str, Row | None]:
    """The others that a user would choose for the keyword-spotting network."""
    others = peers_of(rows)
    relu = [row for row in others if row["function"] not in WITH_WINNERS]
    return {
        "ONNX Runtime fp32, dense": fastest(r for r in relu if (r["peer"], r["variant"]) == ("onnxruntime", "fp32")),
        "the fastest peer, ReLU network, any precision": fastest(relu),
        "the fastest peer, the same k-winners": fastest(row for row in others if row["function"] in WITH_WINNERS),
    }


def own_network(rows: Iterable[Row], function: str) -> Row | None:
    return fastest(row for row in rows if (row["peer"], row["function"]) == (OWN, function))


def ratios_table(report: Report) -> str:
    """What a user gains over today's choice, in one run."""
    lines = []
    for batch in (1, 64):
        rows = contest_of(report, batch, 1)
        own, paper = (own_network(rows, function) for function in WITH_WINNERS)
        for name, rival in rivals(rows).items():
            if rival and own and paper:
                gains = [f"{rival['median_seconds'] / row['median_seconds']:.1f}×" for row in (own, paper)]
                lines.append((str(batch), f"{name} ({name_of(rival)})", micro(rival["median_seconds"] / batch), *gains))
    return markdown((">batch", "against", ">its µs per word", ">CPU-friendly blocks", ">paper-exact"), lines)


def main_table(report: Report) -> str:
    """The best of every runtime: time per word, alone and in a batch, and how many times as fast csengine is."""
    contests = {batch: contest_of(report, batch, 1) for batch in (1, 64)}  # empty in brief reports
    own = {batch: _best(rows, OWN, WITH_WINNERS[:1]) for batch, rows in contests.items()}
    lines = []
    for function in WITH_WINNERS:
        rows = {batch: _best(found, OWN, (function,)) for batch, found in contests.items()}
        lines.append(("**csengine**", NETWORKS[function], *_main_cells(rows, own)))
    plain = {
        batch: fastest(r for r in rows if (r["peer"], r["variant"], r["function"]) == ("onnxruntime", "fp32", "dense"))
        for batch, rows in contests.items()
    }
    lines.append((NAMES["onnxruntime"], NETWORKS["dense"], *_main_cells(plain, own)))
    relu = tuple(name for name in NETWORKS if name not in WITH_WINNERS)
    for functions, what in ((relu, "ReLU instead"), (WITH_WINNERS, "the same k-winners")):
        for peer in NAMES:
            rows = {batch: _best(found, peer, functions) for batch, found in contests.items()}
            if peer != OWN and any(rows.values()):
                lines.append((NAMES[peer], what, *_main_cells(rows, own)))
    return markdown(("runtime", "network", ">1 word, µs", ">csengine", ">of 64 words, each, µs", ">csengine"), lines)


def _best(rows: Iterable[Row], peer: str, functions: tuple[str, ...]) -> Row | None:
    return fastest(row for row in rows if row["peer"] == peer and row["function"] in functions)


def _main_cells(rows: Mapping[int, Row | None], own: Mapping[int, Row | None]) -> list[str]:
    """For each batch the time per word, with the variant, and what csengine gains."""
    cells = []
    for batch, row in rows.items():
        if row is None:
            cells += ["", ""]
            continue
        variant, reference = "" if row["peer"] == OWN else f" ({row['variant']})", own[batch]
        gain = row["median_seconds"] / reference["median_seconds"] if reference else float("nan")
        cells += [micro(row["median_seconds"] / batch) + variant, "" if row["peer"] == OWN else f"{gain:.1f}×"]
    return cells


def failures(report: Report) -> str:
    """What was not timed, and why."""
    found: dict[tuple[str, str], tuple[list[str], str]] = {}
    for contest in report["contests"]:
        for row in contest["rows"]:
            if row["failure"]:
                batches, _ = found.setdefault((name_of(row), row["function"]), ([], row["failure"]))
                batches.append(f"{contest['batch']}")
    lines = [
        f"- {name}, {NETWORKS[function]}, batch {', '.join(dict.fromkeys(batches))}: {reason}"
        for (name, function), (batches, reason) in found.items()
    ]
    return "\n\nNot timed:\n\n" + "\n".join(lines) if lines else ""


# --- linear layers ----------------------------------------------------------------------------------------------------


def block_of(row: Row) -> str:
    return "×".join(map(str, row["block"]))


def own_time(contest: Report, block: str, activity: float) -> float:
    """csengine's best mode for a block shape and activity: only sparse-sparse depends on the latter."""
    times = [
        row["median_seconds"]
        for row in timed(contest["rows"])
        if row["peer"] == OWN
        and block_of(row) == block
        and (row["activity"] == activity or "sparse-sparse" not in row["variant"])
    ]
    return min(times, default=float("nan"))


def main_linear_table(report: Report) -> str:
    """One large layer, in csengine and in the best variant of every other runtime."""
    contest = next((c for c in report["contests"] if (c["inputs"], c["density"]) == (4096, TYPICAL)), None)
    if contest is None:
        return ""
    own = [own_time(contest, block, TYPICAL) for block in BLOCKS]
    lines = [
        (f"**csengine**, {block} blocks", "int8", micro(time), "", "") for block, time in zip(BLOCKS, own, strict=True)
    ]
    rivals = [row for peer in NAMES if peer != OWN and (row := fastest_of(contest["rows"], peer))]
    for row in sorted(rivals, key=lambda row: row["median_seconds"]):
        gains = [f"{row['median_seconds'] / time:.1f}×" for time in (own[1], own[0])]
        lines.append((NAMES[row["peer"]], row["variant"], micro(row["median_seconds"]), *gains))
    layer = f"{contest['inputs']}→{contest['outputs']}"
    return (
        f"A linear layer {layer}, {percent(TYPICAL)} of the weights not zero, {percent(TYPICAL)} of the inputs active, "
        "one vector:\n\n" + markdown(("runtime", "variant", ">µs", ">csengine, 1×16", ">1×1"), lines)
    )


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
        rows.append((layer, percent(contest["density"]), *map(micro, own), *cells))
    return markdown(header, rows) + (
        "\n\nOne vector, 10 % of it active, one thread. csengine int8 in three block shapes (1×1 is the paper's "
        "packing), each in its fastest mode; the peers run the weights of the first in every precision they have."
    )


# --- convolutions -----------------------------------------------------------------------------------------------------


def inside(contest: Report) -> list[dict[str, Any]]:
    """What a unit costs inside a network: the difference of a long chain and a single one, per unit."""
    found: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in timed(contest["rows"]):
        found.setdefault((row["peer"], row["variant"], row["function"]), {})[row["units"]] = row
    rows = []
    for lengths in found.values():
        if len(lengths) == 2:
            single, chain = lengths[1], lengths[contest["units"]]
            more = max(0.0, chain["median_seconds"] - single["median_seconds"])
            rows.append({**chain, "median_seconds": more / (contest["units"] - 1)})
    return rows


def best_own(rows: Iterable[Row], winners: bool) -> Row | None:
    return fastest(row for row in rows if row["peer"] == OWN and (row["function"] == "k-winners") == winners)


def convolutions_table(report: Report) -> str:
    header = (
        "kernel",
        ">weights",
        ">csengine, ReLU, µs",
        "blocks",
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
            ours, *others = [micro(row["median_seconds"]) for row in (relu, dense, winners)]
            gain = rival["median_seconds"] / relu["median_seconds"]
            cells = (name_of(rival), micro(rival["median_seconds"]), f"{gain:.2g}×")
            lines.append(
                (
                    contest["name"],
                    percent(contest["density"]),
                    ours,
                    "dense" if contest["depthwise"] or relu["variant"].endswith("/dense") else block_of(relu),
                    *others,
                    *cells,
                )
            )
    return markdown(header, lines) + (
        "\n\n*Blocks*: the fastest of 1×1, 4×8 and, for 3×3 convolutions, 64×16. Batch 1, one thread, ReLU after each "
        "(half of the activations are 0); a chain of 9 less a chain of 1, divided by 8. The column *k-winners* keeps a "
        "tenth of the channels instead, its selection included."
    )


# --- whole networks ---------------------------------------------------------------------------------------------------


def whole_networks(report: Report) -> list[Report]:
    """The contests of imported networks; the others are feed-forward blocks."""
    return [contest for contest in report["contests"] if "→" not in contest["name"]]


def own_in_mode(contest: Report, mode: str) -> Row | None:
    return fastest(row for row in contest["rows"] if row["peer"] == OWN and row["variant"].endswith(f"/{mode}"))


def imported_table(report: Report) -> str:
    """Milliseconds per image, and against the fastest of the others."""
    lines = []
    for contest in whole_networks(report):
        own, dense, rival = (
            own_in_mode(contest, "auto"),
            own_in_mode(contest, "dense"),
            fastest(peers_of(contest["rows"])),
        )
        if own and dense and rival:
            times = [f"{row['median_seconds'] / contest['batch'] * 1e3:.2f}" for row in (own, dense, rival)]
            gain = f"{rival['median_seconds'] / own['median_seconds']:.2f}×"
            facts = (contest["name"], percent(contest["density"]), str(contest["batch"]))
            lines.append((*facts, times[0], block_of(own), times[1], name_of(rival), times[2], gain))
    header = ("network", ">weights", ">batch", ">csengine, ms per image", "blocks", ">dense only", "fastest peer")
    return markdown((*header, ">its ms", ">gain"), lines)


def feed_forward_table(report: Report) -> str:
    """One position through a transformer's feed-forward block."""
    lines = []
    for contest in report["contests"]:
        rival = fastest(peers_of(contest["rows"]))
        if "→" not in contest["name"] or rival is None:
            continue
        for function in dict.fromkeys(row["function"] for row in contest["rows"]):
            own = fastest(row for row in contest["rows"] if (row["peer"], row["function"]) == (OWN, function))
            if own:
                gain = f"{rival['median_seconds'] / own['median_seconds']:.1f}×"
                times = micro(own["median_seconds"]), block_of(own), name_of(rival), micro(rival["median_seconds"])
                lines.append((contest["name"], function, *times, gain))
    header = ("block", "csengine's activations", ">csengine, µs", "blocks", "fastest peer (ReLU)", ">its µs", ">gain")
    return markdown(header, lines)


def blocks_table(report: Report) -> str:
    """What the shape of the blocks does to whole networks and feed-forward blocks, at the typical sparsity."""
    lines = []
    for contest in report["contests"]:
        if contest["density"] != TYPICAL:
            continue
        for function in dict.fromkeys(row["function"] for row in contest["rows"] if row["peer"] == OWN):
            rows = [r for r in timed(contest["rows"]) if (r["peer"], r["function"]) == (OWN, function)]
            times = {block_of(r): r["median_seconds"] / contest["batch"] for r in rows if "block" in r}
            cells = [micro(times[block]) if block in times else "" for block in ("1×1", "1×16", "4×8", "4×16", "64×16")]
            lines.append((f"{contest['name']}, {function}", str(contest["batch"]), *cells))
    return markdown(("network", ">batch", ">1×1, µs", ">1×16", ">4×8", ">4×16", ">64×16"), lines)


def plan_table(report: Report) -> str:
    """What ran the layers of every network at the typical sparsity, one image at a time."""
    lines = []
    for contest in whole_networks(report):
        own = own_in_mode(contest, "auto")
        if own is None or (contest["density"], contest["batch"]) != (TYPICAL, 1):
            continue
        found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for layer in own["plan"]:
            found.setdefault((layer["mode"], layer["kernel"]), []).append(layer)
        for (mode, kernel), layers in sorted(found.items(), key=lambda item: -len(item[1])):
            macs = [f"{sum(layer[key] for layer in layers) / 1e6:,.0f}" for key in ("macs_dense", "macs_done")]
            lines.append((contest["name"], mode, f"`{kernel}`", str(len(layers)), *macs))
    return markdown(("network", "mode", "kernel", ">layers", ">million products, dense", ">done"), lines)


# --- csengine alone ---------------------------------------------------------------------------------------------------


def scaling_table(report: Report) -> str:
    """Time per product at the corners of the grid: is it constant?"""
    rows = []
    for block in BLOCKS:
        points = [p for p in report["products"] if block_of(p) == block]
        for p in points:
            if p["activity"] in (0.02, 0.1, 1.0) and p["density"] in (0.02, 0.1, 0.4):
                each = p["median_seconds"] / p["macs_needed"] * 1e12
                shares = (percent(p["density"]), percent(p["activity"]))
                rows.append((block, *shares, f"{p['macs_needed']:,.0f}", micro(p["median_seconds"]), f"{each:,.0f}"))
    return markdown(("blocks", ">weights", ">active", ">products", ">µs", ">ps per product"), rows)


def numba_table(report: Report) -> str:
    """The Numba backend beside the C++ one, by network, mode and batch size."""
    rows = []
    _, confined, _ = report["rows"][0]["median_seconds"]
    for row in report["rows"]:
        times = {name: seconds / row["batch"] for name, seconds in row["median_seconds"].items()}
        ratio = times["numba"] / times[confined]
        network = NETWORKS[row["network"]]
        rows.append((network, row["mode"], str(row["batch"]), *map(micro, times.values()), f"{ratio:.1f}"))
    name = confined.replace("cpp", "C++")
    header = ("network", "mode", ">batch", ">C++, µs", f">{name}, µs", ">Numba, µs", f">Numba : {name}")
    start = report["seconds_to_first_result"]
    return (
        f"{markdown(header, rows)}\n\nPer word, one thread. The first result takes {start['compiling']:.0f} s in a "
        f"process that has to compile and {start['cached']:.1f} s in one that finds Numba's cache."
    )


# --- accuracy, imports -----------------------------------------------------------------------------------------------

METHODS = {
    "random": "random, static",
    "magnitude": "by magnitude, 1×1",
    "blocks": "by magnitude, 4×16",
    "winners": "by magnitude, k-winners",
}


def accuracies(results: Iterable[Row]) -> dict[str, dict[float, list[float]]]:
    """Accuracies of all seeds by method and sparsity."""
    found: dict[str, dict[float, list[float]]] = {}
    for result in results:
        found.setdefault(result["method"], {}).setdefault(result["sparsity"], []).append(result["accuracy"])
    return found


def sparsity_table(results: list[Row]) -> str:
    """Mean accuracy by sparsity and method."""
    found = accuracies(results)
    methods = [method for method in METHODS if method in found]
    sparsities = sorted({result["sparsity"] for result in results} - {0.0})
    rows = [
        (percent(sparsity), *(_mean_percent(found[method].get(sparsity)) for method in methods))
        for sparsity in sparsities
    ]
    return markdown((">sparsity", *(f">{METHODS[method]}" for method in methods)), rows)


def standard_error(share: float, count: int) -> float:
    """Of a share among so many independent trials."""
    return float((share * (1 - share) / count) ** 0.5)


def dense_accuracy(results: list[Row]) -> str:
    """Mean accuracy of the dense networks, and of how many."""
    (dense,) = accuracies(results)["dense"].values()
    seeds = "one seed" if len(dense) == 1 else f"mean of {len(dense)} seeds"
    return f"{_mean_percent(dense)} ({seeds}, int8)"


def _mean_percent(values: list[float] | None) -> str:
    return percent(sum(values) / len(values), 1) if values else ""


def imports_table(networks: Iterable[Row]) -> str:
    """What came of importing other people's networks."""
    rows = []
    for row in networks:
        if "refused" in row:
            rows.append((row["network"], str(row["nodes"]), "", "", f"refused: {row['refused']}"))
        else:
            counts = (str(row["nodes"]), str(row["layers"]), str(row["compared"]))
            rows.append((row["network"], *counts, f"{row['result']:.0e} (worst tensor {row['worst']:.0e})"))
    return markdown(("network", ">ONNX nodes", ">ours", ">tensors compared", "relative error of the result"), rows)
