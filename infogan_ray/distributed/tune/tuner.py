"""Runs the trials of a search with Ray Tune, as many at once as fit.

Tune's own files, including pickles, stay in a temporary folder and are never read.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable

import ray
import ray.exceptions
from ray import tune

from infogan_ray import Recipe
from infogan_ray.data.image_set import ImageSet
from infogan_ray.distributed.cluster.connection import connect
from infogan_ray.distributed.cluster.machines import machines
from infogan_ray.distributed.cluster.ray_thread import RayThread
from infogan_ray.distributed.cluster.resources import Resources, max_concurrent_runs
from infogan_ray.distributed.train.head_monitor import WAITING_FOR_ROOM, HeadMonitor
from infogan_ray.distributed.tune.asha_scheduler import AshaScheduler, SearchEvent, SearchListener, StopIfTakenOver
from infogan_ray.distributed.tune.trials import SearchTrial, TrialSettings
from infogan_ray.searches.asha import Decision, Halving
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.storage.scratch import scratch_folder
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_outcome import SHUTDOWN_GRACE_S, last_line, set_last_status
from infogan_ray.training.run_setup import log_path

TRIAL_RESTARTS = 3  # if a trial's process dies
POLL_S = 0.3
ENVIRONMENT = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}


class SearchFailed(Exception):
    """The search failed. The message has the cause."""


def run_trials(
    directory: SearchDirectory, recipe: Recipe, configs: list[RunConfig], images: ImageSet, halving: Halving,
    todo: list[int], wanted: Resources, listen: SearchListener,
) -> str:  # fmt: skip
    """Run the trials in ``todo``. Returns the error of the first failed trial, or "". Raises SearchFailed."""
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    connect(None, dashboard=wanted.workers != 1)
    if threading.current_thread() is threading.main_thread():
        # SIGTERM, for example from a spot machine, stops a search as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    resources = contextlib.ExitStack()
    scratch = resources.enter_context(scratch_folder())
    capacity = CapacityNotifier(listen)
    scheduler = AshaScheduler(directory, halving, recipe, capacity.forward)
    settings = TrialSettings(
        [config.to_dict() for config in configs], directory.folder.uri, wanted.device, recipe.metric, recipe.workers
    )  # fmt: skip
    try:
        trial = tune.with_parameters(SearchTrial, images=images if recipe.workers == 1 else None, settings=settings)
        tuner = tune.Tuner(
            tune.with_resources(trial, trial_resources(wanted)),
            param_space={"trial": tune.grid_search(todo)},
            # Any further trial would only keep a process that waits for workers.
            tune_config=tune.TuneConfig(
                scheduler=scheduler, reuse_actors=True, max_concurrent_trials=max_concurrent_runs(wanted, machines())
            ),
            run_config=tune.RunConfig(
                name=directory.name, storage_path=scratch, verbose=0,
                failure_config=tune.FailureConfig(max_failures=TRIAL_RESTARTS), stop=StopIfTakenOver(scheduler),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials write their own
            ),
        )  # fmt: skip
        results = fit_in_thread(tuner, capacity.check, on_interrupt=scheduler.close)
    except (tune.TuneError, ray.exceptions.RayError) as error:
        raise SearchFailed(f"{last_line(error)}; the log is {log_path(directory.folder)}") from None
    finally:
        capacity.close()
        resources.close()
    if scheduler.is_closed:
        raise SearchFailed(f"{directory.folder}: another attempt has taken over this search")
    for number in todo:
        if halving.decision(number) is Decision.STOP:
            set_last_status(directory.trial(number), "stopped", directory.trial(number).get_status()["step"])
    # Tune sorts by the time of the trials' ends, which differs between runs.
    errors = {result.config["trial"]: result.error for result in results if result.error and result.config}
    return last_line(errors[min(errors)]) if errors else ""


def trial_resources(wanted: Resources) -> dict[str, float]:
    """The resources of a trial's own process.

    The process of a trial with several workers only waits, and must not take a share of a CPU from a worker. Ray
    refuses a trial that requests nothing, so it requests one byte of memory.
    """
    if wanted.workers != 1:
        return {"memory": 1}
    return {name.lower(): amount for name, amount in wanted.per_worker.items()}


class CapacityNotifier:
    """Sends one event if all trials wait for room on the cluster. Tune itself waits without a message."""

    def __init__(self, listen: SearchListener) -> None:
        self._listen = listen
        self._last_event_at, self._has_notified = time.monotonic(), False
        self._head = HeadMonitor()

    def forward(self, event: SearchEvent) -> None:
        self._last_event_at, self._has_notified = time.monotonic(), False
        self._listen(event)

    def check(self) -> None:
        if not self._has_notified and self._head.waits_for_room(time.monotonic() - self._last_event_at):
            self._has_notified = True
            self._listen({"event": "data", "say": WAITING_FOR_ROOM})

    def close(self) -> None:
        self._head.close()


def fit_in_thread(tuner: tune.Tuner, poll: Callable[[], None], on_interrupt: Callable[[], None]) -> list[tune.Result]:
    """Run ``tuner.fit()`` in a thread. After a signal, ``on_interrupt`` makes Tune stop, within SHUTDOWN_GRACE_S.

    Raises what ``fit`` raises, and KeyboardInterrupt after a signal.
    """
    fit = RayThread(tuner.fit, "ray-tune")
    try:
        while not fit.ended.wait(POLL_S):
            poll()
    except BaseException:
        on_interrupt()
        fit.ended.wait(SHUTDOWN_GRACE_S)
        raise
    if fit.error is not None:
        raise fit.error
    return list(fit.result)
