"""The training step: one update of D with Q, then one of G. torch only: no Ray, no files.

Gradient accumulation (``accumulation.py``), CUDA graphs (``cuda_graph.py``) and the loop (``loop.py``) are around it.
Shapes: B this rank's rows of the global batch, (B, C, H, W) images, (B, L) latents, (B, P) Q's parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infogan_ray.data.feeds.memory import to_unit_range
from infogan_ray.models.losses import discriminator_loss, generator_loss, information_bound, weighted_bound
from infogan_ray.models.networks import frozen
from infogan_ray.training.consistency import consistency_loss, half_moved, paired
from infogan_ray.training.regularisers import r1_penalty, with_noise
from infogan_ray.training.step_inputs import Microbatch, Schedule
from infogan_ray.training.train_state import TrainState

Metrics = dict[str, Tensor]


def train_step(state: TrainState, batch: Microbatch, schedule: Schedule) -> tuple[Metrics, Tensor]:
    """Both updates on the same images. Returns ``step_metrics``, and Q's parameters for real images, (B, P)."""
    images = real_and_generated(state, batch)

    state.opt_d.zero_grad()
    d_metrics, q_real = discriminator_step(state, batch, images, schedule)
    d_grad_norm = gradient_norm(state.discriminator)
    state.opt_d.step()

    state.opt_g.zero_grad()
    g_metrics = generator_step(state, batch, images, schedule)
    g_grad_norm = gradient_norm(state.generator)
    state.opt_g.step()
    return step_metrics(d_metrics, g_metrics, d_grad_norm, g_grad_norm), q_real


def discriminator_step(
    state: TrainState, batch: Microbatch, images: tuple[Tensor, Tensor], schedule: Schedule
) -> tuple[Metrics, Tensor]:
    """D's and Q's gradients: trunk, D head and Q head minimise the adversarial loss minus the weighted bound."""
    (real, generated), noise, count = images, batch.noise, len(batch.images)
    groups, q_from = 1 if state.discriminator.joint_batchnorm else 2, 0 if reads_real(state, batch) else count
    with state.autocast():
        both = with_noise(torch.cat([real, generated.detach()]), noise.instance_noise)
        both.requires_grad_(noise.signs is not None)  # R1 takes D's gradient at real images
        logits, q = state.discriminate(both, groups=groups, q_from=q_from)
    (real_logits, generated_logits), q_real = logits.chunk(2), q[:-count]
    d_loss = discriminator_loss(real_logits, generated_logits, state.stability.label_smoothing)
    bounds = information_bound(state.spec.latents, batch.latents.detach(), q[-count:])
    loss, metrics = d_loss - weighted_bound(bounds, schedule.lambdas), {"d_loss": d_loss}
    if noise.transformations is not None:
        metrics["consistency_loss"] = consistency_loss(state.spec.latents, q_real, state.consistency)
        loss = loss + schedule.consistency * metrics["consistency_loss"]
    if state.stability.r1:
        metrics["r1_penalty"] = r1_penalty(state.stability, noise.signs, real_logits, both)
        loss = loss + metrics["r1_penalty"]
    (batch.weight * loss).backward()
    metrics |= accuracy(real_logits, generated_logits) | {f"train_mi/{name}": bound for name, bound in bounds.items()}
    return detached(metrics), q_real.detach()


def generator_step(state: TrainState, batch: Microbatch, images: tuple[Tensor, Tensor], schedule: Schedule) -> Metrics:
    """G's gradients on the same objective, with D and Q as just updated and frozen; with pairs, H learns as well."""
    (real, generated), noise, count = images, batch.noise, len(batch.images)
    with frozen(state.discriminator), state.autocast():
        seen = torch.cat([real, generated]) if state.discriminator.joint_batchnorm else generated
        q_from = 0 if reads_real(state, batch) else len(seen) - count
        logits, q = state.discriminator(with_noise(seen, noise.instance_noise), q_from=q_from)
        g_loss = generator_loss(logits[-count:])
        bounds = information_bound(state.spec.latents, batch.latents, q[-count:])
        loss, metrics = g_loss - weighted_bound(bounds, schedule.lambdas), {"g_loss": g_loss}
        if noise.pairs is not None and state.contrast is not None:
            contrast, of_contrast = state.contrast.step(noise.pairs, state.generate, batch.weight)
            loss, metrics = loss + contrast, metrics | of_contrast
        (batch.weight * loss).backward()
    return detached(metrics)


def real_and_generated(state: TrainState, batch: Microbatch) -> tuple[Tensor, Tensor]:
    """Real and generated images, (B, C, H, W) each in [-1, 1], transformed where the consistency term is on."""
    with state.autocast():
        generated, real = state.generate(batch.latents), to_unit_range(batch.images)
    transformations = batch.noise.transformations
    if transformations is None:
        return real, generated
    return paired(real, transformations), half_moved(generated, transformations)  # in fp32


def reads_real(state: TrainState, batch: Microbatch) -> bool:
    """Whether Q is asked about real images as well."""
    return batch.noise.transformations is not None or state.needs_q_on_real


def accuracy(real_logits: Tensor, generated_logits: Tensor) -> Metrics:
    """D's mean probability of "real" for each kind of image, and the share of images that it classifies correctly."""
    right = ((real_logits > 0).float().mean() + (generated_logits < 0).float().mean()) / 2
    return {
        "d_real": real_logits.sigmoid().mean(), "d_fake": generated_logits.sigmoid().mean(), "d_accuracy": right
    }  # fmt: skip


def gradient_norm(module: nn.Module) -> Tensor:
    """Euclidean norm over all of a module's gradients: not finite if any of them is not."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not (gradients and gradients[0].is_cpu):
        return nn.utils.get_total_norm(gradients)
    # On a CPU dot products are faster, and add more precisely.
    rows = [gradient.reshape(-1) for gradient in gradients]
    return torch.stack([torch.dot(row, row) for row in rows]).sum().sqrt()


def detached(metrics: Metrics) -> Metrics:
    return {name: value.detach() for name, value in metrics.items()}


def step_metrics(d_metrics: Metrics, g_metrics: Metrics, d_grad_norm: Tensor, g_grad_norm: Tensor) -> Metrics:
    """All scalars of a step: d_loss, g_loss, d_grad_norm and g_grad_norm first, since a divergence names the first.

    Then d_real, d_fake, d_accuracy, train_mi/<code> and, where they are on, consistency_loss, r1_penalty,
    contrastive_loss and contrastive_accuracy.
    """
    losses = {"d_loss": d_metrics["d_loss"], "g_loss": g_metrics["g_loss"]}
    return losses | {"d_grad_norm": d_grad_norm, "g_grad_norm": g_grad_norm} | d_metrics | g_metrics
