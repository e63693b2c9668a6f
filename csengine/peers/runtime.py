"""What a runtime's module gives the worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Loaded:
    """A network with its input in place.

    feed: put the batch of that number in place. call: one inference of the whole batch in place, and nothing else.
    output: the result of the last call, in real numbers and the user's layout. tier: instruction sets used, where the
    runtime says so.
    """

    feed: Callable[[int], None]
    call: Callable[[], object]
    output: Callable[[], Array]
    tier: str = ""


class Source:
    """Batches in the form that a runtime takes; `buffer` is what it reads, and holds one of them."""

    def __init__(self, batches: Sequence[Array]) -> None:
        self.batches = batches
        self.buffer = batches[0].copy()

    def feed(self, number: int) -> None:
        """Fill the buffer."""
        np.copyto(self.buffer, self.batches[number])
