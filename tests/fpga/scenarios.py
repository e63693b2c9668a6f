"""What an interpreter with an emulated device may live through: one function per test, run in a process of its own.

Each fails by an exception. `test_xrt.py` starts them, bounds their time, and looks for what they leave behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import echo
import numpy as np
from networks import Spec, network
from safetensors.numpy import load_file

from csengine import DeviceError, Engine, container, reference
from csengine.backends import fpga
from csengine.backends.fpga import FpgaProgram, open_program
from csengine.cli import main, pipeline
from csengine.container import Model
from csengine.fpga import build, device, emulation, plan, xclbin

#: A batch that keeps the emulated device busy for several seconds.
SLOW = {"stall": 40_000}
LONG = 2_000


def check(program: FpgaProgram, count: int = 20, seed: int = 0) -> None:
    x = echo.samples(count, seed)
    np.testing.assert_array_equal(program.run(x), reference.run(echo.graph(), x))


@contextmanager
def raises(kind: type[BaseException], *parts: str) -> Iterator[None]:
    try:
        yield
    except kind as error:
        if missing := [part for part in parts if part not in str(error)]:
            raise AssertionError(f"{str(error)!r} lacks {missing}") from error
        return
    raise AssertionError(f"no {kind.__name__} was raised")


def worker(program: FpgaProgram) -> int:
    opened: Any = program._device
    return int(opened.process_id)


def emulated_device(program: FpgaProgram) -> int:
    """The process that plays the card."""
    own = worker(program)
    return int(Path(f"/proc/{own}/task/{own}/children").read_text().split()[0])


def while_running(program: FpgaProgram, disturb: Callable[[], None]) -> float:
    """Run a long batch, disturb it soon after it began; seconds until run returned or raised."""
    timer = threading.Timer(0.5, disturb)
    timer.start()
    start = time.monotonic()
    try:
        program.run(echo.samples(LONG))
    finally:
        timer.join()
        elapsed = time.monotonic() - start
    raise AssertionError(f"the batch ended undisturbed after {elapsed:.1f} s")


# --- results ---------------------------------------------------------------------------------------------------------


def results_equal_the_reference() -> None:
    for bits in (64, 512):
        program = echo.program(bits)
        for count in (0, 1, 15, 16, 17, 64, 65, 300):
            check(program, count, seed=count)
        x = np.random.default_rng(1).random((33, 4, 4, 4), np.float32)
        np.testing.assert_array_equal(program.run(x), reference.run(echo.graph(), x))


def cycles_are_those_of_the_register() -> None:
    program = echo.program(stall=1000)
    x = echo.samples(16)
    program.run(x)
    one = program.choices()["relu"].cycles
    assert one is not None
    assert 1000 < one < 1300
    program.run(np.concatenate([x, x]))
    two = program.choices()["relu"].cycles
    assert two is not None
    assert abs(one - two) < 1
    assert program.profile(x).keys() == program.choices().keys() == {"input", "relu", "output"}
    assert program.trace(x).keys() == {"input", "relu", "output"}


def units_and_devices_share_a_batch() -> None:
    program = echo.program(devices=("0", "1"), units=3, stall=2000)
    assert program._device is not None
    assert len(program._device.units()) == 6
    check(program, 96)
    together = program.choices()["relu"].cycles
    alone = echo.program(stall=2000)
    check(alone, 96)
    single = alone.choices()["relu"].cycles
    assert together is not None
    assert single is not None
    assert single / 6.5 < together < single / 3
    for count in (1, 2, 5, 7, 97, 500):
        check(program, count, seed=count)


def many_threads_share_a_program() -> None:
    program = echo.program()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: check(program, 1 + seed % 40, seed), range(100)))


def programs_run_side_by_side() -> None:
    with ThreadPoolExecutor(3) as pool:
        programs = list(pool.map(lambda _: echo.program(), range(3)))
        assert len({worker(program) for program in programs}) == 3
        list(pool.map(lambda seed: check(programs[seed % 3], 50, seed), range(30)))


def parameters_are_loaded_without_a_build() -> None:
    opened = echo.program()
    path = build.emulated(echo.hardware())
    settings = device.Settings(str(path), echo.BYTES, echo.BYTES)
    other = device.EmulatedDevice(settings)
    x = np.arange(5 * echo.BYTES, dtype=np.uint8).reshape(5, echo.BYTES)
    y = np.empty_like(x)
    for added in (3, 200):
        other.load(echo.image(add=added))
        other.run(x, y)
        np.testing.assert_array_equal(y, x + np.uint8(added))
    other.close()
    check(opened)


def a_stored_model_with_a_budget_of_its_own() -> None:
    """A file of format 1 on the pipeline that its xclbin describes, and one of another shape, which is refused."""
    stored = Path(__file__).parents[1] / "data" / "format-1"
    model, built = str(stored / "pipeline.safetensors"), str(Path(os.environ["SCRATCH"], "small.xclbin"))
    assert main(["fpga", "build", model, "--cycles", "200", "-o", built]) == 0
    assert plan.plan(container.load(model).graph).cycles != 200
    engine = Engine.load(model, backend="fpga", emulate=True, xclbin=built)
    results = load_file(stored / "pipeline.results.safetensors")
    x = results["x"].transpose(0, 3, 1, 2) if engine.input_shape[0] == 1 else results["x"]
    np.testing.assert_array_equal(engine.run(x), results["y"])
    layers = [Spec(6, (2, 2), slots=2, k=3), Spec(3, dtype=None)]
    with raises(DeviceError, "of another shape: layer0.winners is 2 instead of 3", "csengine fpga build"):
        Engine(Model(network((5, 4, 1), "uint8", layers)), backend="fpga", emulate=True, xclbin=built)


def engine_and_command_line() -> None:
    """The way of users, with the small kernel in place of the model's pipeline."""
    fpga.pipeline_for = lambda graph, planned=None: echo.pipeline()
    pipeline.planned = lambda arguments: None  # type: ignore[assignment,return-value]
    path = Path(os.environ["SCRATCH"])
    container.save(Model(echo.graph()), path / "m.safetensors")
    x = echo.samples(5)
    np.save(path / "x.npy", x)
    expected = reference.run(echo.graph(), x)
    engine = Engine.load(path / "m.safetensors", backend="fpga", emulate=True)
    np.testing.assert_array_equal(engine.run(x), expected)
    np.testing.assert_array_equal(engine.run(x[3]), expected[3])
    assert engine.backend == "fpga"
    assert [row.kernel for row in engine.plan()] == ["input", "pipeline", "dequantize"]
    cycles = engine.plan()[1].cycles
    assert cycles is not None
    assert 0 < cycles < 1000
    profile = engine.profile(x, passes=2)
    assert [layer.cycles is not None for layer in profile.layers] == [False, True, False]
    os.environ |= {"CSENGINE_BACKEND": "fpga", "CSENGINE_FPGA_EMULATE": "1", "CSENGINE_FPGA_DEVICE": "0,1"}
    np.testing.assert_array_equal(Engine.load(path / "m.safetensors").run(x), expected)
    for name in ("CSENGINE_BACKEND", "CSENGINE_FPGA_EMULATE", "CSENGINE_FPGA_DEVICE"):
        del os.environ[name]
    files = [str(path / name) for name in ("m.safetensors", "x.npy", "y.npy", "e.xclbin", "project")]
    model, inputs, outputs, built, project = files
    assert main(["run", model, inputs, "--backend", "fpga", "--emulate", "-o", outputs]) == 0
    np.testing.assert_array_equal(np.load(outputs), expected)
    assert main(["fpga", "build", model, "-o", built, "--units", "2"]) == 0
    assert main(["run", model, inputs, "--backend", "fpga", "--emulate", "--xclbin", built, "-o", outputs]) == 0
    np.testing.assert_array_equal(np.load(outputs), expected)
    assert main(["fpga", "build", model, "--target", "hw", "-o", project]) == 0
    assert Path(project, "rtl", "csengine_top.sv").is_file()
    assert main(["run", model, inputs, "--emulate"]) == 2


