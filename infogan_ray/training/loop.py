"""The training loop, a generator of metrics. torch only: no Ray, no files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from infogan_ray.data.feeds.memory import Feed, onto
from infogan_ray.training.accumulation import train_on_batch
from infogan_ray.training.step import Metrics
from infogan_ray.training.step_inputs import Schedule
from infogan_ray.training.train_state import TrainState

HALT_EVERY = 10  # on several GPUs, steps between two checks for a halt


class Diverged(Exception):
    """A loss, a gradient or a bound is not finite. The run ends."""

    def __init__(self, step: int, quantity: str, value: float) -> None:
        super().__init__(f"{quantity} is {value} at step {step}")
        self.step, self.quantity = step, quantity


def never_stop() -> bool:
    """The default of ``halt``: training runs to the last step."""
    return False


Update = Callable[[TrainState, Tensor, Schedule, int, int, int], tuple[Metrics, Tensor]]
"""A function with the arguments and results of ``train_on_batch``, which updates D and G."""


def train(
    state: TrainState, feed: Feed, *, steps: int, log_every: int, checkpoint_every: int,
    rank: int = 0, world_size: int = 1, halt: Callable[[], bool] = never_stop,
    on_step: Callable[[], None] | None = None, update: Update = train_on_batch, epoch_offset: float = 0.0,
) -> Iterator[dict[str, float]]:  # fmt: skip
    """Train up to ``steps``. Yield metrics every ``log_every`` steps and when a checkpoint or re-splits are due.

    The caller makes the re-splits (``state.due_splits``). Metrics are means over all ranks and over the steps since the
    last yield. If ``halt`` returns true on any rank, all ranks end at the same step. Raises Diverged if a metric is not
    finite. Waits for the device only to read metrics. Calls ``on_step`` after each step. ``epoch_offset``: see
    ``resume.epoch_offset``.
    """
    window: list[Metrics] = []
    started = time.monotonic()
    # Ranks sum a flag to agree on a halt: at every step on a CPU, rarely on GPUs, which must wait for the result.
    agree_every = 1 if state.device.type == "cpu" or world_size == 1 else HALT_EVERY
    while state.step < steps:
        if state.step % agree_every == 0 and _any_rank(halt(), world_size, state.device):
            return
        images = onto(state.device, feed.batch(state.step))
        weight = len(images) * world_size / feed.batch_size
        window.append(run_step(state, images, feed.batch_size, steps, rank, world_size, update))
        if on_step is not None:
            on_step()
        due = state.step % log_every == 0 or state.step % checkpoint_every == 0 or state.step == steps
        if not (due or state.due_splits(steps)):
            continue
        row = read_metrics(window, weight, world_size, state.step)
        row |= {"step": state.step, "epoch": state.step / feed.steps_per_epoch + epoch_offset}
        row["images_per_second"] = len(window) * feed.batch_size / (time.monotonic() - started)
        yield row
        window, started = [], time.monotonic()


def run_step(
    state: TrainState, images: Tensor, batch_size: int, steps: int, rank: int = 0, world_size: int = 1,
    update: Update = train_on_batch,
) -> Metrics:  # fmt: skip
    """Make one complete step of a run of ``steps``, with this rank's uint8 images (B, C, H, W) of the global batch.

    Returns detached scalars: the metrics of ``train_step`` and of ``TrainState.after_step``. Does not wait for the
    device.
    """
    state.set_learning_rates(steps)
    metrics, q_real = update(state, images, state.schedule(steps), batch_size, rank, world_size)
    return metrics | state.after_step(q_real, metrics["d_accuracy"], len(images) * world_size / batch_size)


def read_metrics(window: list[Metrics], weight: float, world_size: int, step: int) -> dict[str, float]:
    """Means of each metric over all ranks and over the steps of a window that ends with ``step``.

    Raises Diverged if a value is not finite. Only this function waits for the device.
    """
    names = list(window[0])
    rows = torch.stack([torch.stack([row[name] for name in names]) for row in window]) * weight
    if world_size > 1:
        dist.all_reduce(rows)  # all ranks then raise Diverged for the same step
        rows /= world_size
    *step_rows, means = torch.cat([rows, rows.mean(0, keepdim=True)]).tolist()
    for row, row_step in zip(step_rows, range(step - len(window) + 1, step + 1), strict=True):
        for name, value in zip(names, row, strict=True):
            if not math.isfinite(value):
                raise Diverged(row_step, name, value)
    return dict(zip(names, means, strict=True))


def _any_rank(flag: bool, world_size: int, device: torch.device) -> bool:
    if world_size == 1:
        return flag
    flags = torch.tensor([float(flag)], device=device)
    dist.all_reduce(flags)
    return bool(flags.item())
