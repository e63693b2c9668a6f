"""Energy that the processors use, where the system lets it be read: Linux's powercap counters (RAPL)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Counter:
    """Of one processor package. file: holds microjoules; wraps: the value at which it starts again."""

    file: Path
    wraps: int

    def read(self) -> int:
        """Microjoules since some time."""
        return int(self.file.read_text())


def counters() -> tuple[Counter, ...]:
    """Those that may be read; none where there are none."""
    found = []
    for domain in sorted(POWERCAP.glob("intel-rapl:*")):
        try:
            if (domain / "name").read_text().startswith("package"):
                counter = Counter(domain / "energy_uj", int((domain / "max_energy_range_uj").read_text()))
                counter.read()
                found.append(counter)
        except (OSError, ValueError):
            continue
    return tuple(found)


def joules(read: tuple[Counter, ...], work: Callable[[], object]) -> float:
    """What all packages use during some work of at most a minute (the counters wrap)."""
    before = [counter.read() for counter in read]
    work()
    used = ((counter.read() - start) % counter.wraps for counter, start in zip(read, before, strict=True))
    return sum(used) / 1e6


def describe() -> str:
    """How energy was measured, or that it was not: the end of a sentence."""
    if counters():
        return "measured as joules of the processor packages (RAPL)"
    return "not measured: this machine exposes no counters"
