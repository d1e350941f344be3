"""The cost of training with several workers: weak scaling on one machine, one thread per rank, without Ray.

    python -m benchmarks.ranks                      # on an idle machine
    python -m benchmarks.ranks --ranks 4 --json ranks.json

All variants train in turn in the same processes. The baseline is one rank alone. Independent ranks show the limit of
the machine's memory and caches. The other variants average gradients over gloo. Each rank has the full batch of the
baseline. Figures are medians over the rounds.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import tyro

from infogan_ray.training.config import RunConfig
from infogan_ray.training.ddp import distributed
from infogan_ray.training.loop import run_step
from infogan_ray.training.train_state import TrainState

ALONE, INDEPENDENT = "one rank alone", "independent ranks"
PARTS = 4
ACCUMULATED = f"fp32, {PARTS} batches a step, gradients sent once"
AVERAGED = {
    "gradients averaged, fp32": ("fp32", False),
    "gradients averaged, bf16 on the wire": ("bf16", False),
    "gradients averaged, fp32, synchronised batch norm": ("fp32", True),
    ACCUMULATED: ("fp32", False, PARTS),
}


@dataclass
class Ranks:
    """Time steps of one rank and of several ranks."""

    ranks: int = 2
    batch_size: int = 128
    """Batch size of each rank. With N batches a step (optimizer.accumulate) there are N times fewer steps."""
    precision: str = "auto"
    rounds: int = 12
    steps: int = PARTS
    """Steps of each variant in each round; a multiple of 4."""
    json: Path | None = None


def main() -> int:
    given = tyro.cli(Ranks)
    if given.steps % PARTS:
        raise SystemExit(f"steps is {given.steps}; it must be a multiple of {PARTS}")
    with tempfile.TemporaryDirectory(prefix="infogan-ranks-") as folder:
        torch.multiprocessing.spawn(work, args=(given, folder), nprocs=given.ranks)
    return 0


def work(rank: int, given: Ranks, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=given.ranks)
    states = {ALONE: make(given), INDEPENDENT: make(given)}
    states |= {arm: make(given, *how) for arm, how in AVERAGED.items()}
    took: dict[str, list[float]] = {arm: [] for arm in states}
    for number in range(-1, given.rounds):
        arms = [*states]
        for arm in arms[number % len(arms) :] + arms[: number % len(arms)]:
            seconds = timed(states[arm], given, rank, arm)
            if number >= 0:  # the first round is a warm-up
                took[arm].append(seconds)
    dist.destroy_process_group()
    if rank == 0:
        print_table(took, states[ALONE].precision, given)


def make(given: Ranks, wire: str = "", sync: bool = False, parts: int = 1) -> TrainState:
    changes = {
        "network": {"sync_batchnorm": sync}, "optimizer": {"accumulate": parts}, "precision": given.precision
    }  # fmt: skip
    config = RunConfig(preset="mnist").override(changes, "the benchmark")
    state = TrainState(config, 28, 1)
    if wire:
        state.distribute(partial(distributed, wire=wire))
    return state


def timed(state: TrainState, given: Ranks, rank: int, arm: str) -> float:
    """Seconds until the last rank has finished its steps. Images are noise, which takes the same time."""
    parts = state.optimizer.accumulate
    images = torch.randint(0, 256, (given.batch_size * parts, 1, 28, 28), dtype=torch.uint8)
    dist.barrier()
    start = time.perf_counter()
    if arm != ALONE or rank == 0:
        for _ in range(given.steps // parts):
            run_step(state, images, len(images), steps=given.steps)
    mine = torch.tensor(time.perf_counter() - start if arm != ALONE or rank == 0 else 0.0)
    dist.all_reduce(mine, dist.ReduceOp.MAX)
    return float(mine)


def print_table(took: dict[str, list[float]], precision: str, given: Ranks) -> None:
    print(f"MNIST network, {precision}, batch {given.batch_size} a rank, {given.ranks} ranks of 1 thread\n")
    print("| | images/s of all | weak scaling | of independent ranks |\n|---|---|---|---|")
    rows = []
    for arm, seconds in took.items():
        count = given.steps * given.batch_size * (1 if arm == ALONE else given.ranks)
        speed = count / statistics.median(seconds)
        weak, apart = ratio(took[ALONE], seconds), ratio(took[INDEPENDENT], seconds)
        rows.append({"arm": arm, "images_per_second": speed, "weak_scaling": weak, "of_each_for_itself": apart})
        print(f"| {arm} | {speed:,.0f} {'| | |' if arm == ALONE else f'| {weak:.1%} | {apart:.1%} |'}")
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))


def ratio(over: list[float], seconds: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, seconds, strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
