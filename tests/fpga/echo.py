"""The small kernel of `echo_top.sv`, as a pipeline that computes a network: an identity on 64 bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from csengine.backends.fpga import FpgaProgram, Pipeline, open_program
from csengine.errors import BackendUnavailableError
from csengine.fpga import build, device, emulation
from csengine.fpga.build import Hardware
from csengine.graph import Dequantize, Graph, Input, Relu

BYTES = 64
FOREVER = 2**32 - 1
SHAPE_ID = 0x0123456789ABCDEF


def missing() -> str:
    """Why nothing can be emulated here, or ""."""
    try:
        device.require_host()
        emulation.install()
        build.find_verilator()
    except BackendUnavailableError as error:
        return str(error)
    return ""


def graph() -> Graph:
    nodes = (
        Input(name="input", inputs=(), shape=(4, 4, 4), dtype="uint8", scale=1 / 255),
        Relu(name="relu", inputs=("input",)),
        Dequantize(name="output", inputs=("relu",), scale=np.array([0.5])),
    )
    return Graph(nodes, "NHWC")


def hardware(bits: int = 64, shape_id: int = SHAPE_ID) -> Hardware:
    text = Path(__file__).with_name("echo_top.sv").read_text()
    text = text.replace("DataBits = 64", f"DataBits = {bits}").replace(
        "ShapeId  = 64'h0", f"ShapeId = 64'h{shape_id:x}"
    )
    return Hardware(text, (), shape_id, {"kernel": "echo", "bits": bits})


def image(add: int = 0, stall: int = 0, flags: int = 0) -> Any:
    """Parameters: what to add to every byte, clocks that a sample takes more, error flags to report."""
    return np.frombuffer(struct.pack("<8sII48x", bytes([add] * 8), stall, flags), np.uint8)


def pipeline(bits: int = 64, **parameters: int) -> Pipeline:
    own = hardware(bits)

    def difference(other: Mapping[str, Any]) -> str:
        return f"its bus has {other['bits']} bits, this one's {bits}"

    return Pipeline(own, image(**parameters), "relu", difference)


def program(bits: int = 64, devices: tuple[str, ...] = (), units: int = 1, **parameters: int) -> FpgaProgram:
    wanted = pipeline(bits, **parameters)
    return open_program(graph(), wanted, True, build.emulated(wanted.hardware, units), devices)


def samples(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 4), np.uint8)
