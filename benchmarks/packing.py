"""Trials of a search on one GPU: one after the other, as processes that share it, and in one process.

    python -m benchmarks.packing --trials 8                # on a GPU: all three
    python -m benchmarks.packing --trials 4 --steps 200    # without one: processes of one thread, and what turns cost

Each is a whole command, ``infogan search`` with its imports, Ray, images and report; that part is told apart by a
search of as many trials of two steps. Trials are alike but for the weight of the bound, and none is stopped.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.figures import publish

BATCH = 128
LIMIT_S = 3600
RECIPE = """
from ray import tune
from infogan_ray import Recipe

recipe = Recipe(
    preset={preset!r}, space={{"objective.lambda_categorical": tune.uniform(0.5, 1.5)}}, early_stopping=False,
    fixed={{"gpus_per_worker": {share}, "evaluation.samples": 2000}}, trials={trials}, grace={grace}, budget={budget},
)
"""


@dataclass
class Packing:
    """Time the same trials in several ways."""

    preset: str = "mnist_robust"
    trials: int = 8
    steps: int = 2000
    rounds: int = 1
    json: Path | None = None
    """File for the figures."""


def main() -> int:
    given = tyro.cli(Packing)
    many = str(given.trials)
    ways: dict[str, tuple[float, list[str]]] = {"one after the other": (1.0, []), "in one process": (1.0, [many])}
    if torch.cuda.is_available():
        ways["as processes that share the GPU"] = (1.0 / given.trials, [])
    else:
        ways = {"processes of one thread": (1.0, []), f"{many} to a process of one thread": (1.0, [many])}
    figures: dict[str, Any] = {"trials, steps each": f"{given.trials}, {given.steps}"}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(prefix="infogan-packing-") as folder:
        for _ in range(given.rounds):
            for name, (share, packed) in ways.items():
                took, once = (timed(Path(folder), given, steps, share, packed) for steps in (given.steps, 2))
                seconds[name].append((took, once))
                print(f"{name}: {took:.1f} s, of two steps each {once:.1f} s", file=sys.stderr)
    for name, pairs in seconds.items():
        took, once = min(took for took, _ in pairs), min(once for _, once in pairs)  # other work only ever adds
        rate = given.trials * (given.steps - 2) / (took - once)
        figures[name] = f"{took:.1f} s, {once:.1f} s of it for two steps each; {rate:,.0f} steps/s"
    publish(figures, given.json)
    return 0


def timed(folder: Path, given: Packing, steps: int, share: float, packed: list[str]) -> float:
    """Seconds of a search. Raises subprocess.CalledProcessError and TimeoutExpired."""
    name = f"search-{time.time_ns()}"
    path = folder / f"{name}.py"
    path.write_text(
        RECIPE.format(
            preset=given.preset, share=share, trials=given.trials, grace=BATCH * (steps // 2), budget=BATCH * steps
        )
    )
    command = [str(Path(sys.executable).with_name("infogan")), "search", str(path), "--storage", str(folder)]
    command += ["--name", name, *(["--per-process", *packed] if packed else [])]
    started = time.monotonic()
    subprocess.run(command, check=True, timeout=LIMIT_S, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


if __name__ == "__main__":
    raise SystemExit(main())
