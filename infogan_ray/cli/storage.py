"""infogan runs and infogan pull: what lies on storage."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from infogan_ray import UserError
from infogan_ray.cli.flags import config_of, parse, print_rows, scalars, warn
from infogan_ray.cli.main import DONE
from infogan_ray.cli.search import board_rows
from infogan_ray.evaluation.metrics import CHECKPOINT, check_selectable, headlines_of
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.searches.selection_rules import DEFAULT, best_by, check_rule, winner
from infogan_ray.storage import checkpoints
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory, runs_in
from infogan_ray.training.publish import pull as pull_model
from infogan_ray.training.run_listing import run_row, state_of


@dataclass
class Runs:
    storage: tyro.conf.Positional[str]
    """STORAGE, or STORAGE/NAME for one run's checkpoints."""
    json: bool = False


def runs(arguments: list[str]) -> int:
    given = parse(Runs, "runs", arguments, "List runs. Example: infogan runs runs")
    storage = open_storage(given.storage)
    if SearchDirectory(storage).exists:
        print_rows(str(storage), board_rows(SearchDirectory(storage).board(), given.json), given.json)
        return DONE
    if RunDirectory(storage).looks_like_one:
        return _one_run(RunDirectory(storage), given.json)
    rows = [run_row(run) for run in runs_in(storage)]
    if not given.json:
        for row in rows:
            counts = {word: row.pop(word.replace(" ", "_")) for word in _COUNTS}
            row["notes"] = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or None
    print_rows(str(storage), rows, given.json)
    for entry in storage.entries():
        if entry.is_folder and (search := SearchDirectory(storage / entry.name)).exists:
            warn(f"{entry.name} is a search; its board: infogan runs {shlex.quote(search.folder.uri)}")
    return DONE


_COUNTS = ("unfinished checkpoints", "broken checkpoints", "restarts")


def _one_run(run: RunDirectory, as_json: bool) -> int:
    status = run.get_status()
    good, bad, chosen, state = state_of(run, status["state"], thorough=run.folder.is_local)
    last = checkpoints.last(good)
    rows = []
    for checkpoint in good:
        marks = [word for word, other in (("best", chosen), ("last", last)) if other is checkpoint]
        marks += ["last good"] if checkpoint.name == status.get("last_good") else []
        shown = headlines_of(checkpoint.metrics, (CHECKPOINT,))
        rows.append({"checkpoint": checkpoint.name, **shown, "is": ", ".join(marks)})
    why = f" ({status['message']})" if status.get("message") else ""
    print_rows(f"{run.folder}: {state}{why}", rows, as_json)
    for error in bad:
        kind = "unfinished" if isinstance(error, checkpoints.Unfinished) else "broken"
        print(f"{kind}: {error}", file=sys.stderr)
    return DONE


@dataclass
class Report:
    run: tyro.conf.Positional[str]
    """STORAGE/NAME of a run, which may still be training, or of a search."""


def report(arguments: list[str]) -> int:
    given = parse(
        Report,
        "report",
        arguments,
        "Write report.html into the folder of a run or search. Example: infogan report runs/first",
    )
    folder = open_storage(given.run)
    if SearchDirectory(folder).exists:
        from infogan_ray.web.reports.search import write_search_report

        write_search_report(SearchDirectory(folder))
    else:
        from infogan_ray.web.reports.run import write_run_report

        write_run_report(RunDirectory(folder))
    print(f"{folder}/{RunDirectory.REPORT}")
    return DONE


@dataclass
class Pull:
    run: tyro.conf.Positional[str]
    """STORAGE/NAME."""
    destination: tyro.conf.Positional[str | None] = None
    """Folder to make; by default NAME-model."""
    checkpoint: str = "best"
    """best, last or step_XXXXXXXX."""
    metric: str | None = None
    """What 'best' means; by default the run's own. Of a search: the column of its board by which to pick the trial."""
    select: str | None = None
    """Of a search, the rule that picks the trial: sorting (the default), agreement, gated, bound or quality."""
    trial: int | None = None
    """Of a search, the number of a trial, instead of the rule."""
    json: bool = False


def pull(arguments: list[str]) -> int:
    given = parse(Pull, "pull", arguments, "Fetch a model. Example: infogan pull runs/first first-model")
    run = RunDirectory(open_storage(given.run))
    check_rule(given.select or DEFAULT)
    own = given.metric
    if SearchDirectory(run.folder).exists:
        run, own = _trial_of(SearchDirectory(run.folder), given), None  # a trial's model is that of its last step
    elif given.select is not None or given.trial is not None:
        flag = f"--select {given.select}" if given.select is not None else f"--trial {given.trial}"
        raise UserError(f"{flag} is for a search, and {run.folder} is none; drop it, or name STORAGE/SEARCH")
    if not run.exists:
        raise UserError(f"run {run.folder} does not exist; 'infogan runs {run.folder.parent}' lists those that do")
    config = config_of(run)
    metric = own or config.metric
    check_selectable(metric)
    if "://" in (given.destination or ""):
        raise UserError(f"destination is '{given.destination}'; it must be a folder on this machine")
    destination = Path(given.destination or f"{run.name}-model").expanduser().absolute()
    chosen = pull_model(run, given.checkpoint, metric, config, destination, warn)
    summary = {"model": str(destination), "step": chosen.step, **scalars(chosen.metrics)}
    if given.json:
        print(json.dumps(summary))
    else:
        print(f"{destination}: step {chosen.step:,} of {run.name}, verified")
    return DONE


def _trial_of(search: SearchDirectory, given: Pull) -> RunDirectory:
    """The run of the trial that was asked for, or that the rule picks."""
    if given.trial is not None:
        count = len(search.description()["trials"])
        if not 0 <= given.trial < count:
            raise UserError(f"trial is {given.trial}; {search.folder} has the trials 0 to {count - 1}")
        return search.trial(given.trial)
    rows, rule = search.board(), given.select or DEFAULT
    if given.metric is not None:
        best, by = best_by(rows, given.metric), f"metric '{given.metric}'"
    else:
        best, by = winner(rows, search.description()["metric"], rule), f"rule '{rule}'"
    if best is None:
        raise UserError(f"search {search.folder} has no finished trial that the {by} can rank; name a --trial")
    warn(f"trial {best['trial']} is picked by the {by}")
    return search.trial(best["trial"])
