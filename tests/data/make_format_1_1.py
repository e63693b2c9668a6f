"""How the files in `format-1.1` were made, once: small models that need version 1.1, and what they compute.

    python tests/data/make_format_1_1.py DIRECTORY

They are never made again, as those of version 1.0 (`make_format_1.py`). `sequence` is float32, `island` integer with
float32 between, where every operation is exact.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from csengine import reference
from csengine.container import Model, save
from csengine.graph import (
    Conv2d,
    Dequantize,
    Gelu,
    Graph,
    Input,
    LayerNorm,
    LocalResponseNorm,
    MatMul,
    Node,
    Quantize,
    Relu,
    Requantization,
    Softmax,
    Transpose,
)
from csengine.packing import pack

RNG = np.random.default_rng(11)
POSITIONS, CHANNELS = 6, 8


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def sequence() -> Graph:
    """A head of attention and what follows it."""
    weight = np.where(RNG.random((CHANNELS, 16)) < 0.25, normal(CHANNELS, 16), np.float32(0))
    nodes: list[Node] = [
        Input(name="x", inputs=(), shape=(1, POSITIONS, CHANNELS)),
        LayerNorm(name="norm", inputs=("x",), scale=normal(CHANNELS), shift=normal(CHANNELS), epsilon=1e-3),
        MatMul(name="scores", inputs=("norm", "x"), transposed=True),
        Softmax(name="shares", inputs=("scores",)),
        MatMul(name="mixed", inputs=("shares", "x")),
        Conv2d(name="up", inputs=("mixed",), weight=pack(weight, block=(4, 1)), kernel=(1, 1)),
        Gelu(name="gelu", inputs=("up",), approximate="tanh"),
        LocalResponseNorm(name="response", inputs=("gelu",), size=5, alpha=0.5, beta=0.6, bias=2.0),
        Transpose(name="turned", inputs=("response",), axes=(0, 2, 1)),
        Gelu(name="y", inputs=("turned",)),
    ]
    return Graph(tuple(nodes), "NWC")


def island() -> Graph:
    """An integer layer on each side of a ReLU in float32."""
    first, second = (RNG.integers(-127, 128, (CHANNELS, CHANNELS)).astype(np.int8) for _ in range(2))
    multiplier, shift = np.full(CHANNELS, 40000, np.uint16), np.full(CHANNELS, 24, np.uint8)
    to = Requantization(multiplier, shift, "int8", 0.5)
    nodes: list[Node] = [
        Input(name="x", inputs=(), shape=(3, 4, CHANNELS), dtype="int8", scale=0.25),
        Conv2d(name="first", inputs=("x",), weight=first, kernel=(1, 1)),
        Dequantize(name="real", inputs=("first",), scale=RNG.uniform(1e-4, 1e-3, CHANNELS)),
        Relu(name="relu", inputs=("real",)),
        Quantize(name="again", inputs=("relu",), dtype="uint8", scale=0.03),
        Conv2d(name="y", inputs=("again",), weight=second, kernel=(1, 1), requantization=to),
    ]
    return Graph(tuple(nodes), "NCHW")


def main() -> None:
    """Write all files into a new directory."""
    place = Path(sys.argv[1])
    place.mkdir()
    for name, graph in (("sequence", sequence()), ("island", island())):
        save(Model(graph, producer="csengine 0.1.0"), place / f"{name}.safetensors")
        x = normal(5, *graph.input.shape) * np.float32(8)
        y = np.ascontiguousarray(reference.run(graph, x))
        save_file({"x": x, "y": y}, place / f"{name}.results.safetensors")


if __name__ == "__main__":
    main()