# --- failures --------------------------------------------------------------------------------------------------------


def device_is_killed_in_mid_run() -> None:
    program = echo.program(**SLOW)
    victim = emulated_device(program)
    start = time.monotonic()
    with raises(DeviceError, "ended", "signal 9"):
        while_running(program, lambda: os.kill(victim, signal.SIGKILL))
    assert time.monotonic() - start < 5
    check(program)


def worker_is_killed_in_mid_run() -> None:
    program = echo.program(**SLOW)
    victim = worker(program)
    with raises(DeviceError, "ended"):
        while_running(program, lambda: os.kill(victim, signal.SIGKILL))
    check(program)


def device_stops_answering() -> None:
    """The device, and then the whole worker, hang: each time a deadline ends it."""
    path = str(build.emulated(echo.hardware()))
    device._GRACE = 1.0
    for victim_of in (emulated_device, worker):
        settings = device.Settings(path, echo.BYTES, echo.BYTES, samples_per_chunk=16, timeout=1.0)
        program = FpgaProgram(
            echo.graph(),
            echo.pipeline(**SLOW),
            lambda settings=settings: device.EmulatedDevice(settings),
            "xrt-emulation",
        )
        victim = victim_of(program)
        with raises(DeviceError, "within"):
            while_running(program, lambda victim=victim: os.kill(victim, signal.SIGSTOP))
        check(program)


