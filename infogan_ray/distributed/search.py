"""A search under Ray Tune: one process per trial, stopped by our own halving, its checkpoints in our own store.

Tune starts the trials, gives their processes to the next ones, and stops them; which trials there are, what they
decide and where they stand is ours, and lies on storage as JSON: after a kill the same command goes on with the same
decisions. Tune's own files, which hold pickles, stay in a temporary folder and are never read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
import torch
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from infogan_ray import checkpoints
from infogan_ray.config import RunConfig
from infogan_ray.data import ImageSet
from infogan_ray.distributed.driver import POLL_S
from infogan_ray.distributed.trainer import Resources, check, connect, log_path, set_last_status, write_config
from infogan_ray.halving import Halving, Verdict
from infogan_ray.outbox import LAST_PATIENCE_S, Overtaken, StorageFailed
from infogan_ray.recipes import Recipe
from infogan_ray.searches import Row, SearchDirectory, remaining, winner
from infogan_ray.session import run_worker
from infogan_ray.storage import Storage, open_storage
from infogan_ray.training import Diverged

HAND_OVER_S = 60.0
TRIAL_RESTARTS = 3  # of a trial whose process dies
ENVIRONMENT = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}

Listener = Callable[[str], None]


class SearchFailed(Exception):
    """No trial came to its end; the message has the first cause."""


@dataclass(frozen=True)
class SearchResult:
    """The board, best first, and what the default rule picks."""

    search: SearchDirectory
    rows: list[Row]
    best: Row


def search(
    recipe: Recipe, storage: Storage | str = "runs", name: str | None = None, *, resume: bool = False,
    threads: int = 1, data_dir: str | None = None, listen: Listener = lambda line: None,
) -> SearchResult:  # fmt: skip
    """Run all trials of a recipe on the connected Ray cluster, or on an embedded one, ``threads`` CPUs for each.

    ``listen`` hears a line about every trial at every rung. Raises ValueError for what can be refused before work
    starts, and SearchFailed.
    """
    storage = storage if isinstance(storage, Storage) else open_storage(storage)
    name = name or f"search-{time.strftime('%Y%m%d-%H%M%S')}"
    if os.environ.get("RAY_ADDRESS"):
        connect(None)  # so that what is asked for is compared with the cluster, not with this machine
    configs = [dataclasses.replace(recipe.config(n), threads=threads, data_dir=data_dir) for n in range(recipe.count)]
    wanted, images = check_all(configs, listen)
    directory = SearchDirectory.claim(storage, name, {**recipe.describe(), "threads": threads}, resume)
    halving = directory.halving()
    cause = ""
    while todo := remaining(directory, halving, recipe.count):
        end_what_is_over(directory, halving, recipe.count, todo)
        for number in todo:
            if not directory.trial(number).exists:
                write_config(directory.trial(number), configs[number], images)
        cause = run_trials(directory, recipe, configs, images, halving, todo, wanted.device, listen) or cause
        if remaining(directory, halving, recipe.count) == todo:  # Tune has let them fall, and would again
            break
    end_what_is_over(directory, halving, recipe.count, todo)
    rows = directory.publish_board()
    best = winner(rows, recipe.metric, "gated")
    if best is None:
        causes = [cause, *(str(directory.trial(n).get_status().get("message", "")) for n in range(recipe.count))]
        why = next((text for text in causes if text), "no cause is known")
        raise SearchFailed(
            f"no trial of {name} came to its end; the first cause: {why}; the log is {log_path(directory.folder)}"
        )
    return SearchResult(directory, rows, best)


def end_what_is_over(directory: SearchDirectory, halving: Halving, count: int, todo: list[int]) -> None:
    """Say so in the journal: a kill may have come just before it was written."""
    known = len(halving.events)
    for number in set(range(count)) - set(todo):
        if halving.verdict(number) is not Verdict.STOP:
            halving.end(number)
    if len(halving.events) > known:
        directory.save_events(halving)


def check_all(configs: list[RunConfig], listen: Listener) -> tuple[Resources, ImageSet]:
    """Refuse what can be refused before a trial starts, with the trial's number. Raises ValueError."""
    images: ImageSet | None = None
    wanted: Resources | None = None
    for number, config in enumerate(configs):
        try:
            if images is None:
                wanted, images = check(config, listen)
            config.total_steps(len(images.images))
            config.model_spec(images.image_size, images.channels)
        except ValueError as error:
            raise ValueError(f"trial {number}: {error}") from None
    assert images is not None and wanted is not None
    return wanted, images


