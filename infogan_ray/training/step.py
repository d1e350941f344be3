"""The training step, and the loop that yields metrics. torch only: no Ray, no files.

Shapes: B this rank's share of the global batch, (B, C, H, W) images, (B, L) latents.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from infogan_ray.data.feeds.memory import Feed, onto, share, to_unit_range
from infogan_ray.models.losses import discriminator_loss, generator_loss, information_bound, weighted_bound
from infogan_ray.models.networks import frozen
from infogan_ray.training.consistency import consistency_loss, half_moved, paired
from infogan_ray.training.regularisers import r1_penalty, with_noise
from infogan_ray.training.train_state import Course, Draws, TrainState

HALT_EVERY = 10


class Diverged(Exception):
    """A loss, a gradient or a bound is no longer finite: the run has nothing more to gain."""

    def __init__(self, step: int, quantity: str, value: float) -> None:
        super().__init__(f"{quantity} is {value} at step {step}")
        self.step, self.quantity = step, quantity


def make_step(
    state: TrainState, images: Tensor, batch_size: int, steps: int, rank: int = 0, world_size: int = 1
) -> dict[str, Tensor]:
    """A step of so many, from this rank's uint8 images (B, C, H, W) of the global batch: all that follows from them.

    Returns detached scalars, those of ``play`` and of ``TrainState.after_step``: restarted (categories), and
    prior/<code>/... of a prior that is learned. Nothing waits for the device.
    """
    state.set_learning_rates(steps)
    metrics, q = draw_and_play(state, images, state.course(steps), batch_size, rank, world_size)
    return metrics | state.after_step(q, len(images) * world_size / batch_size)


class Part(NamedTuple):
    """What a pass works on: this rank's rows of the global batch or, where they are accumulated, some of them."""

    images: Tensor
    """uint8 (B, C, H, W)."""
    latents: Tensor
    """(B, L)."""
    draws: Draws
    weight: float = 1.0
    """B over the mean share of a rank: gradients, summed over parts and averaged over ranks, are the mean over rows."""


def draw_and_play(
    state: TrainState, images: Tensor, course: Course, batch_size: int, rank: int = 0, world_size: int = 1
) -> tuple[dict[str, Tensor], Tensor]:
    """What the step draws, and both updates; as ``play``."""
    images = state.augment(images, batch_size, rank, world_size)
    latents = state.latents(batch_size, rank, world_size)
    draws = state.draws(batch_size, 0, rank, world_size, course)
    parts = parts_of(images, latents, draws, len(images) * world_size / batch_size, state.optimizer.accumulate)
    return play(state, parts, course)


def parts_of(images: Tensor, latents: Tensor, draws: Draws, weight: float, count: int) -> list[Part]:
    """A rank's rows in so many parts. ``weight``: of all of them."""
    if count == 1:
        return [Part(images, latents, draws, weight)]
    rows = len(images)
    slices = [share(rows, number, count) for number in range(count)]
    return [Part(images[s], latents[s], draws.rows(s), weight * (s.stop - s.start) / rows) for s in slices]


def train_step(
    state: TrainState, images: Tensor, latents: Tensor, weight: float = 1.0, draws: Draws | None = None
) -> dict[str, Tensor]:
    """A step with draws that are given."""
    parts = parts_of(images, latents, draws or Draws(), weight, state.optimizer.accumulate)
    metrics, q = play(state, parts, state.course())
    return metrics | state.after_step(q, weight)


