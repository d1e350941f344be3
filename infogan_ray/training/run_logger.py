"""What rank 0 writes about a run as it trains: metrics.jsonl, the trackers' curves, and lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.checkpoint_uploader import CheckpointUploader
from infogan_ray.training.config import RunConfig
from infogan_ray.training.cuda_graph import GraphedStep
from infogan_ray.training.tracking.tracking import Tracking


class RunLogger:
    """Passes metrics and pictures on; nothing here waits for storage or a tracker, except ``tracking.close``."""

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
        """What changed about storage since this was last called; else about the CUDA graph, or about a tracker."""
        now = (bool(self._uploader.trouble), self._uploader.missed)
        if now == self._reported:
            recorded = self._graphed.pop_status() if self._graphed is not None else ""
            return recorded or self.tracking.pop_status()
        self._reported = now
        return self._uploader.lag or f"storage is available again; step {self._uploader.stored:,} is stored"
