"""A search of many short trials: time and memory, and a second search that is killed in the middle and resumed.

    python -m benchmarks.many_trials                         # 500 trials of 20 steps, twice: 40 minutes on two cores
    python -m benchmarks.many_trials --trials 20 --steps 4   # three minutes

The trials are tiny, so that the time is that of the search: starts, evaluations, checkpoints, decisions and the report.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tyro

from benchmarks.figures import publish
from infogan_ray.searches.leaderboard import leaderboard
from infogan_ray.searches.search_directory import SearchDirectory
from infogan_ray.searches.selection_rules import RULES, winner
from infogan_ray.storage.file_system import open_storage

BATCH, SIDE, IMAGES = 16, 28, 400
MB = 1e6
RECIPE = """
from ray import tune
from infogan_ray import Recipe

recipe = Recipe(
    space={{
        "objective.lambda_categorical": tune.uniform(0.2, 3.0), "optimizer.lr_generator": tune.loguniform(1e-4, 1e-2)
    }},
    fixed={{
        "data": {data!r}, "codes": "noise=4 cat=3 uniform=1", "batch_size": {batch}, "network.width": 8,
        "device": "cpu", "precision": "fp32", "evaluation.samples": 200,
    }},
    budget={budget}, grace={budget} // 2, trials={trials}, early_stopping=False,
)
"""


@dataclass
class ManyTrials:
    """Run a search of many trials to its end, and another one with a kill in the middle."""

    trials: int = 500
    steps: int = 20
    folder: Path | None = None
    """Where the searches stay. Without it, they are deleted."""
    json: Path | None = None
    """File for the figures."""


@dataclass
class Measured:
    """What one process of a search needed. ``memory``: (seconds, ended trials, bytes of the driver), each second."""

    seconds: float
    memory: list[tuple[float, int, int]]


def main() -> int:
    given = tyro.cli(ManyTrials)
    with tempfile.TemporaryDirectory(prefix="infogan-trials-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        recipe = write_recipe(folder, given)
        whole = run(folder, recipe, "whole")
        before = run(folder, recipe, "killed", kill_after=given.trials // 2)
        after = run(folder, recipe, "killed", resume=True)
        publish(figures(folder, given, whole, before, after), given.json)
    return 0


def write_recipe(folder: Path, given: ManyTrials) -> Path:
    """Images with one bright bar of three colours of grey, and the recipe for them."""
    random = np.random.default_rng(0)
    images = np.zeros((IMAGES, SIDE, SIDE), np.uint8)
    for image, kind in zip(images, random.integers(3, size=IMAGES), strict=True):
        at = 3 + 8 * kind + random.integers(3)
        image[at : at + 3] = 255
    np.savez(folder / "bars.npz", images=images)
    (recipe := folder / "recipe.py").write_text(
        RECIPE.format(data=str(folder / "bars.npz"), batch=BATCH, budget=BATCH * given.steps, trials=given.trials)
    )
    return recipe


def run(folder: Path, recipe: Path, name: str, kill_after: int | None = None, resume: bool = False) -> Measured:
    """Run ``infogan search``. ``kill_after``: SIGKILL the driver after so many trials have ended.

    Raises RuntimeError if the search ends in another way than it should.
    """
    words = [sys.executable, "-m", "infogan_ray", "search", str(recipe), "--storage", str(folder), "--name", name]
    started, memory, ended = time.monotonic(), [], 0
    log = folder / f"{name}{'-resumed' if resume else ''}.log"
    with log.open("w") as out:
        process = psutil.Popen([*words, *(["--resume"] if resume else [])], stdout=out, stderr=out)
    while process.poll() is None:
        time.sleep(1)
        ended = log.read_text().count(": finished\n")
        try:
            memory.append((time.monotonic() - started, ended, process.memory_info().rss))
        except psutil.NoSuchProcess:
            break
        if kill_after is not None and ended >= kill_after:
            process.kill()
    code = process.wait()
    if code != (0 if kill_after is None else -signal.SIGKILL):
        raise RuntimeError(f"{name} ended with code {code}; see {log}")
    seconds = time.monotonic() - started
    print(f"{log.stem}: {ended} trials in {seconds:.0f} s", file=sys.stderr)
    return Measured(seconds, memory)


def figures(folder: Path, given: ManyTrials, whole: Measured, before: Measured, after: Measured) -> dict[str, Any]:
    searches = [SearchDirectory(open_storage(folder) / name) for name in ("whole", "killed")]
    boards = [leaderboard(search) for search in searches]
    best = [{rule: (winner(rows, "mi_fraction", rule) or {}).get("trial") for rule in RULES} for rows in boards]
    scores = [{row["trial"]: row["mi_fraction"] for row in rows} for rows in boards]
    if any(row["state"] != "finished" for rows in boards for row in rows):
        raise RuntimeError("a trial did not finish")
    trials = folder / "whole"
    listed = timed("runs", str(trials))
    peak = max(bytes for _, _, bytes in whole.memory)
    return {
        "trials, steps of each": f"{given.trials}, {given.steps}",
        "time of the search": f"{whole.seconds:.0f} s, {whole.seconds / given.trials:.2f} s a trial",
        "the driver's memory": ", ".join(growth(whole, given.trials)) + f"; at most {peak / MB:.0f} MB",
        "`infogan runs` of the search": f"{listed:.1f} s",
        "report.html, leaderboard.json, events.json": ", ".join(
            f"{(trials / file).stat().st_size / MB:.2f} MB"
            for file in ("report.html", "leaderboard.json", "events.json")
        ),
        "files of a trial": f"{sum(path.is_file() for path in (trials / 'trials').rglob('*')) / given.trials:.1f}",
        "killed in the middle, and resumed": f"{before.seconds:.0f} s and {after.seconds:.0f} s",
        "trials with another score after the kill": sum(
            scores[0][number] != scores[1][number] for number in range(given.trials)
        ),
        "winners by each rule, without and with the kill": json.dumps(best),
    }


def growth(measured: Measured, trials: int) -> list[str]:
    """The driver's memory after a tenth, a half and all of the trials."""
    texts = []
    for share in (0.1, 0.5, 1):
        _, ended, used = next((row for row in measured.memory if row[1] >= share * trials), measured.memory[-1])
        texts.append(f"{used / MB:.0f} MB after {ended} trials")
    return texts


def timed(*words: str) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "infogan_ray", *words], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


if __name__ == "__main__":
    raise SystemExit(main())
