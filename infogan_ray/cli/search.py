"""infogan search: runs a recipe's trials with Ray Tune and prints the leaderboard."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from infogan_ray import UserError
from infogan_ray.cli import display
from infogan_ray.cli.display import print_rows
from infogan_ray.cli.exit_codes import DONE, INTERRUPTED, Failed
from infogan_ray.cli.flags import START_OR_RESUME, parse
from infogan_ray.cli.output import print_json, print_progress, print_result, warn
from infogan_ray.cli.search_display import SearchDisplay
from infogan_ray.data.progress import counted
from infogan_ray.evaluation.metrics import BOARD_COLUMNS, COMPARED_WITH_ERROR, HEADLINES, ONE_CATEGORY_ERROR
from infogan_ray.searches.leaderboard import leaderboard
from infogan_ray.searches.recipe import Recipe, load_recipe
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.searches.selection_rules import DEFAULT, RULES, Row, collapsed_text, finite, pareto, winner
from infogan_ray.storage.file_system import StorageError, open_storage
from infogan_ray.storage.run_directory import check_new_name, default_name
from infogan_ray.storage.visible_text import shell_command, shell_word
from infogan_ray.training.config import check_name
from infogan_ray.training.disk_room import search_warning
from infogan_ray.training.run_cost import trials_bytes
from infogan_ray.training.run_estimate import computed_cost, memory_text

# Leaderboard fields that only --json and the report show.
IN_FULL_ONLY = ("values", "step", "stopped_at", *(name for name in BOARD_COLUMNS if name not in HEADLINES))
# Flags that a resumed search keeps, unless they are given again.
KEPT_FLAGS = ("trials", "early_stopping", "threads", "gpus_per_worker", "data", "data_dir")


@dataclass
class Search:
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """Python file, such as tuning/quick.py."""
    trials: int | None = None
    """Number of trials; by default the recipe's."""
    early_stopping: bool = True
    """Stop the weakest trials early. --no-early-stopping runs all trials to their end."""
    storage: str = "runs"
    """Folder for the search: a path, s3://bucket/prefix or gs://bucket/prefix."""
    name: str | None = None
    """Name of the search; by default the recipe's name and the time."""
    resume: bool = False
    """Continue the search of this name, with the flags with which it was started."""
    start_or_resume: bool = False
    """Continue the search of this name if it exists, else start it (for schedulers that restart jobs)."""
    accept_changes: bool = False
    """With --resume: continue even if the recipe or code has changed. Trials that have not started use the new one."""
    threads: int = 1
    """CPU threads of each worker. As many trials run at once as the CPUs and GPUs allow."""
    gpus_per_worker: float | None = None
    """By default the recipe's. With 0.1, ten workers share a GPU, for networks that use a small part of it."""
    data: str | None = None
    """A named dataset, a folder or archive of images, or an .npz file; by default the recipe's."""
    data_dir: str | None = None
    """Folder to search first for a named dataset."""
    dry_run: bool = False
    """Print the trials and their cost; start nothing."""
    json: bool = False
    """Print one JSON object on stdout."""


