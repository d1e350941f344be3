"""``gaussian=N``: N normally distributed numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.models.priors.base import HALF_LOG_2PI, Prior
from infogan_ray.models.priors.continuous import GaussianPosterior


@dataclass(frozen=True)
class Gaussian(GaussianPosterior):
    """Normal with ``mean`` and standard deviation ``std``."""

    mean: float = 0.0
    std: float = 1.0
    kind = "gaussian"
    form = "gaussian=N@mean:std"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise UserError(f"codes: gaussian=1@{self.mean:g}:{self.std:g}; the standard deviation must be positive")

    @classmethod
    def parse(cls, number: int, parameters: tuple[float, ...]) -> list[Prior]:
        return [cls(*parameters)] * number

    @property
    def parameters(self) -> tuple[float, ...]:
        return () if (self.mean, self.std) == (0.0, 1.0) else (self.mean, self.std)

    @property
    def deviation(self) -> float:
        return self.std

    @property
    def centre_and_scale(self) -> tuple[float, float]:
        return self.mean, self.std

    def entropy(self) -> float:
        return HALF_LOG_2PI + 0.5 + math.log(self.std)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.mean + self.std * torch.randn(n, 1, generator=generator, device=generator.device)

    def quantile(self, share: Tensor) -> Tensor:
        """As ``Prior.quantile``, but shares are clamped to [1e-6, 1 - 1e-6]."""
        return self.mean + self.std * torch.special.ndtri(share.clamp(1e-6, 1 - 1e-6))
