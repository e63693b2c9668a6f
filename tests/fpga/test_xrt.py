"""The host, XRT and the emulated device together, each scenario in an interpreter of its own with a hard time limit."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import echo
import numpy as np
import pytest
import scenarios
from hypothesis import given
from hypothesis import strategies as st

from csengine import BackendUnavailableError, DeviceError, Engine
from csengine.backends.fpga import open_program
from csengine.container import Model
from csengine.fpga import build, cache, device, emulation, xclbin

_LIMIT = 90.0  # seconds; every scenario ends within a few
_STATUS = {"an_exception_ends_the_interpreter_as_ever": 1, "interpreter_is_killed_in_mid_run": -signal.SIGKILL}
_SCENARIOS = [name for name, value in vars(scenarios).items() if getattr(value, "__module__", "") == "scenarios"]
_HELPERS = {"check", "raises", "worker", "emulated_device", "while_running"}

_missing = echo.missing()
needs_emulation = pytest.mark.skipif(bool(_missing), reason=f"no emulated FPGA: {_missing}")


@pytest.fixture(scope="session")
def built() -> None:
    """Build what the scenarios share, so that none of them spends its time on it."""
    for bits, units in ((64, 1), (512, 1), (64, 3)):
        build.emulated(echo.hardware(bits), units)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory right below /tmp, as XRT needs for its socket."""
    with tempfile.TemporaryDirectory(prefix="csengine-test-", dir="/tmp") as name:
        yield Path(name)


@needs_emulation
@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("name", [name for name in _SCENARIOS if name not in _HELPERS])
def test_scenario(name: str, scratch: Path) -> None:
    environment = {**os.environ, "SCRATCH": str(scratch), "CSENGINE_TEST": str(scratch)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, scenarios.__file__, name]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=_LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        pytest.fail(f"{name} did not end within {_LIMIT:g} s:\n{said}")
    assert process.returncode == _STATUS.get(name, 0), said
    _wait_until_gone(f"CSENGINE_TEST={scratch}")
    assert not _left_behind()


def _wait_until_gone(mark: str) -> None:
    """Every process that inherited this variable must end soon."""
    deadline = time.monotonic() + 10
    while left := [pid for pid in Path("/proc").glob("[0-9]*") if mark.encode() in _environment(pid)]:
        if time.monotonic() > deadline:
            pytest.fail(f"processes are left: {[(pid / 'cmdline').read_bytes() for pid in left]}")
        time.sleep(0.05)


def _left_behind() -> list[Path]:
    """Devices' directories, `csengine-<process>-...`, whose process is gone; others' tests may run beside these."""
    places = [(place, place.name.split("-")[1]) for place in Path("/tmp").glob("csengine-[0-9]*-*")]
    return [place for place, process in places if not Path("/proc", process).exists()]


def _environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


# --- what needs no device --------------------------------------------------------------------------------------------


def test_the_backend_asks_for_a_card_or_emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EMULATE", "XCLBIN", "DEVICE"):
        monkeypatch.delenv(f"CSENGINE_FPGA_{name}", raising=False)
    with pytest.raises(BackendUnavailableError, match=r"needs a card's xclbin .* or emulate=True"):
        Engine(Model(echo.graph()), backend="fpga")


