"""MLflow and Weights & Biases as trackers. A resumed run continues its run there."""

from __future__ import annotations

import os
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infogan_ray.storage import proxies
from infogan_ray.storage.run_directory import RunDirectory, step_name
from infogan_ray.storage.scratch import scratch_folder
from infogan_ray.training.tracking.channel import SHORT_TIMEOUT_S
from infogan_ray.training.tracking.curves import TAGS

EXPERIMENT = "infogan_ray"  # in MLflow, unless $MLFLOW_EXPERIMENT_NAME is set


class MLflow:
    """A run on an MLflow server or in its database. A tag with the run's key identifies it after a restart."""

    def __init__(self, uri: str, run: RunDirectory, hparams: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the channel tries again
        # MLflow would replace the log handlers that the program has set, and write to the terminal.
        os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
        from mlflow import entities
        from mlflow.tracking import MlflowClient

        self._entities, self._metrics = entities, list[Any]()
        proxies.settle_route(uri)
        self._client = MlflowClient(tracking_uri=uri)
        key = run.with_retry_timeout(SHORT_TIMEOUT_S).tracking_key()
        experiment = self._experiment(uri)
        found = self._client.search_runs([experiment], f"tags.`infogan_ray.key` = '{key}'", max_results=1)
        self._last_step = -1  # the last step that MLflow has
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            # MLflow cannot delete steps that the run lost. The run repeats them with equal results.
            history = self._client.get_metric_history(self._id, TAGS["d_loss"])
            self._last_step = max((metric.step for metric in history), default=-1)
        else:
            tags = {"infogan_ray.key": key, "infogan_ray.run": run.title}
            self._id = self._client.create_run(experiment, run_name=run.title, tags=tags).info.run_id
            params = [entities.Param(name, str(value)) for name, value in hparams.items()]
            self._client.log_batch(self._id, params=params)

    def row(self, step: int, values: Mapping[str, float], moment: float) -> None:
        if len(self._metrics) > 500:  # MLflow accepts at most 1000 in a request
            self.flush(False)
        if step > self._last_step:
            timestamp_ms = int(1000 * moment)
            self._metrics += [self._entities.Metric(tag, value, timestamp_ms, step) for tag, value in values.items()]

    def picture(self, step: int, tag: str, png: bytes, moment: float) -> None:
        with scratch_folder() as folder:
            path = Path(folder, f"{step_name(step)}.png")
            path.write_bytes(png)
            self._client.log_artifact(self._id, str(path), f"pictures/{tag}")

    def flush(self, due: bool) -> None:
        if self._metrics:
            self._client.log_batch(self._id, metrics=self._metrics)
            self._metrics = []

    def end(self, state: str, step: int, values: Mapping[str, float]) -> None:
        self._last_step = min(self._last_step, step)
        self.row(step + 1, values, time.time())
        self.flush(True)
        status = {"finished": "FINISHED", "diverged": "FAILED"}.get(state, "KILLED")
        self._client.set_terminated(self._id, status)

    def _experiment(self, uri: str) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return found.experiment_id
        # Store artifacts beside a database file. MLflow's default is the worker's current folder.
        file = Path(urllib.parse.unquote(uri.removeprefix("sqlite:///")))
        location = (file.parent / "mlartifacts").as_uri() if uri.startswith("sqlite:///") else None
        try:
            return self._client.create_experiment(name, artifact_location=location)
        except Exception:  # perhaps another trial was faster
            if (found := self._client.get_experiment_by_name(name)) is None:
                raise
            return found.experiment_id


class WandB:
    """A run of a Weights & Biases project, whose id is the run's key. The environment sets mode and credentials."""

    def __init__(self, project: str, run: RunDirectory, hparams: Mapping[str, Any]) -> None:
        import wandb

        proxies.settle_route(os.environ.get("WANDB_BASE_URL", ""))
        key = run.with_retry_timeout(SHORT_TIMEOUT_S).tracking_key()
        group, divider, _ = run.title.rpartition("/")
        # Send no information about the machine: no git state, source code, host name or user name.
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, save_code=False,
            x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True, host="-",
        )  # fmt: skip
        self._image = wandb.Image
        self._run = wandb.init(
            project=project, id=key, name=run.title, group=group if divider else None, config=dict(hparams),
            resume="allow", reinit="create_new", dir=os.environ.get("WANDB_DIR") or self._folder(run),
            allow_val_change=True, settings=settings,
        )  # fmt: skip
        self._next_step = self._run.step  # Steps must increase, so repeated steps are not sent again.

    def row(self, step: int, values: Mapping[str, float], moment: float) -> None:
        if step >= self._next_step:
            self._run.log(dict(values), step=step)

    def picture(self, step: int, tag: str, png: bytes, moment: float) -> None:
        if step >= self._next_step:
            with scratch_folder() as folder:
                path = Path(folder, "picture.png")
                path.write_bytes(png)
                self._run.log({tag: self._image(str(path))}, step=step)

    def flush(self, due: bool) -> None:
        """Does nothing: Weights & Biases sends data in its own process."""

    def end(self, state: str, step: int, values: Mapping[str, float]) -> None:
        if values:
            self._run.log(dict(values), step=step + 1)
        self._run.finish(exit_code=0 if state == "finished" else 1)

    @staticmethod
    def _folder(run: RunDirectory) -> str:
        if run.folder.is_local:
            return run.folder.path
        from infogan_ray.data.fetch import cache_folder

        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)
