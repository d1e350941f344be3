"""Memory and cores that control groups allow. Run: pytest tests/distributed/test_control_groups.py"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from infogan_ray.distributed.cluster import threads
from infogan_ray.distributed.cluster.control_groups import cpu_quota, free_memory


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], None]:
    def under_the_root(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return under_the_root


def test_free_memory_is_the_minimum_of_machine_and_control_groups(
    write: Callable[[str, str], None], tmp_path: Path
) -> None:
    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert free_memory(tmp_path) == 8000 * 1024
    write("proc/self/cgroup", "0::/job/step\n")
    write("sys/fs/cgroup/job/memory.max", "5000000\n")
    write("sys/fs/cgroup/job/memory.current", "3000000\n")
    write("sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 500000\n")
    write("sys/fs/cgroup/job/step/memory.max", "max\n")
    assert free_memory(tmp_path) == 2_500_000, "file caches count as free memory"
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "400\n")
    write("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 0\n")
    assert free_memory(tmp_path) == 600
    assert free_memory() > 10**6


def test_cores_come_from_the_smallest_quota(write: Callable[[str, str], None], tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    write("proc/self/cgroup", "0::/job/step\n1:memory:/other\n")
    write("sys/fs/cgroup/cpu.max", "max 100000\n")
    assert cpu_quota(tmp_path) is None
    write("sys/fs/cgroup/job/cpu.max", "250000 100000\n")
    write("sys/fs/cgroup/job/step/cpu.max", "400000 100000\n")
    assert cpu_quota(tmp_path) == 2.5
    write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert cpu_quota(tmp_path) == 2.5
    write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n")
    assert cpu_quota(tmp_path) == 0.5


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (3.9, 3), (0.5, 1), (64.0, 8)])
def test_cores_are_whole_numbers(quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    assert threads.cores() == cores
