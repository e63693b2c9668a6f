"""The process that owns XRT and an emulated device: answers requests over a socket, a message of JSON each.

    {"do": "open", "settings": {...}}      {"units": [...]}
    {"do": "shape_ids"}                    {"ids": [...]}
    {"do": "load", "bytes": N}             {}
    {"do": "run", "samples": N}            {"cycles": N}

Samples, results and parameters lie in shared memory: x first, then y. {"error": ...} answers what went wrong. The
process, a leader of its session, ends when the one that started it is gone, or when the emulated device is.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import shutil
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from csengine.errors import CsengineError
from csengine.fpga.device import Device, require_host


def main() -> None:
    """Serve until the other side closes the connection."""
    connection, memory = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_end_with_parent, args=(connection.fileno(),), daemon=True).start()
    worker = _Worker(memory)
    while True:
        try:
            answer = worker.answer(json.loads(connection.recv_bytes()))
        except EOFError:
            break
        except CsengineError as error:
            answer = {"error": str(error)}
        connection.send_bytes(json.dumps(answer).encode())
    _end_group()


class _Worker:
    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._size = (0, 0)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request.pop("do"):
            case "open":
                return self._open(request["settings"])
            case "shape_ids":
                return {"ids": self._host.shape_ids()}
            case "load":
                self._host.load(self._shared()[: request["bytes"]])
                return {}
            case "run":
                return {"cycles": self._run(request["samples"])}
            case unknown:
                return {"error": f"the worker does not know the request {unknown!r}"}

    def _open(self, settings: dict[str, Any]) -> dict[str, Any]:
        self._size = settings["x_bytes"], settings["y_bytes"]
        self._host: Device = require_host().Host(**settings)
        threading.Thread(target=_end_with_device, daemon=True).start()
        return {"units": self._host.units()}

    def _run(self, samples: int) -> int:
        x_bytes, y_bytes = (samples * size for size in self._size)
        shared = self._shared()
        x = shared[:x_bytes].reshape(samples, -1)
        return self._host.run(x, shared[x_bytes : x_bytes + y_bytes].reshape(samples, -1))

    def _shared(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.frombuffer(mmap.mmap(self._memory, 0), np.uint8)


def _end_with_parent(connection: int) -> None:
    """End, whatever the main thread waits for, when the other side of the connection is closed."""
    watch = select.poll()
    watch.register(connection, select.POLLRDHUP)
    watch.poll()
    _end_group()


def _end_with_device() -> None:
    """End when the emulated device ends: XRT would wait for its answer for ever."""
    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    if ended is not None:
        how = "status" if ended.si_code == os.CLD_EXITED else "signal"
        sys.stderr.write(f"the emulated device ended with {how} {ended.si_status}\n")
        sys.stderr.flush()
    os._exit(1)


def _end_group() -> None:
    """End this process and the emulated device, without XRT's farewell, which may take for ever."""
    shutil.rmtree(os.getcwd(), ignore_errors=True)  # a directory of its own, with XRT's socket and settings
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
