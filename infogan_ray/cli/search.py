"""infogan search: a recipe, its trials under Ray Tune, and the board."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass
from typing import Any

import tyro

from infogan_ray import UserError
from infogan_ray.cli import display
from infogan_ray.cli.flags import START_OR_RESUME, Failed, parse, print_rows
from infogan_ray.cli.main import DONE, INTERRUPTED
from infogan_ray.cli.search_display import SearchDisplay
from infogan_ray.cli.train import default_name
from infogan_ray.evaluation.metrics import BOARD_COLUMNS, HEADLINES
from infogan_ray.searches.recipe import Recipe, load_recipe
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.searches.selection_rules import DEFAULT, RULES, Row, finite, pareto, winner
from infogan_ray.storage.file_system import open_storage
from infogan_ray.training.config import check_name
from infogan_ray.training.train_state import checkpoint_bytes

# Of a row of the board: left to --json and the report.
IN_FULL_ONLY = ("values", "step", "stopped_at", *(name for name in BOARD_COLUMNS if name not in HEADLINES))


@dataclass
class Search:
    recipe: tyro.conf.Positional[str]
    """A Python file, such as tuning/quick.py."""
    trials: int | None = None
    """Instead of the recipe's."""
    early_stopping: bool = True
    """--no-early-stopping runs all trials to their end, as when one wants to know what stopping would have missed."""
    storage: str = "runs"
    """A folder, s3://bucket/prefix or gs://bucket/prefix."""
    name: str | None = None
    """By default made of the recipe's name and the time."""
    resume: bool = False
    """Go on with the search of this name."""
    start_or_resume: bool = False
    """Go on with the search of this name if it has begun (for schedulers that start a job again)."""
    accept_changes: bool = False
    """With --resume: go on although the recipe or the code is another now; trials not yet begun follow the new one."""
    threads: int = 1
    """CPU threads of each worker; as many trials run at once as there are CPUs (and GPUs) for."""
    per_process: int = 1
    """Trials to a process, which take turns at its threads and are on its GPU at the same time: for networks that leave
    most of a GPU idle. Each process takes what a trial takes without."""
    data: str | None = None
    """Instead of the recipe's: a named dataset, a folder or archive of images or an .npz file."""
    data_dir: str | None = None
    dry_run: bool = False
    """Print what would run and what it would take, and touch nothing."""
    json: bool = False


def search(arguments: list[str]) -> int:
    given = parse(Search, "search", arguments, "Search. Example: infogan search tuning/quick.py --name first-search")
    recipe = load_recipe(given.recipe)
    if given.trials is not None and recipe.searcher in ("grid", "population"):
        raise UserError(f"trials is {given.trials}; a {recipe.searcher} has its own {recipe.count}; drop --trials")
    if given.trials is not None:
        recipe = dataclasses.replace(recipe, trials=given.trials)
    if given.data is not None:
        recipe = dataclasses.replace(recipe, fixed={**recipe.fixed, "data": given.data})
    if not given.early_stopping:
        recipe = dataclasses.replace(recipe, early_stopping=False)
    if (given.resume or given.start_or_resume) and given.name is None:
        raise UserError(f"name is not set, and {'--resume' if given.resume else START_OR_RESUME} needs the search's")
    name = given.name or default_name(given.recipe)
    check_name(name)
    if given.start_or_resume and not given.dry_run:
        given = dataclasses.replace(given, resume=SearchDirectory(open_storage(given.storage) / name).exists)
    from infogan_ray.distributed.tune import search as searching

    if given.dry_run:
        return _dry_run(recipe, given, name, searching)
    try:
        with SearchDisplay(recipe.count, recipe.budget, recipe.rungs) as shown:
            result = searching.search(
                recipe, open_storage(given.storage), name, resume=given.resume, accept_changes=given.accept_changes,
                threads=given.threads, per_process=given.per_process, data_dir=given.data_dir, listen=shown,
            )  # fmt: skip
    except searching.SearchFailed as error:
        raise Failed(str(error)) from None
    except KeyboardInterrupt:
        raise Failed(f"interrupted; go on with: {_resume_command(given, name)}", INTERRUPTED) from None
    if given.json:
        print(json.dumps({"search": result.search.folder.uri, "best": result.best, "rows": result.rows}))
        return DONE
    print_rows(name, board_rows(result.rows, False), False)
    for line in explain(result.rows, recipe.metric, result.search.folder.uri):
        print(line)
    print(f"report: {result.search.folder / result.search.REPORT}")
    print(f"next: infogan pull {shlex.quote(result.search.folder.uri)} best")
    return DONE


