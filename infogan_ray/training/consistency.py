"""The consistency term: Q must predict the same codes for a real image and a slightly transformed copy of it.

The bound L_I uses generated images only. Two kinds of real images can share a category even when L_I is near its
ceiling. With the term on, transformed copies of half of the real batch replace the other half. For discrete codes the
term trains Q for three things. Q predicts the same for an image and its copy. Each prediction has a low entropy. The
categories are on average as frequent as in the prior. Half of the generated images are transformed too, so D
cannot classify images by their transformation.

The term assumes that a transformation does not change the kind of an image. That is true of a digit rotated by 10
degrees. It is false if the direction of an arrow matters. Continuous codes may represent a transformation, so by
default the term leaves them out.
Shapes: B rows of a batch, images (B, C, H, W), affine transformations (B, 2, 3), Q's parameters (B, P).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.affine import affine_maps, transform
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.precision import widen
from infogan_ray.models.priors.discrete import probabilities_on


@dataclass(frozen=True)
class ConsistencyConfig:
    """Weight of the consistency term, weights of its parts, and the transformations that must not change Q."""

    weight: float = 0.0
    """Weight of the term in D's loss; 0 turns it off. The preset mnist_robust uses 1."""
    entropy: float = 0.1
    """Weight of the mean entropy of Q's predictions, in nats, within the term."""
    balance: float = 1.0
    """Weight of the KL divergence of Q's mean prediction from the prior, in nats, within the term."""
    continuous: float = 0.0
    """Weight of continuous codes within the term. Above 0, Q learns codes that do not depend on the transformation."""
    start: int = 300
    """The term is off up to this step, since Q's predictions mean little before."""
    full: int = 800
    """The term has its full weight from this step on. Between start and full the weight rises linearly."""
    degrees: float = 10.0
    """Largest rotation, in degrees."""
    scale: float = 0.1
    """Images are resized by factors from 1 - scale to 1 + scale."""
    shift: float = 0.06
    """Largest shift, as a share of the image width."""
    shear: float = 0.0
    """Largest horizontal shear, in widths per height. It slants upright handwriting, for example."""
    stretch: float = 0.0
    """Widths are multiplied by 1 - stretch to 1 + stretch; heights stay the same."""
    flip: bool = False
    """Also mirror half of the transformed images. Use it if left and right do not matter, as for clothes."""

    def __post_init__(self) -> None:
        for name in ("weight", "entropy", "balance", "continuous"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"consistency.{name} is {value}; it must be a number of at least 0")
        if not 0 <= self.start < self.full:
            raise UserError(
                f"consistency.start is {self.start} and consistency.full is {self.full}; 0 <= start < full must hold"
            )
        for name, limit in (("degrees", 180.0), ("scale", 0.9), ("shift", 0.5), ("shear", 1.0), ("stretch", 0.9)):
            if not 0 <= getattr(self, name) <= limit:
                raise UserError(f"consistency.{name} is {getattr(self, name)}; it must lie between 0 and {limit:g}")

    @property
    def num_random(self) -> int:
        """The number of random numbers in one image's transformation."""
        return 4 + self.flip + (2 if self.shear or self.stretch else 0)

    def weight_at(self, step: int) -> float:
        """The term's weight in the step that follows ``step`` finished steps."""
        return self.weight * min(1.0, max(0.0, (step - self.start) / (self.full - self.start)))


def affine_transformations(uniforms: Tensor, config: ConsistencyConfig) -> Tensor:
    """Affine transformations (N, 2, 3) from random numbers ``uniforms`` (``config.num_random``, N) in [-1, 1].

    ``affine_maps`` uses the first four rows. With ``flip``, the transformation mirrors if row five is negative. With
    ``shear`` or ``stretch``, the last two rows are the stretch and the shear, which are applied first.
    """
    maps = affine_maps(uniforms[:4], config.degrees, config.scale, config.shift)
    if config.shear or config.stretch:
        stretch, shear = uniforms[-2:, :, None]
        maps[:, :, 1] += config.shear * shear * maps[:, :, 0]
        maps[:, :, 0] *= 1 + config.stretch * stretch
    if config.flip:
        maps[:, :, 0] *= uniforms[4].sign()[:, None]
    return maps


def with_copies(real: Tensor, maps: Tensor) -> Tensor:
    """(B, C, H, W): every second real image, then the transformed copies of these images.

    If B is odd, the last real image follows.
    """
    half = len(real) // 2
    originals = real[0 : 2 * half : 2]
    return torch.cat([originals, transform(originals, maps[:half]), real[2 * half :]])


def transform_half(generated: Tensor, maps: Tensor) -> Tensor:
    """(B, C, H, W): the generated images in their order, with the second half transformed."""
    half = len(generated) // 2
    return torch.cat([widen(generated[:half]), transform(widen(generated[half:]), maps[half:])])


def consistency_loss(spec: LatentSpec, q: Tensor, config: ConsistencyConfig) -> Tensor:
    """The term in nats, a scalar summed over codes, from Q's parameters (B, P) for ``with_copies`` images.

    A discrete code, with Q(c|x) for the originals and Q(c|x') for their copies, adds
    -E sum_c Q(c|x) log Q(c|x') + entropy * E H(Q(c|x)) + balance * KL(E Q || P(c)). E Q is over originals and copies.
    The first part is the self-augmented training of IMSAT (Hu et al. 2017), here with gradients through both factors.
    For a uniform prior over k categories, the KL is log k - H(E Q). Regularised information maximisation (Gomes,
    Krause & Perona 2010) has the same balance.
    A continuous code adds ``continuous`` times the KL between Q for the original and Q for the copy
    (``Prior.divergence``).
    """
    half = len(q) // 2
    originals, copies = spec.split_q(q[:half]), spec.split_q(q[half : 2 * half])
    total = q.new_zeros(())
    for name, code in spec.items():
        if code.categories is not None:
            log_q, log_q_copy = code.log_probabilities(originals[name]), code.log_probabilities(copies[name])
            probabilities = log_q.exp()
            cross_entropy = -(probabilities * log_q_copy).sum(1).mean()
            entropy = -(probabilities * log_q).sum(1).mean()
            mean = (probabilities.mean(0) + log_q_copy.exp().mean(0)) / 2
            prior = probabilities_on(code, mean.device)
            balance = (mean * (mean.clamp_min(1e-12).log() - prior.log())).sum()
            total = total + cross_entropy + config.entropy * entropy + config.balance * balance
        elif config.continuous:
            total = total + config.continuous * code.divergence(originals[name], copies[name], spec.sigma).mean()
    return total
