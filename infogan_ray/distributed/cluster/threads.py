"""How many threads PyTorch computes with in a worker. Ray starts its workers with one, unless they are told otherwise.

Two processes that each take all cores slow one another down, so the cores of a machine are shared out among its
workers; ``--threads`` says it outright, and ``OMP_NUM_THREADS`` is a limit, as it is for whatever uses OpenMP.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch

from infogan_ray.distributed.cluster.control_groups import cpu_quota

VARIABLE = "OMP_NUM_THREADS"


def cores() -> int:
    """Those that this process may use: a scheduler, taskset or a container may give it fewer than the machine has."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(seen, int(cpu_quota() or seen)))


def limit(environment: Mapping[str, str]) -> int | None:
    """What OMP_NUM_THREADS says, of a list (one number for each level of nesting) the first; None if nothing valid."""
    found = re.match(r"\s*([0-9]+)", environment.get(VARIABLE, ""))
    return int(found[1]) if found and int(found[1]) else None


def use(threads: int, reason: str, asked: bool = False) -> str:
    """Compute with so many threads in the calling thread's process; returns the line that says how many and why.

    No more than the cores that this process may use, unless they were ``asked`` for.
    """
    here = cores()
    torch.set_num_threads(threads if asked else min(threads, here))
    return f"threads: {torch.get_num_threads()} for each worker, {reason}; this machine has {here} core(s)"
