"""The identity of a pipeline's shape: hardware and parameters belong together if and only if it is the same."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

from csengine.fpga.plan import Plan

#: Changes whenever the modules read plans or images in another way.
_GENERATION = "csengine pipeline 1"


def fingerprint(plan: Plan) -> int:
    """The 64-bit identifier that the hardware's registers show and its parameter image carries."""
    digest = hashlib.sha256(f"{_GENERATION}\n{plan.to_json()}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def difference(one: Plan, other: Plan) -> str:
    """What tells the other plan from one, in words, the first few of many; "" for nothing."""
    found = list(_differences("", asdict(one), asdict(other)))
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    return "; ".join(found[:5]) + more


def _differences(where: str, one: Any, other: Any) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        names = [*one, *(name for name in other if name not in one)]
        prefix = f"{where}." if where else ""
        return [text for name in names for text in _differences(f"{prefix}{name}", one.get(name), other.get(name))]
    if where == "layers":
        if len(one) != len(other):
            return [f"{len(other)} layers instead of {len(one)}"]
        return [text for mine, its in zip(one, other, strict=True) for text in _differences(mine["name"], mine, its)]
    return [] if one == other else [f"{where} is {_short(other)} instead of {_short(one)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
