"""A training step whose latents and random numbers a test chooses."""

from __future__ import annotations

from torch import Tensor

from infogan_ray.training.accumulation import update_networks
from infogan_ray.training.step_inputs import Microbatch, StepNoise
from infogan_ray.training.train_state import TrainState


def step_on(
    state: TrainState, images: Tensor, latents: Tensor, weight: float = 1.0, noise: StepNoise | None = None
) -> dict[str, Tensor]:
    """Run one step on uint8 images (B, C, H, W) and latents (B, L). Returns its metrics."""
    batch = Microbatch(images, latents, noise or StepNoise(), weight)
    metrics, q_real = update_networks(state, batch.split(state.optimizer.accumulate), state.schedule())
    return metrics | state.after_step(q_real, metrics["d_accuracy"], weight)
