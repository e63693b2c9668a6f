"""The FPGA backend: one hardware pipeline computes every integer layer; the host quantizes before and scales after.

What the host does, it does by the reference's own functions, so that results are the reference's, bit for bit. At
open, the device must return what is written to its memory, show the identifier of the network's shape, and compute
random samples as the reference does; only then is it used. A device that fails later is given up with an error, and
opened anew by the next call.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from csengine import reference
from csengine.backends import KernelChoice, Mode, require_finite
from csengine.errors import BackendUnavailableError, DeviceError
from csengine.fpga import build, generate, image, plan, shape, xclbin
from csengine.fpga.build import Hardware
from csengine.fpga.device import Bytes, Device, EmulatedDevice, Settings, open_card
from csengine.fpga.plan import Plan
from csengine.graph import OPERATION_NAMES, Graph

Array: TypeAlias = NDArray[Any]
#: Devices by index or BDF; None takes all that XRT reports.
DeviceNames: TypeAlias = int | str | Sequence[int | str] | None

#: Samples of one run of an emulated unit, few enough to end in time, and seconds that it may take.
_EMULATED_CHUNK, _EMULATED_TIMEOUT = 16, 120.0
_SELF_TEST_SEED = 20


@dataclass(frozen=True)
class Pipeline:
    """What a device must be to compute a network.

    hardware: of the network's shape. image: the parameters, as the hardware loads them. output: the node that the
    device computes last. difference: what tells another shape's description (`Hardware.shape`) from this one, in words.
    """

    hardware: Hardware
    image: Bytes
    output: str
    difference: Callable[[Mapping[str, Any]], str]


def compile(
    graph: Graph,
    mode: Mode,
    threads: int,
    emulate: bool | None = None,
    xclbin: str | os.PathLike[str] | None = None,
    device: DeviceNames = None,
) -> FpgaProgram:
    """Open devices that hold the network's pipeline and load its parameters; see `Engine.load` for the arguments.

    mode and threads do not change what the pipeline does. Raises BackendUnavailableError, DeviceError,
    UnsupportedModelError (no pipeline can hold the network), FileNotFoundError.
    """
    emulate = _emulates() if emulate is None else emulate
    path = xclbin or os.environ.get("CSENGINE_FPGA_XCLBIN") or None
    names = _device_names(os.environ.get("CSENGINE_FPGA_DEVICE") or None if device is None else device)
    if not emulate and path is None:
        raise BackendUnavailableError(
            "backend 'fpga' needs a card's xclbin (xclbin=, or CSENGINE_FPGA_XCLBIN; `csengine fpga build --target hw` "
            "writes the project that makes it), or emulate=True (or CSENGINE_FPGA_EMULATE=1)"
        )
    found = None if path is None else Path(path)
    built = None if found is None else _plan_in(found, graph)
    return open_program(graph, pipeline_for(graph, built), emulate, found, names)


def open_program(
    graph: Graph, pipeline: Pipeline, emulate: bool, path: Path | None = None, devices: tuple[str, ...] = ()
) -> FpgaProgram:
    """The program for a pipeline; path: its xclbin, None for an emulated device built here."""
    path = (path or build.emulated(pipeline.hardware)).resolve()
    _check_xclbin(path, pipeline, emulate)
    x_bytes, y_bytes = (_sample_bytes(graph, name) for name in (graph.input.name, pipeline.output))
    settings = Settings(str(path), x_bytes, y_bytes, devices)
    if not emulate:
        return FpgaProgram(graph, pipeline, lambda: open_card(settings), "xrt")
    slow = Settings(str(path), x_bytes, y_bytes, devices, _EMULATED_CHUNK, _EMULATED_TIMEOUT)
    return FpgaProgram(graph, pipeline, lambda: EmulatedDevice(slow), "xrt-emulation")


def pipeline_for(graph: Graph, planned: Plan | None = None) -> Pipeline:
    """Hardware and parameters of a network. planned: made for it with some budget; by default without any.

    Raises UnsupportedModelError where no pipeline can hold the network.
    """
    own = planned or plan.plan(graph)

    def difference(other: Mapping[str, Any]) -> str:
        return shape.difference(own, Plan.from_json(other["plan"]))

    hardware = Hardware(generate.top(own), tuple(generate.sources()), shape.fingerprint(own), {"plan": own.to_json()})
    return Pipeline(hardware, image.build(graph, own), own.output_name, difference)


def _plan_in(path: Path, graph: Graph) -> Plan | None:
    """The plan that an xclbin was built from, if it tells and can hold the network."""
    described = xclbin.read(path).shape
    if described is None or "plan" not in described:
        return None
    built = Plan.from_json(described["plan"])
    return built if plan.holds(built, graph) else None


def _emulates() -> bool:
    """What the environment says of emulation."""
    value = os.environ.get("CSENGINE_FPGA_EMULATE") or "0"
    if value not in ("0", "1"):
        raise ValueError(f"CSENGINE_FPGA_EMULATE is {value!r}; expected 0 or 1")
    return value == "1"


def _device_names(device: DeviceNames) -> tuple[str, ...]:
    if device is None:
        return ()
    if isinstance(device, str):
        return tuple(filter(None, (name.strip() for name in device.split(","))))
    return (str(device),) if isinstance(device, int) else tuple(map(str, device))


def _check_xclbin(path: Path, pipeline: Pipeline, emulate: bool) -> None:
    """Raise DeviceError unless the file is an xclbin of this shape, for a card or for emulation as asked."""
    found = xclbin.read(path)
    if found.is_emulated != emulate:
        kinds = ("a card", "the emulated device")
        raise DeviceError(f"{path} was built for {kinds[found.is_emulated]}; expected one for {kinds[emulate]}")
    if found.shape is None or found.shape == pipeline.hardware.shape:
        return  # a card's own register tells the shape, too
    raise DeviceError(
        f"{path} was built for a network of another shape: {pipeline.difference(found.shape)}; "
        "build one for this model with `csengine fpga build`"
    )


def _sample_bytes(graph: Graph, name: str) -> int:
    kind = graph.types[name]
    return kind.size * np.dtype(kind.dtype).itemsize


class FpgaProgram:
    """See `csengine.backends.Program`. Calls from many threads take turns."""

    def __init__(self, graph: Graph, pipeline: Pipeline, open_device: Callable[[], Device], tier: str) -> None:
        self._graph, self._pipeline, self._open_device, self._tier = graph, pipeline, open_device, tier
        position = [node.name for node in graph.nodes].index(pipeline.output)
        self._tail = graph.nodes[position + 1 :]
        self._device: Device | None = None
        self._lock = threading.Lock()
        self._cycles = 0.0
        _programs.add(self)
        with self._lock:
            self._opened()

    def run(self, x: Array) -> Array:
        """The result `[B, ...]`."""
        return self.trace(x)[self._graph.output.name]

    def trace(self, x: Array) -> dict[str, Array]:
        """The tensors that the host sees: the input's, the pipeline's result, and what follows it."""
        require_finite(x)
        node = self._graph.input
        tensors = {node.name: reference.apply(node, [x])}
        tensors[self._pipeline.output] = self._compute(tensors[node.name])
        self._finish(tensors)
        return tensors

    def choices(self) -> Mapping[str, KernelChoice]:
        """The pipeline, with its clock cycles per sample in the last run, between what NumPy does on the host."""
        found = {
            node.name: KernelChoice(OPERATION_NAMES[type(node)], "numpy", "")
            for node in (self._graph.input, *self._tail)
        }
        found[self._pipeline.output] = KernelChoice("pipeline", self._tier, "sparse-sparse", cycles=self._cycles)
        return {node.name: found[node.name] for node in self._graph.nodes if node.name in found}

    def profile(self, x: Array) -> Mapping[str, float]:
        """Seconds of what the host does, and of the pipeline with all transfers (an emulated one is slow)."""
        require_finite(x)
        first, start = self._graph.input, time.perf_counter()
        tensors = {first.name: reference.apply(first, [x])}
        quantized = time.perf_counter()
        tensors[self._pipeline.output] = self._compute(tensors[first.name])
        seconds = {first.name: quantized - start, self._pipeline.output: time.perf_counter() - quantized}
        for node in self._tail:
            start = time.perf_counter()
            tensors[node.name] = reference.apply(node, [tensors[name] for name in node.inputs])
            seconds[node.name] = time.perf_counter() - start
        return seconds

    def _finish(self, tensors: dict[str, Array]) -> None:
        for node in self._tail:
            tensors[node.name] = reference.apply(node, [tensors[name] for name in node.inputs])

    def _compute(self, x: Array) -> Array:
        """The pipeline's result for quantized samples."""
        with self._lock:
            device = self._device or self._opened()
            try:
                return self._run_on(device, x)
            except BaseException:
                self._device = None  # in an unknown state, even if only this call was interrupted
                device.close()
                raise

    def _run_on(self, device: Device, x: Array) -> Array:
        kind = self._graph.types[self._pipeline.output]
        y = np.empty((len(x), *kind.shape), kind.dtype)
        if len(x):
            cycles = device.run(_as_bytes(x), _as_bytes(y))
            self._cycles = cycles / len(x)
        return y

    # --- opening -----------------------------------------------------------------------------------------------------

    def _opened(self) -> Device:
        """The device, opened, loaded and tested."""
        device = self._open_device()
        try:
            self._check_shape(device)
            device.load(self._pipeline.image)
            self._self_test(device)
        except BaseException:
            device.close()
            raise
        self._device = device
        return device

    def _check_shape(self, device: Device) -> None:
        wanted = self._pipeline.hardware.fingerprint
        for unit, found in zip(device.units(), device.shape_ids(), strict=True):
            if found != wanted:
                raise DeviceError(
                    f"{unit} holds the hardware of shape {found:016x}; this model's is {wanted:016x}; "
                    "build it with `csengine fpga build`"
                )

    def _self_test(self, device: Device) -> None:
        """Raise DeviceError unless every unit computes a random sample as the reference does."""
        node = self._graph.input
        limits = np.iinfo(node.dtype)
        shape = (len(device.units()), *node.shape)
        rng = np.random.default_rng(_SELF_TEST_SEED)
        x = rng.integers(limits.min, limits.max, shape, node.dtype, endpoint=True)
        expected = reference.trace(self._graph, x)[self._pipeline.output]
        found = self._run_on(device, x)
        if not np.array_equal(found, expected):
            raise DeviceError(
                f"the device failed its self-test: {np.count_nonzero(found != expected)} of {expected.size} results "
                "differ from the reference; the clock may be too fast for the card, or the hardware is not csengine's"
            )

    def _forget(self) -> None:
        """In a forked child: the device is the parent's; the next call opens another."""
        self._lock = threading.Lock()
        if self._device is not None:
            _inherited.append(self._device)
            if isinstance(self._device, EmulatedDevice):
                self._device.forget()
            self._device = None


def _as_bytes(x: Array) -> Bytes:
    """The samples' memory as `[n, bytes]`."""
    return x.view(np.uint8).reshape(len(x), -1)


_programs: weakref.WeakSet[FpgaProgram] = weakref.WeakSet()
#: A parent's devices, which must never be closed here.
_inherited: list[Device] = []


def _forget_all() -> None:
    for program in _programs:
        program._forget()


os.register_at_fork(after_in_child=_forget_all)