def test_options_of_the_fpga_are_for_the_fpga() -> None:
    for options in ({"emulate": True}, {"xclbin": "x"}, {"device": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is for backend='fpga'; backend is 'cpp'"):
            Engine(Model(echo.graph()), backend="cpp", **options)  # type: ignore[arg-type]


def test_a_missing_host_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "csengine._xrt", None)
    for open_device in (device.EmulatedDevice, device.open_card):
        with pytest.raises(BackendUnavailableError, match=r"not built.*apt-get install libxrt1 libxrt-dev"):
            open_device(device.Settings("none.xclbin", 1, 1))


def test_a_driver_is_repaired_only_where_the_defect_is_exactly_known() -> None:
    defect = bytes.fromhex("488983700600004889e8ebe10f1f400048 8bbf70060000e8aabbccdd4885c075e6".replace(" ", ""))
    driver = b"before" + defect + b"after"
    repaired = emulation.repaired(driver)
    assert [i for i, (a, b) in enumerate(zip(driver, repaired, strict=True)) if a != b] == [6 + len(defect) - 1]
    assert repaired[6 + len(defect) - 1] == 0xDF
    for other in (b"", driver[:-6], defect * 2, repaired, driver.replace(b"\x48\x89\xe8", b"\x48\x89\xe9")):
        with pytest.raises(BackendUnavailableError, match="defect of Debian's libxrt_swemu"):
            emulation.repaired(other)


def test_builds_are_made_once_and_only_whole_ones_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSENGINE_CACHE", str(tmp_path))

    def fail(place: Path) -> None:
        (place / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.made("a", fail)
    calls = []

    def make(place: Path) -> None:
        calls.append(place)
        (place / "whole").touch()

    for _ in range(2):
        assert sorted(path.name for path in cache.made("a", make).iterdir()) == ["whole"]
    assert len(calls) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.lock"]


def test_keys_tell_all_parts_apart() -> None:
    assert len({cache.key("ab", "c"), cache.key("a", "bc"), cache.key("abc"), cache.key("abc", "")}) == 4
    assert cache.key("ab") == cache.key(b"ab")


def test_a_failing_tool_says_why() -> None:
    with pytest.raises(BackendUnavailableError, match="status 3:\nno such luck"):
        emulation.run_tool([sys.executable, "-c", "import sys; print('no such luck'); sys.exit(3)"])


# --- the container ---------------------------------------------------------------------------------------------------


@pytest.fixture
def content() -> bytes:
    return xclbin.write_emulated(b"kernel", {"kernel": "echo", "bits": 64}, units=2)


def test_a_container_returns_what_was_put_in(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.xclbin"
    path.write_bytes(content)
    found = xclbin.read(path)
    assert found.is_emulated
    assert found.shape == {"kernel": "echo", "bits": 64}
    assert found.sections[xclbin.Section.BITSTREAM] == b"kernel"
    assert found.sections[xclbin.Section.EMBEDDED_METADATA].count(b"<instance") == 2
    assert content == xclbin.write_emulated(b"kernel", {"bits": 64, "kernel": "echo"}, units=2)
    assert content != xclbin.write_emulated(b"kernex", {"bits": 64, "kernel": "echo"}, units=2)


def test_damaged_containers_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.xclbin"

    def refused(damaged: bytes, why: str) -> None:
        path.write_bytes(damaged)
        with pytest.raises(DeviceError, match=f"no usable xclbin: it {why}"):
            xclbin.read(path)

    sections = 304 + 152
    refused(b"", "does not start with 'xclbin2'")
    refused(b"xclbin3" + content[7:], "does not start with 'xclbin2'")
    refused(content[:300], "ends after 300 bytes")
    refused(content[:-1], "has .* bytes; its header says")
    refused(content + b"\0", "has .* bytes; its header says")
    refused(
        content[: sections - 8] + struct.pack("<I", 2**31) + content[sections - 4 :], "cannot hold 2147483648 sections"
    )
    for place in (24, 32):  # offset and size of the first section
        at = sections + place
        refused(content[:at] + struct.pack("<Q", 2**64 - 8) + content[at + 8 :], "has a section 0 that leaves the file")
    refused(content.replace(b"\x06\0\0\0MEM_TOPOLOGY", b"\x63\0\0\0MEM_TOPOLOGY"), "lacks the section MEM_TOPOLOGY")
    refused(content.replace(b"csengine_top", b"csengine_pot"), "holds no kernel csengine_top")
    with pytest.raises(FileNotFoundError, match="csengine fpga build"):
        xclbin.read(tmp_path / "none.xclbin")


@given(place=st.integers(0, 800), value=st.integers(0, 255), end=st.integers(0, 3000))
def test_no_damage_breaks_the_reader(place: int, value: int, end: int) -> None:
    content = xclbin.write_emulated(b"kernel", {"kernel": "echo"})
    damaged = bytearray(content[: max(end, 1)] if end < len(content) else content)
    damaged[place % len(damaged)] = value
    with tempfile.NamedTemporaryFile(suffix=".xclbin") as file:
        file.write(damaged)
        file.flush()
        with contextlib.suppress(DeviceError):
            assert isinstance(xclbin.read(Path(file.name)), xclbin.Xclbin)


def test_a_container_for_the_emulated_device_is_not_for_a_card(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.xclbin"
    path.write_bytes(content)
    with pytest.raises(DeviceError, match="was built for the emulated device; expected one for a card"):
        open_program(echo.graph(), echo.pipeline(), False, path)
    card = bytearray(content)
    card[304 + 24 + 4 : 304 + 24 + 6] = struct.pack("<H", 0)
    path.write_bytes(card)
    with pytest.raises(DeviceError, match="was built for a card; expected one for the emulated device"):
        open_program(echo.graph(), echo.pipeline(), True, path)


def test_device_names() -> None:
    from csengine.backends.fpga import _device_names

    assert _device_names(None) == _device_names("") == ()
    assert _device_names(1) == _device_names("1") == ("1",)
    assert _device_names("0, 0000:03:00.1") == _device_names([0, "0000:03:00.1"]) == ("0", "0000:03:00.1")


def test_images_are_bytes() -> None:
    assert echo.image(add=1, stall=2, flags=3).dtype == np.uint8
    assert len(echo.image()) == echo.BYTES
