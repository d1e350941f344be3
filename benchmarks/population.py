"""Train many runs at the same time on one GPU in one process, to compare options over many seeds in minutes.

    python -m benchmarks.population mnist_robust --seeds 10 --lanes 10
    python -m benchmarks.population mnist_robust --seeds 10 --lanes 12 -- --steps 2000 --batch-size 256
    python -m benchmarks.population mnist_robust --seeds 10 --variants r1 batch smoothing -- --steps 2000

A small network leaves most of a GPU idle. Each run's step is recorded as a CUDA graph and replayed on its own stream.
So kernels of several runs execute at the same time. Without a GPU, runs train in turn. There is no Ray and there are
no checkpoints. The last step is evaluated as by ``infogan train``, without images. The same command continues an
interrupted benchmark with the runs that are not in STORAGE/quality.jsonl. ``--variants`` are those of
``benchmarks.stability``.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.quality import JOURNAL, is_row_of, journal, print_table
from benchmarks.stability import OF_THE_TERM, SAME, UNCHANGED, VARIANTS, is_selected
from infogan_ray.cli.train import train_config
from infogan_ray.data.datasets import DataConfig, load_images
from infogan_ray.data.feeds.memory import InMemoryFeed
from infogan_ray.data.image_set import ImageSet
from infogan_ray.evaluation.measure import measure_bound, measure_sorting
from infogan_ray.training.accumulation import train_on_batch
from infogan_ray.training.cuda_graph import GraphedStep
from infogan_ray.training.loop import run_step
from infogan_ray.training.run_evaluation import measure_agreement
from infogan_ray.training.start import make_state

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MAX_LANES = 31  # a process has 31 streams for runs


@dataclass
class Population:
    """Train a preset with several seeds at the same time and compare the results."""

    preset: tyro.conf.Positional[str]
    seeds: int = 10
    first_seed: int = 0
    lanes: int = 8
    """Runs at the same time, at most 31."""
    variants: tuple[str, ...] = ()
    """Also train these variants of benchmarks.stability; names as for its --only."""
    storage: Path = Path("runs/population")


class Lane:
    """One run, trained one step at a time."""

    def __init__(self, preset: str, seed: int, flags: list[str]) -> None:
        self.row: dict[str, Any] = {"preset": preset, "seed": seed, "flags": flags}
        self.config = config = train_config(["--preset", preset, *flags, "--seed", str(seed)])
        assert config.data is not None
        self.images, on_device = images_of(config.data, config.data_config)
        self.steps, self.started = config.total_steps(self.images.count), time.monotonic()
        self.feed = InMemoryFeed(on_device, config.batch_size, config.seed)
        self.state = make_state(config, self.images, None, DEVICE, None)
        self.graphed = GraphedStep(self.state) if GraphedStep.supports(self.state, 1) else None
        self.stream = self.graphed.stream if self.graphed is not None else None  # all work of this run uses this stream
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())

    def step(self) -> bool:
        """Train one step. Returns whether it was the last."""
        with self.on_stream():
            images = self.feed.batch(self.state.step)
            self.last = run_step(
                self.state, images, self.config.batch_size, self.steps, update=self.graphed or train_on_batch
            )
            if splits := self.state.due_splits(self.steps):
                splits.divide(self.state.spec.latents)
        return self.state.step == self.steps

    def measured(self) -> dict[str, Any]:
        """Evaluate the finished run. Returns a row as in ``benchmarks.quality``."""
        latents, discriminator, images = self.state.spec.latents, self.state.discriminator, self.images
        row = self.row | {"seconds": time.monotonic() - self.started, "code": 0}
        with self.on_stream():
            if not all(math.isfinite(value) for value in self.last.values()):
                return row | {"code": 3}
            row |= measure_bound(latents, self.state.averaged_generator(), discriminator, self.config.evaluation)
            row |= measure_sorting(latents, discriminator, images.images)[0]
            found = measure_agreement(latents, discriminator, images, training_precision=self.state.autocast())
            row |= {name: value for name, value in found.items() if isinstance(value, float)}
        return row

    def on_stream(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


@lru_cache(maxsize=2)
def images_of(data: str, config: DataConfig) -> tuple[ImageSet, torch.Tensor]:
    """The data, and its images on the device."""
    images = load_images(data, config)
    on_device = images.images.to(DEVICE)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()  # the streams of runs do not wait for the current stream
    return images, on_device


def main(arguments: list[str]) -> int:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    mine, more = arguments[:cut], arguments[cut + 1 :]
    given = tyro.cli(Population, args=mine)
    if not 1 <= given.lanes <= MAX_LANES:
        raise SystemExit(f"lanes is {given.lanes}; it must lie between 1 and {MAX_LANES}")
    config = train_config(["--preset", given.preset, *more])
    half = config.total_steps(10**9) // 2
    every = VARIANTS | (OF_THE_TERM if config.consistency.weight else {})
    chosen = {UNCHANGED: more} | {
        name: [*shlex.split(flags.format(half=half)), *more]
        for name, flags in every.items()
        if name != SAME.get(given.preset) and is_selected(name, given.variants, every)
    }
    if given.variants and len(chosen) == 1:
        raise SystemExit(
            f"no variant has the name {' '.join(given.variants)}; benchmarks.stability --list shows the names"
        )
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    known = journal(given.storage)
    waiting = [
        (seed, flags) for seed in seeds for flags in chosen.values()
        if not any(is_row_of(row, given.preset, seed, flags) for row in known)
    ]  # fmt: skip
    given.storage.mkdir(parents=True, exist_ok=True)
    lanes: list[Lane] = []
    made, started = 0, time.monotonic()
    while waiting or lanes:
        while waiting and len(lanes) < given.lanes:
            lanes.append(Lane(given.preset, *waiting.pop(0)))
        for lane in list(lanes):
            made += 1
            if lane.step():
                lanes.remove(lane)
                row = lane.measured()
                with open(given.storage / JOURNAL, "a") as file:
                    file.write(json.dumps(row) + "\n")
                error = f", error {row['clustering_error']:.2%}" if "clustering_error" in row else ""
                print(f"seed {row['seed']} {shlex.join(row['flags'])}: {row['seconds']:.0f} s{error}", file=sys.stderr)
    if made:
        rate = made / (time.monotonic() - started)
        print(f"{made:,} steps of all runs, {rate:,.0f} a second, up to {given.lanes} at a time", file=sys.stderr)
    print_table(
        [
            {**row, "preset": f"{given.preset}, {name}"}
            for name, flags in chosen.items()
            for row in journal(given.storage)
            if row["preset"] == given.preset and row["flags"] == flags and row["seed"] in seeds
        ],
        "variant",
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
