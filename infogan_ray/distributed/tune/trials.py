"""The trials of a search under Ray Tune: how one runs, and how Tune is told which go on.

A trial with one worker runs in the process that Tune gives it, and that process is given to the next trial; where
trials are packed, in one that several share (``packing.py``). A trial with several workers starts them through Ray
Train, and its own process only waits; a stopped one asks its workers for their last checkpoint and waits until Ray
Train has given them back, so that nothing is left to be cleared away.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ray import tune
from ray.train._internal.session import get_session  # Tune's own, too
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.trainable.function_trainable import FunctionTrainable, wrap_function

from infogan_ray import Recipe
from infogan_ray.data.datasets import ImageSet
from infogan_ray.distributed.cluster.resources import Resources
from infogan_ray.distributed.train.trainer import launch
from infogan_ray.distributed.tune import packing
from infogan_ray.evaluation.metrics import HEADLINES
from infogan_ray.searches.asha import Halving, Verdict
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.checkpoint_uploader import LAST_PATIENCE_S, Overtaken, StorageFailed
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_outcome import TakenOver, TrainingFailed, last_line, set_last_status
from infogan_ray.training.step import Diverged
from infogan_ray.training.worker import run_worker

# How long Tune waits, before it uses a process again, for a stopped trial to store its last checkpoint and to give its
# workers back (2 s by itself).
HAND_OVER_S = 120.0
PROGRESS_S = 5.0  # between words about images seen
NO_MEMORY = re.compile("OutOfMemory|out of memory|can't allocate memory|not enough memory|MemoryError", re.IGNORECASE)

News = dict[str, Any]
"""About one trial: ``trial``, ``event`` (progress, score, stopped, ended, failed, restarted), ``images``, metrics as
far as they are known, and ``say``: a line for people, or nothing."""


@dataclass(frozen=True)
class Settings:
    """What all trials of a search are given."""

    configs: list[dict[str, Any]]
    uri: str
    device: str
    metric: str
    workers: int
    packs: Sequence[Any] = ()
    """The processes that trials share, if they do."""


def run_trial(chosen: dict[str, Any], *, images: ImageSet | None, settings: Settings) -> None:
    """One trial, in a process that has perhaps run others before: from its own last checkpoint, if it has one."""
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(int(HAND_OVER_S))
    number = chosen["trial"]
    config = RunConfig().override(settings.configs[number], "the search")
    search = SearchDirectory(open_storage(settings.uri))
    run = search.trial(number)
    tell = Teller(config, settings.metric)
    try:
        for seen, score in search.scores(number):  # a kill may have come between one of them and the journal
            tell(seen // config.batch_size, {settings.metric: score})
        if settings.workers > 1:
            _with_workers(config, run, settings, tell)
        elif settings.packs:
            packing.follow(
                settings.packs, number, settings.configs[number], run, settings.metric, tell, 0.9 * HAND_OVER_S
            )  # fmt: skip
        else:
            assert images is not None
            _alone(config, images, run, settings, tell)
    except Diverged:
        pass  # its status says so, and its end tells the others not to wait
    except (Overtaken, TakenOver):
        tune.report({"overtaken": True})
    except (StorageFailed, TrainingFailed, RuntimeError, MemoryError) as error:
        # Of packed trials another may have had the memory, and the same again is not the same.
        if settings.packs or not NO_MEMORY.search(f"{type(error).__name__}: {error}"):
            raise RuntimeError(str(error)) from None
        # Not an error in Tune's eyes, which would try the same again.
        set_last_status(run, "failed", tell.step, message=f"{out_of_memory(config)} ({last_line(error)})")


def patient_trainable(function: Callable[[dict[str, Any]], None]) -> type[FunctionTrainable]:
    """What Tune runs. Its own would let a stopped trial's process die at once if no other trial needs it, and workers
    that Ray Train had started for it would keep their places for ever."""

    class Trial(wrap_function(function, name="trial")):  # type: ignore[misc]  # a class that is made at run time
        def cleanup(self) -> None:
            session = get_session()
            if session is not None:
                session.finish(timeout=int(HAND_OVER_S))
            super().cleanup()

    return Trial


def out_of_memory(config: RunConfig) -> str:
    return (
        f"out of memory with batch_size {config.batch_size} and network.width {config.network.width}; let the recipe "
        "search smaller ones, or run fewer trials at once with more --threads or a smaller --per-process"
    )


class Teller:
    """Reports to Tune: every measured score, and images seen every few seconds."""

    def __init__(self, config: RunConfig, metric: str) -> None:
        self.batch_size, self.metric, self.step = config.batch_size, metric, 0
        self._told = time.monotonic()

    def __call__(self, step: int, metrics: dict[str, Any]) -> None:
        self.step = max(step, self.step)
        about: dict[str, Any] = {"images": step * self.batch_size}
        about |= {name: metrics[name] for name in HEADLINES if name in metrics}
        if self.metric in metrics:
            about["score"] = metrics[self.metric]
        elif time.monotonic() < self._told + PROGRESS_S:
            return
        self._told = time.monotonic()
        tune.report(about)


def _alone(config: RunConfig, images: ImageSet, run: RunDirectory, settings: Settings, tell: Teller) -> None:
    torch.set_num_threads(config.threads or 1)
    with contextlib.closing(run_worker(config, images, run, device=torch.device(settings.device))) as reports:
        for report in reports:
            tell(report.metrics.get("step", 0), report.metrics)


def _with_workers(config: RunConfig, run: RunDirectory, settings: Settings, tell: Teller) -> None:
    stopped: list[BaseException] = []

    def listen(report: dict[str, Any]) -> None:
        if stopped:
            return
        try:
            tell(report.get("step", 0), report)
        except SystemExit as error:  # Tune's way to stop a trial
            stopped.append(error)
            raise KeyboardInterrupt from None  # the driver's way to end a run with a last checkpoint

    wanted = Resources(
        settings.workers, config.threads or 1, settings.device, config.gpus_per_worker, config.placement
    )  # fmt: skip
    try:
        launch(config, wanted, run, listen, patience=0.9 * HAND_OVER_S)
    except KeyboardInterrupt:
        if not stopped:
            raise
    if stopped:
        raise stopped[0]


class StopAll(tune.Stopper):
    """Ends a search that another attempt has taken over: else the trials that wait would still be started."""

    def __init__(self, rungs: Rungs) -> None:
        self.rungs = rungs

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.rungs.closed


class Rungs(FIFOScheduler):
    """Tells Tune what our halving decides, and keeps its journal on storage."""

    def __init__(
        self, directory: SearchDirectory, halving: Halving, recipe: Recipe, listen: Callable[[News], None]
    ) -> None:
        super().__init__()
        self.directory, self.halving, self.recipe, self.listen = directory, halving, recipe, listen
        self.closed = False

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a copy of its scheduler in a file that nobody reads; a listener may hold what no file can."""
        return {**self.__dict__, "listen": None}

    def close(self) -> None:
        """Nothing that happens from now on counts: an interrupted trial has not failed."""
        self.closed = True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = trial.config["trial"]
        if result.get("overtaken"):
            self.close()
        if self.closed:
            return TrialScheduler.STOP
        news = {name: result[name] for name in ("images", *HEADLINES) if name in result}
        known = len(self.halving.events)
        if "score" in result:
            self.halving.report(number, result["images"], result["score"])
        if len(self.halving.events) > known:
            self._save()
        verdict = self.halving.verdict(number)
        if verdict is Verdict.STOP:
            self.listen({**news, "trial": number, "event": "stopped", "say": self._text(number, result, verdict)})
            return TrialScheduler.STOP
        say = self._text(number, result, verdict) if len(self.halving.events) > known else ""
        self.listen({**news, "trial": number, "event": "score" if "score" in result else "progress", "say": say})
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._end(trial.config["trial"], "ended")

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        number = trial.config["trial"]
        if trial.should_recover():  # Tune calls this before each restart, too
            say = f"trial {number}: its process died; it is started again"
            self.listen({"trial": number, "event": "restarted", "say": say})
            return
        error = trial.get_error()
        why = last_line(error) if error is not None else "its process died"
        if NO_MEMORY.search(why):
            why = f"{out_of_memory(RunConfig().override(self.directory.description()['trials'][number], ''))} ({why})"
        run = self.directory.trial(number)
        if not self.closed:
            set_last_status(run, "failed", run.get_status()["step"], message=why)
        self._end(number, "failed")

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._end(trial.config["trial"], "removed")

    def _end(self, number: int, how: str) -> None:
        if self.closed or self.halving.verdict(number) is Verdict.STOP:
            return
        self.halving.end(number)
        self._save()
        status = self.directory.trial(number).get_status()
        state = status["state"] if how == "ended" else "failed"
        why = f": {status['message']}" if status.get("message") else ""
        self.listen({"trial": number, "event": state, "say": f"trial {number}: {state}{why}"})

    def _save(self) -> None:
        """Before anything follows from it. Trials wait for the answer meanwhile, and an outage is waited for."""
        SearchDirectory(self.directory.folder.patient(LAST_PATIENCE_S)).save_events(self.halving)

    def _text(self, number: int, result: dict[str, Any], verdict: Verdict) -> str:
        reached = max((rung for rung in self.halving.rungs if rung <= result["images"]), default=0)
        rung = self.halving.stopped_at(number) or reached
        place = self.halving.place(number, rung) if rung else None
        where = f", place {place[0]} of {place[1]}" if place else ""
        words = {Verdict.CONTINUE: "goes on", Verdict.STOP: "is stopped", Verdict.WAIT: "goes on until others report"}
        score = f", {self.recipe.metric} {result['score']:.3f}" if "score" in result else ""
        return f"trial {number}: {result['images']:,} images{score}{where}: {words[verdict]}"
