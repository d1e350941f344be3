"""The driver's side of a run of one worker, without Ray Train: starts the worker, passes on what it says, replaces it.

What is promised is what Ray Train keeps with several: a worker that dies or freezes is replaced, as long as there are
new checkpoints; an interrupt or a notice (SIGTERM) leaves a last checkpoint; nothing outlives the driver for long.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from infogan_ray import UserError
from infogan_ray.data.shards.sampling import SAMPLE
from infogan_ray.distributed.cluster.resources import Resources, TooMuch, fit, room_for_images, this_machine
from infogan_ray.distributed.cluster.threads import limit
from infogan_ray.distributed.solo import process
from infogan_ray.distributed.solo.process import WorkerProcess
from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_outcome import (
    ENDINGS,
    LAST_WORDS_S,
    WORKER_RESTARTS,
    Listener,
    RunResult,
    TrainingFailed,
    conclude,
    set_last_status,
)
from infogan_ray.training.run_setup import Checked, begin, check_data, log_path, with_absolute_paths
from infogan_ray.training.tracking.addresses import check_packages

POLL_S = 0.3
SILENT_S = 60.0  # without a sign of life a worker is frozen


def fits(config: RunConfig) -> bool:
    """Whether a run is for one worker on this machine, with no cluster given and Ray not asked for.

    Raises UserError for more than this machine has.
    """
    if config.ray == "always" or has_cluster():
        return False
    return _wanted(config).workers == 1


def has_cluster() -> bool:
    """Whether a cluster is named, or this process is connected to one already; Ray is not imported to ask."""
    ray: Any = sys.modules.get("ray")
    return bool(os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())


def _wanted(config: RunConfig) -> Resources:
    try:
        return fit(config, [this_machine()], limit(os.environ))
    except TooMuch as error:
        raise UserError(str(error)) from None


def check(config: RunConfig, say: Callable[[str], None] = print, sample: int = SAMPLE) -> Checked:
    """All that can be refused before the worker starts. Raises UserError, in one line; see ``check_data``."""
    check_packages(config.mlflow, config.wandb)
    wanted = _wanted(config)
    room = room_for_images(wanted, [this_machine()])
    return Checked(wanted, room, check_data(config, room, say, sample))


def train(config: RunConfig, listen: Listener | None = None) -> RunResult:
    """Run a training job to its end in a process of its own.

    Raises UserError for what can be refused before work starts, TrainingFailed for a worker that keeps failing and for
    storage that does, and KeyboardInterrupt if the worker did not say its last words in time after an interrupt.
    """
    listen = listen or (lambda report: None)
    found = check(config, say=lambda line: listen({"phase": line}), sample=0)
    config, run = begin(config, found.images, found.room, listen)
    wanted = found.wanted
    del found  # with its images, of which the worker has its own
    log = log_path(run.folder, "worker.log")
    driver = Driver(run, job_of(config, run, wanted), listen, lambda: str(log))
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
    except OSError as error:
        set_last_status(run, "failed", 0)
        raise TrainingFailed(f"the log {log} cannot be written: {error.strerror}") from None
    return conclude_after(driver)


def job_of(config: RunConfig, run: RunDirectory, wanted: Resources) -> dict[str, Any]:
    """What the worker of a run that has begun is told."""
    return {
        "config": with_absolute_paths(config).to_dict(), "run": run.folder.uri,
        "device": wanted.device, "threads": wanted.threads, "threads_from": wanted.threads_from,
    }  # fmt: skip


def conclude_after(driver: Driver) -> RunResult:
    """Follow a run to its end, and say how it was."""
    try:
        with notices():
            driver.follow()
    except StorageError as error:
        raise TrainingFailed(f"{error}; the log is {driver.log()}") from None
    except KeyboardInterrupt:
        set_last_status(driver.run, "interrupted", driver.step)
        raise
    return conclude(driver.run, driver.final, driver.log())


@contextmanager
def notices() -> Iterator[None]:
    """Inside, a spot machine's notice (SIGTERM) and the end of a terminal (SIGHUP) end a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {notice: signal.getsignal(notice) for notice in (signal.SIGTERM, signal.SIGHUP)}
    kept = {notice: handler for notice, handler in kept.items() if handler is not None}  # one that C code has set
    for notice, handler in kept.items():
        if (notice, handler) != (signal.SIGHUP, signal.SIG_IGN):  # as nohup has it
            signal.signal(notice, signal.default_int_handler)
    try:
        yield
    finally:
        for notice, handler in kept.items():
            signal.signal(notice, handler)


class Driver:
    """Waits for the worker, passes on what it says, replaces it, and brings it to a stop on a notice."""

    def __init__(
        self, run: RunDirectory, job: dict[str, Any], listen: Listener, log: Callable[[], str],
        take: Callable[[], Any] = process.take,
    ) -> None:  # fmt: skip
        """``log``: says where it lies, for people. ``take``: gives a worker, as ``WorkerProcess`` is one."""
        self.run, self.job, self.listen, self.log, self.take = run, job, listen, log, take
        self.final: dict[str, Any] = {}
        self.cause = ""

    @property
    def step(self) -> int:
        return self.final.get("step", 0)

    @property
    def has_ended(self) -> bool:
        return self.final.get("phase") in ENDINGS

    def follow(self) -> None:
        """To the end of the run. Raises TrainingFailed, and KeyboardInterrupt if a last checkpoint took too long."""
        restarts, in_vain = 0, 0
        stored = self.run.get_status().get("stored", 0)
        while True:
            worker = self.take()
            try:
                worker.begin(self.job | {"restarts": restarts})
                is_stopped = self._listen_to(worker)
            except KeyboardInterrupt:
                worker.kill()
                raise
            else:
                if not worker.ended:
                    worker.kill()
            finally:  # where a listener has raised, the worker stores what it has
                worker.close()
            if self.has_ended:
                return
            if is_stopped:  # and has died meanwhile: nothing is started again
                raise KeyboardInterrupt
            before, stored = stored, self.run.get_status().get("stored", 0)
            in_vain = 1 if stored > before else in_vain + 1
            if in_vain > WORKER_RESTARTS:
                set_last_status(self.run, "failed", self.step)
                raise TrainingFailed(f"{self.cause}; the log is {self.log()}")
            restarts += 1
            self.listen({"phase": "starting workers again", "step": self.step, "say": self.cause})

    def _listen_to(self, worker: WorkerProcess) -> bool:
        """Until the worker ends, or is silent for too long; returns whether it was told to stop."""
        self.cause = ""
        try:
            self._pass_on(worker)
            return False
        except KeyboardInterrupt:
            self.listen({"phase": "stopping", "step": self.step, "say": "stopping; once more to stop at once"})
            worker.stop()
            self._pass_on(worker, LAST_WORDS_S)
            return True

    def _pass_on(self, worker: WorkerProcess, seconds: float = float("inf")) -> None:
        deadline = time.monotonic() + seconds
        while not worker.ended and worker.silent < SILENT_S and time.monotonic() < deadline:
            for report in worker.reports(POLL_S):
                if "error" in report:
                    self.cause = report["error"]
                else:
                    self.final.update(report)
                    self.listen(report)
            if self.has_ended or self.cause:  # there is nothing more to be said, and the worker ends by itself
                deadline = min(deadline, time.monotonic() + LAST_WORDS_S)
        if worker.ended:
            self.cause = self.cause or worker.cause()
        elif worker.silent >= SILENT_S:
            self.cause = f"the worker has given no sign of life for {SILENT_S:.0f} s"
