"""Memory that a step frees stays with the process, for the next step to take, and lies in huge pages.

The C library hands large blocks back to the system when they are freed and asks for them again a moment later, and each
page of them then costs a fault and is zeroed: in fp32 some 11,000 faults a step of the MNIST network. The price is
that a process holds what it once needed, an evaluation's tensors as well as a step's.

A step reads and writes some hundred MB of weights, moments and gradients, and in pages of 4 KiB the processor has to
look up where each lies. In pages of 2 MiB it hardly does; that they cost more to be had the first time is why they are
for those who keep them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping

TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"  # glibc 2.35 and later; others take no notice
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc
TRIMMED_FROM = 2**30
BLOCKS_BELOW = (2**28, 2**25)  # older glibc takes no more than 32 MiB
GROWTH_BYTES = 2**26


def keep_freed_memory() -> bool:
    """Let this process keep blocks of up to 256 MiB that it frees; whether its C library can.

    Larger ones still go back to the system, and so does what is free at the end of the heap beyond 1 GiB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    # First, since either of the others makes the C library leave its own threshold, which grows, where it is.
    if not any(mallopt(MMAP_THRESHOLD, size) for size in BLOCKS_BELOW):
        return False
    return bool(mallopt(TRIM_THRESHOLD, TRIMMED_FROM) and mallopt(TOP_PAD, GROWTH_BYTES))


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that trains: its C library asks for huge pages, where the system gives them to who
    asks ("madvise", the default of most). What the operator has told the C library stays."""
    return {TUNABLES: HUGE_PAGES, **environment}
