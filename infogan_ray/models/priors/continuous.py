"""The base class of real-valued codes, for which Q(c|x) is Gaussian."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infogan_ray.models.priors.base import HALF_LOG_2PI, Prior, Row, Sigma, Traversed

REACH = 2.0  # traversals go to twice the prior's half-width, because values outside the prior show the trend


class GaussianPosterior(Prior):
    """One real number. Q predicts its mean, with a learned or fixed standard deviation."""

    family = "continuous"
    lambda_field = "lambda_continuous"
    examples = (0.0, 0.5)
    dim = 1

    @property
    @abstractmethod
    def centre_and_scale(self) -> tuple[float, float]:
        """The centre of the prior and its half-width, or its standard deviation if its range is infinite."""

    def sample_apart(self, n: int, gap: float | Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sample two shares from [0, 1 - gap], then add the gap to the larger one.

        This follows the code of Lin et al. 2020 (fjxmlzn/InfoGAN-CR).
        """
        first, second = (1 - gap) * torch.rand(2, n, 1, generator=generator, device=generator.device)
        larger = first > second
        return self.quantile(first + gap * larger), self.quantile(second + gap * ~larger)

    def q_dim(self, sigma: Sigma) -> int:
        return 2 if sigma.fixed is None else 1

    def ceiling(self, sigma: Sigma) -> float:
        """H(c) - log sigma - 1/2 log 2 pi: the bound of a Q without error, at its smallest standard deviation."""
        return self.entropy() - math.log(sigma.smallest) - HALF_LOG_2PI

    def mean_and_deviation(self, q: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
        """Q's mean and standard deviation, each (B, 1), from q (B, 1 or 2)."""
        mean = q[:, :1]
        if sigma.fixed is not None:
            return mean, torch.full_like(mean, sigma.fixed)
        return mean, sigma.floor + F.softplus(q[:, 1:])

    def log_likelihood(self, q: Tensor, code: Tensor, sigma: Sigma) -> Tensor:
        """log N(c; mean, deviation)."""
        mean, deviation = self.mean_and_deviation(q, sigma)
        return (-0.5 * ((code - mean) / deviation) ** 2 - deviation.log() - HALF_LOG_2PI).sum(1)

    def divergence(self, q: Tensor, other: Tensor, sigma: Sigma) -> Tensor:
        """KL of two Gaussians: ((m - m')^2 + s^2) / 2 s'^2 + log s'/s - 1/2."""
        mean, deviation = self.mean_and_deviation(q, sigma)
        other_mean, other_deviation = self.mean_and_deviation(other, sigma)
        ratio = ((mean - other_mean) ** 2 + deviation**2) / (2 * other_deviation**2)
        return ratio + (other_deviation / deviation).log() - 0.5

    def estimate(self, q: Tensor, sigma: Sigma) -> Tensor:
        return q[:, 0]

    def outputs(self, q: Tensor, sigma: Sigma) -> dict[str, Tensor]:
        """Q's mean, and its standard deviation as ``_std``."""
        mean, deviation = self.mean_and_deviation(q, sigma)
        return {"": mean[:, 0], "_std": deviation[:, 0]}

    def embed(self, value: float, name: str) -> Tensor:
        return torch.tensor([float(value)])

    def value_of(self, columns: Tensor) -> Tensor:
        return columns[..., 0]

    def traversal(self, columns: int) -> Traversed:
        """Values from -2 to 2 times the prior's scale, around its centre."""
        centre, scale = self.centre_and_scale
        units = np.linspace(-REACH, REACH, columns)
        within = np.flatnonzero(np.abs(units) <= 1 + 1e-9)
        return Traversed((centre + scale * units).tolist(), (int(within[0]), int(within[-1])))

    def widget(self) -> dict[str, Any]:
        centre, scale = self.centre_and_scale
        ends = [[centre - width * scale, centre + width * scale] for width in (REACH, 1.0)]
        return {"control": "slider", "reach": ends[0], "inside": ends[1]}

    def summary(self, name: str, reading: Mapping[str, Any]) -> list[Row]:
        value, (low, high) = reading[name], self.widget()["reach"]
        return [Row("", (value - low) / (high - low), f"{value:.2f} ± {reading[f'{name}_std']:.2f}")]
