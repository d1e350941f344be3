"""Runs a search: checks, trials one generation at a time, and the leaderboard.

The trials, their scores and the stopping decisions are stored as JSON. After a kill, the same command continues with
the same trials and the same decisions.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from infogan_ray import UserError
from infogan_ray.data.feeds.feed_policy import feed_line
from infogan_ray.data.image_set import AUTO, MEMORY
from infogan_ray.distributed.cluster.connection import connect, library_logs_in, open_log, prints_in_log
from infogan_ray.distributed.cluster.local_ray import check_workers
from infogan_ray.distributed.cluster.machines import check_files
from infogan_ray.distributed.train.checks import Checked, check
from infogan_ray.distributed.tune.asha_scheduler import SearchListener
from infogan_ray.distributed.tune.searchers import TrialOutcome, propose_trials
from infogan_ray.distributed.tune.tuner import SearchFailed, run_trials
from infogan_ray.searches.asha import Decision, Halving
from infogan_ray.searches.leaderboard import leaderboard, publish_leaderboard
from infogan_ray.searches.recipe import TRACKERS, Recipe, without_trackers
from infogan_ray.searches.search_directory import SearchDirectory, remaining
from infogan_ray.searches.selection_rules import DEFAULT, Row, winner
from infogan_ray.storage.file_system import Storage, open_storage
from infogan_ray.storage.run_directory import default_name
from infogan_ray.training.config import RunConfig
from infogan_ray.training.disk_room import search_warning
from infogan_ray.training.run_outcome import TrainingFailed
from infogan_ray.training.run_setup import log_path, with_absolute_paths, with_feed_and_conversion, write_config
from infogan_ray.web.reports.search import write_search_report


@dataclass(frozen=True)
class SearchResult:
    """The leaderboard, best trial first, and the trial that the default rule selects."""

    search: SearchDirectory
    rows: list[Row]
    best: Row


def search(
    recipe: Recipe, storage: Storage | str = "runs", name: str | None = None, *, resume: bool = False,
    accept_changes: bool = False, threads: int = 1, data_dir: str | None = None,
    listen: SearchListener = lambda event: None, flags: Mapping[str, Any] | None = None,
) -> SearchResult:  # fmt: skip
    """Run all trials of a recipe on the connected Ray cluster, or on a new local cluster.

    ``threads``: CPU threads of each worker. ``listen`` receives events of each trial at every rung and every few
    seconds. ``flags``: the command's flags, which search.json keeps for a resume. What Ray prints while trials run goes
    to the search's log, and not to stdout. Raises UserError for errors that are found before a trial starts, and
    SearchFailed if no trial finishes.
    """
    storage = storage if isinstance(storage, Storage) else open_storage(storage)
    name = name or default_name("search")
    if os.environ.get("RAY_ADDRESS"):
        connect(None)  # so that the checks use the cluster's machines
    requested = recipe.config(0).feed
    recipe = with_feed(recipe, saved_feed(recipe, SearchDirectory(storage / name) if resume else None))
    local: dict[str, Any] = {"threads": threads, "data_dir": data_dir}
    local |= {field: getattr(recipe.config(0), field) for field in TRACKERS}
    if first := first_trial(SearchDirectory(storage / name) if resume else None):
        began = RunConfig.from_dict(first, name)
        local |= {"hold_out": began.hold_out, "fit": began.fit}
    configs = [dataclasses.replace(recipe.config(number), **local) for number in range(recipe.count)]
    checked = check_trials(configs, lambda line: listen({"event": "data", "say": line}))
    images = checked.images
    listen({"event": "data", "say": feed_line(requested, recipe.config(0).feed, images, checked.budget)})
    recipe = with_feed(recipe, images.feed)  # the same for all trials, also after a resume on another machine
    if recipe.adaptive:
        propose_trials(recipe, [])  # raises now if Optuna is missing
    # What can fail is tried before the search's name is claimed.
    SearchDirectory.check_name(storage, name, resume)
    if not storage.is_local:
        open_log(log_path(storage / name)).close()
    if warning := search_warning(configs, images, storage / name):
        listen({"event": "data", "say": warning})
    connect(None, dashboard=checked.wanted.workers != 1)
    check_workers()
    check_files(configs[0], storage)
    described = {**recipe.describe(), "threads": threads, "flags": dict(flags or {})}
    directory = SearchDirectory.claim(storage, name, described, resume, accept_changes)
    halving = directory.halving()
    cause = ""
    while True:
        saved = directory.description()["trials"]
        configs = [RunConfig.from_dict(values, name) for values in saved]
        configs = [with_feed_and_conversion(dataclasses.replace(config, **local), images) for config in configs]
        configs = list(map(with_absolute_paths, configs))
        todo = remaining(directory, halving, len(configs))
        record_ends(directory, halving, len(configs), todo)
        if not todo and len(configs) < recipe.count:
            add_generation(directory, recipe, halving)
            continue
        if not todo:
            break
        for number in todo:
            if not directory.trial(number).exists or not directory.can_resume(number):
                write_config(directory.trial(number), configs[number], images)
        try:
            with library_logs_in(log_path(directory.folder)), prints_in_log(listen) as heard:
                cause = run_trials(directory, recipe, configs, images, halving, todo, checked.wanted, heard) or cause
        except TrainingFailed as error:  # the log cannot be written
            raise SearchFailed(str(error)) from None
        if remaining(directory, halving, len(configs)) == todo:  # Tune would drop these trials again
            break
    rows = publish_leaderboard(directory)
    write_search_report(directory)
    best = winner(rows, recipe.metric, DEFAULT)
    if best is None:
        causes = [cause, *(str(directory.trial(n).get_status().get("message", "")) for n in range(len(configs)))]
        reason = next((text for text in causes if text), "unknown")
        raise SearchFailed(
            f"no trial of {name} finished; the first cause: {reason}; the log is {log_path(directory.folder)}"
        )
    return SearchResult(directory, rows, best)


def with_feed(recipe: Recipe, feed: str) -> Recipe:
    return dataclasses.replace(recipe, fixed={**recipe.fixed, "feed": feed})


def saved_feed(recipe: Recipe, search: SearchDirectory | None) -> str:
    """The recipe's feed. If it is "auto" and ``search`` exists, the feed that the search has used before."""
    feed = recipe.config(0).feed
    if feed != AUTO:
        return feed
    first = first_trial(search)
    return str(first.get("feed", MEMORY)) if first else feed


