"""Draws what study.py recorded: python plot.py [results.json] [picture.png]"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).parent
LABELS = {
    "random": "random, static",
    "magnitude": "by magnitude, 1x1",
    "blocks": "by magnitude, 4x16 blocks",
    "winners": "by magnitude, with k-winners",
}


def curves(results: list[dict[str, float]]) -> dict[str, dict[float, list[float]]]:
    """Accuracies by method and sparsity."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        found[str(result["method"])][result["sparsity"]].append(result["accuracy"])
    return found


def draw(results: list[dict[str, float]], path: Path) -> None:
    """Mean over the seeds, and their range."""
    found = curves(results)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    dense = found.pop("dense")[0.0]
    axes.axhline(100 * float(np.mean(dense)), color="grey", linestyle="--", label="dense")
    for method, points in found.items():
        sparsities = sorted(points)
        means = np.array([100 * np.mean(points[s]) for s in sparsities])
        ends = np.array([[100 * min(points[s]), 100 * max(points[s])] for s in sparsities]).T
        axes.plot([100 * s for s in sparsities], means, "o-", label=LABELS[method])
        axes.fill_between([100 * s for s in sparsities], *ends, alpha=0.15)
    axes.set(xlabel="sparsity of the two middle layers, %", ylabel="accuracy of the int8 network, %")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "results.json"
    picture = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE.parent.parent / "docs" / "images" / "digits.png"
    draw(json.loads(source.read_text()), picture)
