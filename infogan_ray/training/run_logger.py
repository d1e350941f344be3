"""Logs a run on rank 0: metrics.jsonl, the trackers' curves, and status messages for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.checkpoint_uploader import CheckpointUploader
from infogan_ray.training.config import RunConfig
from infogan_ray.training.cuda_graph import GraphedStep
from infogan_ray.training.tracking.tracking import Tracking


class RunLogger:
    """Sends metrics and pictures to the uploader and the trackers. Waits for neither, except in ``tracking.close``."""

    def __init__(
        self, config: RunConfig, run: RunDirectory, step: int, uploader: CheckpointUploader, graphed: GraphedStep | None
    ) -> None:
        self.tracking = Tracking(config.to_dict(), config.latents, run, step)
        self._uploader, self._graphed = uploader, graphed
        self._reported = (False, 0)
        uploader.before_each = self.tracking.settle

    def log(self, metrics: Mapping[str, Any]) -> None:
        self._uploader.log(dict(metrics))
        self.tracking.log(metrics)

    def pop_status(self) -> str:
        """A message about storage if its state changed since the last call; else about the CUDA graph or trackers.

        Empty after a failure, which the run's last report contains.
        """
        if self._uploader.failure is not None:
            return ""
        storage_state = (bool(self._uploader.error), self._uploader.missed)
        if storage_state == self._reported:
            graph_status = self._graphed.pop_status() if self._graphed is not None else ""
            return graph_status or self.tracking.pop_status()
        before, self._reported = self._reported, storage_state
        if before[0] and not storage_state[0]:
            return f"storage is available again; step {self._uploader.stored:,} is stored"
        return self._uploader.warning
