"""How many threads this process should use: physical cores, as affinity and container quota allow."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_CPUS = Path("/sys/devices/system/cpu")
_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def default_threads() -> int:
    """Physical cores that this process may run on, no more than the container's quota pays for; at least 1."""
    cores = physical_cores(allowed_cpus())
    quota = cgroup_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def allowed_cpus() -> frozenset[int]:
    """Logical processors that the affinity mask allows."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores(cpus: frozenset[int], root: Path = _CPUS) -> int:
    """Distinct cores among logical processors; hyper-threads of one core count once."""
    siblings = {_read(root / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu) for cpu in cpus}
    return len(siblings)


def cgroup_quota(v2: Path = _CGROUP_V2, v1: Path = _CGROUP_V1) -> float | None:
    """Processors that the control group's quota pays for, or None where it sets no limit."""
    fields = (_read(v2) or "").split() or [
        _read(v1 / "cpu.cfs_quota_us") or "-1",
        _read(v1 / "cpu.cfs_period_us") or "100000",
    ]
    if len(fields) != 2 or not all(field.isdigit() for field in fields) or int(fields[1]) == 0:
        return None
    return int(fields[0]) / int(fields[1])


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


@functools.cache
def cpu_model() -> str:
    """The processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine() or "unknown processor"


@functools.cache
def has_vnni() -> bool:
    """Whether the processor sums 8-bit products in 32 bits (VNNI); taken for granted where the system does not say."""
    flags = _cpuinfo("flags").split()
    return not flags or not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags)


def _cpuinfo(field: str) -> str:
    """What the system says of its first processor, or ""."""
    lines = (_read(_CPUINFO) or "").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")
