"""Threads by default: affinity, hyper-threads and container quotas."""

from __future__ import annotations

from pathlib import Path

import pytest

from csengine import resources


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_hyper_threads_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        write(tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list", siblings + "\n")
    assert resources.physical_cores(frozenset({0, 1, 2, 3}), tmp_path) == 2
    assert resources.physical_cores(frozenset({0, 2}), tmp_path) == 1
    assert resources.physical_cores(frozenset({7, 8}), tmp_path) == 2  # unknown topology


@pytest.mark.parametrize(
    ("text", "vnni"),
    [("flags : sse avx2\nflags : avx2", False), ("flags\t: avx2 avx_vnni", True), ("model name : x", True), ("", True)],
)
def test_vnni(text: str, vnni: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_CPUINFO", write(tmp_path / "cpuinfo", text))
    assert resources.has_vnni.__wrapped__() is vnni


@pytest.mark.parametrize(("text", "quota"), [("150000 100000", 1.5), ("max 100000", None), ("", None), ("7", None)])
def test_version_2_quotas(tmp_path: Path, text: str, quota: float | None) -> None:
    assert resources.cgroup_quota(write(tmp_path / "cpu.max", text), tmp_path / "none") == quota


def test_version_1_quotas(tmp_path: Path) -> None:
    assert resources.cgroup_quota(tmp_path / "none", tmp_path) is None
    write(tmp_path / "cpu.cfs_quota_us", "200000")
    write(tmp_path / "cpu.cfs_period_us", "100000")
    assert resources.cgroup_quota(tmp_path / "none", tmp_path) == 2.0
    write(tmp_path / "cpu.cfs_quota_us", "-1")
    assert resources.cgroup_quota(tmp_path / "none", tmp_path) is None


def test_quota_limits_and_never_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "allowed_cpus", lambda: frozenset(range(8)))
    monkeypatch.setattr(resources, "physical_cores", lambda cpus: len(cpus))
    for quota, threads in ((None, 8), (3.7, 3), (0.5, 1)):
        monkeypatch.setattr(resources, "cgroup_quota", lambda quota=quota: quota)
        assert resources.default_threads() == threads
