"""Which options improve the worst of several seeds: each option alone, compared with the unchanged preset.

    python -m benchmarks.stability --steps 1000 --seeds 10 --threads 1
    python -m benchmarks.stability --only r1 spectral --presets mnist --seeds 3
    python -m benchmarks.stability --list                          # the variants and their flags
    python -m benchmarks.stability --cost                          # the cost of each per step; nothing is trained

Arguments after ``--`` go to every ``infogan train``. ``benchmarks.quality`` runs the trainings and prints the table.
The same command continues an interrupted benchmark. docs/research/experiments.md has the results.
"""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.quality import Quality, is_row_of, journal, print_table, run

PRESETS = ("mnist_robust", "mnist")
UNCHANGED = "unchanged"
TURN, ROUNDS = 16, 5  # --cost: steps per turn (each includes a lazy penalty), and the number of rounds
LINEAR = "--network.d-norm none --network.output linear"
PENALTIES = "--stability.r1 2 --stability.r2 2 --stability.r1-every 4"
# Flags by name, inserted between the preset's flags and --steps. {half} is half of the steps.
VARIANTS: dict[str, str] = {
    UNCHANGED: "",
    "spectral norm": "--network.spectral-norm",
    "R1 0.1": "--stability.r1 0.1",
    "R1 1": "--stability.r1 1.0",
    "R1 10": "--stability.r1 10.0",
    "R1 1, every 16th": "--stability.r1 1.0 --stability.r1-every 16",
    "noise 0.1": "--stability.instance-noise 0.1",
    "noise 0.5": "--stability.instance-noise 0.5",
    "smoothing 0.1": "--stability.label-smoothing 0.1",
    "warm-up of lambda": "--stability.lambda-warmup {half}",
    "lambda 0.5": "--objective.lambda-categorical 0.5",
    "lambda 2": "--objective.lambda-categorical 2.0",
    "EMA 0.99": "--optimizer.ema-decay 0.99",
    "EMA 0.9999": "--optimizer.ema-decay 0.9999",
    "constant rate": "--optimizer.lr-decay 0.0",
    "decay over the last fifth": "--optimizer.lr-decay 0.2",
    "decay over half": "--optimizer.lr-decay 0.5",
    "decay over all": "--optimizer.lr-decay 1.0",
    "batch 64": "--batch-size 64",
    "batch 256": "--batch-size 256",
    "sigma floor 0.03": "--network.sigma-min 0.03",
    "sigma floor 0.3": "--network.sigma-min 0.3",
    "sigma fixed 0.3": "--network.sigma-fixed 0.3",
    "sigma fixed 1": "--network.sigma-fixed 1.0",
    "mean bias": "--stability.mean-bias",
    "joint batch norm": "--network.joint-batchnorm",
    "relativistic": f"--objective.game relativistic {LINEAR} {PENALTIES}",
    "relativistic, residual": f"--objective.game relativistic {LINEAR} {PENALTIES} --network.architecture residual",
    "restarts": "--stability.restart-every 100",
    "restarts below 0.3": "--stability.restart-every 100 --stability.restart-below 0.3",
}
# Variants of the consistency term and of re-splits, which mnist_robust has and mnist does not have.
OF_THE_TERM: dict[str, str] = {
    "slant and stretch": "--consistency.shear 0.3 --consistency.stretch 0.2",
    "no balance": "--consistency.balance 0.0",
    "balance 3": "--consistency.balance 3.0",
    "no entropy": "--consistency.entropy 0.0",
    "consistency 0.3": "--consistency.weight 0.3",
    "consistency 3": "--consistency.weight 3.0",
    "no re-splits": "--stability.resplit-every 0",
}
SAME = {"mnist_robust": "decay over half", "mnist": "constant rate"}  # the variant that equals the unchanged preset


