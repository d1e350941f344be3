"""Sends a run's figures to TensorBoard, MLflow and Weights & Biases, each in a thread of its own.

Training never waits for them. A tracker that fails or falls behind is reported once, and the run continues without it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any

from infogan_ray.models.latents import LatentSpec
from infogan_ray.storage.run_directory import RunDirectory, step_name
from infogan_ray.training.tracking.channel import ROW_BYTES, SHORT_PATIENCE_S, Channel, Tracker
from infogan_ray.training.tracking.curves import curves, descriptions, hparams, results

SETTLE_S = 1.0
LAST_PATIENCE_S = 60.0  # for what still waits when a run is finished


class Tracking:
    """Owned by rank 0. Only ``close`` waits."""

    def __init__(self, config: Mapping[str, Any], latents: LatentSpec, run: RunDirectory, step: int) -> None:
        """``config``: the run's configuration as a dictionary. ``step``: where this attempt starts; readers drop what
        earlier attempts wrote for later steps."""
        about, texts = hparams(config), descriptions(latents)
        mlflow_address, wandb_project = config.get("mlflow"), config.get("wandb")

        def event_files() -> Tracker:
            from infogan_ray.training.tracking.event_files import EventFiles

            return EventFiles(run, step, about, texts)

        self._channels = [Channel("TensorBoard's event files", event_files)]

        def mlflow() -> Tracker:
            from infogan_ray.training.tracking.trackers import MLflow

            return MLflow(str(mlflow_address), run, about)

        def wandb() -> Tracker:
            from infogan_ray.training.tracking.trackers import WandB

            return WandB(str(wandb_project), run, about)

        if mlflow_address is not None:
            self._channels.append(Channel("MLflow", mlflow))
        if wandb_project is not None:
            self._channels.append(Channel("Weights & Biases", wandb))
        self._ended = False

    def log(self, metrics: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl."""
        step, values, moment = metrics["step"], curves(metrics), time.time()
        for channel in self._channels:
            channel.put(lambda tracker: tracker.row(step, values, moment), ROW_BYTES)

    def show(self, step: int, pictures: Mapping[tuple[str, str], bytes]) -> None:
        """A checkpoint's PNG files as the outbox takes them, by folder and file name; the row comes before them."""
        moment = time.time()
        for left, ((_, name), content) in zip(range(len(pictures) - 1, -1, -1), pictures.items(), strict=True):
            code = name.removeprefix(step_name(step)).removesuffix(".png").removeprefix("_")
            tag = f"traversal/{code}" if code else "samples"
            for channel in self._channels:
                send = functools.partial(_picture, step=step, tag=tag, png=content, moment=moment)
                channel.put(send, len(content), due=not left, keep=False)

    def settle(self) -> None:
        """Give the event files a moment to have all that was said until now."""
        self._channels[0].settle(SETTLE_S)

    def end(self, state: str, step: int, metrics: Mapping[str, Any]) -> None:
        """``finished``, ``diverged`` or ``interrupted``, once; ``metrics`` of the best checkpoint on all data."""
        if self._ended:
            return
        self._ended = True
        values = results(metrics)
        for channel in self._channels:
            channel.put(lambda tracker: tracker.end(state, step, values), ROW_BYTES, due=True)

    def close(self, step: int, patience_s: float = SHORT_PATIENCE_S) -> None:
        """Wait so many seconds at most until all is passed on; a run that has not ended was interrupted."""
        self.end("interrupted", step, {})
        deadline = time.monotonic() + patience_s
        for channel in self._channels:
            channel.close()
        for channel in self._channels:
            channel.wait(deadline)

    def pop_status(self) -> str:
        """Failures that were not reported yet, in one line."""
        return "; ".join(status for channel in self._channels if (status := channel.pop_status()))


def _picture(tracker: Tracker, **about: Any) -> None:
    tracker.picture(**about)