def run_trials(
    directory: SearchDirectory, recipe: Recipe, configs: list[RunConfig], images: ImageSet, halving: Halving,
    todo: list[int], device: str, listen: Listener,
) -> str:  # fmt: skip
    """Run the trials that are left; the first error of one that failed for good, or nothing. Raises SearchFailed."""
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    connect(log_path(directory.folder))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a spot machine's notice, as in a single run
    scratch = tempfile.mkdtemp(prefix="infogan-ray-tune-")
    rungs = Rungs(directory, halving, recipe, listen)
    settings = {"configs": [config.to_dict() for config in configs], "uri": directory.folder.uri}
    settings |= {"device": device, "metric": recipe.metric}
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_trial, images=images, settings=settings),
            {"cpu": configs[0].threads or 1, "gpu": int(device == "cuda")},
        ),
        param_space={"trial": tune.grid_search(todo)},
        tune_config=tune.TuneConfig(scheduler=rungs, reuse_actors=True),
        run_config=tune.RunConfig(
            name=directory.name, storage_path=scratch, verbose=0,
            failure_config=tune.FailureConfig(max_failures=TRIAL_RESTARTS),
        ),
    )  # fmt: skip
    try:
        results = _in_a_thread(tuner.fit, before_the_end=rungs.close)
    except (tune.TuneError, ray.exceptions.RayError) as error:
        raise SearchFailed(f"{_last_line(error)}; the log is {log_path(directory.folder)}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if rungs.closed:
        raise SearchFailed(f"{directory.folder}: another attempt has taken this search over")
    for number in todo:
        if halving.verdict(number) is Verdict.STOP:
            set_last_status(directory.trial(number), "stopped", directory.trial(number).get_status()["step"])
    return next((_last_line(result.error) for result in results if result.error is not None), "")


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()


class Rungs(FIFOScheduler):
    """Tells Tune what our halving decides, and keeps its journal on storage."""

    def __init__(self, directory: SearchDirectory, halving: Halving, recipe: Recipe, listen: Listener) -> None:
        super().__init__()
        self.directory, self.halving, self.recipe, self.listen = directory, halving, recipe, listen
        self.closed = False

    def close(self) -> None:
        """Nothing that happens from now on counts: an interrupted trial has not failed."""
        self.closed = True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = trial.config["trial"]
        if result.get("overtaken"):
            self.close()
        if self.closed:
            return TrialScheduler.STOP
        if "score" not in result:
            return TrialScheduler.CONTINUE
        known = len(self.halving.events)
        self.halving.report(number, result["images"], result["score"])
        verdict = self.halving.verdict(number)
        if len(self.halving.events) > known:
            self._save()
        if len(self.halving.events) > known or verdict is Verdict.STOP:
            self.listen(self._text(number, result, verdict))
        return TrialScheduler.STOP if verdict is Verdict.STOP else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._end(trial.config["trial"], "ended")

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        if trial.should_recover():  # Tune calls this before each restart, too
            self.listen(f"trial {trial.config['trial']}: its process died; it is started again")
            return
        self._end(trial.config["trial"], "failed")

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._end(trial.config["trial"], "removed")

    def _end(self, number: int, how: str) -> None:
        if self.closed or self.halving.verdict(number) is Verdict.STOP:
            return
        self.halving.end(number)
        self._save()
        self.listen(f"trial {number}: {how}")

    def _save(self) -> None:
        """Before anything follows from it. Trials wait for the answer meanwhile, and an outage is waited for."""
        SearchDirectory(self.directory.folder.patient(LAST_PATIENCE_S)).save_events(self.halving)

    def _text(self, number: int, result: dict[str, Any], verdict: Verdict) -> str:
        reached = max((rung for rung in self.halving.rungs if rung <= result["images"]), default=0)
        rung = self.halving.stopped_at(number) or reached
        place = self.halving.place(number, rung) if rung else None
        where = f", place {place[0]} of {place[1]}" if place else ""
        words = {Verdict.CONTINUE: "goes on", Verdict.STOP: "is stopped", Verdict.WAIT: "goes on until others report"}
        score = f"{self.recipe.metric} {result['score']:.3f}"
        return f"trial {number}: {result['images']:,} images, {score}{where}: {words[verdict]}"


def _trial(chosen: dict[str, Any], *, images: ImageSet, settings: dict[str, Any]) -> None:
    """One trial, in a process that has perhaps run others before: from its own last checkpoint, if it has one."""
    # How long Tune waits, before it uses this process again, for a stopped trial to store its last checkpoint (2 s).
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(int(HAND_OVER_S))
    number = chosen["trial"]
    config = RunConfig().override(settings["configs"][number], "the search")
    run = SearchDirectory(open_storage(settings["uri"])).trial(number)
    torch.set_num_threads(config.threads or 1)

    def tell(step: int, metrics: dict[str, Any]) -> None:
        if settings["metric"] in metrics:
            tune.report({"images": step * config.batch_size, "score": metrics[settings["metric"]]})

    try:
        last = checkpoints.last_whole(run.checkpoints, warn=lambda line: None)
        if last is not None:  # a kill may have come between this checkpoint and the journal
            tell(last.step, last.metrics)
        with contextlib.closing(run_worker(config, images, run, device=torch.device(settings["device"]))) as reports:
            for report in reports:
                if report.due:
                    tell(report.metrics["step"], report.metrics)
    except Diverged:
        pass  # its status says so, and its end tells the others not to wait
    except Overtaken:
        tune.report({"overtaken": True})
    except StorageFailed as error:
        raise RuntimeError(str(error)) from None


def _in_a_thread(action: Callable[[], Any], before_the_end: Callable[[], None]) -> Any:
    """Tune would take SIGINT over in the main thread. Raises what the action raises; on a signal, ends Ray's job."""
    box: dict[str, Any] = {}

    def work() -> None:
        try:
            box["result"] = action()
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=work, name="ray-tune", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_S)
    except BaseException:
        before_the_end()
        ray.shutdown()
        raise
    if "error" in box:
        raise box["error"]
    return box["result"]