def search(arguments: list[str]) -> int:
    given = parse_search(arguments)
    if (given.resume or given.start_or_resume) and given.name is None:
        raise UserError(f"name is not set, but {'--resume' if given.resume else START_OR_RESUME} needs --name")
    name = given.name or default_name(given.recipe)
    check_name(name)
    if given.start_or_resume and not given.dry_run:
        given = dataclasses.replace(given, resume=SearchDirectory(open_storage(given.storage) / name).exists)
    if given.resume:
        given = with_own_flags(given, arguments, SearchDirectory(open_storage(given.storage) / name))
    recipe = recipe_of(given)
    if not given.resume and not given.start_or_resume:
        check_new_name(name)  # before anything is fetched
    from infogan_ray.distributed.cluster.connection import PrintedToLog
    from infogan_ray.distributed.tune import search as tune_search

    if given.dry_run:
        return _dry_run(recipe, given, name)
    try:
        shown = SearchDisplay(recipe.count, recipe.budget, recipe.rungs)
        with shown, contextlib.redirect_stdout(PrintedToLog()):
            result = tune_search.search(
                recipe, open_storage(given.storage), name, resume=given.resume, accept_changes=given.accept_changes,
                threads=given.threads, data_dir=given.data_dir, listen=shown,
                flags={flag: getattr(given, flag) for flag in KEPT_FLAGS},
            )  # fmt: skip
    except tune_search.SearchFailed as error:
        directory = SearchDirectory(open_storage(given.storage) / name)
        if given.json and directory.exists:
            print_json({"search": directory.folder.uri, "best": None, "rows": leaderboard(directory)})
        raise Failed(str(error)) from None
    except KeyboardInterrupt:
        with contextlib.suppress(StorageError):  # storage may be unavailable
            if not SearchDirectory(open_storage(given.storage) / name).exists:
                raise Failed("interrupted before the search started", INTERRUPTED) from None
        raise Failed(f"interrupted; continue with: {_resume_command(given, name)}", INTERRUPTED) from None
    if given.json:
        print_json({"search": result.search.folder.uri, "best": result.best, "rows": result.rows})
        return DONE
    print_rows(name, board_rows(result.rows, False), False)
    for line in explain(result.rows, recipe.metric, result.search.folder.uri):
        print_result(line)
    print_result(f"report: {result.search.folder / result.search.REPORT}")
    print_result(f"next: infogan pull {shell_word(result.search.folder.uri)} best")
    return DONE


def parse_search(arguments: list[str]) -> Search:
    if any(word.partition("=")[0].replace("_", "-") == "--per-process" for word in arguments):
        raise UserError("--per-process was removed; with --gpus-per-worker 0.1 ten trials share a GPU")
    return parse(
        Search,
        "search",
        arguments,
        "Run a search.",
        [
            "search tuning/quick.py --name first-search",
            "search tuning/photos.py --data photos --trials 12 --dry-run",
            "search tuning/quick.py --name first-search --resume",
        ],
    )


def with_own_flags(given: Search, arguments: list[str], search: SearchDirectory) -> Search:
    """``given`` with the flags with which a search was started, where the arguments leave them out."""
    if not search.exists:
        return given
    present = {word.partition("=")[0].removeprefix("--no-").lstrip("-").replace("-", "_") for word in arguments}
    own = search.description().get("flags", {})
    return dataclasses.replace(given, **{f: own[f] for f in KEPT_FLAGS if f in own and f not in present})


def recipe_of(given: Search) -> Recipe:
    """The recipe of the file, with the changes of the flags."""
    recipe = load_recipe(given.recipe)
    if given.trials is not None:
        if recipe.searcher == "grid":
            raise UserError(f"trials is {given.trials}, but the grid has {recipe.count} trials; remove --trials")
        recipe = dataclasses.replace(recipe, trials=given.trials)
    fixed = {"data": given.data, "gpus_per_worker": given.gpus_per_worker}
    fixed = {path: value for path, value in fixed.items() if value is not None}
    if fixed:
        recipe = dataclasses.replace(recipe, fixed={**recipe.fixed, **fixed})
    return recipe if given.early_stopping else dataclasses.replace(recipe, early_stopping=False)


def board_rows(rows: list[Row], as_json: bool) -> list[Row]:
    """The leaderboard for a table: the main metrics, and the searched values under the last part of their path."""
    if as_json:
        return rows
    shown = []
    unbalanced = any(row.get(ONE_CATEGORY_ERROR) is not None for row in rows)
    hidden = {*IN_FULL_ONLY, ONE_CATEGORY_ERROR} - ({*COMPARED_WITH_ERROR} if unbalanced else set())
    for row in rows:
        values = {path.rpartition(".")[2]: value for path, value in row["values"].items()}
        shown.append({**{k: v for k, v in row.items() if k not in hidden}, **values})
    return shown


