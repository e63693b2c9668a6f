"""How the files in `format-1.2` were made, once: small models that need version 1.2, and what they compute.

    python tests/data/make_format_1_2.py DIRECTORY

They are never made again, as those of the versions before. Results of `functions` are float32, all others integers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from csengine import reference
from csengine.container import Model, save
from csengine.graph import (
    FUNCTIONS,
    Activation,
    Concat,
    Conv2d,
    Graph,
    Input,
    MaxPool,
    Node,
    Product,
    Requantization,
)
from csengine.packing import pack

RNG = np.random.default_rng(12)
CHANNELS = 8


def weight(rows: int, kernels: int) -> np.ndarray:
    """A quarter of it is not 0."""
    dense = RNG.integers(-127, 128, (rows, kernels)).astype(np.int8)
    return np.where(RNG.random((rows, kernels)) < 0.25, dense, np.int8(0))


def requantization(kernels: int, dtype: str) -> Requantization:
    """Brings sums of products of 8 bits back to 8 bits."""
    return Requantization(np.full(kernels, 40000, np.uint16), np.full(kernels, 24, np.uint8), dtype, 0.5)


def signal() -> Graph:
    """Channels first, a dilated layer."""
    to = requantization(CHANNELS, "int8")
    nodes: list[Node] = [
        Input(name="x", inputs=(), shape=(1, 12, 3), dtype="int8", scale=0.25),
        Conv2d(name="y", inputs=("x",), weight=pack(weight(15, CHANNELS)), kernel=(1, 5), requantization=to),
    ]
    return Graph(tuple(nodes), "NCW")


def tables() -> Graph:
    """Activations of integers, one to each type."""
    both = [RNG.integers(0, 256, 256).astype(np.uint8) for _ in range(2)]
    nodes: list[Node] = [
        Input(name="x", inputs=(), shape=(3, 4, CHANNELS), dtype="int8", scale=0.25),
        Activation(name="gate", inputs=("x",), function="sigmoid", table=both[0], scale=1 / 255),
        Activation(name="y", inputs=("gate",), function="elu", alpha=0.5, table=both[1].view(np.int8), scale=0.5),
    ]
    return Graph(tuple(nodes), "NCHW")


def functions() -> Graph:
    """Every activation of float32, side by side."""
    nodes: list[Node] = [Input(name="x", inputs=(), shape=(5,))]
    for name, has_alpha in FUNCTIONS.items():
        nodes.append(Activation(name=name, inputs=("x",), function=name, alpha=0.25 if has_alpha else 1.0))
    return Graph((*nodes, Concat(name="y", inputs=tuple(FUNCTIONS))))


def gates() -> Graph:
    """An image by its own largest values, and by itself."""
    nodes: list[Node] = [
        Input(name="x", inputs=(), shape=(3, 4, CHANNELS), dtype="int8", scale=0.25),
        MaxPool(name="best", inputs=("x",), kernel=(3, 4), stride=(1, 1)),
        Product(name="gated", inputs=("x", "best"), requantization=product("int8")),
        Product(name="y", inputs=("gated", "gated"), requantization=product("uint8")),
    ]
    return Graph(tuple(nodes), "NCHW")


def product(dtype: str) -> Requantization:
    """Brings products of 8 bits back to 8 bits."""
    return Requantization(np.array([50000], np.uint16), np.array([22], np.uint8), dtype, 0.5)


GRAPHS = {"signal": signal, "tables": tables, "functions": functions, "gates": gates}


def main() -> None:
    """Write all files into a new directory."""
    place = Path(sys.argv[1])
    place.mkdir()
    for name, build in GRAPHS.items():
        graph = build()
        save(Model(graph, producer="csengine 0.1.0"), place / f"{name}.safetensors")
        x = RNG.standard_normal((5, *graph.input.shape)).astype(np.float32) * np.float32(8)
        y = np.ascontiguousarray(reference.run(graph, x))
        save_file({"x": x, "y": y}, place / f"{name}.results.safetensors")


if __name__ == "__main__":
    main()
