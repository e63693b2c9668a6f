"""What every test run says first: the processor, and which backends and tiers it can run."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import settings

import csengine
from csengine.backends import cpp
from csengine.resources import default_threads

settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")


def pytest_report_header() -> list[str]:
    tiers = ", ".join(f"{name} {'runs' if runs else 'is not here'}" for name, runs in cpp.tiers().items())
    return [
        f"processor: {_processor()}, {os.cpu_count()} logical, {default_threads()} threads by default",
        f"csengine: {Path(csengine.__file__).parent}",
        f"csengine backends: cpp ({tiers}), numba, reference",
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")
