"""The objective's settings, and the mutual-information bound as pure functions.

Chen et al. 2016 (arXiv:1606.03657, equation 6): min over G, Q and max over D of V_GAN(D, G) - lambda L_I. ``games.py``
has V_GAN. The bound is in nats, in float32, a sum over codes and a mean over the batch. So the meaning of a lambda does
not depend on the number of codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.models.games import GAMES, GameName
from infogan_ray.models.latents import LatentSpec

MIN_CEILING = 0.1  # nats; a bound is not divided by a smaller ceiling


@dataclass(frozen=True)
class ObjectiveConfig:
    """The adversarial game, and the weights of the bound by kind of code and optionally by code."""

    lambda_categorical: float = 1.0
    """Weight of the bound of categorical codes. photos has 0.1."""
    lambda_continuous: float = 0.1
    """Weight of the bound of uniform, gaussian and vonmises codes. photos has 0.05."""
    lambda_bernoulli: float = 1.0
    """Weight of the bound of bernoulli codes."""
    lambda_code: dict[str, float] = field(default_factory=dict)
    """Weights by code name, which replace those above. Example: --objective.lambda-code uniform1 0.5, or
    {uniform1: 0.5} in a file."""
    game: GameName = "logistic"
    """logistic is the paper's: D classifies each image. relativistic compares real with generated images in pairs. It
    needs stability.r1 and stability.r2, and keeps G from leaving out kinds of images."""

    def __post_init__(self) -> None:
        weights = {
            "lambda_categorical": self.lambda_categorical,
            "lambda_continuous": self.lambda_continuous,
            "lambda_bernoulli": self.lambda_bernoulli,
            **{f"lambda_code.{name}": value for name, value in self.lambda_code.items()},
        }
        if self.game not in GAMES:
            raise UserError(f"objective.game is '{self.game}'; valid are {', '.join(GAMES)}")
        for name, value in weights.items():
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"objective.{name} is {value}; it must be a number of at least 0")

    def weights(self, spec: LatentSpec) -> dict[str, float]:
        """lambda_j by code name. Raises UserError for a weight of an unknown code."""
        for name in self.lambda_code:
            spec[name]
        return {name: self.lambda_code.get(name, getattr(self, code.lambda_field)) for name, code in spec.items()}


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
