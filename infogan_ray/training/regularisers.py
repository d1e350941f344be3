"""Regularisers of adversarial training: R1, instance noise, label smoothing, warm-up, G's first bias. All are off by
default.

Each is a function that the training step calls. Spectral normalisation is part of the network
(``models/spectral_norm.py``). Restarts of dead categories have state (``category_restarts.py``). docs/experiments.md
shows what helps.
Shapes: B this rank's share of the global batch, (B, C, H, W) images in [-1, 1], (B,) logits of D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.models.convolutions import no_weight_gradients

MAX_MEAN = 0.95  # of pixels in [-1, 1]


@dataclass(frozen=True)
class StabilityConfig:
    """Measures against collapse and oscillation, each off at 0. (Spectral normalisation: network.spectral_norm.)"""

    r1: float = 0.0
    """Weight gamma of R1, the penalty on D's gradient at real images; 1 to 10 is usual."""
    r1_every: int = 1
    """The penalty is taken every so many steps, times as many: 16 costs little."""
    instance_noise: float = 0.0
    """Standard deviation of noise on all that D and Q see in training, at the first step; images are in [-1, 1]."""
    instance_noise_share: float = 0.5
    """Share of all steps, the first ones, over which the noise falls linearly to 0."""
    label_smoothing: float = 0.0
    """D's target for real images is 1 minus this; 0.1 is usual."""
    lambda_warmup: int = 0
    """Steps over which the weights of the bound rise linearly from 0."""
    restart_every: int = 0
    """Steps between searches for categories that Q hardly uses on real images. Each becomes a copy of another one."""
    restart_below: float = 0.1
    """A category is dead if it is used less often than this share of its prior probability."""
    mean_bias: bool = False
    """G's first images have the mean of the training images instead of grey: for images that are mostly background."""

    def __post_init__(self) -> None:
        for name in ("r1", "instance_noise"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"stability.{name} is {value}; it must be a number of at least 0 (0 is off)")
        for name, least in (("r1_every", 1), ("lambda_warmup", 0), ("restart_every", 0)):
            if getattr(self, name) < least:
                raise UserError(
                    f"stability.{name} is {getattr(self, name)}; it must be a number of steps, {least} or more"
                )
        if not 0 < self.instance_noise_share <= 1:
            raise UserError(
                f"stability.instance_noise_share is {self.instance_noise_share}; it must be above 0 and at most 1"
            )
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"stability.label_smoothing is {self.label_smoothing}; it must be at least 0 and less than 0.5"
            )
        if not 0 < self.restart_below < 1:
            raise UserError(
                f"stability.restart_below is {self.restart_below}; it must lie between 0 and 1, both excluded"
            )

    def warmed(self, lambdas: dict[str, float], step: int) -> dict[str, float]:
        """Weights of the bound by code name in the step after ``step`` steps."""
        if step >= self.lambda_warmup:
            return lambdas
        return {name: weight * step / self.lambda_warmup for name, weight in lambdas.items()}

    def noise_at(self, step: int, steps: int) -> float:
        """The noise's standard deviation in the step after ``step`` of ``steps`` (Sønderby et al. 2017, section 3)."""
        return self.instance_noise * max(0.0, 1 - step / (self.instance_noise_share * steps))

    def has_r1(self, step: int) -> bool:
        """Whether R1 is taken in the step after ``step`` steps."""
        return self.r1 > 0 and step % self.r1_every == 0


def mean_bias(images: Tensor) -> Tensor:
    """The bias (C,) in front of G's tanh for the mean of uint8 images (N, C, H, W).

    G begins with grey images that hardly differ from one another. D's batch norm has statistics of generated images
    alone: it removes what they have in common and magnifies the rest. D then recognises them, and its gradient does
    not make them darker. On ``shapes`` two of three seeds never left this state. The mean is clamped, since near the
    ends of tanh the bias could hardly be learned any more.
    """
    assert len(images), "there is no mean of no images"
    # In parts, since the sum takes 8 bytes for each byte that it reads.
    total = torch.stack([part.sum(dim=(0, 2, 3), dtype=torch.int64) for part in images.split(500)]).sum(0)
    mean = total.double() / (images.numel() // images.shape[1]) / 127.5 - 1
    return mean.clamp(-MAX_MEAN, MAX_MEAN).atanh().float()


def with_noise(images: Tensor, noise: Tensor | None) -> Tensor:
    """Images (N, C, H, W) plus the last N rows of noise (2B, C, H, W): B rows for real images, B for generated ones.

    Sønderby et al. 2017 (arXiv:1610.04490, section 3): real and generated images get the same kind of noise, in D's
    step and in G's. Their distributions then overlap, and D's gradient is informative.
    """
    return images if noise is None else images + noise[-len(images) :]


def r1_penalty(config: StabilityConfig, signs: Tensor | None, real_logits: Tensor, images: Tensor) -> Tensor:
    """gamma / 2 * E |grad D(x)|^2 over real x, a scalar (Mescheder et al. 2018, arXiv:1801.04406, equation 9).

    D is its logit, as there. ``images`` (2B, C, H, W) require a gradient; the first B are the real ones that gave
    ``real_logits`` (B,). Every ``r1_every``-th step has the penalty times ``r1_every``. Other steps have no signs and a
    penalty of 0, so it weighs the same on average (Karras et al. 2020, arXiv:1912.04958, appendix B).

    ``signs`` (B,) are -1 or 1 at random. Without batch norm they make no difference: an image changes its own logit
    alone. With batch norm, an image changes all logits through the statistics. Those changes cancel in a plain sum of
    logits, which is constant behind a last batch norm and a linear head. With signs, the expectation is the sum of all
    squared slopes of all logits, over B (Hutchinson's estimate of the Jacobian's norm).
    """
    if signs is None:
        return real_logits.new_zeros(())
    with no_weight_gradients():
        (slopes,) = torch.autograd.grad((signs * real_logits).sum(), images, create_graph=True)
    squares = slopes[: len(real_logits)].float().square().flatten(1).sum(1)
    return config.r1_every * config.r1 / 2 * squares.mean()
