"""What a backend is: it compiles a checked graph into a `Program`.

Each backend module has `compile(graph, mode, threads) -> Program` and raises `BackendUnavailableError` when it cannot
run here. Modules are imported only when asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from csengine.errors import ShapeError

#: Which sparsity layers with weights may use: none, that of the weights, or that of the activations, too. A backend
#: may do with less in a layer where that is faster. "auto" allows both.
Mode: TypeAlias = Literal["auto", "dense", "sparse-dense", "sparse-sparse"]
MODES: tuple[Mode, ...] = ("auto", "dense", "sparse-dense", "sparse-sparse")


@dataclass(frozen=True)
class KernelTiming:
    """A kernel that was tried for a layer when the model was loaded. seconds: for one sample, the fastest run."""

    kernel: str
    tier: str
    mode: str
    seconds: float


@dataclass(frozen=True)
class KernelChoice:
    """The kernel that runs a node: its name, its tier (instruction set, "numpy", "numba" or "xrt") and its mode.

    mode: "dense", "sparse-dense" or "sparse-sparse" for a layer with weights, otherwise "". measured: every kernel that
    was tried, the chosen one first, then the fastest; empty where nothing was measured. cycles: clock cycles per
    sample in the last run, where the hardware counts them.
    """

    kernel: str
    tier: str
    mode: str
    measured: tuple[KernelTiming, ...] = ()
    cycles: float | None = None


class Program(Protocol):
    """A network compiled for one backend. May be used from many threads at once."""

    def run(self, x: NDArray[Any]) -> NDArray[Any]:
        """The result `[B, ...]` of a batch `[B, ...]`, B >= 0: NHWC, C-contiguous, float32 or the model's input type.

        Raises ShapeError if a value is not finite.
        """

    def trace(self, x: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """Every node's tensor `[B, ...]`; those inside a hardware pipeline are missing."""

    def choices(self) -> Mapping[str, KernelChoice]:
        """The kernel of every node that runs; a node that was fused into another is missing."""

    def profile(self, x: NDArray[Any]) -> Mapping[str, float]:
        """Seconds spent in every node that runs, for one pass over a batch."""


def require_finite(x: NDArray[Any]) -> None:
    """Raise ShapeError, naming the first place, if x holds NaN or infinity."""
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise ShapeError(f"input holds {x[place]} at {place} (sample first, NHWC); expected finite numbers")