@dataclass
class Stability:
    """Train presets with one additional option each, with several seeds, and compare the worst results."""

    presets: tuple[Literal["mnist_robust", "mnist"], ...] = PRESETS
    only: tuple[str, ...] = ()
    """Only these variants and 'unchanged'. A word that is no variant's name selects all names that contain it."""
    steps: int = 1000
    seeds: int = 10
    first_seed: int = 0
    storage: Path = Path("runs/stability")
    threads: int | None = None
    """Threads per run. Two runs with one thread each are faster than one run with two: start the command twice, with
    different seeds."""
    list: bool = False
    """Train nothing; print the variants and their flags."""
    only_tell: bool = False
    """Train nothing; print the table of finished runs."""
    cost: bool = False
    """Train only a few steps; print the time of a step with each option, relative to the unchanged preset."""


def main(arguments: list[str]) -> int:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    mine, more = arguments[:cut], arguments[cut + 1 :]
    given = tyro.cli(Stability, args=mine)
    chosen = [(preset, name, flags) for preset in given.presets for name, flags in variants(preset, given)]
    if given.list:
        for preset, name, flags in chosen:
            print(f"{preset:13} {name:20} {shlex.join(flags)}")
        return 0
    if given.cost:
        return print_cost(given, chosen)
    # Train all variants of a seed before the next seed, so that an interrupted command has equal seeds for all.
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for preset, _, flags in chosen:
            quality = Quality((preset,), storage=given.storage, threads=given.threads)
            known = journal(given.storage)
            if not given.only_tell and not any(is_row_of(row, preset, seed, flags + more) for row in known):
                run(quality, preset, seed, flags + more)
    rows = journal(given.storage)
    print_table(
        [
            {**row, "preset": f"{preset}, {name}"}
            for preset, name, flags in chosen
            for row in rows
            if row["preset"] == preset and row["flags"] == flags + more
        ],
        "variant",
    )
    return 0


def variants(preset: str, given: Stability) -> list[tuple[str, list[str]]]:
    """Names and flags (with --steps) of the selected variants of a preset."""
    every = VARIANTS | (OF_THE_TERM if preset == "mnist_robust" else {})
    wanted = [
        name
        for name in every
        if name != SAME[preset] and (name == UNCHANGED or not given.only or is_selected(name, given.only, every))
    ]
    steps = ["--steps", str(given.steps)]
    return [(name, [*shlex.split(every[name].format(half=given.steps // 2)), *steps]) for name in wanted]


def is_selected(name: str, words: Sequence[str], every: Mapping[str, str]) -> bool:
    """Whether a word is this variant's name, or a part of it if no variant has that name."""
    names = {variant.lower() for variant in every}
    return any(word == name.lower() or (word not in names and word in name.lower()) for word in map(str.lower, words))


def print_cost(given: Stability, chosen: list[tuple[str, str, list[str]]]) -> int:
    """Variants train in turn, a few steps each, so that other load on the machine affects all equally."""
    import torch

    from infogan_ray.cli.train import train_config
    from infogan_ray.data.datasets import DataConfig, load_images
    from infogan_ray.data.feeds.memory import InMemoryFeed
    from infogan_ray.training.config import RunConfig
    from infogan_ray.training.loop import train
    from infogan_ray.training.train_state import TrainState

    torch.set_num_threads(given.threads or torch.get_num_threads())
    images = load_images("mnist", DataConfig())

    class Arm:
        def __init__(self, config: RunConfig) -> None:
            self.state = TrainState(config, images.image_size, images.channels)
            self.feed = InMemoryFeed(images.images, config.batch_size, 0)
            self.seconds: list[float] = []

        def turn(self) -> None:
            start = time.perf_counter()
            next(train(self.state, self.feed, steps=10**6, log_every=TURN, checkpoint_every=10**6))
            self.seconds.append((time.perf_counter() - start) / TURN)

    for preset in given.presets:
        arms = {name: Arm(train_config(["--preset", preset, *flags])) for at, name, flags in chosen if at == preset}
        for round_ in range(1 + ROUNDS):  # the first warms up
            for name in [*arms][round_ % len(arms) :] + [*arms][: round_ % len(arms)]:
                arms[name].turn()
        print(f"| {preset} | time of a step |\n|---|---|")
        base = arms[UNCHANGED].seconds[1:]
        for name, arm in arms.items():
            ratio = statistics.median(mine / its for mine, its in zip(arm.seconds[1:], base, strict=True))
            print(f"| {name} | {ratio:.2f} x |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
