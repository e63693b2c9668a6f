"""Files of every minor format version, stored when it was frozen: they stay readable, and compute what they did.

`data/make_format_1.py`, `data/make_format_1_1.py` and `data/make_format_1_2.py` made them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from graphs import assert_matches
from safetensors import safe_open
from safetensors.numpy import load_file

from csengine import Engine, container
from csengine.graph import (
    OPERATIONS,
    Activation,
    Conv2d,
    Gelu,
    Graph,
    Input,
    LayerNorm,
    Linear,
    LocalResponseNorm,
    MatMul,
    Node,
    Product,
    Quantize,
    Transpose,
)
from csengine.packing import PackedMatrix

DATA = Path(__file__).parent / "data"
#: Name and the first digits of the file's SHA-256: stored files never change.
STORED = {
    "format-1/residual": "1c64a9708544c334",
    "format-1/branches": "7f6e6ffaca1f11c7",
    "format-1/pools": "26dc9fa9e2db0c60",
    "format-1/float": "0a455b0b84832017",
    "format-1/float-winners": "8dbedaf51a99eb64",
    "format-1/pipeline": "f68454c744fd483e",
    "format-1.1/sequence": "cf45d3220e491701",
    "format-1.1/island": "67cd56d43b893b44",
    "format-1.2/signal": "e2e54a76709884a3",
    "format-1.2/gates": "8d84696af918c901",
    "format-1.2/tables": "524a6f1e01d3fb3a",
    "format-1.2/functions": "65571d180664f966",
}
#: Operations of version 1.0.
FROZEN = (
    *("input", "conv2d", "linear", "affine", "relu", "clip", "kwta"),
    *("max_pool", "average_pool", "add", "concat", "reshape", "dequantize", "softmax"),
)


def _graphs(version: str) -> list[Graph]:
    return [container.load(DATA / f"{name}.safetensors").graph for name in STORED if Path(name).parent.name == version]


@pytest.mark.parametrize("name", STORED)
def test_stored_files_are_those_that_were_frozen(name: str) -> None:
    content = (DATA / f"{name}.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest()[:16] == STORED[name]


@pytest.mark.parametrize("backend", ["reference", "cpp", "numba"])
@pytest.mark.parametrize("name", STORED)
def test_stored_files_compute_what_they_did(name: str, backend: str) -> None:
    model = container.load(DATA / f"{name}.safetensors")
    stored = load_file(DATA / f"{name}.results.safetensors")
    engine = Engine(model, backend=backend)
    got = engine.run(model.graph.to_caller(stored["x"]))
    assert_matches(model.graph, model.graph.output.name, got, model.graph.to_caller(stored["y"]))


def test_stored_files_hold_all_that_version_1_0_has() -> None:
    graphs = _graphs("format-1")
    nodes = [node for graph in graphs for node in graph.nodes]
    assert {OPERATIONS[name] for name in FROZEN} == {type(node) for node in nodes}
    assert {graph.layout for graph in graphs} == {"NHWC", "NCHW"}
    weights = [node.weight for node in nodes if isinstance(node, Conv2d | Linear)]
    assert {(isinstance(w, PackedMatrix), w.dtype.name) for w in weights} >= {
        (True, "int8"),
        (True, "float32"),
        (False, "int8"),
        (False, "float32"),
    }


@pytest.mark.parametrize("name", STORED)
def test_what_is_written_now_is_the_same_file(name: str, tmp_path: Path) -> None:
    """Also where it needs nothing newer than 1.0."""
    path = tmp_path / "again.safetensors"
    container.save(container.load(DATA / f"{name}.safetensors"), path)
    assert path.read_bytes() == (DATA / f"{name}.safetensors").read_bytes()


def test_the_shipped_models_are_of_version_1_0() -> None:
    for path in sorted((Path(container.__file__).parent / "models").glob("*.safetensors")):
        assert version_of(path) == [1, 0], path


NORM = LocalResponseNorm(name="y", inputs=("x",), size=3)
NEWER = {
    "local_response_norm": (NORM,),
    "quantize": (NORM, Quantize(name="z", inputs=("y",), dtype="int8", scale=1.0)),
    "gelu": (Gelu(name="y", inputs=("x",)),),
    "matmul": (MatMul(name="y", inputs=("x", "x")),),
    "transpose": (Transpose(name="y", inputs=("x",), axes=(1, 2, 0)),),
    "layer_norm": (LayerNorm(name="y", inputs=("x",), scale=np.ones(3, np.float32), shift=np.ones(3, np.float32)),),
}


NEWEST: dict[str, tuple[Node, ...]] = {
    "product": (Product(name="y", inputs=("x", "x")),),
    "activation": (Activation(name="y", inputs=("x",), function="elu", alpha=0.5),),
}


@pytest.mark.parametrize("name", [*NEWER, "NWC", *NEWEST, "NCW"])
def test_what_is_newer_than_version_1_0_says_so(name: str, tmp_path: Path) -> None:
    source = Input(name="x", inputs=(), shape=(1, 3, 3))
    nodes = {**NEWER, **NEWEST}.get(name, ())
    graph = Graph((source, *nodes), name if name in ("NWC", "NCW") else "NHWC")  # type: ignore[arg-type]
    container.save(container.Model(graph), tmp_path / "model")
    assert version_of(tmp_path / "model") == [1, 1 if name in (*NEWER, "NWC") else 2]
    loaded = container.load(tmp_path / "model").graph
    assert (loaded.types, loaded.layout) == (graph.types, graph.layout)
    for node, kept in zip(graph.nodes, loaded.nodes, strict=True):
        assert repr(kept) == repr(node)


def test_stored_files_hold_all_that_version_1_1_adds() -> None:
    graphs = _graphs("format-1.1")
    assert {OPERATIONS[name] for name in NEWER} <= {type(node) for graph in graphs for node in graph.nodes}
    assert "NWC" in {graph.layout for graph in graphs}


def test_stored_files_hold_all_that_version_1_2_adds() -> None:
    graphs = _graphs("format-1.2")
    assert {OPERATIONS[name] for name in NEWEST} <= {type(node) for graph in graphs for node in graph.nodes}
    assert "NCW" in {graph.layout for graph in graphs}


def version_of(path: Path) -> list[int]:
    with safe_open(path, framework="numpy") as file:
        found: list[int] = json.loads(file.metadata()["csengine"])["version"]
    return found


def test_every_operation_is_of_some_version() -> None:
    assert set(OPERATIONS) == {*FROZEN, *NEWER, *NEWEST}
