"""A search under Ray Tune: trials stopped by our own halving, their checkpoints in our own store.

Tune starts the trials, gives their processes to the next ones, and stops them; which trials there are, what they
decide and where they stand is ours, and lies on storage as JSON: after a kill the same command goes on with the same
decisions. Tune's own files, which hold pickles, stay in a temporary folder and are never read.
"""

from __future__ import annotations

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
from ray import tune

from infogan_ray import UserError
from infogan_ray.data.datasets import ImageSet
from infogan_ray.data.feeds.feed_policy import AUTO, MEMORY, feed_line
from infogan_ray.distributed.cluster.connection import connect
from infogan_ray.distributed.cluster.machines import check_files, machines
from infogan_ray.distributed.cluster.resources import Resources, at_once
from infogan_ray.distributed.train.checks import Checked, check
from infogan_ray.distributed.train.driver import POLL_S
from infogan_ray.distributed.train.head_monitor import SLOW_START_S, WAITING_FOR_ROOM, HeadMonitor
from infogan_ray.distributed.tune.packing import check_packed, close_packs, open_packs
from infogan_ray.distributed.tune.searchers import Past, propose
from infogan_ray.distributed.tune.trials import News, Rungs, Settings, StopAll, patient_trainable, run_trial
from infogan_ray.searches.asha import Halving, Verdict
from infogan_ray.searches.recipe import TRACKERS, Recipe, without_trackers
from infogan_ray.searches.search_directory import SearchDirectory, remaining
from infogan_ray.searches.selection_rules import DEFAULT, Row, winner
from infogan_ray.storage import checkpoints
from infogan_ray.storage.file_system import Storage, open_storage
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_outcome import last_line, set_last_status
from infogan_ray.training.run_setup import log_path, with_absolute_paths, write_config
from infogan_ray.web.reports.search import write_search_report

TRIAL_RESTARTS = 3  # of a trial whose process dies
ENVIRONMENT = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}

Listener = Callable[[News], None]


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
    accept_changes: bool = False, threads: int = 1, per_process: int = 1, data_dir: str | None = None,
    listen: Listener = lambda news: None,
) -> SearchResult:  # fmt: skip
    """Run all trials of a recipe on the connected Ray cluster, or on an embedded one, ``threads`` CPUs for each worker.

    ``per_process``: trials to a process, which has the CPUs and the share of a GPU of one of them. ``listen`` hears of
    every trial at every rung, and every few seconds how far it is. Raises UserError for what can be refused before
    work starts, and SearchFailed.
    """
    storage = storage if isinstance(storage, Storage) else open_storage(storage)
    name = name or f"search-{time.strftime('%Y%m%d-%H%M%S')}"
    if os.environ.get("RAY_ADDRESS"):
        connect(None)  # so that what is asked for is compared with the cluster, not with this machine
    recipe = with_feed(recipe, kept_feed(recipe, SearchDirectory(storage / name) if resume else None))
    here: dict[str, Any] = {"threads": threads, "data_dir": data_dir}
    here |= {field: getattr(recipe.config(0), field) for field in TRACKERS}
    configs = [dataclasses.replace(recipe.config(n), **here) for n in range(recipe.count)]
    found = check_all(configs, lambda line: listen({"event": "data", "say": line}))
    check_packed(configs, found.wanted, per_process)
    if per_process > 1 and found.wanted.device == "cpu":
        listen({"event": "data", "say": f"per_process is {per_process}: on a CPU trials gain nothing by sharing one"})
    wanted, images = found.wanted, found.images
    listen({"event": "data", "say": feed_line(recipe.config(0).feed, images, found.room)})
    recipe = with_feed(recipe, images.feed)  # the same for all trials, and for whoever resumes the search
    if recipe.adaptive:
        propose(recipe, [])  # what is missing for it is said now
    if ray.is_initialized():
        check_files(dataclasses.replace(recipe.config(0), **here), storage)
    directory = SearchDirectory.claim(storage, name, {**recipe.describe(), "threads": threads}, resume, accept_changes)
    halving = directory.halving()
    cause = ""
    while True:
        about = directory.description()
        configs = [dataclasses.replace(RunConfig().override(saved, name), **here) for saved in about["trials"]]
        configs = [with_absolute_paths(config) for config in configs]
        todo = remaining(directory, halving, len(configs))
        check_packed([configs[number] for number in todo], wanted, per_process)  # some may have begun otherwise
        end_what_is_over(directory, halving, len(configs), todo)
        if not todo and len(configs) < recipe.count:
            add_generation(directory, recipe, halving)
            continue
        for number in todo:
            prepare(directory, number, about["parents"][number], configs[number], images)
        if todo:
            cause = run_trials(directory, recipe, configs, images, halving, todo, wanted, per_process, listen) or cause
        if not todo or remaining(directory, halving, len(configs)) == todo:  # Tune has let them fall, and would again
            break
    end_what_is_over(directory, halving, len(configs), todo)
    rows = directory.publish_board()
    write_search_report(directory)
    best = winner(rows, recipe.metric, DEFAULT)
    if best is None:
        causes = [cause, *(str(directory.trial(n).get_status().get("message", "")) for n in range(len(configs)))]
        why = next((text for text in causes if text), "no cause is known")
        raise SearchFailed(
            f"no trial of {name} came to its end; the first cause: {why}; the log is {log_path(directory.folder)}"
        )
    return SearchResult(directory, rows, best)