def explain(rows: list[Row], metric: str, where: str) -> list[str]:
    """Lines with the trial that each rule selects, and the Pareto front of bound and image quality.

    Without categorical codes, also the command that compares the trials of the search at the URI ``where``.
    """
    lines = []
    for rule, meaning in RULES.items():
        if (row := winner(rows, metric, rule)) is not None:
            default = " (the default)" if rule == DEFAULT else ""
            lines.append(f"--select {rule}{default}: trial {row['trial']}, {meaning}")
    lines += filter(None, [collapsed_text(rows)])
    front = ", ".join(str(row["trial"]) for row in pareto(rows, metric))
    lines.append(f"trials that no other trial beats in both bound and image quality: {front}")
    finished = [row for row in rows if row["state"] == "finished"]
    if len(finished) >= 3 and not any(finite(row.get("q_score")) for row in finished):
        lines.append(
            "without a categorical code, no rule measures whether a code is one factor; to find the trial whose codes "
            f"agree most with the others: infogan compare {shell_word(where)}"
        )
    return lines


def _dry_run(recipe: Recipe, given: Search, name: str) -> int:
    from infogan_ray.distributed.cluster.machines import machines
    from infogan_ray.distributed.cluster.resources import max_concurrent_runs
    from infogan_ray.distributed.tune.search import check_trials
    from infogan_ray.distributed.tune.searchers import propose_trials

    local: dict[str, Any] = {"data_dir": given.data_dir, "threads": given.threads}
    configs = [dataclasses.replace(recipe.config(number), **local) for number in range(recipe.count)]
    checked = check_trials(configs, print_progress)
    images, wanted = checked.images, checked.wanted
    folder = open_storage(given.storage) / name
    if recipe.adaptive:
        propose_trials(recipe, [])  # raises if Optuna is missing
    steps = sum(config.steps or 0 for config in configs)
    rows = [{"trial": number, **recipe.values(number)} for number in range(recipe.count)]
    print_rows(f"trials of {name}", rows, given.json)
    if not given.json:
        if recipe.adaptive:
            print_result(
                f"the first {recipe.generation} have these values; {recipe.searcher} proposes the others from scores"
            )
        rungs = ", ".join(f"{rung:,}" for rung in recipe.rungs)
        rule = f"the best 1/{recipe.reduction} continue" if recipe.early_stopping else "all continue"
        print_result(f"rungs: {rungs} images of {recipe.budget:,}; {rule}, by {recipe.metric}")
        each = f"{counted(recipe.workers, 'worker')} with {counted(given.threads, 'thread')} each"
        print_result(f"cost: {counted(recipe.count, 'trial')}, {steps:,} steps if none is stopped; {each}")
        at_once = min(max_concurrent_runs(wanted, machines()), recipe.count)
        # Trials that share a GPU have its speed together.
        speed = at_once * (min(1.0, wanted.gpus_per_worker) if wanted.device == "cuda" else 1.0)
        trials = [(config, computed_cost(
            config, images.image_size, images.channels, wanted.device, wanted.threads, wanted.max_workers
        )) for config in configs]  # fmt: skip
        seconds = sum(cost.seconds * (config.steps or 0) for config, cost in trials) / speed
        largest = max((cost for _, cost in trials), key=lambda cost: cost.memory)
        print_result(
            f"time: about {display.duration(seconds)} if none is stopped, {at_once} at a time, {largest.source}; "
            f"{memory_text(largest)}"
        )
        print_result(f"checkpoints: {display.size(trials_bytes(configs, images))} at most, in {folder}")
    if warning := search_warning(configs, images, folder):
        warn(warning)
    return DONE


def _resume_command(given: Search, name: str) -> str:
    words = ["infogan", "search", given.recipe, "--storage", given.storage, "--name", name]
    for flag, value, default in (
        ("--trials", given.trials, None), ("--threads", given.threads, 1),
        ("--gpus-per-worker", given.gpus_per_worker, None),
        ("--data", given.data, None), ("--data-dir", given.data_dir, None),
    ):  # fmt: skip
        words += [flag, str(value)] if value != default else []
    words += [] if given.early_stopping else ["--no-early-stopping"]
    return shell_command([*words, "--resume"])
