"""Tables and pictures of the documentation, from recorded results.

    python bench/report.py       # needs the extra [report]

Reads `bench/results/*.json` (written by `make bench`, `make bench-peers`, `make fpga-report`) and the accuracy study of
the keyword-spotting example; writes `docs/images/` and what stands between `<!-- begin NAME -->` and
`<!-- end NAME -->` in README.md, docs/*.md and the example's README.md. What was not measured has no section.
`bench/results/MACHINE/*.json`, of other machines, go to docs/performance-MACHINE.md in the same way, and
to the sections NAME-MACHINE of the others.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aims
import comparison
import fpga_report
import kernel_report
import pictures

from csengine.cli.output import markdown

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
STUDY = ROOT / "examples" / "keyword_spotting" / "results" / "study.json"
IMAGES = ROOT / "docs" / "images"
MODELS = {"kws": "CPU-friendly blocks", "kws_paper": "paper-exact"}
MODES = ("dense", "sparse-dense", "sparse-sparse")
MAIN_NOTE = (
    "Every runtime at its best: all its precisions and options were tried, the fastest is shown. *k-winners* is the "
    "function that csengine computes; *ReLU instead* keeps all positive values, which is quicker for the others. The "
    "columns *csengine* say how many times as fast the CPU-friendly network is."
)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def percent(result: Mapping[str, Any]) -> str:
    return f"{comparison.percent(result['mean'], 2)} ± {comparison.percent(result['deviation'] or 0, 2)}"


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


# --- sections of pages -----------------------------------------------------------------------------------------------
# Each function draws into a directory and gives the Markdown of sections, by the name of their markers. Pictures are
# named as in `![...](images/kws.png)`; `insert` makes that relative to a page.


def own(results: Path, images: Path) -> dict[str, str]:
    """The keyword-spotting networks in csengine's modes."""
    paths = {model: results / f"{model}.json" for model in MODELS}
    if not all(path.is_file() for path in paths.values()):
        return {}
    reports = {model: read(path) for model, path in paths.items()}
    found = {model: modes_of(report, 1) for model, report in reports.items()}
    rows = [(MODELS[m], {mode: row["median_seconds"] for mode, row in by_mode.items()}) for m, by_mode in found.items()]
    pictures.modes(rows, images / "kws.png")
    return {"speed": speed_table(reports)}


def study(path: Path, images: Path) -> dict[str, str]:
    """The accuracy study of the keyword-spotting example."""
    if not path.is_file():
        return {}
    found = read(path)
    pictures.accuracy(found, images / "accuracy.png")
    return {"accuracy": f"![Accuracy of dense and sparse networks](images/accuracy.png)\n\n{accuracy_table(found)}"}


def networks(report: comparison.Report, images: Path) -> dict[str, str]:
    pictures.networks(report, images / "peers.png")
    pictures.batches(report, images / "batches.png")
    picture = "![Time per word of csengine and of other runtimes](images/peers.png)"
    conditions = comparison.conditions(report)
    return {
        "ratios": comparison.ratios_table(report),
        "main": f"{picture}\n\n{comparison.main_table(report)}\n\n{MAIN_NOTE}\n\n{conditions}",
        "peers-networks": f"## Keyword spotting\n\n{picture}\n\n{comparison.ratios_table(report)}\n\n"
        f"![Words per second by batch size](images/batches.png)\n\n{comparison.networks_table(report)}"
        f"{comparison.failures(report)}\n\n{conditions}",
    }


def linear(report: comparison.Report, images: Path) -> dict[str, str]:
    pictures.linear(report, images / "linear.png")
    return {
        "main-linear": comparison.main_linear_table(report),
        "peers-linear": "## Linear layers\n\n![Time by active inputs](images/linear.png)\n\n"
        f"{comparison.linear_table(report)}\n\n{comparison.conditions(report)}",
    }


def convolutions(report: comparison.Report, images: Path) -> dict[str, str]:
    pictures.convolutions(report, images / "convolutions.png")
    return {
        "peers-convolutions": "## Convolutions\n\n![Time inside a network](images/convolutions.png)\n\n"
        f"{comparison.convolutions_table(report)}\n\n{comparison.conditions(report)}"
    }


def imported(report: comparison.Report, images: Path) -> dict[str, str]:
    pictures.imported(report, images / "imported.png")
    return {
        "blocks": f"{comparison.blocks_table(report)}\n\nA tenth of the weights, one thread, time per sample. "
        f"{comparison.conditions(report)}",
        "peers-imported": "\n\n".join(
            (
                "## Whole networks\n\n![Time per image](images/imported.png)",
                comparison.imported_table(report),
                "Images of 224², one thread, int8; all layers but the first and the last pruned. Every runtime gets "
                "the same pruned network; *dense only* is csengine without sparsity.",
                f"### Plan\n\n{comparison.plan_table(report)}",
                f"### Feed-forward blocks of transformers\n\n{comparison.feed_forward_table(report)}",
                "One position, a tenth of the weights, int8. k-winners keep a tenth; a ReLU leaves half of the hidden "
                "units, and all inputs. The others run the ReLU.",
                comparison.conditions(report),
            )
        ),
    }


