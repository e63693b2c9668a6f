"""The shipped networks on emulated hardware, through XRT: every bit as the reference has it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import echo
import numpy as np
import pytest
import spoken
from numpy.typing import NDArray

from csengine import Engine, reference
from csengine.cli import shipped
from csengine.cli.samples import random_samples, read_recording
from csengine.fpga.device import EmulatedDevice
from csengine.fpga.plan import plan

Array = NDArray[Any]
log = logging.getLogger(__name__)

_missing = echo.missing()
pytestmark = pytest.mark.skipif(bool(_missing), reason=f"no emulated FPGA: {_missing}")
#: Held-out words besides the recordings; `make fpga-samples` takes 200.
_WORDS = int(os.environ.get("CSENGINE_FPGA_SAMPLES", "4"))


@pytest.mark.parametrize("name", ["kws", "kws_paper"])
def test_recordings_and_held_out_words_equal_the_reference(name: str, tmp_path: Path) -> None:
    model = shipped.load_model(name).model
    engine = Engine(model, backend="fpga", emulate=True)
    files = [recording.file for recording in shipped.recordings()]
    files += spoken.held_out(_WORDS, tmp_path) if spoken.available() else []
    x = np.concatenate([*(read_recording(file, model, engine.input_shape) for file in files), *_noise(engine)])
    expected = reference.run(model.graph, x.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(engine.run(x), expected)
    period = (16 * _cycles(engine, x[:16]) - 8 * _cycles(engine, x[:8])) / 8
    log.info("%s: %.1f clocks per word, %d words", name, period, len(x))
    assert abs(period - plan(model.graph).cycles) < 3  # the last step of a global k-WTA depends on values
    assert isinstance(engine._program._device, EmulatedDevice)  # type: ignore[attr-defined]


def _cycles(engine: Engine, x: Array) -> float:
    """Clocks per word of these words, in one run."""
    engine.run(x)
    (cycles,) = (row.cycles for row in engine.plan() if row.cycles)
    return cycles


def _noise(engine: Engine) -> list[Array]:
    """Values over the whole range, which words do not have."""
    return [random_samples(engine, 4, seed=1)]
