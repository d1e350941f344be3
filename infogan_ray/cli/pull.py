"""infogan pull: copies the best checkpoint of a run or a search into a model folder and verifies it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from infogan_ray import UserError
from infogan_ray.cli.display import scalars
from infogan_ray.cli.exit_codes import DONE
from infogan_ray.cli.flags import parse
from infogan_ray.cli.output import print_json, print_result, warn
from infogan_ray.evaluation.metrics import check_selectable
from infogan_ray.searches.leaderboard import leaderboard
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.searches.selection_rules import DEFAULT, best_by, check_rule, collapsed_text, winner
from infogan_ray.storage.checkpoints import Checkpoint
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import from_saved
from infogan_ray.training.publish import pull as pull_model


@dataclass
class Pull:
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STORAGE/NAME")]
    """STORAGE/NAME of a run or search."""
    destination: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[FOLDER]")] = None
    """Folder to create; by default NAME-model."""
    checkpoint: str = "best"
    """best, last or step_XXXXXXXX."""
    metric: str | None = None
    """Metric that defines 'best'; by default the run's. For a search: the leaderboard column that selects the trial."""
    select: str | None = None
    """For a search: the rule that selects the trial: sorting (the default), agreement, gated, bound or quality."""
    trial: int | None = None
    """For a search: the number of the trial, in place of a rule."""
    json: bool = False
    """Print one JSON object on stdout."""


def pull(arguments: list[str]) -> int:
    given = parse(
        Pull,
        "pull",
        arguments,
        "Copy a model.",
        [
            "pull runs/first first-model",
            "pull s3://bucket/runs/search best --select quality",
            "pull runs/first first-model --checkpoint last",
        ],
    )
    destination, run, chosen = pull_checkpoint(given)
    if given.json:
        print_json({"model": str(destination), "step": chosen.step, **scalars(chosen.metrics)})
    else:
        print_result(f"{destination}: step {chosen.step:,} of {run.name}, verified")
    return DONE


def pull_checkpoint(given: Pull) -> tuple[Path, RunDirectory, Checkpoint]:
    """Copy a checkpoint to a new folder, and verify it. Returns the folder, the run and the checkpoint."""
    run = RunDirectory(open_storage(given.run))
    check_rule(given.select or DEFAULT)
    own = given.metric
    if SearchDirectory(run.folder).exists:
        run, own = _trial_of(SearchDirectory(run.folder), given), None  # a trial's model is always from its last step
    elif given.select is not None or given.trial is not None:
        flag = f"--select {given.select}" if given.select is not None else f"--trial {given.trial}"
        raise UserError(f"{flag} is for a search, but {run.folder} is not one; remove it, or name STORAGE/SEARCH")
    if not run.exists:
        raise UserError(f"run {run.folder} does not exist; 'infogan runs {run.folder.parent}' lists the runs")
    config = from_saved(run.read_config(), f"{run.folder}/{run.CONFIG}")
    metric = own or config.metric
    check_selectable(metric)
    if "://" in (given.destination or ""):
        raise UserError(f"destination is '{given.destination}'; it must be a folder on this machine")
    destination = Path(given.destination or f"{run.name}-model").expanduser().absolute()
    return destination, run, pull_model(run, given.checkpoint, metric, config, destination, warn)


def _trial_of(search: SearchDirectory, given: Pull) -> RunDirectory:
    """The run of the given trial, or of the trial that the rule selects."""
    if given.trial is not None:
        count = len(search.description()["trials"])
        if not 0 <= given.trial < count:
            raise UserError(f"trial is {given.trial}; {search.folder} has the trials 0 to {count - 1}")
        return search.trial(given.trial)
    rows, rule = leaderboard(search), given.select or DEFAULT
    if given.metric is not None:
        best, basis = best_by(rows, given.metric), f"metric '{given.metric}'"
    else:
        best, basis = winner(rows, search.description()["metric"], rule), f"rule '{rule}'"
    if best is None:
        raise UserError(f"search {search.folder} has no finished trial that the {basis} can rank; give a --trial")
    warn(f"trial {best['trial']} is selected by the {basis}")
    if collapsed := collapsed_text(rows):
        warn(collapsed)
    return search.trial(best["trial"])
