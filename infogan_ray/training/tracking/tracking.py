"""Sends a run's metrics and pictures to TensorBoard, MLflow and Weights & Biases, each in its own thread.

Training never waits for them. If a tracker fails or is too slow, this is reported once, and the run continues.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any

from infogan_ray.models.latents import LatentSpec
from infogan_ray.storage.run_directory import RunDirectory, step_name
from infogan_ray.training.tracking.channel import ROW_BYTES, SHORT_TIMEOUT_S, Channel, Tracker
from infogan_ray.training.tracking.curves import curves, descriptions, hparams, results

SETTLE_S = 1.0  # before a checkpoint's upload, wait this long for the event files
LAST_TIMEOUT_S = 60.0  # for queued data at the end of a finished run


class Tracking:
    """Owned by rank 0. Only ``close`` waits."""

    def __init__(self, config: Mapping[str, Any], latents: LatentSpec, run: RunDirectory, step: int) -> None:
        """``config``: the run's configuration as a dictionary. ``step``: the step from which this attempt starts.

        Readers of event files drop later steps of earlier attempts.
        """
        settings, texts = hparams(config), descriptions(latents)
        mlflow_address, wandb_project = config.get("mlflow"), config.get("wandb")

        def event_files() -> Tracker:
            from infogan_ray.training.tracking.event_files import EventFiles

            return EventFiles(run, step, settings, texts)

        self._channels = [Channel("TensorBoard's event files", event_files)]

        def mlflow() -> Tracker:
            from infogan_ray.training.tracking.trackers import MLflow

            return MLflow(str(mlflow_address), run, settings)

        def wandb() -> Tracker:
            from infogan_ray.training.tracking.trackers import WandB

            return WandB(str(wandb_project), run, settings)

        if mlflow_address is not None:
            self._channels.append(Channel("MLflow", mlflow))
        if wandb_project is not None:
            self._channels.append(Channel("Weights & Biases", wandb))
        self._ended = False

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Send a row of metrics.jsonl."""
        step, values, moment = metrics["step"], curves(metrics), time.time()
        for channel in self._channels:
            channel.put(lambda tracker: tracker.row(step, values, moment), ROW_BYTES)

    def show(self, step: int, pictures: Mapping[tuple[str, str], bytes]) -> None:
        """Send a checkpoint's PNG files, by (folder name, file name). Call ``log`` with the step's row before."""
        moment = time.time()
        for remaining, ((_, name), content) in zip(range(len(pictures) - 1, -1, -1), pictures.items(), strict=True):
            code = name.removeprefix(step_name(step)).removesuffix(".png").removeprefix("_")
            tag = f"traversal/{code}" if code else "samples"
            for channel in self._channels:
                send = functools.partial(_picture, step=step, tag=tag, png=content, moment=moment)
                channel.put(send, len(content), due=not remaining, keep=False)

    def settle(self) -> None:
        """Wait up to SETTLE_S until the event files have all data so far."""
        self._channels[0].settle(SETTLE_S)

    def end(self, state: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Send the final state (finished, diverged or interrupted), once. ``metrics``: of the best checkpoint."""
        if self._ended:
            return
        self._ended = True
        values = results(metrics)
        for channel in self._channels:
            channel.put(lambda tracker: tracker.end(state, step, values), ROW_BYTES, due=True)

    def close(self, step: int, timeout_s: float = SHORT_TIMEOUT_S) -> None:
        """Wait up to ``timeout_s`` until all data are sent. Without an earlier ``end``, the state is interrupted."""
        self.end("interrupted", step, {})
        deadline = time.monotonic() + timeout_s
        for channel in self._channels:
            channel.close()
        for channel in self._channels:
            channel.wait(deadline)

    def pop_status(self) -> str:
        """Messages about failures that were not reported yet, in one line."""
        return "; ".join(status for channel in self._channels if (status := channel.pop_status()))


def _picture(tracker: Tracker, **arguments: Any) -> None:
    tracker.picture(**arguments)
