"""How the files in `format-1` were made, once: small models of format version 1.0 and what they compute.

    python tests/data/make_format_1.py DIRECTORY

They are never made again: what reads version 1 must read these very bytes, and compute these very results. A later
minor version gets files of its own beside them. Together they hold every operation, packed and dense weights, both
kinds of numbers, both layouts. `NAME.safetensors` is the model, `NAME.results.safetensors` holds `x` and `y`, NHWC.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "fpga")]
from graphs import random_graph, random_input  # noqa: E402
from networks import Spec, network  # noqa: E402

from csengine import reference  # noqa: E402
from csengine.container import Model, save  # noqa: E402
from csengine.graph import Graph  # noqa: E402

SAMPLES = 5


def models() -> dict[str, Graph]:
    """By name; `pipeline` is one that an FPGA can hold."""
    return {
        "residual": random_graph(34, integer=True),
        "branches": random_graph(187, integer=True),
        "pools": random_graph(307, integer=True),
        "float": random_graph(0, integer=False),
        "float-winners": random_graph(113, integer=False),
        "pipeline": network((5, 4, 1), "uint8", [Spec(6, (2, 2), slots=2, k=2), Spec(3, dtype=None)]),
    }


def main() -> None:
    """Write all files into a new directory."""
    place = Path(sys.argv[1])
    place.mkdir()
    for number, (name, made) in enumerate(models().items()):
        graph = replace(made, layout=("NHWC", "NCHW")[number % 2])
        described = {"kind": "none"}, {"accuracy": 0.5}
        labels = tuple(f"label {i}" for i in range(graph.output_type.size)) if number < 3 else ()
        save(Model(graph, labels, *described, producer="csengine 0.1.0"), place / f"{name}.safetensors")
        x = random_input(graph, SAMPLES, seed=number)
        y = np.ascontiguousarray(reference.run(graph, x))
        save_file({"x": np.ascontiguousarray(x), "y": y}, place / f"{name}.results.safetensors")


if __name__ == "__main__":
    main()
