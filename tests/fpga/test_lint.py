"""slang, a second reader of the RTL beside Verilator: no warnings, and bad parameters are refused at elaboration."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from test_pipeline import CASES
from verilated import RTL

from csengine.cli import shipped
from csengine.fpga import generate
from csengine.fpga.plan import plan

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pyslang") is None, reason="pip install pyslang")

#: Warnings that are not ours, each with its reason; all others of slang's extra and conversion groups are errors.
_WAIVED = {
    "sign-conversion": "vectors are unsigned, and $signed marks the arithmetic that is not",
    "packed-array-conv": "rows of memories are packed arrays that are shifted and loaded as words",
    "shift-count-overflow": "the last column is shifted out whole, leaving zeros",
    "useless-cast": "a cast is useless for some parameters and needed for others",
    "case-redundant-default": "registers without a name read as 0, states of an enum are not all listed",
}
_ERROR = re.compile(r'\$error\("(.+?)"\)')

#: Module, parameters that it must refuse, and the message, which may serve several.
REFUSED = [
    ("cs_accumulator", {"Slots": 1}, "Slots is at least 2, Bits at least 16"),
    ("cs_accumulator", {"Bits": 15}, "Slots is at least 2, Bits at least 16"),
    ("cs_adder_tree", {"Width": 0}, "Terms and Width are at least 1"),
    ("cs_axi_reader", {"Outstanding": 0}, "Outstanding is at least 1"),
    ("cs_axi_writer", {"Stride": 72}, "Stride is a multiple of 64, enough"),
    ("cs_axi_writer", {"Words": 9}, "Stride is a multiple of 64, enough"),
    ("cs_delay", {"Width": 0}, "Width is at least 1, Depth at least 0"),
    ("cs_engine", {"Rows": 0}, "every count is at least 1"),
    ("cs_engine", {"Slots": 256}, "a kernel id has 8 bits"),
    ("cs_gather", {"Channels": 2}, "more channels than places"),
    ("cs_input", {"Positions": 0}, "every count is at least 1"),
    ("cs_kwta_global", {"K": 1501}, "K is 1 to Channels"),
    ("cs_kwta_global", {"Channels": 200, "Lead": 8}, "the histogram is not cleared Lead clocks early"),
    ("cs_kwta_local", {"K": 0}, "K is 1 to Channels"),
    ("cs_layer", {"Slots": 10}, "Interval is shorter than the drain"),
    ("cs_linear_post", {"Beats": 0}, "every count is at least 1"),
    ("cs_linear_post", {"Channels": 65537}, "a channel has 16 bits"),
    ("cs_load_row", {"Bits": 0}, "Bits is at least 1"),
    ("cs_loader", {"Words": 15}, "an image has at least 16 words"),
    ("cs_max_pool", {"Beats": 0}, "every count is at least 1"),
    ("cs_multiply", {"Columns": 0}, "Columns is at least 1"),
    ("cs_output", {"ElementBytes": 2}, "an element has 1 or 4 bytes"),
    ("cs_raster", {"Positions": 0}, "Positions is at least 1"),
    ("cs_requantize", {"TotalBits": 33}, "SumBits <= TotalBits, 16 to 32"),
    ("cs_requantize", {"SumBits": 28, "TotalBits": 27}, "SumBits <= TotalBits, 16 to 32"),
    ("cs_requantize_columns", {"Columns": 0}, "every count is at least 1"),
    ("cs_scatter", {"K": 65}, "K is 1 to Channels"),
    ("cs_select", {"Slots": 0}, "every count is at least 1"),
    ("cs_select", {"Bits": 16}, "a total is narrower than the sum of the lanes"),
    ("cs_sequencer", {"Pool": 3}, "Pool is 1 or 2"),
    ("cs_sequencer", {"Pool": 2, "OutHeight": 5}, "the output is no multiple of Pool"),
    ("cs_sequencer", {"OutHeight": 7}, "the last window leaves the input"),
    ("cs_sequencer", {"OutWidth": 7}, "the last window leaves the input"),
    ("cs_sequencer", {"Interval": 8}, "Interval is shorter than the beats of a pass"),
    ("cs_sequencer", {"OutHeight": 1, "OutWidth": 1, "Interval": 3, "TapLanes": 9}, "a sample is too short"),
    ("cs_shell", {"InputBytes": 0}, "samples have at least one byte"),
]


def _slang(options: list[str], files: list[Path]) -> bool:
    """Whether slang accepts the files; what it says goes to stderr."""
    from pyslang.driver import Driver

    driver = Driver()
    driver.addStandardArgs()
    assert driver.parseCommandLine(" ".join(["slang", *options, *map(str, files)]))
    accepted = driver.processOptions() and driver.parseAllSources()
    driver.reportCompilation(driver.createCompilation(), True)
    return bool(driver.reportDiagnostics(True) and accepted)


@pytest.mark.parametrize("mode", ["sparse-sparse", "sparse-dense", "dense"])
def test_slang_has_no_warnings_about_the_shipped_network(mode: str, tmp_path: Path) -> None:
    graph = shipped.load_model("kws_paper").model.graph
    _check_clean(generate.top(plan(graph, mode=mode)), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
def test_slang_has_no_warnings_about_other_networks(name: str, tmp_path: Path) -> None:
    _check_clean(generate.top(plan(CASES[name].graph(), **CASES[name].options)), tmp_path)


def _check_clean(text: str, place: Path) -> None:
    top = place / "csengine_top.sv"
    top.write_text(text)
    options = ["-Wextra", "-Wconversion", "-Werror", *(f"-Wno-{name}" for name in _WAIVED), "--top", "csengine_top"]
    assert _slang(options, [*generate.sources(), top])


@pytest.mark.parametrize(("module", "parameters", "message"), REFUSED)
def test_bad_parameters_are_refused_at_elaboration(
    module: str, parameters: dict[str, int], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _slang(["--top", module], generate.sources())
    values = [f"-G{name}={value}" for name, value in parameters.items()]
    assert not _slang(["--top", module, *values], generate.sources())
    assert f"error: $error encountered: {module}: {message}" in capfd.readouterr().err


def test_no_refusal_is_forgotten() -> None:
    written = {text for path in RTL.glob("cs_*.sv") for text in _ERROR.findall(path.read_text())}
    assert written == {f"{module}: {message}" for module, _, message in REFUSED}
