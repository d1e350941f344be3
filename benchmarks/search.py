"""What a search costs beside its trials: the same trials under Ray Tune and in a bare loop, and trials that do nothing.

    python -m benchmarks.search                 # about five minutes on two cores
    python -m benchmarks.search --trials 4 --steps 60 --json search.json

The bare loop is as many plain processes as the search has room for, running the same training, evaluation and
checkpoints one trial after the other. Both ways are run in turn, ``rounds`` times. Ray has started before the clock
does, and so have the plain processes, with torch and the images; a search starts its trials' processes within its time.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch
import tyro
from ray import tune

from infogan_ray.config import RunConfig
from infogan_ray.data import ImageSet, load_images
from infogan_ray.distributed.search import search
from infogan_ray.recipes import Recipe
from infogan_ray.runs import RunDirectory
from infogan_ray.session import run_worker
from infogan_ray.storage import open_storage

BATCH = 128


@dataclass
class Overhead:
    """Time the same trials under Ray Tune and in a bare loop."""

    trials: int = 8
    steps: int = 200
    rounds: int = 2
    json: Path | None = None
    """File for the figures."""


def main() -> int:
    given = tyro.cli(Overhead)
    recipe = Recipe(
        preset="mnist", space={"objective.lambda_categorical": tune.uniform(0.5, 1.5)}, early_stopping=False,
        fixed={"network.width": 16, "evaluation.samples": 2000, "evaluation.labelled": 2000, "device": "cpu"},
        trials=given.trials, grace=BATCH * given.steps // 2, budget=BATCH * given.steps,
    )  # fmt: skip
    nothing = dataclasses.replace(recipe, grace=BATCH, budget=2 * BATCH)
    times: dict[str, list[float]] = {"search": [], "bare": []}
    with tempfile.TemporaryDirectory(prefix="infogan-search-") as folder:
        # Before Ray starts: processes that are spawned from one that has joined Ray do not live.
        pool = multiprocessing.get_context("spawn").Pool(os.cpu_count(), initializer=load)
        bare(pool, nothing, Path(folder) / "bare-warm")
        # The first search starts Ray, which is counted by itself: it is the same for any number of trials.
        first = timed(lambda: search(nothing, folder, "warm"))
        for number in range(given.rounds):
            times["search"].append(timed(lambda number=number: search(recipe, folder, f"search-{number}")))
            times["bare"].append(timed(lambda number=number: bare(pool, recipe, Path(folder) / f"bare-{number}")))
        empty = timed(lambda: search(nothing, folder, "empty"))
        empty_bare = timed(lambda: bare(pool, nothing, Path(folder) / "bare-empty"))
        pool.terminate()
    ratios = [one / other for one, other in zip(times["search"], times["bare"], strict=True)]
    slots = os.cpu_count() or 1
    figures: dict[str, Any] = {
        "trials, steps each, at once": f"{given.trials}, {given.steps}, {slots}",
        "search, s": ", ".join(f"{one:.1f}" for one in times["search"]),
        "bare loop, s": ", ".join(f"{one:.1f}" for one in times["bare"]),
        "search / bare loop, median of rounds": round(statistics.median(ratios), 3),
        "start of Ray with a first search of two steps a trial, s": round(first, 1),
        "search of two steps a trial, s": round(empty, 1),
        "bare loop of two steps a trial, s": round(empty_bare, 1),
        "start-up a trial beyond the bare loop's, s": round((empty - empty_bare) * slots / given.trials, 2),
    }
    print("| what | figure |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value} |")
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1))
    return 0


def timed(action: Any) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def bare(pool: Pool, recipe: Recipe, folder: Path) -> None:
    """All trials in plain processes."""
    jobs = [(dataclasses.replace(recipe.config(n), threads=1), str(folder / f"trial_{n}")) for n in range(recipe.count)]
    pool.starmap(run, jobs, chunksize=1)


images: ImageSet


def load() -> None:
    global images
    torch.set_num_threads(1)
    config = RunConfig(data="mnist")
    images = load_images("mnist", config.data_config, say=lambda line: None)


def run(config: RunConfig, folder: str) -> None:
    for _ in run_worker(config, images, RunDirectory(open_storage(folder)), device=torch.device("cpu")):
        pass


if __name__ == "__main__":
    raise SystemExit(main())