def kernel_never_ends() -> None:
    settings = device.Settings(
        str(build.emulated(echo.hardware())), echo.BYTES, echo.BYTES, samples_per_chunk=16, timeout=1.0
    )
    with raises(DeviceError, "did not end within 1000 ms"):
        FpgaProgram(
            echo.graph(), echo.pipeline(stall=echo.FOREVER), lambda: device.EmulatedDevice(settings), "xrt-emulation"
        )


def kernel_reports_errors() -> None:
    with raises(DeviceError, "a read from global memory failed, error flag 9"):
        echo.program(flags=1 << 2 | 1 << 9)


def interrupted_by_the_user() -> None:
    """Ctrl-C goes to every process of the terminal's group."""
    program = echo.program(**SLOW)
    for _ in range(2):
        with raises(KeyboardInterrupt):
            while_running(program, lambda: os.killpg(os.getpgrp(), signal.SIGINT))
        check(program)


def forked_child_has_a_device_of_its_own() -> None:
    program = echo.program()
    child = os.fork()
    if child == 0:
        check(program)
        sys.exit(7)  # with all farewells of an interpreter
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    check(program)


def forked_in_mid_run() -> None:
    program = echo.program(**SLOW)
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(check, program, 300)
        time.sleep(0.5)
        child = os.fork()
        if child == 0:
            check(program)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        busy.result()


def an_exception_ends_the_interpreter_as_ever() -> None:
    program = echo.program()
    check(program)
    raise RuntimeError("on purpose")


def interpreter_is_killed_in_mid_run() -> None:
    program = echo.program(**SLOW)
    while_running(program, lambda: os.kill(os.getpid(), signal.SIGKILL))


def closed_and_opened_again() -> None:
    for _ in range(3):
        program = echo.program()
        check(program)
        ended, place = worker(program), Path(program._device._place)  # type: ignore[union-attr]
        assert place.is_dir()
        del program
        assert not place.exists()
        with raises(ProcessLookupError):
            os.kill(ended, 0)


def signals_and_subprocesses_stay_the_users() -> None:
    """Nothing of XRT's software emulation reaches this process."""
    caught = []
    for number in (signal.SIGCHLD, signal.SIGUSR1):
        signal.signal(number, lambda found, _: caught.append(found))
    program = echo.program()
    check(program)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert subprocess.run(["true"], check=False).returncode == 0
    check(program)
    assert signal.SIGUSR1 in caught
    assert "XCL_EMULATION_MODE" not in os.environ


# --- the wrong hardware ----------------------------------------------------------------------------------------------


def another_shape_is_refused() -> None:
    path = build.emulated(echo.hardware(512))
    with raises(DeviceError, "another shape: its bus has 512 bits, this one's 64"):
        open_program(echo.graph(), echo.pipeline(64), True, path)
    renamed = replace(echo.pipeline(), hardware=replace(echo.hardware(), fingerprint=7))
    with raises(DeviceError, "shape 0123456789abcdef", "this model's is 0000000000000007"):
        open_program(echo.graph(), renamed, True, build.emulated(echo.hardware()))


def wrong_results_fail_the_self_test() -> None:
    with raises(DeviceError, "failed its self-test: 64 of 64 results differ"):
        echo.program(add=1)


def a_bitstream_that_is_none_is_refused() -> None:
    path = Path(os.environ["SCRATCH"]) / "text.xclbin"
    for content in (b"no shared object", b""):
        path.write_bytes(xclbin.write_emulated(content, echo.hardware().shape))
        with raises(DeviceError):
            open_program(echo.graph(), echo.pipeline(), True, path)
    check(echo.program())


# --- the host in this process, as with a card ------------------------------------------------------------------------


def host_in_this_process() -> None:
    """The path of a card: the extension drives XRT here. Emulation is set up before XRT is loaded."""
    place = Path(os.environ["SCRATCH"])
    os.environ.update(emulation.environment(emulation.install(), place))
    before = signal.getsignal(signal.SIGCHLD)
    settings = device.Settings(str(build.emulated(echo.hardware())), echo.BYTES, echo.BYTES, ("0",), 16, 10.0)
    for _ in range(2):
        program = FpgaProgram(echo.graph(), echo.pipeline(), lambda: device.open_card(settings), "xrt")
        check(program, 100)
        assert program.choices()["relu"].tier == "xrt"
        assert subprocess.run(["true"], check=False).returncode == 0
        host: Any = program._device
        host.close()
        with raises(DeviceError, "closed"):
            program.run(echo.samples(1))
        del program, host
    assert signal.getsignal(signal.SIGCHLD) is before
    host = device.open_card(settings)
    for x, y in ((np.zeros((2, 3)), np.zeros((2, 64))), (np.zeros((2, 64)), np.zeros((3, 64)))):
        with raises(ValueError):
            host.run(x.astype(np.uint8), y.astype(np.uint8))
    host.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this in the background ignores it
    globals()[sys.argv[1]]()
