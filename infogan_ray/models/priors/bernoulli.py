"""``bernoulli=N``: N binary codes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.models.priors.base import Prior, Row, Sigma
from infogan_ray.models.priors.discrete import Discrete


@dataclass(frozen=True)
class Bernoulli(Discrete):
    """A binary code with P(1) = ``p``."""

    p: float = 0.5
    kind = "bernoulli"
    form = "bernoulli=N@p"
    family = "bernoulli"
    lambda_field = "lambda_bernoulli"
    examples = (0, 1)
    dim = 1
    categories = 2

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise UserError(f"codes: bernoulli=1@{self.p:g}; the probability must lie between 0 and 1, both excluded")

    @classmethod
    def parse(cls, number: int, parameters: tuple[float, ...]) -> list[Prior]:
        return [cls(*parameters)] * number

    @property
    def parameters(self) -> tuple[float, ...]:
        return () if self.p == 0.5 else (self.p,)

    @property
    def probabilities(self) -> tuple[float, ...]:
        return (1 - self.p, self.p)

    def entropy(self) -> float:
        return -self.p * math.log(self.p) - (1 - self.p) * math.log(1 - self.p)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Zeros and ones (n, 1)."""
        return (torch.rand(n, 1, generator=generator, device=generator.device) < self.p).float()

    def sample_apart(self, n: int, gap: float | Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        first = (torch.rand(n, 1, generator=generator, device=generator.device) < 0.5).float()
        return first, 1 - first

    def q_dim(self, sigma: Sigma) -> int:
        return 1

    def log_likelihood(self, q: Tensor, code: Tensor, sigma: Sigma) -> Tensor:
        """log Q(c|x) for Q's logit q (B, 1) of the value 1."""
        return -F.softplus(torch.where(code > 0.5, -q, q)).sum(1)

    def log_probabilities(self, q: Tensor) -> Tensor:
        return torch.cat([F.logsigmoid(-q), F.logsigmoid(q)], dim=1)

    def estimate(self, q: Tensor, sigma: Sigma) -> Tensor:
        return q[:, 0] > 0

    def outputs(self, q: Tensor, sigma: Sigma) -> dict[str, Tensor]:
        """P(1)."""
        return {"": q[:, 0].sigmoid()}

    def embed(self, value: float, name: str) -> Tensor:
        if value not in (0, 1):
            raise UserError(f"{name} is {value:g}; valid are 0 and 1")
        return torch.tensor([float(value)])

    def value_of(self, columns: Tensor) -> Tensor:
        return columns[..., 0]

    def nearest(self, value: float) -> float:
        return float(value >= 0.5)

    def summary(self, name: str, reading: Mapping[str, Any]) -> list[Row]:
        return [Row(" = 1", reading[name], f"{reading[name]:.1%}")]
