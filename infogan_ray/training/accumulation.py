"""Generates a step's random numbers and accumulates its gradients over microbatches. No Ray."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from infogan_ray.training.step import (
    Metrics,
    discriminator_step,
    generator_step,
    gradient_norm,
    real_and_generated,
    step_metrics,
    train_step,
)
from infogan_ray.training.step_inputs import Microbatch, Schedule
from infogan_ray.training.train_state import TrainState


def train_on_batch(
    state: TrainState, images: Tensor, schedule: Schedule, batch_size: int, rank: int = 0, world_size: int = 1
) -> tuple[Metrics, Tensor]:
    """Update D and G with this rank's uint8 images (B, C, H, W) of the global batch of ``batch_size`` images.

    Returns what ``train_step`` returns. Does not wait for the device.
    """
    batch = Microbatch(
        state.augment(images, batch_size, rank, world_size),
        state.latents(batch_size, rank, world_size),
        state.step_noise(batch_size, schedule, rank, world_size),
        len(images) * world_size / batch_size,
    )
    return update_networks(state, batch.split(state.optimizer.accumulate), schedule)


def update_networks(
    state: TrainState, microbatches: Sequence[Microbatch], schedule: Schedule
) -> tuple[Metrics, Tensor]:
    """``train_step`` with the mean gradients over all microbatches of all ranks.

    Everything that changes between steps is an argument or in ``state``, so that a CUDA graph can replay the update.
    """
    if len(microbatches) == 1:
        return train_step(state, microbatches[0], schedule)
    last, d_metrics, g_metrics, q_real = microbatches[-1], [], [], []
    state.opt_d.zero_grad()
    for batch in microbatches:
        with torch.no_grad():  # G generates these images again in its own step. Keeping its activations needs memory.
            images = real_and_generated(state, batch)
        with sync_gradients(state.discriminate, batch is last):
            metrics, q = discriminator_step(state, batch, images, schedule)
        d_metrics.append(metrics)
        q_real.append(q)
    d_grad_norm = gradient_norm(state.discriminator)
    state.opt_d.step()

    state.opt_g.zero_grad()
    for batch in microbatches:
        with sync_gradients(state.generate, batch is last):
            g_metrics.append(generator_step(state, batch, real_and_generated(state, batch), schedule))
    g_grad_norm = gradient_norm(state.generator)
    state.opt_g.step()
    means = mean_over_rows(d_metrics, microbatches), mean_over_rows(g_metrics, microbatches)
    return step_metrics(*means, d_grad_norm, g_grad_norm), torch.cat(q_real)


def sync_gradients(module: nn.Module, now: bool) -> AbstractContextManager[None]:
    """A context in which a backward pass averages gradients over ranks if ``now``, and else only accumulates them."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) and not now else nullcontext()


def mean_over_rows(metrics: Sequence[Metrics], microbatches: Sequence[Microbatch]) -> Metrics:
    """The mean of each metric over the rows of all microbatches."""
    total = sum(batch.weight for batch in microbatches)
    shares = [batch.weight / total for batch in microbatches]
    rows = [torch.stack(list(row.values())) * share for share, row in zip(shares, metrics, strict=True)]
    return dict(zip(metrics[0], torch.stack(rows).sum(0).unbind(), strict=True))
