"""What one core of this machine can do at best: instructions that bound kernels, and bytes of each level of memory.

    .venv/bin/python bench/bounds.py [--quick]     # seconds; needs a C++ compiler; writes bench/results/bounds.json

Builds `bench/bounds/bounds.cpp` with $CXX (or c++) as setup.py builds the kernels, and runs it on one core. The loops
check their own results. Caches are those that Linux names; elsewhere say their sizes with --caches.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from csengine.cli import machine, measure
from csengine.cli.contest import cpus_for
from csengine.cli.output import json_text

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
SOURCES = (ROOT / "bench" / "bounds" / "bounds.cpp", ROOT / "cpp" / "cpu_features.cpp")
# Those of setup.py: GCC 12 takes the undefined vectors of its own intrinsics for uninitialized variables, of which
# Clang does not know all warnings.
FLAGS = (
    *("-std=c++17", "-O3", "-ffp-contract=off", f"-I{ROOT / 'cpp'}"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"),
)
PASSES = 100
"""Turns of every loop; the fastest counts."""


def cache_sizes(cpu: int, root: Path = Path("/sys/devices/system/cpu")) -> dict[str, int]:
    """Bytes of the data caches of a logical processor: of L1, L2 and L3, or of fewer where there are fewer."""
    found = {}
    for index in (root / f"cpu{cpu}" / "cache").glob("index*"):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = int(size.removesuffix("K")) * 1024
    return dict(sorted(found.items()))


def build(place: Path) -> Path:
    """The program, compiled into a directory."""
    program = place / "bounds"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    subprocess.run([*compiler, *FLAGS, *map(str, SOURCES), "-o", str(program)], check=True)
    return program


def run(program: Path, caches: dict[str, int], passes: int) -> dict[str, Any]:
    """Its loops and its memory: what each does per nanosecond."""
    sizes = [str(caches[level]) for level in ("L1", "L2", "L3")]
    done = subprocess.run([str(program), *sizes, str(passes)], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pass")
    parser.add_argument("--caches", metavar="L1,L2,L3", help="bytes of each, where the system does not say")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    (cpu,) = cpus_for(1)
    caches = cache_sizes(cpu)
    if given.caches:
        caches = dict(zip(("L1", "L2", "L3"), map(int, given.caches.split(",")), strict=True))
    if set(caches) != {"L1", "L2", "L3"}:
        sys.exit(f"bounds: found the caches {caches}, expected L1, L2 and L3; give their bytes by --caches L1,L2,L3")
    with tempfile.TemporaryDirectory() as place, measure.pinned((cpu,)):
        found = run(build(Path(place)), caches, 1 if given.quick else PASSES)
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "caches": caches,
        **found,
    }
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "bounds.json").write_text(json_text(report) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
