"""Which runtimes there are, in which variants, and how close each must come."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import csengine
from csengine.backends import MODES
from csengine.errors import BackendUnavailableError
from csengine.graph import Graph
from csengine.peers.functions import has_winners, is_linear
from csengine.resources import has_vnni

OWN = "csengine"

#: Relative error (see `functions.relative_error`) that each precision may have; 8-bit runtimes against the integer
#: result, whose weights and scales they share, others against the function in real numbers. With k-winners a value
#: that rounds differently can be another winner, and the error is that of a whole activation. Without VNNI, int8
#: variants may have weights of 7 bits (see `onnx_form`), whose rounding adds up over the layers of a network.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.05, "int8": 0.05 if has_vnni() else 0.1, "int4": 0.25}
TOLERANCE_WITH_WINNERS = {"fp32": 1e-2, "bf16": 0.25, "int8": 0.25, "int4": 0.5}


@dataclass(frozen=True)
class Variant:
    """A way to run a network. winners, linear: only for networks with k-winners, only for a single linear layer."""

    precision: str
    winners: bool = False
    linear: bool = False


@dataclass(frozen=True)
class Peer:
    """A runtime.

    packages: whose versions are recorded. environment: variables that its process needs to be at its best. aborts: a
    network that it cannot run may end its process, so that every network gets one. note: to be said beside its figures.
    """

    packages: tuple[str, ...]
    variants: Mapping[str, Variant]
    environment: Mapping[str, str] = field(default_factory=dict)
    aborts: bool = False
    note: str = ""


_KEEP_MEMORY = dict.fromkeys(
    ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"), str(2**29)
)  # else glibc maps and clears the pages of large tensors anew in every run

PEERS: Mapping[str, Peer] = {
    "onnxruntime": Peer(
        ("onnxruntime", "onnx"),
        {
            "fp32": Variant("fp32"),
            "fp32-scatter": Variant("fp32", winners=True),
            "int8": Variant("int8"),
            "int8-integer": Variant("int8", linear=True),
            "int4": Variant("int4", linear=True),
        },
    ),
    "openvino": Peer(
        ("openvino", "onnx"),
        {
            "fp32": Variant("fp32"),
            "fp32-scatter": Variant("fp32", winners=True),
            "bf16": Variant("bf16"),
            "int8": Variant("int8"),
            "int8-sparse": Variant("int8"),
        },
    ),
    "torch": Peer(
        ("torch",),
        {
            "fp32": Variant("fp32"),
            "bf16": Variant("bf16"),
            "fp32-compiled": Variant("fp32"),
            "bf16-compiled": Variant("bf16"),
            "fp32-csr": Variant("fp32", linear=True),
        },
        {**_KEEP_MEMORY, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
    ),
    "scipy": Peer(("scipy",), {"fp32-csr": Variant("fp32", linear=True)}),
    "deepsparse": Peer(
        ("deepsparse", "onnx"),
        {"fp32": Variant("fp32"), "int8": Variant("int8")},
        {"NM_DISABLE_ANALYTICS": "1"},
        aborts=True,
        note="DeepSparse is licensed for evaluation only, and no longer maintained",
    ),
}


def precision_of(peer: str, variant: str) -> str:
    """Of a peer's variant; csengine's own are as precise as the model."""
    return "own" if peer == OWN else PEERS[peer].variants[variant].precision


def suited(peer: str, graph: Graph) -> tuple[str, ...]:
    """The variants of a peer that make sense for a network, and differ from each other."""
    is_integer = graph.input.scale is not None
    return tuple(
        name
        for name, variant in PEERS[peer].variants.items()
        if (has_winners(graph) or not variant.winners)
        and (is_linear(graph) or not variant.linear)
        and (is_integer or variant.precision != "int8")
    )


def own_variant(backend: str, mode: str, *, exact: bool = False) -> str:
    """How csengine's variants are called: backend and mode. exact: in this mode and no lesser one."""
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; expected {', '.join(MODES)}")
    return f"{backend}/{mode}" + ("/exact" if exact else "")


def directory() -> Path:
    """Where the peers' environments are: `CSENGINE_PEERS`, or `.venv-peers` here or in the source tree."""
    if chosen := os.environ.get("CSENGINE_PEERS"):
        return Path(chosen)
    places = [Path.cwd(), Path(csengine.__file__).parent.parent]
    return next((place for place in (p / ".venv-peers" for p in places) if place.is_dir()), places[0] / ".venv-peers")


def interpreter(peer: str) -> Path:
    """The Python of a peer's environment. Raises BackendUnavailableError with the remedy."""
    if peer == OWN:
        return Path(sys.executable)
    path = directory() / peer / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not path.is_file():
        raise BackendUnavailableError(
            f"{peer} has no environment ({path} is missing); run `make peers PEERS={peer}` in a source tree, which "
            f"installs bench/peers/{peer}.txt, or let CSENGINE_PEERS name a directory with a virtual environment {peer}"
        )
    return path


def installed() -> tuple[str, ...]:
    """The peers whose environments exist."""
    found = []
    for peer in PEERS:
        try:
            interpreter(peer)
        except BackendUnavailableError:
            continue
        found.append(peer)
    return tuple(found)


def describe(versions: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """Peers, their versions and what must be said beside their figures, for JSON."""
    return [
        {"peer": peer, "versions": dict(found), "note": PEERS[peer].note if peer in PEERS else ""}
        for peer, found in versions.items()
    ]
