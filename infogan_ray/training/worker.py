"""One worker of a run: start or resume, train, evaluate, store checkpoints and publish. No Ray.

``run_worker`` runs on every rank. Only rank 0 writes files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import nn

from infogan_ray.data.feeds.feed_policy import make_feed
from infogan_ray.data.image_set import ImageSet
from infogan_ray.models.precision import set_matrix_products
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from infogan_ray.training.loop import Diverged, never_stop, train
from infogan_ray.training.rank_zero import finish, rank_zero_tasks, report_divergence
from infogan_ray.training.report import Report
from infogan_ray.training.resume import epoch_offset, recorded_changes
from infogan_ray.training.slow_workers import SlowWorkers
from infogan_ray.training.start import agree_on_start, make_state, resume_message
from infogan_ray.training.train_state import TrainState

START_TIMEOUT_S = 120.0  # storage may be unavailable when a worker restarts


def run_worker(
    config: RunConfig, images: ImageSet, run: RunDirectory, *,
    device: torch.device, rank: int = 0, world_size: int = 1, wrap: Callable[[nn.Module], nn.Module] | None = None,
    stop: Callable[[], bool] = never_stop, restarts: int = 0, place: str = "",
) -> Generator[Report, None, None]:  # fmt: skip
    """Train to the configured step, from the last whole checkpoint if the run has one. Yields reports.

    When ``stop`` returns true on rank 0, all ranks end at the same step, and rank 0 writes a last checkpoint. ``place``
    is the address of this worker's machine, for messages. Raises Diverged on the ranks that find it. If storage fails,
    raises StorageFailed on rank 0 and StorageError on others.
    """
    set_matrix_products(config.precision)
    run, steps = run.with_retry_timeout(START_TIMEOUT_S), config.total_steps(images.count)
    start = agree_on_start(config, run, steps, rank, world_size, device, restarts)
    if start is None:
        return
    with contextlib.ExitStack() as resources:
        if start.uploader is not None:
            resources.callback(start.uploader.close)
        state = make_state(config, images, start.checkpoint, device, wrap)
        feed = make_feed(images, config.batch_size, config.seed, rank, world_size, device)
        resources.enter_context(contextlib.closing(feed))
        slow_workers: SlowWorkers | None = None
        if world_size > 1 and not config.network.sync_batchnorm:  # with it, forward passes wait for other workers
            slow_workers = SlowWorkers(state.generator, device, place, rank, world_size)
        loop: dict[str, Any] = {
            "steps": steps, "log_every": config.log_every, "checkpoint_every": config.checkpoint_every, "rank": rank,
            "world_size": world_size,
        }  # fmt: skip
        if start.uploader is None:
            for metrics in train(state, feed, **loop):
                if slow_workers is not None:
                    slow_workers.compare()
                if splits := state.due_splits(steps):
                    splits.divide(state.spec.latents, rank, world_size)
                yield Report(metrics, due=is_due(state, config, steps))
            return
        loop["epoch_offset"] = epoch_offset(recorded_changes(run), images.count)
        for line in start.warnings:
            yield Report({"step": state.step}, phase="resuming", say=line)
        tasks = resources.enter_context(rank_zero_tasks(config, images, run, state, start, stop, world_size))
        yield Report({"step": state.step}, say=resume_message(config, state, start, world_size))
        try:
            for metrics in train(state, feed, **loop, halt=tasks.must_halt, on_step=tasks.on_step, update=tasks.update):
                due = is_due(state, config, steps)
                if slow_workers is not None and (line := slow_workers.compare()):
                    yield Report({"step": state.step}, say=line)
                if splits := state.due_splits(steps):
                    yield Report(metrics, phase="dividing categories")
                    for line in splits.divide(state.spec.latents, rank, world_size):
                        yield Report({"step": state.step}, say=line)
                if due:
                    yield Report(metrics, phase="evaluating")
                    metrics |= tasks.writer.evaluate_and_write(metrics)
                else:
                    tasks.log.log(metrics)
                yield Report(metrics, due, say=tasks.log.pop_status())
                yield from tasks.store_trace(due)
            yield from finish(tasks, steps)
        except Diverged as error:
            yield Report(report_divergence(tasks, error), phase="diverged")
            raise


def is_due(state: TrainState, config: RunConfig, steps: int) -> bool:
    """Whether a checkpoint is due."""
    return state.step % config.checkpoint_every == 0 or state.step == steps
