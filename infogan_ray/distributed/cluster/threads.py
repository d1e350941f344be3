"""Sets the number of threads that PyTorch uses in a worker. Ray's default is one.

By default the workers of a machine divide its cores: two processes that each use all cores slow each other down.
``--threads`` sets the number, and ``OMP_NUM_THREADS`` limits the default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch

from infogan_ray.data.progress import counted
from infogan_ray.distributed.cluster.control_groups import cpu_quota

VARIABLE = "OMP_NUM_THREADS"


def cores() -> int:
    """Number of cores that this process may use. A scheduler, taskset or a container may allow fewer than all."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(available, int(cpu_quota() or available)))


def thread_limit(environment: Mapping[str, str]) -> int | None:
    """The value of OMP_NUM_THREADS; None if it is invalid or unset. Of a list for nested levels, the first number."""
    found = re.match(r"\s*([0-9]+)", environment.get(VARIABLE, ""))
    return int(found[1]) if found and int(found[1]) else None


def set_threads(threads: int, reason: str, requested: bool = False) -> str:
    """Set PyTorch's number of threads in this process. Returns a line with the number and the reason.

    The number is limited to the available cores unless the user ``requested`` it.
    """
    available = cores()
    torch.set_num_threads(threads if requested else min(threads, available))
    return (
        f"threads: {torch.get_num_threads()} for each worker, {reason}; this machine has {counted(available, 'core')}"
    )