def play(state: TrainState, parts: Sequence[Part], course: Course) -> tuple[dict[str, Tensor], Tensor]:
    """One update of D with Q, then one of G, each by the gradients of all parts of all ranks.

    All that differs from step to step is handed in, so that a GPU can play it again as it was recorded (``graphs.py``).
    Returns detached scalars, d_loss, g_loss, d_real and d_fake (D's mean probability of "real"), d_accuracy (the share
    of real and of made images that it judges rightly), both gradients' norms, train_mi/<code>, and, where they are on,
    consistency_loss, r1_penalty, contrastive_loss, contrastive_accuracy; and what Q says of real images, (B, P) or no
    rows (``TrainState.asks_q``).
    """
    several, last, judged, pleased, answers = len(parts) > 1, parts[-1], [], [], []
    state.opt_d.zero_grad()
    for part in parts:
        # Of several parts G makes its images once more in its own step: to keep what led to all would take memory.
        with torch.set_grad_enabled(not several):
            images = images_of(state, part)
        with exchanged(state.discriminate, part is last):
            told, q = judge(state, part, images, course)
        judged.append(told)
        answers.append(q)
    d_norm = gradient_norm(state.discriminator)
    state.opt_d.step()

    state.opt_g.zero_grad()
    for part in parts:
        with exchanged(state.generate, part is last):
            pleased.append(please(state, part, images_of(state, part) if several else images, course))
    g_norm = gradient_norm(state.generator)
    state.opt_g.step()

    of_d, of_g = mean_of(judged, parts), mean_of(pleased, parts)
    metrics = {"d_loss": of_d["d_loss"], "g_loss": of_g["g_loss"], "d_grad_norm": d_norm, "g_grad_norm": g_norm}
    return metrics | of_d | of_g, torch.cat(answers) if several else answers[0]


def images_of(state: TrainState, part: Part) -> tuple[Tensor, Tensor]:
    """Drawn and real images, (B, C, H, W) each in [-1, 1], moved where the consistency term moves them."""
    with state.autocast():
        fakes, real = state.generate(part.latents), to_unit_range(part.images)
    moves = part.draws.moves
    return (fakes, real) if moves is None else (half_moved(fakes, moves), paired(real, moves))  # in fp32


def judge(
    state: TrainState, part: Part, images: tuple[Tensor, Tensor], course: Course
) -> tuple[dict[str, Tensor], Tensor]:
    """D's gradients of a part: trunk, D head and Q head minimise the adversarial loss minus the weighted bound.

    Returns metrics, and what Q says of real images, (B, P) or no rows."""
    spec, stability, (moves, _, noise, signs) = state.spec.latents, state.stability, part.draws
    (fakes, real), count = images, len(part.images)
    with state.autocast():
        both = with_noise(torch.cat([real, fakes.detach()]), noise).requires_grad_(signs is not None)
        q_from = 0 if moves is not None or state.asks_q else count
        logits, q = state.discriminate(both, groups=1 if state.discriminator.joint_batchnorm else 2, q_from=q_from)
    real_logits, fake_logits = logits.chunk(2)
    bounds = information_bound(spec, part.latents.detach(), q[-count:])
    d_loss = discriminator_loss(real_logits, fake_logits, stability.label_smoothing)
    loss, told = d_loss - weighted_bound(bounds, course.lambdas), {"d_loss": d_loss}
    if moves is not None:
        told["consistency_loss"] = consistency_loss(spec, q[:-count], state.consistency)
        loss = loss + course.consistency * told["consistency_loss"]
    if stability.r1:
        told["r1_penalty"] = r1_penalty(stability, signs, real_logits, both)
        loss = loss + told["r1_penalty"]
    (part.weight * loss).backward()
    told |= {"d_real": real_logits.sigmoid().mean(), "d_fake": fake_logits.sigmoid().mean()}
    told["d_accuracy"] = ((real_logits > 0).float().mean() + (fake_logits < 0).float().mean()) / 2
    told |= {f"train_mi/{name}": bound for name, bound in bounds.items()}
    return {name: value.detach() for name, value in told.items()}, q[:-count].detach()


def please(state: TrainState, part: Part, images: tuple[Tensor, Tensor], course: Course) -> dict[str, Tensor]:
    """G's gradients of a part, on the same images, against the D and Q just made; with pairs also against H, which
    learns. Returns metrics."""
    (fakes, real), count, (_, pairs, noise, _) = images, len(part.images), part.draws
    with frozen(state.discriminator), state.autocast():
        judged = torch.cat([real, fakes]) if state.discriminator.joint_batchnorm else fakes
        q_from = len(judged) - count if part.draws.moves is None and not state.asks_q else 0
        logits, fake_q = state.discriminator(with_noise(judged, noise), q_from=q_from)
        g_loss = generator_loss(logits[-count:])
        bounds = information_bound(state.spec.latents, part.latents, fake_q[-count:])
        loss, told = g_loss - weighted_bound(bounds, course.lambdas), {"g_loss": g_loss}
        if pairs is not None and state.contrast is not None:
            contrast, news = state.contrast.step(pairs, state.generate, part.weight)
            loss, told = loss + contrast, told | news
        (part.weight * loss).backward()
    return {name: value.detach() for name, value in told.items()}


