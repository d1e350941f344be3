"""One trial of a search, as Ray Tune runs it.

Tune reuses a trial's process for later trials. A trial with one worker trains in this process. A trial with several
workers starts them with Ray Train, and its own process waits for them.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from ray import tune

from infogan_ray.data.image_set import ImageSet
from infogan_ray.distributed.cluster.resources import Resources
from infogan_ray.distributed.train.trainer import run_worker_group
from infogan_ray.evaluation.metrics import HEADLINES
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.checkpoint_uploader import RunTakenOver, StorageFailed
from infogan_ray.training.config import RunConfig
from infogan_ray.training.loop import Diverged
from infogan_ray.training.out_of_memory import FOR_A_TRIAL, is_out_of_memory, out_of_memory
from infogan_ray.training.run_outcome import TrainingFailed, TrainingTakenOver, set_last_status
from infogan_ray.training.worker import run_worker

STOP_GRACE_S = 108.0  # for the workers of a stopped trial to write a last checkpoint
PROGRESS_EVERY_S = 5.0
TAKEN_OVER = "taken_over"  # key of a result: another attempt has taken over the search

Result = dict[str, Any]
"""A trial's report to Tune: ``images`` seen, the known HEADLINES, and ``score`` if it was measured."""
Results = Generator[Result, None, None]


@dataclass(frozen=True)
class TrialSettings:
    """The settings that all trials of a search share. ``configs``: each trial's configuration, by its number."""

    configs: list[dict[str, Any]]
    uri: str
    device: str
    metric: str
    workers: int


class SearchTrial(tune.Trainable):
    """A trial. Each step trains until the next report to Tune. Tune stops a trial between two steps."""

    def setup(self, config: dict[str, Any], images: ImageSet, settings: TrialSettings) -> None:  # type: ignore[override]
        self._images, self._settings = images, settings
        self._results = run_trial(config["trial"], images, settings)

    def step(self) -> Result:
        return next(self._results, None) or {"done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Tune reuses this process for another trial."""
        self.cleanup()
        self._results = run_trial(new_config["trial"], self._images, self._settings)
        return True

    def cleanup(self) -> None:
        """Stop the trial. Several workers write a last checkpoint and are released."""
        self._results.close()


def run_trial(number: int, images: ImageSet, settings: TrialSettings) -> Results:
    """Train a trial, from its last checkpoint if it has one. Closing the generator stops the trial.

    Raises RuntimeError if another attempt may succeed: Tune then restarts the trial.
    """
    config = RunConfig.from_dict(settings.configs[number], "the search")
    search = SearchDirectory(open_storage(settings.uri))
    run, reporter = search.trial(number), TuneReporter(config, settings.metric)
    try:
        for seen, score in search.scores(number):  # scores that a kill may have lost from the journal
            yield from reporter.results(seen // config.batch_size, {settings.metric: score})
        train = _train_with_workers if settings.workers > 1 else _train_here
        with contextlib.closing(train(config, images, run, settings)) as reports:
            for metrics in reports:
                yield from reporter.results(metrics.get("step", 0), metrics)
    except Diverged:
        pass  # the trial's status records this
    except (RunTakenOver, TrainingTakenOver):
        yield {TAKEN_OVER: True}
    except (StorageFailed, TrainingFailed, RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise RuntimeError(str(error)) from error
        # Tune would restart the trial after an error, and it would fail again.
        set_last_status(run, "failed", reporter.step, message=out_of_memory(config, error, FOR_A_TRIAL))


class TuneReporter:
    """Selects the reports to Tune: every score, and the images seen every PROGRESS_EVERY_S."""

    def __init__(self, config: RunConfig, metric: str) -> None:
        self.batch_size, self.metric, self.step = config.batch_size, metric, 0
        self._reported_at = time.monotonic()

    def results(self, step: int, metrics: dict[str, Any]) -> Results:
        """Yield the result to report after a step, if any."""
        self.step = max(step, self.step)
        result: Result = {"images": step * self.batch_size}
        result |= {name: metrics[name] for name in HEADLINES if name in metrics}
        if self.metric in metrics:
            result["score"] = metrics[self.metric]
        elif time.monotonic() < self._reported_at + PROGRESS_EVERY_S:
            return
        self._reported_at = time.monotonic()
        yield result


def _train_here(config: RunConfig, images: ImageSet, run: RunDirectory, settings: TrialSettings) -> Results:
    torch.set_num_threads(config.threads or 1)
    with contextlib.closing(run_worker(config, images, run, device=torch.device(settings.device))) as reports:
        for report in reports:
            yield report.metrics


def _train_with_workers(config: RunConfig, images: ImageSet, run: RunDirectory, settings: TrialSettings) -> Results:
    """Yield the reports of several workers. ``run_worker_group`` runs in a thread.

    The thread waits after each report until the caller requests the next one. Closing the generator stops the workers
    with a last checkpoint and waits until Ray Train has released them: Tune would not release them.
    """
    wanted = Resources(
        settings.workers, config.threads or 1, settings.device, config.gpus_per_worker, config.placement
    )  # fmt: skip
    reports: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    is_read, is_closing = threading.Semaphore(0), threading.Event()

    def listen(report: dict[str, Any]) -> None:
        if is_closing.is_set():
            return
        reports.put(report)
        is_read.acquire()
        if is_closing.is_set():
            raise KeyboardInterrupt  # stops the run with a last checkpoint

    with ThreadPoolExecutor(1, "trial") as pool:
        run_ends = pool.submit(run_worker_group, config, wanted, run, listen, grace_s=STOP_GRACE_S)
        run_ends.add_done_callback(lambda _: reports.put(None))
        try:
            while (report := reports.get()) is not None:
                yield report
                is_read.release()
            run_ends.result()
        finally:
            is_closing.set()
            is_read.release()
