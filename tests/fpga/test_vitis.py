"""The project for AMD's tools: complete, consistent with the register map, and its script sound Tcl.

Vivado is not here; stand-ins record what the script asks of it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import echo
import pytest

from csengine.fpga import build, xclbin

tkinter = pytest.importorskip("tkinter", reason="no Tcl here")

# Every command is recorded with its arguments; those that make or find something return a name for it.
_STAND_INS = """
set calls {}
proc unknown {name args} {
    global calls
    lappend calls [list $name {*}$args]
    return [expr {$name eq "ipx::current_core" ? "core" : "<[lindex $args 0]>"}]
}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    library = tmp_path / "library.sv"
    library.write_text("module cell; endmodule\n")
    build.write_project(replace(echo.hardware(), sources=(library,)), tmp_path / "project", units=5)
    return tmp_path / "project"


def test_a_project_is_complete(project: Path) -> None:
    assert sorted(path.name for path in (project / "rtl").iterdir()) == ["csengine_top.sv", "library.sv"]
    assert (project / "rtl" / "csengine_top.sv").read_text() == echo.hardware().top
    assert json.loads((project / "shape.json").read_text()) == echo.hardware().shape
    link = (project / "link.cfg").read_text().split()
    assert link[0] == "[connectivity]"
    assert link[1] == "nk=csengine_top:5:" + ".".join(f"csengine_top_{i}" for i in range(1, 6))
    assert link[2] == "sp=csengine_top_1.m_axi_gmem:DDR[0]"
    assert link[6] == "sp=csengine_top_5.m_axi_gmem:DDR[0]"
    for file in ("package.tcl", "README.md", "Makefile"):
        said = " ".join((project / file).read_text().lower().replace("*", "").split())
        assert re.search("(not run|none of this was run) where csengine is developed", said)


def test_a_project_overwrites_nothing(project: Path) -> None:
    with pytest.raises(FileExistsError, match="give a new directory"):
        build.write_project(echo.hardware(), project)


def test_the_script_describes_the_register_map(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    tcl = tkinter.Tcl()
    tcl.eval(_STAND_INS)
    tcl.eval("set argv xcu250-figd2104-2L-e")
    tcl.eval((project / "package.tcl").read_text())
    calls = [tcl.splitlist(call) for call in tcl.splitlist(tcl.eval("set calls"))]
    names = [call[0] for call in calls]
    assert names[0] == "create_project"
    assert names[-1] == "package_xo"
    assert calls[-1][-2:] == ("-ctrl_protocol", "ap_ctrl_hs")
    added = {Path(name).name for call in calls if call[0] == "add_files" for name in tcl.splitlist(call[-1])}
    assert added == {"csengine_top.sv", "library.sv", "constraints.xdc"}
    properties = {(call[3], call[1]): call[2] for call in calls if call[0] == "set_property"}
    assert properties["core", "sdx_kernel"] == "true"
    assert properties["core", "sdx_kernel_type"] == "rtl"
    registers = {name: int(properties[f"<{name}>", "address_offset"], 16) for name, *_ in xclbin.ARGUMENTS}
    assert registers == {name: offset for name, offset, _ in xclbin.ARGUMENTS}
    sizes = {name: int(properties[f"<{name}>", "size"]) for name, *_ in xclbin.ARGUMENTS}
    assert sizes == {name: 8 * size for name, _, size in xclbin.ARGUMENTS}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")
def test_the_makefile_runs_the_tools_in_order(project: Path) -> None:
    """What make would do, without doing it."""
    said = subprocess.run(
        ["make", "-n", "-C", str(project)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MAKEFLAGS": ""},
    ).stdout
    order = [said.index(tool) for tool in ("vivado -mode batch", "v++ --link", "xclbinutil --force")]
    assert order == sorted(order)
