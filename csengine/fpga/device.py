"""Open devices: a card in this process, or an emulated device in a process of its own.

XRT's software emulation takes over signal handlers, and what goes wrong in it may end or hang its process. A user's
interpreter must see neither: the emulated device's host runs in a worker process (`csengine.fpga.worker`) in a session
of its own, every wait for it has a deadline, and whatever is amiss ends the worker and becomes a `DeviceError`.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from csengine.errors import BackendUnavailableError, DeviceError
from csengine.fpga import emulation

Bytes = NDArray[np.uint8]

#: Seconds that a worker may take to start, and to answer beyond what its own waits may take.
_START, _GRACE = 120.0, 10.0
#: Samples that a worker is asked for at a time, in chunks: few enough to answer before its deadline.
_CHUNKS_PER_REQUEST = 4


@dataclass(frozen=True)
class Settings:
    """How to open devices.

    devices: indices or BDFs; empty takes all that XRT reports. x_bytes, y_bytes: of one sample. samples_per_chunk: of
    one run of a compute unit. timeout: seconds that one run may take.
    """

    xclbin: str
    x_bytes: int
    y_bytes: int
    devices: tuple[str, ...] = ()
    samples_per_chunk: int = 256
    timeout: float = 30.0


class Device(Protocol):
    """Every compute unit of some devices. Methods raise DeviceError, and after that must not be called again."""

    def units(self) -> list[str]:
        """Names of the compute units."""

    def shape_ids(self) -> list[int]:
        """The shape identifier that each unit's registers show."""

    def load(self, image: Bytes) -> None:
        """Load the parameters."""

    def run(self, x: Bytes, y: Bytes) -> int:
        """Compute samples x `[n, x_bytes]` into y `[n, y_bytes]`; clock cycles of the unit that worked longest."""

    def close(self) -> None:
        """Give the devices back."""


def require_host() -> Any:
    """The extension module that drives XRT. Raises BackendUnavailableError with the remedy."""
    try:
        return importlib.import_module("csengine._xrt")
    except ImportError as error:
        raise BackendUnavailableError(
            f"the FPGA host is not built, or XRT is not installed ({error}); {emulation.REMEDY}"
        ) from error


def open_card(settings: Settings) -> Device:
    """Open real devices in this process. Raises BackendUnavailableError where there are none."""
    module = require_host()
    try:
        host: Device = module.Host(**_arguments(settings))
    except DeviceError as error:
        wanted = ", ".join(settings.devices) or "any"
        raise BackendUnavailableError(
            f"cannot open an FPGA (device: {wanted}): {error}; is the card listed by `xbutil examine`, and XILINX_XRT "
            "set (source /opt/xilinx/xrt/setup.sh)? Without a card, use emulate=True"
        ) from error
    return host


def _arguments(settings: Settings) -> dict[str, Any]:
    return {**asdict(settings), "devices": list(settings.devices)}


class EmulatedDevice:
    """See `Device`. Ends its worker, and with it the emulated device, when it is closed or forgotten."""

    def __init__(self, settings: Settings) -> None:
        """Start a worker, whose machine has the devices that the settings name; by default one."""
        settings = replace(settings, devices=settings.devices or ("0",))
        require_host()
        installation = emulation.install()
        self._settings = settings
        self._place = Path(tempfile.mkdtemp(prefix=f"csengine-{os.getpid()}-", dir="/tmp"))
        self._memory = _SharedMemory()
        own, other = socket.socketpair()
        self._connection = Connection(own.detach())
        environment = emulation.environment(installation, self._place, len(settings.devices))
        package = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        with (self._place / "log").open("w") as log, other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "csengine.fpga.worker", str(other.fileno()), str(self._memory.file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._place,
                env=environment,
                pass_fds=(other.fileno(), self._memory.file),
                start_new_session=True,
            )
        self._end = weakref.finalize(self, _end_worker, self._process, self._connection, self._memory, self._place)
        self._units: list[str] = self._ask(_START, do="open", settings=_arguments(settings))["units"]

    @property
    def process_id(self) -> int:
        """Of the worker, which leads the process group of the emulated device."""
        return self._process.pid

    def units(self) -> list[str]:
        """Names of the compute units."""
        return self._units

    def shape_ids(self) -> list[int]:
        """The shape identifier that each unit's registers show."""
        ids: list[int] = self._ask(_GRACE, do="shape_ids")["ids"]
        return ids

    def load(self, image: Bytes) -> None:
        """Load the parameters."""
        self._memory.resize(image.nbytes)
        self._memory.bytes[: image.nbytes] = image
        self._ask(len(self._units) * self._settings.timeout + _GRACE, do="load", bytes=image.nbytes)

    def run(self, x: Bytes, y: Bytes) -> int:
        """Compute samples; the cycles of requests that follow one another add up."""
        step = _CHUNKS_PER_REQUEST * self._settings.samples_per_chunk * len(self._units)
        return sum(self._run_some(x[i : i + step], y[i : i + step]) for i in range(0, len(x), step))

    def _run_some(self, x: Bytes, y: Bytes) -> int:
        self._memory.resize(x.nbytes + y.nbytes)
        shared_x = self._memory.bytes[: x.nbytes].reshape(x.shape)
        shared_y = self._memory.bytes[x.nbytes : x.nbytes + y.nbytes].reshape(y.shape)
        shared_x[:] = x
        limit = _CHUNKS_PER_REQUEST * self._settings.timeout + _GRACE
        cycles: int = self._ask(limit, do="run", samples=len(x))["cycles"]
        y[:] = shared_y
        return cycles

    def close(self) -> None:
        """End the worker."""
        self._end()

    def forget(self) -> None:
        """In a forked child: leave the worker to the parent."""
        self._end.detach()
        self._connection.close()

    def _ask(self, limit: float, **request: Any) -> dict[str, Any]:
        """The worker's answer, within so many seconds. Whatever interrupts it ends the worker."""
        try:
            self._connection.send_bytes(json.dumps(request).encode())
            if not self._connection.poll(limit):
                raise DeviceError(f"the emulated device did not answer {request['do']!r} within {limit:g} s")
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            said = self._last_words()
            self.close()
            raise DeviceError(f"the emulated device ended during {request['do']!r}: {said}") from error
        except BaseException:
            self.close()
            raise
        if "error" in answer:
            self.close()
            raise DeviceError(answer["error"])
        return answer

    def _last_words(self) -> str:
        """How the worker ended, and the last lines that it and the device printed."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        with suppress(OSError):
            lines = (self._place / "log").read_text(errors="replace").strip().splitlines()
            return "; ".join(line.strip() for line in lines[-3:]) or f"worker status {self._process.returncode}"
        return "it left no message"


class _SharedMemory:
    """Memory that this process and the worker see."""

    def __init__(self) -> None:
        self.file = os.memfd_create("csengine")
        self.bytes: Bytes = np.empty(0, np.uint8)

    def resize(self, size: int) -> None:
        """Let it hold so many bytes; it never shrinks."""
        if size > len(self.bytes):
            os.ftruncate(self.file, size)
            self.bytes = np.frombuffer(mmap.mmap(self.file, size), np.uint8)


def _end_worker(process: subprocess.Popen[bytes], connection: Connection, memory: _SharedMemory, place: Path) -> None:
    """End a worker with everything that it started, and remove what they left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    connection.close()
    os.close(memory.file)
    shutil.rmtree(place, ignore_errors=True)
