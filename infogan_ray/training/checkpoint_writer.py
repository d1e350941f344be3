"""Evaluates the state when a checkpoint is due, and gives the checkpoint to the uploader. On rank 0."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

from infogan_ray.data.image_set import ImageSet
from infogan_ray.storage import checkpoints
from infogan_ray.storage.run_directory import RunDirectory, step_name
from infogan_ray.training.checkpoint_uploader import LAST_TIMEOUT_S, CheckpointUploader, PendingCheckpoint
from infogan_ray.training.config import RunConfig
from infogan_ray.training.loop import Diverged
from infogan_ray.training.run_evaluation import evaluate_state, render_pictures
from infogan_ray.training.run_logger import RunLogger
from infogan_ray.training.train_state import TrainState


class Stopped(Exception):
    """Someone requested that the run stop, during an evaluation or upload."""


class CheckpointWriter:
    """Owned by rank 0."""

    def __init__(
        self, config: RunConfig, images: ImageSet, run: RunDirectory, state: TrainState, uploader: CheckpointUploader,
        log: RunLogger, stop: Callable[[], bool], world_size: int, evaluated: bool,
    ) -> None:  # fmt: skip
        self.config, self.images, self.run, self.state = config, images, run, state
        self.uploader, self.log, self.stop, self.world_size = uploader, log, stop, world_size
        self.written_at = state.step
        """Step of the last checkpoint."""
        self.evaluated = evaluated
        """Whether the last checkpoint has measurements."""
        self.diverged: Diverged | None = None
        """Set if a measurement is not finite. ``finish`` raises it after all ranks have halted."""

    def evaluate_and_write(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Evaluate the state, log the row and write a checkpoint. Returns what ``measure`` returns."""
        measured = self.measure()
        self.log.log({**metrics, **measured})  # first, so that a stored checkpoint has all metrics before it
        if self.diverged is None:
            self.write({**metrics, **measured}, evaluated=bool(measured))
        return measured

    def write(self, metrics: dict[str, Any], evaluated: bool) -> None:
        """Give the state to the uploader as a checkpoint, with pictures unless the run must stop."""
        state = self.state
        description = {
            "model": state.spec.to_dict(), "metrics": metrics, "seed": self.config.seed, "world_size": self.world_size
        }  # fmt: skip
        files = checkpoints.serialize(state.step, state.model_tensors(), state.training_tensors(), description)
        pictures = {} if self.stop() else render_pictures(state, self.run)
        self.log.tracking.show(state.step, pictures)
        self.uploader.put(PendingCheckpoint(state.step, files, pictures), hurry=self.stop)
        self.written_at, self.evaluated = state.step, evaluated

    def evaluate_last(self) -> None:
        """Add measurements to the last checkpoint, which stays whole. Raises Diverged or Stopped."""
        measured = self.measure()
        if self.diverged is not None:
            raise self.diverged
        if not measured:
            raise Stopped
        folder = self.run.with_retry_timeout(LAST_TIMEOUT_S).checkpoints / step_name(self.state.step)
        checkpoints.add_metrics(checkpoints.open_checkpoint(folder, verify=False), measured)

    def measure(self) -> dict[str, Any]:
        """Evaluate the state. The result is empty if the run must stop, or if a measurement is not finite."""
        measured: dict[str, Any] = {}
        with contextlib.suppress(Stopped):
            measured = evaluate_state(self.state, self.images, self.config, self.check_stop)
        for name, value in measured.items():
            if isinstance(value, float) and not math.isfinite(value):
                self.diverged = Diverged(self.state.step, name, value)
                return {}
        return measured

    def check_stop(self) -> None:
        """Raises Stopped if the run must stop."""
        if self.stop():
            raise Stopped
