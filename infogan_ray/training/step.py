"""The training step: one update of D with Q, then one update of G. torch only: no Ray, no files.

The loop (``loop.py``), gradient accumulation (``accumulation.py``) and CUDA graphs (``cuda_graph.py``) call it.
Shapes: B this rank's rows of the global batch, images (B, C, H, W), latents (B, L), Q's parameters (B, P).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infogan_ray.data.feeds.memory import to_unit_range
from infogan_ray.models.losses import information_bound, weighted_bound
from infogan_ray.models.networks import frozen
from infogan_ray.training.consistency import consistency_loss, transform_half, with_copies
from infogan_ray.training.regularisers import gradient_penalties
from infogan_ray.training.step_inputs import Microbatch, Schedule, StepNoise
from infogan_ray.training.train_state import TrainState

Metrics = dict[str, Tensor]


def train_step(state: TrainState, batch: Microbatch, schedule: Schedule) -> tuple[Metrics, Tensor]:
    """Update D, then G, on the same images. Returns ``step_metrics`` and Q's parameters (B, P) for real images."""
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
    """Compute the gradients of D and Q.

    Trunk, D head and Q head minimise the adversarial loss minus the weighted bound, plus the regularisers that are on.
    Returns metrics, and Q's parameters (B, P) for real images. They have no rows if the step does not need them.
    """
    (real, generated), noise, count = images, batch.noise, len(batch.images)
    groups, q_from = 1 if state.discriminator.joint_batchnorm else 2, 0 if needs_q_on_real(state, batch) else count
    with state.autocast():
        inputs, for_q = state.inputs_of_d(torch.cat([real, generated.detach()]), noise)
        inputs.requires_grad_(noise.signs is not None)  # R1 and R2 need D's gradient at images
        logits, q = state.discriminate(inputs, groups=groups, q_from=q_from, for_q=for_q)
    (real_logits, generated_logits), q_real = logits.chunk(2), q[:-count]
    d_loss = state.game.discriminator_loss(real_logits, generated_logits, state.stability.label_smoothing)
    bounds = information_bound(state.spec.latents, batch.latents.detach(), q[-count:])
    loss, metrics = d_loss - weighted_bound(bounds, schedule.lambdas), {"d_loss": d_loss}
    if noise.transformations is not None:
        metrics["consistency_loss"] = consistency_loss(state.spec.latents, q_real, state.consistency)
        loss = loss + schedule.consistency * metrics["consistency_loss"]
    for name, penalty in gradient_penalties(state.stability, noise.signs, logits, inputs).items():
        metrics[name] = penalty
        loss = loss + penalty
    (batch.weight * loss).backward()
    metrics |= accuracy(*state.game.decisions(real_logits, generated_logits))
    metrics |= {f"train_mi/{name}": bound for name, bound in bounds.items()}
    return detached(metrics), q_real.detach()


def generator_step(state: TrainState, batch: Microbatch, images: tuple[Tensor, Tensor], schedule: Schedule) -> Metrics:
    """Compute the gradients of G, with the updated D and Q frozen. If the batch has pairs, also update H.

    G minimises its adversarial loss minus the weighted bound, plus the contrastive term if there are pairs.
    """
    (real, generated), noise, count = images, batch.noise, len(batch.images)
    with frozen(state.discriminator), state.autocast():
        images_of_d = torch.cat([real, generated]) if state.discriminator.joint_batchnorm else generated
        q_from = 0 if needs_q_on_real(state, batch) else len(images_of_d) - count
        inputs, for_q = state.inputs_of_d(images_of_d, noise, slice(-len(images_of_d), None))
        logits, q = state.discriminator(inputs, q_from=q_from, for_q=for_q)
        real_logits = logits[:-count] if len(inputs) > count else logits_on_real(state, real, noise)
        g_loss = state.game.generator_loss(real_logits, logits[-count:])
        bounds = information_bound(state.spec.latents, batch.latents, q[-count:])
        loss, metrics = g_loss - weighted_bound(bounds, schedule.lambdas), {"g_loss": g_loss}
        if noise.pairs is not None and state.contrastive is not None:
            contrastive_loss, pair_metrics = state.contrastive.step(noise.pairs, state.generate, batch.weight)
            loss, metrics = loss + contrastive_loss, metrics | pair_metrics
        (batch.weight * loss).backward()
    return detached(metrics)


def real_and_generated(state: TrainState, batch: Microbatch) -> tuple[Tensor, Tensor]:
    """Real and generated images, each (B, C, H, W) in [-1, 1].

    If the consistency term is on, they include transformed images (``consistency.py``).
    """
    with state.autocast():
        generated, real = state.generate(batch.latents), to_unit_range(batch.images)
    transformations = batch.noise.transformations
    if transformations is None:
        return real, generated
    return with_copies(real, transformations), transform_half(generated, transformations)  # in fp32


def logits_on_real(state: TrainState, real: Tensor, noise: StepNoise) -> Tensor | None:
    """D's logits (B,) for real images in G's step, if the game needs them. They do not depend on G's weights."""
    if not state.game.needs_real_in_g_step:
        return None
    with torch.no_grad():
        inputs, _ = state.inputs_of_d(real, noise, slice(0, len(real)))
        return state.discriminator.logits(inputs)


def needs_q_on_real(state: TrainState, batch: Microbatch) -> bool:
    """Whether this step needs Q's parameters for real images."""
    return batch.noise.transformations is not None or state.needs_q_on_real


def accuracy(real_logits: Tensor, generated_logits: Tensor) -> Metrics:
    """D's mean probability of "real" for real and generated images, and the share that D decides correctly."""
    correct = ((real_logits > 0).float().mean() + (generated_logits < 0).float().mean()) / 2
    return {
        "d_real": real_logits.sigmoid().mean(), "d_fake": generated_logits.sigmoid().mean(), "d_accuracy": correct
    }  # fmt: skip


def gradient_norm(module: nn.Module) -> Tensor:
    """The Euclidean norm of all gradients of a module, a scalar. It is not finite if a gradient is not finite."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not (gradients and gradients[0].is_cpu):
        return nn.utils.get_total_norm(gradients)
    # On a CPU dot products are faster and more precise.
    rows = [gradient.reshape(-1) for gradient in gradients]
    return torch.stack([torch.dot(row, row) for row in rows]).sum().sqrt()


def detached(metrics: Metrics) -> Metrics:
    return {name: value.detach() for name, value in metrics.items()}


def step_metrics(d_metrics: Metrics, g_metrics: Metrics, d_grad_norm: Tensor, g_grad_norm: Tensor) -> Metrics:
    """All metrics of a step, in a fixed order: d_loss, g_loss, d_grad_norm, g_grad_norm, then all others.

    Diverged has the name of the first metric that is not finite. The others are d_real, d_fake, d_accuracy,
    train_mi/<code> and, if they are on, consistency_loss, r1_penalty, r2_penalty, contrastive_loss and
    contrastive_accuracy.
    """
    losses = {"d_loss": d_metrics["d_loss"], "g_loss": g_metrics["g_loss"]}
    return losses | {"d_grad_norm": d_grad_norm, "g_grad_norm": g_grad_norm} | d_metrics | g_metrics
