"""What this machine is and can run: recorded with every time that is reported."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from csengine import Engine, __version__
from csengine.container import Model
from csengine.engine import BACKENDS
from csengine.errors import BackendUnavailableError, CsengineError
from csengine.graph import Graph, Input, Relu
from csengine.resources import allowed_cpus, cpu_model, default_threads, has_vnni


def describe() -> dict[str, Any]:
    """CPU, cores, load, versions and instruction sets, for JSON."""
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "cores": default_threads(),
        "allowed_cpus": sorted(allowed_cpus()),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "versions": _versions(),
        "tiers": tiers(),
        "vnni": has_vnni(),
        "forced_tier": os.environ.get("CSENGINE_ISA"),
        "planner": os.environ.get("CSENGINE_PLANNER", "measure"),
    }


def summary(machine: dict[str, Any]) -> str:
    """The same in one line."""
    cores = f"{machine['cores']} core{'s' if machine['cores'] != 1 else ''}"
    load = machine["load_average"]
    if load is None:
        return f"{machine['cpu']}, {cores}"
    busy = " (busy: times are unsteady)" if load > machine["cores"] + 0.5 else ""
    return f"{machine['cpu']}, {cores}, load {load:.1f}{busy}"


def _versions() -> dict[str, str]:
    found = {"csengine": __version__, "python": platform.python_version(), "numpy": np.__version__}
    for package in ("numba", "scipy", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def tiers() -> dict[str, bool]:
    """The C++ backend's instruction sets and whether this machine runs them; empty where it is not built."""
    from csengine.backends import cpp

    try:
        return cpp.tiers()
    except BackendUnavailableError:
        return {}


def backends() -> dict[str, str]:
    """Every backend: "" if it runs here, else why not."""
    source = Input(name="input", inputs=(), shape=(1,))
    model = Model(Graph((source, Relu(name="relu", inputs=("input",)))))
    found: dict[str, str] = {}
    for name in BACKENDS:
        try:
            Engine(model, backend=name, threads=1)
            found[name] = ""
        except (CsengineError, ImportError) as error:
            found[name] = str(error).removeprefix(f"{name}: ")
    return found
