"""What a control group (a container, a scheduler's job) leaves this process of the machine's memory and cores.

Both layouts of Linux are read: version 2 with one folder of all limits, and version 1 with a folder for each kind.
"""

from __future__ import annotations

import os
import re
from pathlib import Path


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: what the machine has, or less where a control group says so. File caches
    count as free."""
    free = [_meminfo(root)]
    for group in _groups(root, "memory"):
        free += _left(group, "memory.max", "memory.current", "inactive_file")
        free += _left(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return max(0, min(free))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """How many cores' time this process may take, by the least of its groups' quotas; None without any."""
    quotas = []
    for group in _groups(root, "cpu"):
        quotas += _share(group, "cpu.max", "cpu.max")
        quotas += _share(group, "cpu.cfs_quota_us", "cpu.cfs_period_us")
    return min(quotas, default=None)


def _meminfo(root: Path) -> int:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # a system that has no /proc


def _groups(root: Path, controller: str) -> list[Path]:
    """The folders of this process's control groups that may limit memory or cpu, each with those above it."""
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


def _left(group: Path, limit: str, used: str, cached: str) -> list[int]:
    try:
        most = (group / limit).read_text().strip()
        if not most.isdigit():  # "max"
            return []
        found = re.search(rf"^{cached} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        return [int(most) - int((group / used).read_text()) + (int(found[1]) if found else 0)]
    except (OSError, ValueError):
        return []


def _share(group: Path, quota: str, period: str) -> list[float]:
    """Version 2 has 'QUOTA PERIOD' in one file, version 1 a file for each; without a limit they say 'max' and -1."""
    try:
        most, each = (group / quota).read_text().split()[0], (group / period).read_text().split()[-1]
    except (OSError, IndexError):
        return []
    return [int(most) / int(each)] if most.isdigit() and each.isdigit() and int(most) and int(each) else []
