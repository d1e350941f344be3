"""Ranks that torchrun has started: one run without Ray's daemons, of which rank 0 alone prints and writes.

Slurm's srun can start them as well: export RANK=$SLURM_PROCID and its like, as torchrun does. Ray Train's local mode
makes the process group from the environment.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist

# Those that make Ray Train's local mode join a process group.
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LONGEST_RUN = timedelta(days=365)


def is_active() -> bool:
    return all(name in os.environ for name in VARIABLES)


def rank_and_world_size() -> tuple[int, int]:
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if is_active() else (0, 1)


def ranks_on_this_machine() -> int:
    return int(os.environ["LOCAL_WORLD_SIZE"])


def is_other_rank() -> bool:
    """Whether this process is a rank other than 0."""
    return rank_and_world_size()[0] > 0


class Messages:
    """Sends JSON-like values from rank 0 to the others. The process group exists by then."""

    def __init__(self) -> None:
        # Gloo, which has no limit of minutes as NCCL has: rank 0 may evaluate and upload for longer.
        self._group: Any = dist.new_group(backend="gloo", timeout=LONGEST_RUN)

    def from_rank_zero(self, value: dict[str, Any] | None) -> dict[str, Any]:
        """Rank 0's value, on every rank."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        assert values[0] is not None
        return values[0]
