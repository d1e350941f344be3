"""Memory and cores that this process may use under Linux control groups (a container, a scheduler's job).

Version 2 has one folder for all limits; version 1 has one folder for each kind of limit. Both are read.
"""

from __future__ import annotations

import os
import re
from pathlib import Path


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still allocate: the smallest of the machine's free memory and its groups' limits.

    File caches count as free.
    """
    free = [_meminfo(root)]
    for group in _groups(root, "memory"):
        free += _free_in_group(group, "memory.max", "memory.current", "inactive_file")
        free += _free_in_group(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return max(0, min(free))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Number of cores that this process may use: the smallest quota of its groups. None without a quota."""
    quotas = []
    for group in _groups(root, "cpu"):
        quotas += _quota_of_group(group, "cpu.max", "cpu.max")
        quotas += _quota_of_group(group, "cpu.cfs_quota_us", "cpu.cfs_period_us")
    return min(quotas, default=None)


def _meminfo(root: Path) -> int:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # a system without /proc


def _groups(root: Path, controller: str) -> list[Path]:
    """Folders of this process's control groups and their parents, for the controller "memory" or "cpu"."""
    mount = root / "sys/fs/cgroup"
    folders = [mount, mount / controller]
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = mount / controller if controllers else mount
        parts = [part for part in path.split("/") if part not in ("", "..")]
        folders += [top.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]
    return folders


def _free_in_group(group: Path, limit: str, used: str, cached: str) -> list[int]:
    try:
        limit_text = (group / limit).read_text().strip()
        if not limit_text.isdigit():  # "max"
            return []
        found = re.search(rf"^{cached} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        return [int(limit_text) - int((group / used).read_text()) + (int(found[1]) if found else 0)]
    except (OSError, ValueError):
        return []


def _quota_of_group(group: Path, quota: str, period: str) -> list[float]:
    """Version 2 has 'QUOTA PERIOD' in one file, version 1 has two files. Without a limit the quota is 'max' or -1."""
    try:
        quota_text, period_text = (group / quota).read_text().split()[0], (group / period).read_text().split()[-1]
    except (OSError, IndexError):
        return []
    if not (quota_text.isdigit() and period_text.isdigit() and int(quota_text) and int(period_text)):
        return []
    return [int(quota_text) / int(period_text)]
