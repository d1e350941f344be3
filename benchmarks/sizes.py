"""The cost of a step by image size, channels, categories, codes and batch size: time, arithmetic and memory.

    python -m benchmarks.sizes --threads 2
    python -m benchmarks.sizes --groups categories codes --steps 5

Each size trains in its own process, on noise, which takes the same time as images. Memory is the peak during training
minus the memory before the model was built. If time grows faster than arithmetic, the last column (GFLOP/s) falls.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from infogan_ray.distributed.cluster.threads import cores

CODES = "noise=62 cat=10 uniform=2"
BASE = {"size": 28, "channels": 1, "codes": CODES, "batch": 32}
PHOTOS = {"preset": "photos", "channels": 3, "batch": 32}
GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "size": {f"{size}x{size}": {"size": size} for size in (16, 28, 32, 48, 64, 96, 128)},
    "channels": {f"64x64x{channels}": {"size": 64, "channels": channels} for channels in (1, 3)},
    "categories": {f"k = {k:,}": {"codes": f"noise=62 cat={k} uniform=2"} for k in (2, 10, 100, 1000)},
    "codes": {f"{n} x cat=10": {"codes": "noise=62 " + "cat=10 " * n} for n in (1, 2, 10, 50)},
    "batch": {f"batch {batch}": {"batch": batch} for batch in (16, 32, 64, 128, 256)},
    "parts": {
        f"64x64x3, batch 128 in {n} part(s)": {"size": 64, "channels": 3, "batch": 128, "accumulate": n}
        for n in (1, 2, 4, 8)
    },
    "photos": {
        f"{architecture}, {size}x{size}x3": {**PHOTOS, "size": size, "architecture": architecture}
        for architecture in ("dcgan", "residual")
        for size in (28, 32, 64, 128)
    }
    | {
        f"dcgan, 128x128x3, batch 64 in {n} parts": {**PHOTOS, "size": 128, "batch": 64, "accumulate": n}
        for n in (2, 8)
    }
    | {"residual, 128x128x3, in 8 parts": {**PHOTOS, "size": 128, "architecture": "residual", "accumulate": 8}},
}


@dataclass
class Sizes:
    """Time steps of several sizes."""

    groups: tuple[str, ...] = tuple(GROUPS)
    threads: int | None = None
    steps: int = 10
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    json: Path | None = None


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure_size(**json.loads(sys.argv[2]))))
        return 0
    given = tyro.cli(Sizes)
    if unknown := [group for group in given.groups if group not in GROUPS]:
        raise SystemExit(f"{unknown[0]} is not a group; valid are {', '.join(GROUPS)}")
    about: dict[str, Any] = {"threads": given.threads or cores(), "steps": given.steps, "device": given.device}
    about["precision"] = given.precision
    found: dict[str, dict[str, Any]] = {}
    for group in given.groups:
        print(
            f"\n| {group} | ms a step | GFLOP a step | parameters | memory | GFLOP/s |\n|---|---|---|---|---|---|",
            flush=True,
        )
        for name, changes in GROUPS[group].items():
            command = [sys.executable, "-m", "benchmarks.sizes", "--one", json.dumps(BASE | changes | about)]
            row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
            found[name] = row
            speed = row["gflop"] / row["seconds"]
            cells = [
                name, f"{1000 * row['seconds']:,.0f}", f"{row['gflop']:,.1f}",
                f"{row['parameters'] / 1e6:,.1f} million", f"{row['bytes'] / 1e6:,.0f} MB", f"{speed:,.0f}",
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    return 0


def measure_size(
    size: int, channels: int, codes: str, batch: int, threads: int, steps: int, device: str, precision: str,
    accumulate: int = 1, preset: str = "mnist", architecture: str = "dcgan",
) -> dict[str, float]:  # fmt: skip
    """The median time of a step in seconds, its GFLOP, the parameters, and the memory in bytes.

    If only every n-th step has penalties, the time is a mean over n steps. GFLOP are those of a step without them:
    PyTorch's counter cannot count a gradient of a gradient.
    """
    import torch

    from benchmarks.throughput import flops_of, synchronize
    from infogan_ray.data.feeds.memory import InMemoryFeed
    from infogan_ray.training.config import RunConfig
    from infogan_ray.training.loop import train
    from infogan_ray.training.train_state import TrainState

    torch.set_num_threads(threads)
    where = torch.device(device)
    config = RunConfig(preset=preset).override(
        {
            "codes": codes, "optimizer": {"accumulate": accumulate}, "precision": precision,
            "network": {"architecture": architecture},
        }, "the benchmark",
    )  # fmt: skip
    cycle = config.stability.r1_every
    images = torch.randint(0, 256, (4 * batch, channels, size, size), dtype=torch.uint8, device=where)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    state = TrainState(config, size, channels, where)
    feed = InMemoryFeed(images, batch, seed=0)
    loop = train(state, feed, steps=10**6, log_every=cycle, checkpoint_every=10**6)
    next(loop)
    next(loop)
    seconds = []
    for _ in range(steps):
        synchronize(where)
        start = time.perf_counter()
        next(loop)  # reading the metrics waits for the device
        seconds.append((time.perf_counter() - start) / cycle)
    if where.type == "cuda":
        taken = torch.cuda.max_memory_allocated(where)
    else:
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    state.stability = dataclasses.replace(state.stability, r1=0.0, r2=0.0)
    gflop = flops_of(lambda: next(loop)) / cycle / 1e9
    parameters = sum(p.numel() for module in (state.generator, state.discriminator) for p in module.parameters())
    return {"seconds": statistics.median(seconds), "gflop": gflop, "parameters": parameters, "bytes": taken}


if __name__ == "__main__":
    raise SystemExit(main())
