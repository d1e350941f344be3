"""Freed memory stays with the process: page faults, which say so without a clock."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys, torch
from infogan_ray.heap import keep_freed_memory
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