def scaling(report: comparison.Report, images: Path) -> dict[str, str]:
    pictures.products(report["products"], images / "scaling-products.png")
    pictures.sizes(report["sizes"], images / "scaling-sizes.png")
    pictures.threads(report["threads"], images / "scaling-threads.png")
    return {
        "scaling": "## Scaling\n\nIs cost proportional to the product of both sparsities, as the paper claims for "
        "resources?\n\n![Time by products](images/scaling-products.png)\n\n"
        f"{comparison.scaling_table(report)}\n\n![Time by size](images/scaling-sizes.png)\n\n"
        "![Gain of threads](images/scaling-threads.png)"
    }


def numba(report: comparison.Report, images: Path) -> dict[str, str]:
    del images
    return {"numba": f"## The Numba backend\n\n{comparison.numba_table(report)}"}


def digits(report: comparison.Report, images: Path) -> dict[str, str]:
    results = report["results"]
    pictures.sparsity(results, images / "digits.png", "Handwritten digits, int8 network")
    return {
        "digits": f"![Accuracy against sparsity](images/digits.png)\n\n{comparison.sparsity_table(results)}\n\n"
        f"Dense: {comparison.dense_accuracy(results)}."
    }


def kws_sparsity(report: comparison.Report, images: Path) -> dict[str, str]:
    results, data = report["results"], report["data"]
    clips = data["test"]["clips"]
    errors = [comparison.standard_error(row["accuracy"], clips) for row in results]
    title = "Keyword spotting, int8 network, held-out voices"
    pictures.sparsity(results, images / "kws-sparsity.png", title, max(errors))
    return {
        "kws-sparsity": "![Accuracy against sparsity of the keyword-spotting network](images/kws-sparsity.png)\n\n"
        f"{comparison.sparsity_table(results)}\n\nDense: {comparison.dense_accuracy(results)}. "
        f"Epochs of every sparse network: {report['recipe']['epochs']}. {clips:,} clips of {data['test_speakers']} "
        "speakers that training never heard; the standard error of a figure, from the number of clips, is "
        f"{100 * min(errors):.1f} to {100 * max(errors):.1f} points."
    }


def imports(report: comparison.Report, images: Path) -> dict[str, str]:
    del images
    return {"imports": comparison.imports_table(report["networks"])}


SECTIONS: Mapping[str, Callable[[comparison.Report, Path], dict[str, str]]] = {
    "peers-networks": networks,
    "peers-linear": linear,
    "peers-convolutions": convolutions,
    "peers-imported": imported,
    "scaling": scaling,
    "numba": numba,
    "digits": digits,
    "kws-sparsity": kws_sparsity,
    "imports": imports,
}


def sections(results: Path, images: Path) -> dict[str, str]:
    """The Markdown of every section whose results are there, by the name of its markers; draws the pictures as well."""
    found = own(results, images)
    for name, make in SECTIONS.items():
        path = results / f"{name}.json"
        if path.is_file():
            found |= make(read(path), images)
    return found | kernel_report.sections(results, images) | aims_reached(results)


def aims_reached(results: Path) -> dict[str, str]:
    """What was aimed at beside what was reached, of the suites that were run."""
    paths = {path.stem.removeprefix("peers-"): path for path in sorted(results.glob("peers-*.json"))}
    return {"aims": aims.table({suite: read(path) for suite, path in paths.items()})} if paths else {}


def insert(path: Path, found: Mapping[str, str]) -> None:
    """Replace what stands between the markers of each section in a page."""
    place = Path(os.path.relpath(IMAGES, path.parent)).as_posix()
    text = path.read_text(encoding="utf-8")
    for name, section in found.items():
        pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        section = section.replace("](images/", f"]({place}/")
        text = re.sub(pattern, lambda match, new=section: f"{match[1]}{new}\n{match[2]}", text, flags=re.DOTALL)
    path.write_text(text, encoding="utf-8")


def of_machine(results: Path) -> dict[str, str]:
    """The sections of another machine, whose pictures are in a directory of their own."""
    images = IMAGES / results.name
    images.mkdir(exist_ok=True)
    found = sections(results, images).items()
    return {name: text.replace("](images/", f"](images/{results.name}/") for name, text in found}


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    found = sections(RESULTS, IMAGES) | study(STUDY, IMAGES) | fpga_report.sections(RESULTS, IMAGES)
    machines = {path.name: of_machine(path) for path in sorted(RESULTS.iterdir()) if path.is_dir()}
    pages: dict[Path, dict[str, str]] = {page: {} for page in (ROOT / "docs").glob("performance-*.md")}
    pages |= {ROOT / "docs" / f"performance-{machine}.md": its for machine, its in machines.items()}
    for machine, its in machines.items():
        found |= {f"{name}-{machine}": text for name, text in its.items()}
    for page in (ROOT / "README.md", STUDY.parent.parent / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        insert(page, pages.get(page, found))


if __name__ == "__main__":
    main()
