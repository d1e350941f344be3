"""Memory that a step frees stays with the process, for the next step to take.

The C library hands large blocks back to the system when they are freed and asks for them again a moment later, and each
page of them then costs a fault and is zeroed: in fp32 some 11,000 faults a step of the MNIST network. The price is
that a process holds what it once needed, an evaluation's tensors as well as a step's.
"""

from __future__ import annotations

import ctypes
import sys

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
