"""What the JSON of pytest-benchmark holds: the machine as our other results describe it, and no single times."""

from __future__ import annotations

from typing import Any

from csengine.cli import machine

_KEPT = ("min", "q1", "median", "q3", "rounds")


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    del config, benchmarks
    output_json["machine_info"], output_json["commit_info"] = machine.describe(), {}
    output_json["benchmarks"] = [
        {
            "layer": result["group"],
            "kernel": result["name"],
            **result["extra_info"],
            **{name: result["stats"][name] for name in _KEPT},
        }
        for result in output_json["benchmarks"]
    ]
