"""Imports networks of others, compares each with ONNX Runtime, and records what came of it.

    python bench/imports.py      # bench/results/imports.json, under a minute

Those that the `onnx` package carries come without weights: random ones take their place. MobileNetV2 is that of the
`transformers` package, the encoder PyTorch's own. Then `bench/report.py` makes the table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from csengine import UnsupportedModelError
from csengine.importers import check
from csengine.importers.onnx import read

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from light_models import LIGHT, encoder, light, mobilenet_v2  # noqa: E402


def try_one(name: str, model: Any) -> dict[str, Any]:
    """Sizes, and the largest relative error of any tensor and of the result; or why it was refused."""
    described: dict[str, Any] = {"network": name, "nodes": len(model.graph.node)}
    try:
        imported = read(model)
    except UnsupportedModelError as error:
        return {**described, "refused": str(error).splitlines()[1].strip()}
    x = np.random.default_rng(0).standard_normal((1, *imported.graph.input.shape), np.float32)
    found = check.check(model, imported, x)
    worst = max(item.relative_error for item in found.tensors)
    layers = {"layers": len(imported.graph.nodes), "compared": len(found.tensors)}
    return {**described, **layers, "worst": worst, "result": found.result.relative_error}


def main() -> None:
    names = sorted(path.stem.removeprefix("light_") for path in LIGHT.glob("light_*.onnx"))
    networks: list[tuple[str, Callable[[], Any]]] = [(name, partial(light, name)) for name in names]
    networks += [("mobilenet_v2", partial(mobilenet_v2, 224, 1000)), ("transformer encoder", encoder)]
    rows = []
    for name, build in networks:
        rows.append(try_one(name, build()))
        print(rows[-1], flush=True)
    (ROOT / "bench" / "results" / "imports.json").write_text(json.dumps({"networks": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