def board_rows(rows: list[Row], as_json: bool) -> list[Row]:
    """The board for a table: what matters most, and the searched values, named by the last part of their path."""
    if as_json:
        return rows
    shown = []
    for row in rows:
        values = {path.rpartition(".")[2]: value for path, value in row["values"].items()}
        shown.append({**{k: v for k, v in row.items() if k not in IN_FULL_ONLY}, **values})
    return shown


def explain(rows: list[Row], metric: str, where: str) -> list[str]:
    """Which rule picks which trial, and which trials no other beats in both; and what else can be asked of the search
    at ``where``, if its trials have nothing to sort by."""
    lines = []
    for rule, meaning in RULES.items():
        if (row := winner(rows, metric, rule)) is not None:
            default = " (the default)" if rule == DEFAULT else ""
            lines.append(f"--select {rule}{default}: trial {row['trial']}, {meaning}")
    front = ", ".join(str(row["trial"]) for row in pareto(rows, metric))
    lines.append(f"beaten by no other in both bound and image quality: trials {front}")
    finished = [row for row in rows if row["state"] == "finished"]
    if len(finished) >= 3 and not any(finite(row.get("q_score")) for row in finished):
        lines.append(
            "without a categorical code no rule asks whether a code is one factor; which trial's codes the others have "
            f"in common: infogan compare {shlex.quote(where)}"
        )
    return lines


def _dry_run(recipe: Recipe, given: Search, name: str, searching: Any) -> int:
    here: dict[str, Any] = {"data_dir": given.data_dir, "threads": given.threads}
    configs = [dataclasses.replace(recipe.config(n), **here) for n in range(recipe.count)]
    found = searching.check_all(configs, lambda line: print(line, file=sys.stderr))
    searching.check_packed(configs, found.wanted, given.per_process)
    images = found.images
    if recipe.adaptive:
        searching.propose(recipe, [])  # says what is missing for it
    bytes_all = 0
    for config in configs:
        spec = config.model_spec(images.image_size, images.channels)
        kept = min(max(config.keep, 2), -(-(config.steps or 0) // config.checkpoint_every))
        bytes_all += kept * checkpoint_bytes(spec, config.contrastive)
    population = recipe.searcher == "population"  # whose later stages go on from the steps of the earlier ones
    steps = sum(config.steps or 0 for config in (configs[-recipe.generation :] if population else configs))
    rows = [{"trial": number, **recipe.values(number)} for number in range(recipe.count)]
    print_rows(f"trials of {name}", rows, given.json)
    if not given.json:
        if recipe.adaptive:
            print(f"the first {recipe.generation} start so; {recipe.searcher} decides the others by their scores")
        rungs = ", ".join(f"{rung:,}" for rung in recipe.rungs)
        stops = recipe.early_stopping and not population
        then = f"the best 1/{recipe.reduction} goes on" if stops else "all go on"
        print(f"rungs: {rungs} images of {recipe.budget:,}; {then}, by {recipe.metric}")
        each = f"{recipe.workers} worker(s) with {given.threads} thread(s) each"
        each += f", {given.per_process} trials to a process" if given.per_process > 1 else ""
        print(f"cost: {recipe.count} trials, {steps:,} steps if none is stopped; {each}")
        print(f"checkpoints: {display.size(bytes_all)} at most, in {open_storage(given.storage) / name}")
    return DONE


def _resume_command(given: Search, name: str) -> str:
    words = ["infogan", "search", given.recipe, "--storage", given.storage, "--name", name]
    for flag, value, default in (
        ("--trials", given.trials, None), ("--threads", given.threads, 1), ("--per-process", given.per_process, 1),
        ("--data", given.data, None), ("--data-dir", given.data_dir, None),
    ):  # fmt: skip
        words += [flag, str(value)] if value != default else []
    words += [] if given.early_stopping else ["--no-early-stopping"]
    return shlex.join([*words, "--resume"])