def exchanged(module: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Inside, a backward pass averages gradients over ranks, or leaves them to be added to by the next one."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) and not now else nullcontext()


def mean_of(told: Sequence[dict[str, Tensor]], parts: Sequence[Part]) -> dict[str, Tensor]:
    """Metrics over the rows of all parts."""
    if len(parts) == 1:
        return told[0]
    shares = [part.weight / sum(part.weight for part in parts) for part in parts]
    rows = [torch.stack(list(each.values())) * share for share, each in zip(shares, told, strict=True)]
    return dict(zip(told[0], torch.stack(rows).sum(0).unbind(), strict=True))


def gradient_norm(module: nn.Module) -> Tensor:
    """Euclidean norm over all of a module's gradients: not finite if any of them is not."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not (gradients and gradients[0].is_cpu):
        return nn.utils.get_total_norm(gradients)
    # Dot products read them once at the memory's speed, and add more precisely.
    rows = [gradient.reshape(-1) for gradient in gradients]
    return torch.stack([torch.dot(row, row) for row in rows]).sum().sqrt()


def never() -> bool:
    """The default of ``halt``: nobody asks the training to stop."""
    return False


def train(
    state: TrainState, feed: Feed, *, steps: int, log_every: int, checkpoint_every: int,
    rank: int = 0, world_size: int = 1, halt: Callable[[], bool] = never,
    stepped: Callable[[], None] | None = None, step_with: Callable[..., dict[str, Tensor]] = make_step,
) -> Iterator[dict[str, float]]:  # fmt: skip
    """Train up to ``steps``; yield means over all ranks every ``log_every`` steps and where a checkpoint is due.

    Ends early, on all ranks at the same step, when ``halt`` is true on any. Raises Diverged when a metric is not
    finite. The device is waited for only where metrics are read. ``stepped`` is called after each step, which
    ``step_with`` makes: as ``make_step``.
    """
    window: list[dict[str, Tensor]] = []
    started = time.monotonic()
    # Ranks agree on a halt by a sum over all: at every step on a CPU, seldom on a GPU, which would have to wait for it.
    agree_every = 1 if state.device.type == "cpu" or world_size == 1 else HALT_EVERY
    while state.step < steps:
        if state.step % agree_every == 0 and _any_rank(halt(), world_size, state.device):
            return
        images = onto(state.device, feed.batch(state.step))
        weight = len(images) * world_size / feed.batch_size
        window.append(step_with(state, images, feed.batch_size, steps, rank, world_size))
        if stepped is not None:
            stepped()
        step = state.step
        if step % log_every and step % checkpoint_every and step < steps:
            continue
        names = list(window[0])
        rows = torch.stack([torch.stack([row[name] for name in names]) for row in window]) * weight
        if world_size > 1:
            dist.all_reduce(rows)  # so that all ranks see a divergence at the same step
            rows /= world_size
        *each, means = torch.cat([rows, rows.mean(0, keepdim=True)]).tolist()  # the one place that waits for the device
        for row, at in zip(each, range(step - len(window) + 1, step + 1), strict=True):
            for name, value in zip(names, row, strict=True):
                if not math.isfinite(value):
                    raise Diverged(at, name, value)
        metrics: dict[str, float] = dict(zip(names, means, strict=True))
        metrics |= {"step": step, "epoch": step / feed.steps_per_epoch}
        metrics["images_per_second"] = len(window) * feed.batch_size / (time.monotonic() - started)
        yield metrics
        window, started = [], time.monotonic()


def _any_rank(flag: bool, world_size: int, device: torch.device) -> bool:
    if world_size == 1:
        return flag
    flags = torch.tensor([float(flag)], device=device)
    dist.all_reduce(flags)
    return bool(flags.item())
