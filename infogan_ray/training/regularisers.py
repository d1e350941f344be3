"""What steadies adversarial training: R1, instance noise, label smoothing, warm-up, G's first bias. All off by default.

Each is a function of its own that the training step calls. Spectral normalisation is part of the network
(``spectral.py``), restarts of dead categories have state (``restarts.py``). What helps here is in docs/experiments.md.
Shapes: B this rank's share of the global batch, (B, C, H, W) images in [-1, 1], (B,) logits of D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.models.convolutions import of_images_alone

MOST_MEAN = 0.95


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
    """Steps between looks for categories that Q hardly uses on real images; such a one is made a copy of another."""
    restart_below: float = 0.1
    """A category is dead that is used less often than this share of its prior probability."""
    mean_bias: bool = False
    """G's first images are as bright as the training images are on average, instead of grey: for images that are
    nearly all background."""

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

    Grey noise over a black background, which is what G begins with, differs from image to image by next to nothing, and
    D's batch norm, with statistics of drawn images alone, takes out what they have in common and magnifies the rest: D
    sees that they are drawn, and says nothing that would make them darker. On ``shapes`` two of three seeds never left
    it. The mean is kept off the ends of tanh, where the bias could hardly be learned any more.
    """
    assert len(images), "there is no mean of no images"
    # Part by part: the sum makes 8 bytes of each that it reads.
    total = torch.stack([part.sum(dim=(0, 2, 3), dtype=torch.int64) for part in images.split(500)]).sum(0)
    mean = total.double() / (images.numel() // images.shape[1]) / 127.5 - 1
    return mean.clamp(-MOST_MEAN, MOST_MEAN).atanh().float()


def with_noise(images: Tensor, noise: Tensor | None) -> Tensor:
    """Images (N, C, H, W) plus the last N of the step's noise (2B, C, H, W): B rows are for real, B for drawn ones.

    Sønderby et al. 2017 (arXiv:1610.04490, section 3): real and drawn images get noise of one kind, in D's step and
    in G's, so that their distributions overlap and D's gradient says something.
    """
    return images if noise is None else images + noise[-len(images) :]


def r1_penalty(config: StabilityConfig, signs: Tensor | None, real_logits: Tensor, images: Tensor) -> Tensor:
    """gamma / 2 * E |grad D(x)|^2 over real x, a scalar (Mescheder et al. 2018, arXiv:1801.04406, equation 9).

    D is its logit, as there. ``images`` (2B, C, H, W), which require a gradient, begin with the real ones that gave
    ``real_logits`` (B,). Every ``r1_every``-th step has it times ``r1_every``, and the others, without signs, 0: so it
    weighs the same (Karras et al. 2020, arXiv:1912.04958, appendix B).

    ``signs`` (B,) of -1 and 1 by chance. Without batch norm they make no difference: an image moves its own logit
    alone. With it, an image moves all logits through the statistics, and those moves cancel in a plain sum of logits:
    that sum is constant behind a last batch norm and a linear head, whatever D does. With signs, the expectation is the
    sum of all squared slopes of all logits, over B (Hutchinson's estimate of the Jacobian's norm).
    """
    if signs is None:
        return real_logits.new_zeros(())
    with of_images_alone():
        (slopes,) = torch.autograd.grad((signs * real_logits).sum(), images, create_graph=True)
    squares = slopes[: len(real_logits)].float().square().flatten(1).sum(1)
    return config.r1_every * config.r1 / 2 * squares.mean()
