"""Ranks that torchrun started: one run without Ray's daemons. Only rank 0 prints and writes files.

Slurm's srun can start the ranks too, if VARIABLES are exported as torchrun does, for example RANK=$SLURM_PROCID. Ray
Train's local mode creates the process group from the environment.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist

# With these variables Ray Train's local mode joins a process group.
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
    """Sends JSON-like values from rank 0 to the other ranks. The process group must exist."""

    def __init__(self) -> None:
        # Gloo with a long timeout: rank 0 may evaluate and upload for longer than NCCL's timeout of some minutes.
        self._group: Any = dist.new_group(backend="gloo", timeout=LONGEST_RUN)

    def from_rank_zero(self, value: dict[str, Any] | None) -> dict[str, Any]:
        """Rank 0's value, on every rank."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        assert values[0] is not None
        return values[0]
