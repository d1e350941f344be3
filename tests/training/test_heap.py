"""Freed memory stays with the process, in huge pages: page faults and the kernel's accounts say so without a clock."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infogan_ray.distributed.solo.process import WorkerProcess
from infogan_ray.training.heap import HUGE_PAGES, TUNABLES, with_huge_pages

FAULTS = """
import ctypes, resource, sys, torch
from infogan_ray.training.heap import keep_freed_memory
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: no huge pages, of which there would be few to count
assert sys.argv[1] == "as it is" or keep_freed_memory()
for _ in range(5):  # until the heap is as large as it gets
    torch.zeros(2**24).add_(1)  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    torch.zeros(2**24).add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_what_a_step_frees_is_not_fetched_from_the_system_again() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    all_pages = 30 * 2**26 // resource.getpagesize()
    assert faults("as it is") > 0.9 * all_pages, "there is nothing to win here"
    assert faults("kept") < 0.2 * all_pages, "where an aligned block finds no room the heap grows, but not often"


HUGE = """
import torch
from infogan_ray.training.heap import keep_freed_memory
keep_freed_memory()
kept = [torch.ones(2**22) for _ in range(4)]  # 16 MiB each
[line] = [line for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")]
print(line.split()[1])
"""
TOLD = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not TOLD.exists() or "[madvise]" not in TOLD.read_text(), reason="the system gives them to none, or all"
)
@pytest.mark.skipif(platform.libc_ver() < ("glibc", "2.35"), reason="it is glibc that is told")
def test_memory_of_a_worker_lies_in_huge_pages() -> None:
    def kilobytes(environment: dict[str, str]) -> int:
        done = subprocess.run([sys.executable, "-c", HUGE], env=environment, capture_output=True, text=True, check=True)
        return int(done.stdout)

    without = {name: value for name, value in os.environ.items() if name != TUNABLES}
    assert kilobytes(without) < 2**14, "there is nothing to win here"
    assert kilobytes(with_huge_pages(without)) > 2**15


def test_the_workers_process_is_started_so_and_what_the_operator_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> str | None:
        others = psutil.Process().children()
        worker = WorkerProcess()
        try:
            [child] = set(psutil.Process().children()) - set(others)
            lines = Path(f"/proc/{child.pid}/environ").read_text().split("\0")
            return dict(line.partition("=")[::2] for line in lines).get(TUNABLES)
        finally:
            worker.kill()
            worker.close()

    monkeypatch.delenv(TUNABLES, raising=False)
    assert told() == HUGE_PAGES
    monkeypatch.setenv(TUNABLES, "glibc.malloc.check=0")
    assert told() == "glibc.malloc.check=0"