def first_trial(search: SearchDirectory | None) -> dict[str, Any] | None:
    """The saved configuration of the first trial, if there is one. All trials share its images."""
    trials = search.description()["trials"] if search is not None and search.exists else []
    return trials[0] if trials else None


def record_ends(directory: SearchDirectory, halving: Halving, count: int, todo: list[int]) -> None:
    """Add the ends of ended trials to the journal: a kill may have happened just before they were written."""
    known = len(halving.events)
    for number in sorted(set(range(count)) - set(todo)):
        if halving.has_ended(number):
            continue
        for images, score in directory.scores(number):
            halving.report(number, images, score)
        if halving.decision(number) is not Decision.STOP:
            halving.end(number)
    if len(halving.events) > known:
        directory.save_events(halving)


def add_generation(directory: SearchDirectory, recipe: Recipe, halving: Halving) -> None:
    """Let the searcher propose the next trials, and save them before any of them starts."""
    rows = {row["trial"]: row for row in leaderboard(directory)}
    outcomes = []
    for number, values in enumerate(directory.description()["values"]):
        row, stopped_at = rows[number], halving.stopped_at(number)
        finished = row["state"] == "finished"
        # A stopped trial may have trained past its rung before the decision, so its score at the rung is used.
        score = row[recipe.metric] if finished else halving.score(number, stopped_at) if stopped_at else None
        outcomes.append(TrialOutcome(values, score, stopped_at or row["images"], finished))
    proposed = propose_trials(recipe, outcomes)
    configs = [recipe.config(len(outcomes) + index, values) for index, values in enumerate(proposed)]
    directory.add_trials(proposed, [without_trackers(config) for config in configs])


def check_trials(configs: list[RunConfig], say: Callable[[str], None]) -> Checked:
    """Check all configurations before a trial starts. Raises UserError with the trial's number."""
    checked: Checked | None = None
    for number, config in enumerate(configs):
        try:
            checked = checked or check(config, say)
            config.total_steps(checked.images.count)
            config.model_spec(checked.images.image_size, checked.images.channels)
        except UserError as error:
            raise UserError(f"trial {number}: {error}") from None
    assert checked is not None
    return checked
