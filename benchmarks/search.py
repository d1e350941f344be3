"""The overhead of a search: ``infogan search`` compared with the same trials in a bare loop.

    python -m benchmarks.search                            # about ten minutes on two cores
    python -m benchmarks.search --steps 60 --json search.json

The bare loop (``benchmarks/bare.py``) uses as many processes as the search runs trials at once. Each process trains,
evaluates and stores one trial after another. Both times include imports and the start of Ray. Runs with few and many
trials of two steps each separate the fixed cost from the cost per trial.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.figures import publish
from infogan_ray.searches.recipe import load_recipe

BATCH = 128
FEW, MANY = 2, 10
LIMIT_S = 1800
RECIPE = """
from ray import tune
from infogan_ray import Recipe

recipe = Recipe(
    preset="mnist", space={{"objective.lambda_categorical": tune.uniform(0.5, 1.5)}}, early_stopping=False,
    fixed={{"network.width": 16, "evaluation.samples": 2000, "evaluation.labelled": 2000, "device": "cpu"}},
    trials={trials}, grace={grace}, budget={budget},
)
"""


@dataclass
class Overhead:
    """Time the same trials under Ray Tune and in a bare loop."""

    trials: int = 8
    steps: int = 400
    rounds: int = 1
    json: Path | None = None
    """File for the figures."""


def main() -> int:
    given = tyro.cli(Overhead)
    slots = os.cpu_count() or 1
    times: dict[str, list[tuple[float, float]]] = {"work": [], "few": [], "many": []}
    sizes = {"work": (given.trials, given.steps), "few": (FEW, 2), "many": (MANY, 2)}
    with tempfile.TemporaryDirectory(prefix="infogan-search-") as folder:
        for number in range(given.rounds):
            for name, (trials, steps) in sizes.items():
                times[name].append(both(Path(folder), f"{name}-{number}", trials, steps))
                print(f"{name}: search {times[name][-1][0]:.1f} s, bare {times[name][-1][1]:.1f} s", file=sys.stderr)
    (work, bare_work), (few, bare_few), (many, bare_many) = (best(times[name]) for name in sizes)
    a_trial, a_bare_trial = ((m - f) / (MANY - FEW) * slots for m, f in ((many, few), (bare_many, bare_few)))
    once, bare_once = few - a_trial * FEW / slots, bare_few - a_bare_trial * FEW / slots
    figures: dict[str, Any] = {
        "trials, steps each, at once": f"{given.trials}, {given.steps}, {slots}",
        "`infogan search`, s": round(work, 1),
        "bare loop, s": round(bare_work, 1),
        "ratio": round(work / bare_work, 3),
        "fixed part for any number of trials (imports, Ray, images, report), s": f"{once:.1f}; bare {bare_once:.1f}",
        "ratio without the fixed part": round((work - once) / (bare_work - bare_once), 3),
        "a trial of two steps, s (start, two evaluations, checkpoint)": f"{a_trial:.2f}; bare {a_bare_trial:.2f}",
        "extra start-up per trial compared with the bare loop, s": round(a_trial - a_bare_trial, 2),
    }
    publish(figures, given.json)
    return 0


def best(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """The minimum of each: other work on the machine only adds time."""
    searches, bares = zip(*pairs, strict=True)
    return min(searches), min(bares)


def both(folder: Path, name: str, trials: int, steps: int) -> tuple[float, float]:
    """Seconds of the search and of the bare loop. Raises subprocess.CalledProcessError and TimeoutExpired."""
    path = folder / f"{name}.py"
    path.write_text(RECIPE.format(trials=trials, grace=BATCH * max(1, steps // 2), budget=BATCH * steps))
    recipe = load_recipe(path)
    configs = [dataclasses.replace(recipe.config(number), threads=1).to_dict() for number in range(trials)]
    jobs = path.with_suffix(".json")
    jobs.write_text(json.dumps(configs))
    infogan = str(Path(sys.executable).with_name("infogan"))
    search = timed([infogan, "search", str(path), "--storage", str(folder / "search")])
    return search, timed([sys.executable, "-m", "benchmarks.bare", str(jobs), str(folder / "bare" / name)])


def timed(command: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(command, check=True, timeout=LIMIT_S, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


if __name__ == "__main__":
    raise SystemExit(main())
