"""A worker's report to the driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
    """A worker's report at a step. ``due``: a checkpoint is due, on all ranks. ``say``: a message for people."""

    metrics: dict[str, Any]
    due: bool = False
    phase: str = "training"
    say: str = ""

    def to_dict(self, restarts: int, world_size: int) -> dict[str, Any]:
        """The report for a driver's listener."""
        fields = {"phase": self.phase, "say": self.say, "restarts": restarts, "world_size": world_size}
        return {**fields, **self.metrics}