def with_feed(recipe: Recipe, feed: str) -> Recipe:
    return dataclasses.replace(recipe, fixed={**recipe.fixed, "feed": feed})


def kept_feed(recipe: Recipe, search: SearchDirectory | None) -> str:
    """The feed that a recipe asks for; where it leaves that open, what a search that is gone on with has."""
    asked = recipe.config(0).feed
    if asked != AUTO or search is None or not search.exists:
        return asked
    trials = search.description()["trials"]
    return str(trials[0].get("feed", MEMORY)) if trials else asked


def end_what_is_over(directory: SearchDirectory, halving: Halving, count: int, todo: list[int]) -> None:
    """Say so in the journal: a kill may have come just before it was written."""
    known = len(halving.events)
    for number in sorted(set(range(count)) - set(todo)):
        if halving.has_ended(number):
            continue
        for images, score in directory.scores(number):
            halving.report(number, images, score)
        if halving.verdict(number) is not Verdict.STOP:
            halving.end(number)
    if len(halving.events) > known:
        directory.save_events(halving)


def add_generation(directory: SearchDirectory, recipe: Recipe, halving: Halving) -> None:
    """Have the searcher propose the next trials, and keep them before any of them starts.

    Raises SearchFailed where it cannot.
    """
    rows = {row["trial"]: row for row in directory.board()}
    past = []
    for number, values in enumerate(directory.description()["values"]):
        row, stopped_at = rows[number], halving.stopped_at(number)
        finished = row["state"] in ("finished", "handed on")
        # A stopped trial may have gone on for a while before that was known: only what it was judged by counts.
        score = row[recipe.metric] if finished else halving.score(number, stopped_at) if stopped_at else None
        past.append(Past(values, score, stopped_at or row["images"], finished))
    try:
        new = propose(recipe, past)
    except ValueError as error:
        raise SearchFailed(str(error)) from None
    configs = [without_trackers(recipe.config(len(past) + place, one.values)) for place, one in enumerate(new)]
    directory.extend([one.values for one in new], [one.parent for one in new], configs)


def prepare(directory: SearchDirectory, number: int, parent: int | None, config: RunConfig, images: ImageSet) -> None:
    """A trial's folder before it first starts: its configuration, and its parent's last checkpoint if it has one."""
    run = directory.trial(number)
    if parent is not None and not run.exists:
        donor = checkpoints.choose(directory.trial(parent).checkpoints, "last", "step")
        files = {name: donor.manifest.read(name) for name in donor.manifest.files}
        checkpoints.seal(run.checkpoints / donor.name, files)
    if not run.exists or not directory.has_begun(number):
        write_config(run, config, images)


def check_all(configs: list[RunConfig], say: Callable[[str], None]) -> Checked:
    """Refuse what can be refused before a trial starts, with the trial's number. Raises UserError."""
    found: Checked | None = None
    for number, config in enumerate(configs):
        try:
            found = found or check(config, say)
            config.total_steps(found.images.count)
            config.model_spec(found.images.image_size, found.images.channels)
        except ValueError as error:
            raise UserError(f"trial {number}: {error}") from None
    assert found is not None
    return found


