"""Images per second of this package's step and of the usual InfoGAN loop, with the same network and batch.

    python -m benchmarks.throughput                 # on the CPU: two threads, or --threads
    python -m benchmarks.throughput --device cuda --json throughput.json
    python -m benchmarks.throughput --quick         # less than a minute, for CI: rough ratios only

All loops train in turn, a few steps each, so that other load on the machine affects all equally. A ratio is the median
over the rounds. Each loop has its own process, so that settings of the C library do not affect the others.
``benchmarks/plain.py`` is the usual loop.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain
from infogan_ray.data.datasets import DataConfig, load_images
from infogan_ray.data.feeds.memory import InMemoryFeed
from infogan_ray.distributed.cluster.threads import cores
from infogan_ray.models.precision import resolve_precision
from infogan_ray.training.accumulation import train_on_batch
from infogan_ray.training.config import RunConfig
from infogan_ray.training.cuda_graph import GraphedStep
from infogan_ray.training.loop import run_step
from infogan_ray.training.train_state import TrainState

PLAIN = "plain loop, fp32"
QUICK_S = 30.0


@dataclass
class Throughput:
    """Compare training steps."""

    device: Literal["cpu", "cuda"] = "cpu"
    batch_size: int = 128
    threads: int | None = None
    """CPU threads; by default all cores."""
    rounds: int = 15
    steps: int = 8
    """Steps of each loop in each round."""
    loader_workers: int = 0
    """Workers of the plain loop's DataLoader."""
    quick: bool = False
    """A few rounds on noise with MNIST's shape, which takes the same time. No download, and no peak is measured."""
    json: Path | None = None


def main() -> int:
    given = tyro.cli(Throughput)
    torch.set_num_threads(given.threads or cores())  # this process measures the peak
    device = torch.device(given.device)
    names = [PLAIN, "infogan_ray, fp32"]
    if resolve_precision("auto", device) == "bf16":
        names.append("infogan_ray, bf16")
    if given.device == "cuda":
        names += [f"infogan_ray, CUDA graph, {name[-4:]}" for name in names[1:]]
    with contextlib.ExitStack() as stack:
        arms = {name: stack.enter_context(Arm(name, given)) for name in names}
        return measure_quickly(arms, given) if given.quick else measure(arms, given)


class Arm:
    """A training loop in its own process, which runs steps on request."""

    def __init__(self, name: str, given: Any, steps: Callable[[str, Any], Iterator[float]] | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, given, steps or steps_of))
        self._process.start()
        theirs.close()

    def __enter__(self) -> Arm:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join(timeout=10)
        self._process.terminate()

    def seconds(self, steps: int) -> float:
        """Seconds for this many steps, by the clock of its process."""
        return self._request(steps)

    def flops(self) -> float:
        """FLOP of a step, which it runs for this measurement."""
        return self._request(0)

    def busy(self) -> float:
        """The share of time in which the GPU is busy."""
        return self._request(-1)

    def _request(self, steps: int) -> float:
        try:
            self._connection.send(steps)
            return self._connection.recv()
        except (EOFError, OSError):
            raise SystemExit("a training loop has ended; its error is above") from None


def serve(connection: Connection, name: str, given: Any, steps_of: Callable[[str, Any], Iterator[float]]) -> None:
    """The process of an arm. It receives a number: N > 0 runs N steps, 0 counts FLOP, -1 measures the busy GPU."""
    torch.set_num_threads(given.threads or cores())
    device = torch.device(given.device)
    arm = steps_of(name, given)
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            steps = connection.recv()
            if steps > 0:
                connection.send(seconds_of(arm, steps, device))
            else:
                connection.send(flops_of(lambda: next(arm)) if steps == 0 else busy_share(arm))


def steps_of(name: str, given: Throughput) -> Iterator[float]:
    """An iterator that runs one step of the named loop per item."""
    device = torch.device(given.device)
    if given.quick:
        images = torch.randint(0, 256, (4096, 1, 28, 28), dtype=torch.uint8)
    else:
        images = load_images("mnist", DataConfig()).images
    if name == PLAIN:
        return plain.training(images[:, 0].numpy(), given.batch_size, device, given.loader_workers)
    return package_steps(images, given.batch_size, device, name[-4:], graph="graph" in name)


