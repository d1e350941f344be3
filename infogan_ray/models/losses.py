"""Adversarial losses and the mutual-information bound, as pure functions.

Chen et al. 2016 (arXiv:1606.03657, equation 6): min over G, Q and max over D of V_GAN(D, G) - lambda L_I. Losses are
computed from logits, in nats, in float32. They are sums over codes and means over the batch. So the meaning of a lambda
does not depend on the number of codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.models.latents import LatentSpec

MIN_CEILING = 0.1  # nats; a bound is not divided by a smaller ceiling


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the bound by kind of code, and optionally by code."""

    lambda_categorical: float = 1.0
    lambda_continuous: float = 0.1
    lambda_bernoulli: float = 1.0
    lambda_code: dict[str, float] = field(default_factory=dict)
    """Weights by code name, which replace those above. Example: --objective.lambda-code uniform1 0.5, or
    {uniform1: 0.5} in a file."""

    def __post_init__(self) -> None:
        weights = {
            "lambda_categorical": self.lambda_categorical,
            "lambda_continuous": self.lambda_continuous,
            "lambda_bernoulli": self.lambda_bernoulli,
            **{f"lambda_code.{name}": value for name, value in self.lambda_code.items()},
        }
        for name, value in weights.items():
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"objective.{name} is {value}; it must be a number of at least 0")

    def weights(self, spec: LatentSpec) -> dict[str, float]:
        """lambda_j by code name. Raises UserError for a weight of an unknown code."""
        for name in self.lambda_code:
            spec[name]
        return {name: self.lambda_code.get(name, getattr(self, code.lambda_field)) for name, code in spec.items()}


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, smoothing: float = 0.0) -> Tensor:
    """-E log D(x) - E log(1 - D(G(z, c))), from logits (B,). Goodfellow et al. 2014, equation 1.

    With ``smoothing``, the target t of real images is 1 - smoothing. The target of generated images stays 0 (Salimans
    et al. 2016, arXiv:1606.03498, section 3.4). For a logit l,
    -t log D - (1 - t) log(1 - D) = softplus(-l) + (1 - t) l.
    """
    loss = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
    return loss + smoothing * real_logits.mean() if smoothing else loss


def generator_loss(fake_logits: Tensor) -> Tensor:
    """-E log D(G(z, c)): the non-saturating form (Goodfellow et al. 2014, section 3), from logits (B,)."""
    return F.softplus(-fake_logits).mean()


def information_bound(spec: LatentSpec, latents: Tensor, q: Tensor) -> dict[str, Tensor]:
    """L_I(c_j) = H(c_j) + E[log Q(c_j | x)] in nats per code (equation 5 of the paper), differentiable scalars.

    ``latents`` (B, L) are the generator's input, and ``q`` (B, P) are Q's outputs for the generated images.
    """
    likelihood = spec.log_likelihood(q, latents)
    return {name: code.entropy() + likelihood[name].mean() for name, code in spec.items()}


def weighted_bound(bounds: Mapping[str, Tensor], weights: Mapping[str, float | Tensor]) -> Tensor:
    """sum_j lambda_j L_I(c_j)."""
    return torch.stack([weights[name] * bound for name, bound in bounds.items()]).sum()


def mi_fraction(spec: LatentSpec, bounds: dict[str, float]) -> float:
    """Mean over codes of L_I(c_j) / ceiling(c_j), at most 1. It can compare different priors, but raw nats grow with k.

    With a wide Q or a narrow prior, the ceiling can be near 0 or negative: U(-1, 1) with sigma fixed at 1 has -0.226
    nats. Division by a negative ceiling would prefer a worse bound. For ceilings below MIN_CEILING the share is
    exp(L_I - ceiling). It is also at most 1, and larger for a better bound.
    """
    return sum(_share(bounds[name], code.ceiling(spec.sigma)) for name, code in spec.items()) / len(spec.codes)


def _share(bound: float, ceiling: float) -> float:
    return bound / ceiling if ceiling >= MIN_CEILING else math.exp(min(bound - ceiling, 0.0))
