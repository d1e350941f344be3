"""``uniform=N``: N numbers uniformly distributed between two limits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.models.priors.base import Prior
from infogan_ray.models.priors.continuous import GaussianPosterior


@dataclass(frozen=True)
class Uniform(GaussianPosterior):
    """Uniform on [low, high]."""

    low: float = -1.0
    high: float = 1.0
    kind = "uniform"
    form = "uniform=N@low:high"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"codes: uniform=1@{self.low:g}:{self.high:g}; low must be smaller than high")

    @classmethod
    def parse(cls, number: int, parameters: tuple[float, ...]) -> list[Prior]:
        return [cls(*parameters)] * number

    @property
    def parameters(self) -> tuple[float, ...]:
        return () if (self.low, self.high) == (-1.0, 1.0) else (self.low, self.high)

    @property
    def deviation(self) -> float:
        return (self.high - self.low) / math.sqrt(12)

    @property
    def centre_and_scale(self) -> tuple[float, float]:
        return (self.low + self.high) / 2, (self.high - self.low) / 2

    def entropy(self) -> float:
        return math.log(self.high - self.low)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.quantile(torch.rand(n, 1, generator=generator, device=generator.device))

    def quantile(self, share: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * share
