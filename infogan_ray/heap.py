"""Memory that a step frees stays with the process, for the next step to take.

The C library hands large blocks back to the system when they are freed and asks for them again a moment later, and each
page of them then costs a fault and is zeroed: in fp32 some 11,000 faults a step of the MNIST network, a seventh of its
time on two cores. What a training process holds is then the most that it ever needed, which a step needs again anyway.
"""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # malloc.h of glibc
KEPT_BYTES = 2**30
GROWTH_BYTES = 2**26


def keep_freed_memory() -> bool:
    """Let this process keep up to 1 GiB of what it frees, in blocks of up to as much; whether its C library can.

    Larger blocks, such as those of a dataset, still go back to the system.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    options = {MMAP_THRESHOLD: KEPT_BYTES, TRIM_THRESHOLD: KEPT_BYTES, TOP_PAD: GROWTH_BYTES}
    return all([mallopt(option, value) for option, value in options.items()])