def run_trials(
    directory: SearchDirectory, recipe: Recipe, configs: list[RunConfig], images: ImageSet, halving: Halving,
    todo: list[int], wanted: Resources, per_process: int, listen: Listener,
) -> str:  # fmt: skip
    """Run the trials that are left; the error of the first that failed for good, or nothing. Raises SearchFailed."""
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    connect(log_path(directory.folder), dashboard=wanted.workers != 1)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a spot machine's notice, as in a single run
    scratch = tempfile.mkdtemp(prefix="infogan-ray-tune-")
    patience = Patience(listen)
    rungs = Rungs(directory, halving, recipe, patience.hear)
    packs: list[Any] = []
    try:
        places = at_once(wanted, machines())
        if per_process > 1:
            shared = ray.put(images)
            packs = open_packs(shared, wanted, min(places, len(todo)), per_process)
            patience.begin_with(packs)
        settings = Settings(
            [config.to_dict() for config in configs], directory.folder.uri, wanted.device, recipe.metric,
            recipe.workers, packs,
        )  # fmt: skip
        trial = tune.with_parameters(run_trial, images=None if packs else images, settings=settings)
        tuner = tune.Tuner(
            tune.with_resources(patient_trainable(trial), of_a_trial(wanted, bool(packs))),
            param_space={"trial": tune.grid_search(todo)},
            # More of them than there is room for would each hold a process that waits for workers which it cannot get.
            tune_config=tune.TuneConfig(
                scheduler=rungs, reuse_actors=True, max_concurrent_trials=places * per_process
            ),
            run_config=tune.RunConfig(
                name=directory.name, storage_path=scratch, verbose=0,
                failure_config=tune.FailureConfig(max_failures=TRIAL_RESTARTS), stop=StopAll(rungs),
            ),
        )  # fmt: skip
        results = _in_a_thread(tuner.fit, patience.look, before_the_end=rungs.close)
    except (tune.TuneError, ray.exceptions.RayError) as error:
        raise SearchFailed(f"{last_line(error)}; the log is {log_path(directory.folder)}") from None
    finally:
        patience.close()
        close_packs(packs)
        shutil.rmtree(scratch, ignore_errors=True)
    if rungs.closed:
        raise SearchFailed(f"{directory.folder}: another attempt has taken this search over")
    for number in todo:
        if halving.verdict(number) is Verdict.STOP:
            set_last_status(directory.trial(number), "stopped", directory.trial(number).get_status()["step"])
    # Tune's order is that of the ends, which differs from run to run.
    errors = {result.config["trial"]: result.error for result in results if result.error is not None}
    return last_line(errors[min(errors)]) if errors else ""


def of_a_trial(wanted: Resources, is_packed: bool) -> dict[str, float]:
    """What Tune sets aside for a trial's own process. With workers of its own, or packed with others, it only waits:
    one byte of memory, since Ray refuses a trial that asks for nothing, and any share of a CPU might be the one that a
    worker then lacks."""
    if wanted.workers != 1 or is_packed:
        return {"memory": 1}
    return {name.lower(): amount for name, amount in wanted.of_a_worker.items()}


class Patience:
    """Says so, once, when all trials wait for room on the cluster that others have: Tune waits without a word."""

    def __init__(self, listen: Listener) -> None:
        self._listen, self._answers = listen, list[Any]()
        self._heard, self._said = time.monotonic(), False
        self._head = HeadMonitor()

    def begin_with(self, packs: list[Any]) -> None:
        """Packed trials have no places of Tune's: it is the processes that they share that wait."""
        self._answers = [pack.busy.remote() for pack in packs]

    def hear(self, news: News) -> None:
        self._heard, self._said = time.monotonic(), False
        self._listen(news)

    def look(self) -> None:
        if not self._said and self._all_wait(time.monotonic() - self._heard):
            self._said = True
            self._listen({"event": "data", "say": WAITING_FOR_ROOM})

    def _all_wait(self, silent: float) -> bool:
        if not self._answers:
            return self._head.is_waited_for_room(silent)
        return silent > SLOW_START_S and not ray.wait(self._answers, timeout=0)[0]

    def close(self) -> None:
        self._head.close()


def _in_a_thread(action: Callable[[], Any], meanwhile: Callable[[], None], before_the_end: Callable[[], None]) -> Any:
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
            meanwhile()
    except BaseException:
        before_the_end()
        ray.shutdown()
        raise
    if "error" in box:
        raise box["error"]
    return box["result"]