def measure(arms: dict[str, Arm], given: Throughput) -> int:
    device = torch.device(given.device)
    peaks = {"fp32": peak(device, torch.float32), "bf16": peak(device, torch.bfloat16)}
    flops = {name: arm.flops() for name, arm in arms.items()}  # also a warm-up
    took = run_in_turn(arms, given.rounds, given.steps)
    # Measure again: other load on the machine can halve a single measurement.
    peaks = {
        "fp32": max(peaks["fp32"], peak(device, torch.float32)),
        "bf16": max(peaks["bf16"], peak(device, torch.bfloat16)),
    }
    rows = []
    for name, seconds in took.items():
        speed = given.steps * given.batch_size / statistics.median(seconds)
        ratio = statistics.median(p / s for p, s in zip(took[PLAIN], seconds, strict=True))
        share = flops[name] * speed / given.batch_size / peaks[name[-4:]]
        rows.append({"arm": name, "images_per_second": speed, "ratio": ratio, "gflop": flops[name] / 1e9, "share": share})  # fmt: skip  # noqa: E501
        if device.type == "cuda":
            rows[-1]["busy"] = arms[name].busy()
    where = machine_name(device)
    print(f"MNIST network, batch {given.batch_size}, {where}; matrix peak fp32 {peaks['fp32'] / 1e9:,.0f} GFLOP/s, bf16 {peaks['bf16'] / 1e9:,.0f}\n")  # fmt: skip  # noqa: E501
    more = (" GPU busy |", "---|") if device.type == "cuda" else ("", "")
    print(
        f"| step | images/s | of the plain loop | GFLOP a step | share of the matrix peak |{more[0]}\n"
        f"|---|---|---|---|---|{more[1]}"
    )
    for row in rows:
        print(
            f"| {row['arm']} | {row['images_per_second']:,.0f} | {row['ratio']:.2f} x | {row['gflop']:.1f} "
            f"| {row['share']:.0%} |" + (f" {row['busy']:.0%} |" if "busy" in row else "")
        )
    if given.json is not None:
        given.json.write_text(json.dumps({"threads": where, "peaks": peaks, "arms": rows}, indent=1))
    return 0


def run_in_turn(arms: dict[str, Arm], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds for ``steps`` steps of each arm in each round, after a warm-up. Each round starts with another arm."""
    for arm in arms.values():
        arm.seconds(steps)
    took: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in [*arms][number % len(arms) :] + [*arms][: number % len(arms)]:
            took[name].append(arms[name].seconds(steps))
    return took


def measure_quickly(arms: dict[str, Arm], given: Throughput) -> int:
    """Run one step of each arm in turn for QUICK_S seconds, at least three rounds. Prints median ratios in one line."""
    for arm in arms.values():
        arm.seconds(2)
    took: dict[str, list[float]] = {name: [] for name in arms}
    until = time.perf_counter() + QUICK_S
    while len(took[PLAIN]) < 3 or (time.perf_counter() < until and len(took[PLAIN]) < 50):
        for name, arm in arms.items():
            took[name].append(arm.seconds(1))
    ratio_texts = []
    for name in [*arms][1:]:
        ratios = sorted(p / s for p, s in zip(took[PLAIN], took[name], strict=True))
        ratio_texts.append(f"{name} {statistics.median(ratios):.2f} x of it ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    speed = given.batch_size / statistics.median(took[PLAIN])
    about = f"{machine_name(torch.device(given.device))}, batch {given.batch_size}, {len(took[PLAIN])} rounds"
    print(f"speed, {about}: {PLAIN} {speed:,.0f} images/s; {'; '.join(ratio_texts)}")
    return 0


def machine_name(device: torch.device) -> str:
    return f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)


def package_steps(
    images: torch.Tensor, batch: int, device: torch.device, precision: str,
    change: Callable[[TrainState], None] | None = None, read_every: int | None = None,
    graph: bool = False,
) -> Iterator[float]:  # fmt: skip
    """The step of a worker, without Ray. Metrics are read every tenth step, which is the default.

    ``change`` is applied to the state before the first step.
    """
    config = RunConfig(preset="mnist", precision=precision)
    state = TrainState(config, images.shape[-1], images.shape[1], device)
    if change is not None:
        change(state)
    read_every = read_every or config.log_every
    feed = InMemoryFeed(images.to(device), batch, seed=0)
    window = []
    update = GraphedStep(state) if graph else train_on_batch
    while True:
        window.append(run_step(state, feed.batch(state.step), batch, config.steps or 1, update=update))
        if state.step % read_every == 0:
            torch.stack([torch.stack(list(row.values())) for row in window]).tolist()
            window.clear()
        yield 0.0


def seconds_of(arm: Iterator[float], steps: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        next(arm)
    synchronize(device)
    return time.perf_counter() - start


def busy_share(arm: Iterator[float], steps: int = 50) -> float:
    """The share of time in which a kernel runs on the GPU, over ``steps`` steps.

    It is measured with a profiler, which slows kernel launches from Python.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            next(arm)
        torch.cuda.synchronize()
    spans = sorted(
        (event.time_range.start, event.time_range.end) for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )  # fmt: skip
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / (until - spans[0][0])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_of(step: Callable[[], object]) -> int:
    """Multiplications and additions in matrix products and convolutions of one step, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several large matrix products: the measured peak of the machine."""
    size = 2048 if device.type == "cpu" else 8192  # on a GPU a small product is faster than its launch
    matrix = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(12):
        synchronize(device)
        start = time.perf_counter()
        matrix @ matrix
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


if __name__ == "__main__":
    raise SystemExit(main())
