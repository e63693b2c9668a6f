"""Packed files taken apart and put together again, right or wrong, to see what the reader makes of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csengine.container import Model
from csengine.graph import (
    KWTA,
    Add,
    Conv2d,
    Dequantize,
    Graph,
    Input,
    Linear,
    MaxPool,
    Requantization,
    Reshape,
    Softmax,
)
from csengine.packing import pack

_NAMES = {"F32": np.float32, "F64": np.float64, "I8": np.int8, "U8": np.uint8, "I32": np.int32, "U16": np.uint16}


@dataclass
class PackedFile:
    """A file's graph JSON and its tensors `name -> (safetensors type, shape, bytes)`."""

    document: Any
    tensors: dict[str, tuple[str, list[int], bytes]]

    @classmethod
    def read(cls, content: bytes) -> PackedFile:
        length = int.from_bytes(content[:8], "little")
        header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
        document = json.loads(header.pop("__metadata__")["csengine"])
        tensors = {}
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            tensors[name] = entry["dtype"], entry["shape"], body[start:stop]
        return cls(document, tensors)

    def write(self) -> bytes:
        return self.write_text(json.dumps(self.document))

    def write_text(self, text: str) -> bytes:
        """The file with any text in place of the JSON."""
        header: dict[str, Any] = {"__metadata__": {"csengine": text}}
        body = b""
        for name, (kind, shape, data) in self.tensors.items():
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
            body += data
        return container(header, body)

    def array(self, name: str) -> np.ndarray:
        kind, shape, data = self.tensors[name]
        return np.frombuffer(data, _NAMES[kind]).reshape(shape).copy()

    def replace(self, name: str, array: np.ndarray) -> None:
        """Put another array in a tensor's place."""
        kind = next(kind for kind, dtype in _NAMES.items() if array.dtype == dtype)
        self.tensors[name] = kind, list(array.shape), array.tobytes()

    def node(self, name: str) -> dict[str, Any]:
        """A node's JSON."""
        found: dict[str, Any] = next(node for node in self.document["nodes"] if node["name"] == name)
        return found


def container(header: Any, body: bytes) -> bytes:
    """A safetensors file of a header and a body, unchecked."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def write(directory: Path, content: bytes) -> Path:
    path = directory / "model.safetensors"
    path.write_bytes(content)
    return path


def small_model() -> Model:
    """An integer network with every kind of field: packed and dense weights, a branch, a ranking factor, a softmax."""
    rng = np.random.default_rng(0)

    def requantization(n: int, shifts: int, dtype: Any) -> Requantization:
        return Requantization(np.full(n, 40000, np.uint16), np.full(shifts, 20, np.uint8), dtype, 0.1)

    def matrix(rows: int, kernels: int) -> Any:
        return (rng.integers(-9, 9, (rows, kernels)) * (rng.random((rows, kernels)) < 0.4)).astype(np.int8)

    nodes = (
        Input(name="input", inputs=(), shape=(4, 4, 2), dtype="uint8", scale=0.5),
        Conv2d(
            name="conv",
            inputs=("input",),
            weight=pack(matrix(18, 4), block=(4, 1), set_size=2),
            bias=np.arange(4, dtype=np.int32),
            requantization=requantization(4, 4, "uint8"),
            kernel=(3, 3),
            padding=(1, 1, 1, 1),
        ),
        KWTA(name="winners", inputs=("conv",), k=2, scope="local", factor=np.float32([1, 2, 1, 0.5])),
        Add(name="sum", inputs=("conv", "winners"), requantization=requantization(2, 1, "int8")),
        MaxPool(name="pool", inputs=("sum",), kernel=(2, 2), stride=(2, 2)),
        Reshape(name="flat", inputs=("pool",), shape=(16,)),
        Linear(name="classes", inputs=("flat",), weight=matrix(16, 3), bias=np.arange(3, dtype=np.int32)),
        Dequantize(name="logits", inputs=("classes",), scale=np.array([0.1, 0.2, 0.3])),
        Softmax(name="probabilities", inputs=("logits",)),
    )
    return Model(
        Graph(nodes, "NCHW"), ("yes", "no", "größer"), {"kind": "log-mel", "bands": 32}, {"test": 0.97, "seeds": [1, 2]}
    )
