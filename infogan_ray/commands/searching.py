"""infogan search: a recipe, its trials under Ray Tune, and the board."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from infogan_ray import display
from infogan_ray.cli import DONE, INTERRUPTED
from infogan_ray.commands.parsing import Failed, parse, print_rows
from infogan_ray.config import check_name
from infogan_ray.recipes import Recipe, load_recipe
from infogan_ray.searches import GATE, RULES, Row, pareto, winner
from infogan_ray.storage import open_storage
from infogan_ray.training import checkpoint_bytes


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
    threads: int = 1
    """CPU threads of each trial; as many trials run at once as there are CPUs for."""
    data_dir: str | None = None
    dry_run: bool = False
    """Print what would run and what it would take, and touch nothing."""
    json: bool = False


def search(arguments: list[str]) -> int:
    given = parse(Search, "search", arguments, "Search. Example: infogan search tuning/quick.py --name first-search")
    recipe = load_recipe(given.recipe)
    if given.trials is not None and recipe.searcher == "grid":
        raise ValueError(f"trials is {given.trials}, and a grid has its points: {recipe.count}")
    if given.trials is not None:
        recipe = dataclasses.replace(recipe, trials=given.trials)
    if not given.early_stopping:
        recipe = dataclasses.replace(recipe, early_stopping=False)
    if given.resume and given.name is None:
        raise ValueError("name is not set, and --resume needs the search's --name")
    name = given.name or f"{Path(given.recipe).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    check_name(name)
    from infogan_ray.distributed import search as searching

    if given.dry_run:
        return _dry_run(recipe, given, name, searching)
    started = time.monotonic()
    try:
        result = searching.search(
            recipe, open_storage(given.storage), name, resume=given.resume, threads=given.threads,
            data_dir=given.data_dir, listen=_listener(recipe, started),
        )  # fmt: skip
    except searching.SearchFailed as error:
        raise Failed(str(error)) from None
    except KeyboardInterrupt:
        raise Failed(f"interrupted; go on with: {_resume_command(given, name)}", INTERRUPTED) from None
    if given.json:
        print(json.dumps({"search": result.search.folder.uri, "best": result.best, "rows": result.rows}))
        return DONE
    print_rows(name, board_rows(result.rows, False), False)
    for line in explain(result.rows, recipe.metric):
        print(line)
    print(f"next: infogan pull {result.search.folder.uri} best")
    return DONE


def board_rows(rows: list[Row], as_json: bool) -> list[Row]:
    """The board for a table: the searched values as columns, named by the last part of their path."""
    if as_json:
        return rows
    shown = []
    for row in rows:
        values = {path.rpartition(".")[2]: value for path, value in row["values"].items()}
        shown.append({**{k: v for k, v in row.items() if k not in ("values", "step", "nmi", "stopped_at")}, **values})
    return shown


def explain(rows: list[Row], metric: str) -> list[str]:
    """Which rule picks which trial, and which trials no other beats in both."""
    picks = {rule: winner(rows, metric, rule) for rule in RULES}
    front = ", ".join(str(row["trial"]) for row in pareto(rows, metric))
    meaning = {
        "gated": f"best {metric} among those within {GATE:g} times the least SWD",
        "bound": f"best {metric}",
        "quality": "least SWD",
    }
    lines = [f"{rule} ({meaning[rule]}): trial {row['trial']}" for rule, row in picks.items() if row is not None]
    return [*lines, f"beaten by no other in both bound and image quality: trials {front}"]


def _dry_run(recipe: Recipe, given: Search, name: str, searching: Any) -> int:
    configs = [dataclasses.replace(recipe.config(n), data_dir=given.data_dir) for n in range(recipe.count)]
    _, images = searching.check_all(configs, lambda line: print(line, file=sys.stderr))
    bytes_all = 0
    for config in configs:
        spec = config.model_spec(images.image_size, images.channels)
        kept = min(max(config.keep, 2), -(-(config.steps or 0) // config.checkpoint_every))
        bytes_all += kept * checkpoint_bytes(spec)
    steps = sum(config.steps or 0 for config in configs)
    rows = [{"trial": number, **recipe.values(number)} for number in range(recipe.count)]
    print_rows(f"trials of {name}", rows, given.json)
    if not given.json:
        rungs = ", ".join(f"{rung:,}" for rung in recipe.rungs)
        print(f"rungs: {rungs} images of {recipe.budget:,}; the best 1/{recipe.reduction} goes on, by {recipe.metric}")
        print(f"cost: {recipe.count} trials, {steps:,} steps if none is stopped")
        print(f"checkpoints: {display.size(bytes_all)} at most, in {open_storage(given.storage) / name}")
    return DONE


def _resume_command(given: Search, name: str) -> str:
    words = ["infogan", "search", given.recipe, "--storage", given.storage, "--name", name]
    for flag, value, default in (
        ("--trials", given.trials, None), ("--threads", given.threads, 1), ("--data-dir", given.data_dir, None)
    ):  # fmt: skip
        words += [flag, str(value)] if value != default else []
    words += [] if given.early_stopping else ["--no-early-stopping"]
    return shlex.join([*words, "--resume"])


def _listener(recipe: Recipe, started: float) -> Any:
    """One line per word of the search, with the time since its start."""

    def listen(line: str) -> None:
        display.errors.print(f"{display.duration(time.monotonic() - started)}  {line}", soft_wrap=True, markup=False)

    return listen
