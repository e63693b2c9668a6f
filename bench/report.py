"""Tables and pictures of the documentation, from recorded results.

    python bench/report.py       # needs the extra [report]

Reads `bench/results/*.json` (written by `make bench` and `make bench-peers`) and the accuracy study of the
keyword-spotting example; writes `docs/images/` and the tables between `<!-- begin NAME -->` and `<!-- end NAME -->` in
README.md and docs/*.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import comparison
import matplotlib as mpl
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
STUDY = ROOT / "examples" / "keyword_spotting" / "results" / "study.json"
IMAGES = ROOT / "docs" / "images"
MODELS = {"kws": "CPU-friendly blocks", "kws_paper": "paper-exact"}
MODES = ("dense", "sparse-dense", "sparse-sparse")
COLOURS = {"dense": "#9aa5b1", "sparse-dense": "#5b8def", "sparse-sparse": "#12805c"}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def percent(result: Mapping[str, Any]) -> str:
    return f"{result['mean']:.2%} ± {result['deviation'] or 0:.2%}".replace("%", " %")


def accuracy_table(study: Mapping[str, Any]) -> str:
    rows = []
    for variant, result in study["variants"].items():
        nonzeros = " to ".join(f"{n:,}" for n in dict.fromkeys((min(result["nonzeros"]), max(result["nonzeros"]))))
        rows.append((variant, nonzeros, percent(result["float"]["test"]), percent(result["int8"]["test"])))
    seeds = len(next(iter(study["variants"].values()))["seeds"])
    data = study["data"]
    table = markdown(("network", "non-zero parameters", "float32", "int8, packed"), rows)
    return (
        f"{table}\n\nAccuracy on {data['test']['clips']:,} clips of {data['test_speakers']} speakers that training "
        f"never heard (mean ± standard deviation of {seeds} seeds; synthesized speech with noise)."
    )


def modes_of(report: Mapping[str, Any], batch: int) -> dict[str, Mapping[str, Any]]:
    return {row["mode"]: row for row in report["rows"] if row["batch"] == batch and row["threads"] == 1}


def speed_table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for model, report in reports.items():
        for batch in dict.fromkeys(row["batch"] for row in report["rows"]):
            found = modes_of(report, batch)
            words = [f"{found[mode]['median_seconds'] / batch * 1e6:.1f}" for mode in MODES]
            speedup = found["dense"]["median_seconds"] / found["sparse-sparse"]["median_seconds"]
            rows.append((MODELS[model], str(batch), *words, f"{speedup:.1f}×"))
    machine = next(iter(reports.values()))["machine"]
    tier = next(iter(reports.values()))["rows"][-1]["tier"]
    header = ("network", "batch", *(f"{mode}, µs per word" for mode in MODES), "dense → sparse-sparse")
    return (
        f"{markdown(header, rows)}\n\nOne thread, int8, {machine['cpu']}, kernels {tier}; medians of interleaved runs, "
        "every output checked against the reference. All three columns are csengine; *dense* uses no sparsity, "
        "*sparse-dense* that of the weights, *sparse-sparse* that of the activations, too."
    )


def draw(study: Mapping[str, Any] | None, reports: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Left: time per word by mode. Right: accuracy by variant, once the study has been made."""
    mpl.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    panels = 2 if study else 1
    size = (10 if study else 7, 3.6)
    figure, axes = plt.subplots(1, panels, figsize=size, squeeze=False, layout="constrained")
    draw_times(axes[0, 0], reports)
    if study:
        draw_accuracy(axes[0, 1], study)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_times(axes: Any, reports: Mapping[str, Mapping[str, Any]]) -> None:
    places, labels = [], []
    for group, (model, report) in enumerate(reports.items()):
        found = modes_of(report, 1)
        for offset, mode in enumerate(MODES):
            place = group * (len(MODES) + 1) + offset
            value = found[mode]["median_seconds"] * 1e6
            axes.barh(place, value, color=COLOURS[mode])
            axes.text(value, place, f" {value:.1f} µs", va="center")
            places.append(place)
            labels.append(f"{MODELS[model]}: {mode}")
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("time per word, µs (batch 1, one thread)")
    axes.set_title("One spoken word", loc="left", weight="bold")


def draw_accuracy(axes: Any, study: Mapping[str, Any]) -> None:
    for place, result in enumerate(study["variants"].values()):
        for shift, (precision, marker) in enumerate((("float", "o"), ("int8", "s"))):
            values = result[precision]["test"]
            y = place + 0.16 * (2 * shift - 1)
            label = {"float": "float32", "int8": "int8, packed"}[precision] if place == 0 else None
            colour = ("#555555", "#12805c")[shift]
            axes.errorbar(
                100 * values["mean"], y, xerr=100 * (values["deviation"] or 0), fmt=marker, color=colour, label=label
            )
    axes.set_yticks(range(len(study["variants"])), study["variants"])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy on held-out voices, %")
    axes.set_title("The same accuracy", loc="left", weight="bold")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, loc="best")


def insert(path: Path, tables: Mapping[str, str]) -> None:
    """Replace what stands between the markers of each table in a page."""
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        text = re.sub(pattern, lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL)
    path.write_text(text, encoding="utf-8")


def main() -> None:
    study = read(STUDY) if STUDY.exists() else None
    reports = {model: read(RESULTS / f"{model}.json") for model in MODELS}
    IMAGES.mkdir(parents=True, exist_ok=True)
    draw(study, reports, IMAGES / "kws.png")
    tables = {"speed": speed_table(reports)}
    if study:
        tables["accuracy"] = accuracy_table(study)
    tables |= comparison.sections(RESULTS, IMAGES)
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        insert(page, tables)


if __name__ == "__main__":
    main()
