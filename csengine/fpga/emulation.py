"""What XRT's software emulation needs around it: its own root directory, the device's program, an environment.

XRT starts the program of `FPGA/emulation` in place of a card and talks to it over a socket; everything between the
host's code and the kernel's registers is XRT's own. Nothing of the system is touched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from csengine.errors import BackendUnavailableError
from csengine.fpga import cache
from csengine.fpga.xclbin import PLATFORM

REMEDY = "on Debian 12: apt-get install libxrt1 libxrt-dev uuid-dev g++, then reinstall csengine"
SOURCES = Path(__file__).resolve().parents[2] / "FPGA" / "emulation"

_DRIVER = "libxrt_swemu.so.2"
_LIBRARIES = re.compile(r"lib(xrt|xdp|xilinxopencl|sched_em).*\.so\.2")
#: Where XRT looks for the device's program below XILINX_VITIS.
_PROGRAM = Path("data/emulation/unified/cpu_em/generic_pcie/model/genericpciemodel")

# Debian's build of `CpuemShim::alloc_void` drops what realloc returns, and every run dies of it soon after:
#     store:  mov %rax,buffer(%rbx); mov %rbp,%rax; jmp end; nopl
#     grow:   mov buffer(%rdi),%rdi; call realloc; test %rax,%rax; jne <past the store>
# The last byte, the distance of the jump, is repaired so that it leads to the store.
_BUFFER = re.escape(b"\x70\x06\0\0")
_DEFECT = re.compile(
    rb"\x48\x89\x83" + _BUFFER + rb"\x48\x89\xe8\xeb\xe1\x0f\x1f\x40\x00"
    rb"\x48\x8b\xbf" + _BUFFER + rb"\xe8....\x48\x85\xc0\x75(\xe6)",
    re.DOTALL,
)
_REPAIR = 0xDF

_SETTINGS = """\
[Runtime]
kds_sw_emu=false
polling_throttle=50
"""


@dataclass(frozen=True)
class Installation:
    """XRT's root with the repaired driver, and the root of the device's program."""

    xrt: Path
    vitis: Path


def install() -> Installation:
    """Both roots, from the cache or made now (some seconds). Raises BackendUnavailableError with cause and remedy."""
    return Installation(_xrt_root(), _device_root())


def repaired(driver: bytes) -> bytes:
    """Debian's driver with the one byte set right. Raises BackendUnavailableError unless it is exactly that build."""
    found = list(_DEFECT.finditer(driver))
    if len(found) != 1:
        raise BackendUnavailableError(
            f"emulation needs to repair a defect of Debian's {_DRIVER} (libxrt1 202210.2.13.466), whose place was "
            f"found {len(found)} times instead of once; install that version, or use a card"
        )
    content = bytearray(driver)
    content[found[0].start(1)] = _REPAIR
    return bytes(content)


def _xrt_root() -> Path:
    """A directory like XRT's own: links to the system's libraries, and a repaired copy of the driver."""
    drivers = sorted(Path("/usr/lib").glob(f"*/{_DRIVER}"))
    if not drivers:
        raise BackendUnavailableError(f"emulation needs the Xilinx Runtime, whose {_DRIVER} is not installed; {REMEDY}")
    content = repaired(drivers[0].read_bytes())

    def make(place: Path) -> None:
        (place / "lib").mkdir()
        for library in drivers[0].parent.iterdir():
            if _LIBRARIES.fullmatch(library.name) and library.name != _DRIVER:
                (place / "lib" / library.name).symlink_to(library)
        (place / "lib" / _DRIVER).write_bytes(content)

    return cache.made("xrt-" + cache.key(content), make)


def _device_root() -> Path:
    """The compiled device program, where XRT looks for it."""
    if not SOURCES.is_dir():
        raise BackendUnavailableError(f"the emulated device's sources are not in {SOURCES}; use csengine's source tree")
    compiler = shutil.which(os.environ.get("CXX", "g++").split()[-1])
    if compiler is None:
        raise BackendUnavailableError(f"emulation compiles its device, and there is no C++ compiler; {REMEDY}")
    sources = {path.name: path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.suffix in (".h", ".cpp")}
    command = [compiler, "-std=c++17", "-O2", str(SOURCES / "device.cpp"), "-ldl", "-o"]

    def make(place: Path) -> None:
        (place / _PROGRAM).parent.mkdir(parents=True)
        run_tool([*command, str(place / _PROGRAM)])

    return cache.made("device-" + cache.key(" ".join(command), *sources, *sources.values()), make)


def run_tool(command: list[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a compiler. Raises BackendUnavailableError with the end of what it said."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
        raise BackendUnavailableError(f"{Path(command[0]).name} failed with status {done.returncode}:\n{said}")


def environment(installation: Installation, place: Path, devices: int = 1) -> dict[str, str]:
    """The environment of a process that runs an emulated device; writes its settings into `place`.

    place: a new directory right below /tmp, because XRT puts its socket into /tmp/$USER.
    """
    board = {"Devices": [{"Name": PLATFORM, "DdrBanks": [{"Size": "16GB"}]}]}
    configuration = {"Version": {"FileVersion": "2.0"}, "Platform": {"Boards": [board] * devices}}
    (place / "emconfig.json").write_text(json.dumps(configuration))
    (place / "xrt.ini").write_text(_SETTINGS)
    return {
        **os.environ,
        "XCL_EMULATION_MODE": "sw_emu",
        "XILINX_XRT": str(installation.xrt),
        "XILINX_VITIS": str(installation.vitis),
        "USER": place.name,
        "EMCONFIG_PATH": str(place),
        "SDACCEL_EM_RUN_DIR": str(place),
        "XRT_INI_PATH": str(place / "xrt.ini"),
    }
