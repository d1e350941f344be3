"""Q's consistency on real images: a small move must not change what is seen.

The bound is of generated images alone. Near its ceiling, two kinds of real images can still share a category. Half of
the real batch becomes slightly transformed copies of the other half. Q is to say the same of both, to be sure, and to
use all values as often as the prior does. Half of the generated images is transformed likewise, which D cannot use.

This assumes that the moves lie within a kind: a digit turned by ten degrees is the same digit, a product photo too; an
arrow's direction is not. Continuous codes may well stand for such moves, and are left alone unless asked for.
Shapes: B rows of a batch, (B, C, H, W) images, (N, P) parameters of Q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.affine import affine_maps, transform
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.priors.discrete import probabilities_on


@dataclass(frozen=True)
class ConsistencyConfig:
    """The weight of the term, which is off at 0, its parts, and the moves that are to make no difference."""

    weight: float = 0.0
    """In D's step, beside the adversarial loss and the bound; 1 is what the preset mnist_robust takes."""
    entropy: float = 0.1
    """Weight of Q's own uncertainty, in nats, within the term."""
    balance: float = 1.0
    """Weight of the distance between how often values are used and the prior."""
    continuous: float = 0.0
    """Weight of continuous codes within the term. Above 0 they are asked not to stand for the moves."""
    start: int = 300
    """Step up to which the term is off: before that there is nothing to be consistent about."""
    full: int = 800
    """Step from which it has its whole weight; in between it rises linearly."""
    degrees: float = 10.0
    """Turns of up to so many degrees."""
    scale: float = 0.1
    """Sizes from 1 - scale to 1 + scale."""
    shift: float = 0.06
    """Shifts of up to so many image widths."""
    shear: float = 0.0
    """Slants of up to so many widths to the right or left per height, as between upright and slanted handwriting."""
    stretch: float = 0.0
    """Widths from 1 - stretch to 1 + stretch, of the same height."""
    flip: bool = False
    """Half of them mirrored besides: for clothes, of which left and right make no difference, but not for digits."""

    def __post_init__(self) -> None:
        for name in ("weight", "entropy", "balance", "continuous"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"consistency.{name} is {value}; it must be a number of at least 0")
        if not 0 <= self.start < self.full:
            raise UserError(
                f"consistency.start is {self.start} and consistency.full is {self.full}; 0 <= start < full must hold"
            )
        for name, most in (("degrees", 180.0), ("scale", 0.9), ("shift", 0.5), ("shear", 1.0), ("stretch", 0.9)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"consistency.{name} is {getattr(self, name)}; it must lie between 0 and {most:g}")

    @property
    def draws(self) -> int:
        """How many numbers the moves of an image take."""
        return 4 + self.flip + (2 if self.shear or self.stretch else 0)

    def weight_at(self, step: int) -> float:
        """The term's weight in the step after ``step`` steps."""
        return self.weight * min(1.0, max(0.0, (step - self.start) / (self.full - self.start)))


def moves(draws: Tensor, config: ConsistencyConfig) -> Tensor:
    """(N, 2, 3) maps from draws (``config.draws``, N) in [-1, 1].

    The first four are those of ``affine_maps``. With ``flip`` a fifth mirrors where it is negative. With ``shear`` or
    ``stretch`` the last two are the width and the slant.
    """
    maps = affine_maps(draws[:4], config.degrees, config.scale, config.shift)
    if config.shear or config.stretch:
        width, slant = draws[-2:, :, None]
        maps[:, :, 1] += config.shear * slant * maps[:, :, 0]
        maps[:, :, 0] *= 1 + config.stretch * width
    if config.flip:
        maps[:, :, 0] *= draws[4].sign()[:, None]
    return maps


def paired(real: Tensor, maps: Tensor) -> Tensor:
    """Of (B, C, H, W): every other image, then their moved copies, then the last one if B is odd."""
    half = len(real) // 2
    first = real[0 : 2 * half : 2]
    return torch.cat([first, transform(first, maps[:half]), real[2 * half :]])


def half_moved(drawn: Tensor, maps: Tensor) -> Tensor:
    """(B, C, H, W) with the second half moved, in the same order."""
    half = len(drawn) // 2
    return torch.cat([drawn[:half].float(), transform(drawn[half:].float(), maps[half:])])


def consistency_loss(spec: LatentSpec, q: Tensor, config: ConsistencyConfig) -> Tensor:
    """The term in nats, a sum over codes, from what Q says (B, P) of ``paired`` images.

    For a discrete code with Q(c|x) of the first images and Q(c|x') of their copies:
    -E sum_c Q(c|x) log Q(c|x') + entropy * E H(Q(c|x)) + balance * KL(E Q(c|x) || P(c)). For a uniform prior the last
    is log k - H(E Q), as in regularised information maximisation (Gomes, Krause & Perona 2010); the first is the
    self-augmented training of IMSAT (Hu et al. 2017), here with gradients through both sides.
    For a continuous code: KL of what Q says of the two, ``Prior.divergence``.
    """
    half = len(q) // 2
    first, copies = spec.split_q(q[:half]), spec.split_q(q[half : 2 * half])
    total = q.new_zeros(())
    for name, code in spec.items():
        if code.categories is not None:
            log_one, log_other = code.log_probabilities(first[name]), code.log_probabilities(copies[name])
            one = log_one.exp()
            agree = -(one * log_other).sum(1).mean()
            sure = -(one * log_one).sum(1).mean()
            mean = (one.mean(0) + log_other.exp().mean(0)) / 2
            prior = probabilities_on(code, mean.device)
            balanced = (mean * (mean.clamp_min(1e-12).log() - prior.log())).sum()
            total = total + agree + config.entropy * sure + config.balance * balanced
        elif config.continuous:
            total = total + config.continuous * code.divergence(first[name], copies[name], spec.sigma).mean()
    return total
