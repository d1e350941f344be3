"""``vonmises=N``: N angles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infogan_ray.models.priors.base import Prior, Row, Sigma, Traversed


@dataclass(frozen=True)
class VonMises(Prior):
    """An angle theta with a uniform prior on the circle. In G's input it is the point (cos theta, sin theta).

    Q(theta|x) is a von Mises distribution with mean direction mu and concentration kappa. Its density is
    exp(kappa cos(theta - mu)) / (2 pi I0(kappa)) (Mardia & Jupp 2000, Directional Statistics, equation 3.5.17).
    The prior is the special case kappa = 0, so H(theta) = log 2 pi.

    The entropy of a von Mises distribution is log(2 pi I0(kappa)) - kappa A(kappa) with A = I1 / I0 (same book,
    section 3.5.4). If the true posterior has the concentration kappa at every x, then
    I(theta; x) = kappa A(kappa) - log I0(kappa). The bound L_I = log 2 pi + E[log Q] is largest for a Q without error,
    theta = mu, at its highest concentration: kappa - log I0(kappa). This is the ceiling. For large kappa, the ceiling
    and I(theta; x) grow like 1/2 log kappa.

    A standard deviation sigma of Q corresponds to kappa = 1 / sigma^2, the limit for a narrow von Mises distribution.
    So ``network.sigma_min`` limits kappa. Without a limit, kappa -> infinity would raise the bound without more
    information.
    """

    kind = "vonmises"
    form = "vonmises=N"
    family = "angle"
    lambda_field = "lambda_continuous"
    examples = (0.0, 1.57)
    dim = 2
    parameters = ()
    deviation = math.pi / math.sqrt(3)

    @classmethod
    def parse(cls, number: int, parameters: tuple[float, ...]) -> list[Prior]:
        return [cls(*parameters)] * number

    @classmethod
    def width(cls, number: int) -> int:
        return 2 * number

    def entropy(self) -> float:
        return math.log(2 * math.pi)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.quantile(torch.rand(n, 1, generator=generator, device=generator.device))

    def sample_apart(self, n: int, gap: float | Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The gap is a share of the half circle, the largest distance of two angles."""
        first, rotation = torch.rand(2, n, 1, generator=generator, device=generator.device)
        return self.quantile(first), self.quantile(first + gap / 2 + (1 - gap) * rotation)

    def quantile(self, share: Tensor) -> Tensor:
        """Angles start at -pi. Shares above 1 continue around the circle."""
        return on_circle(2 * math.pi * share - math.pi)

    def q_dim(self, sigma: Sigma) -> int:
        """Two outputs for a vector in the direction mu. A learned concentration needs a third one."""
        return 3 if sigma.fixed is None else 2

    def direction_and_concentration(self, q: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
        """(cos mu, sin mu), (B, 2), and kappa, (B, 1), from q (B, 2 or 3)."""
        direction = F.normalize(q[:, :2], dim=1, eps=1e-6)
        if sigma.fixed is not None:
            return direction, torch.full_like(q[:, :1], sigma.fixed**-2)
        return direction, (sigma.floor + F.softplus(q[:, 2:])) ** -2

    def log_likelihood(self, q: Tensor, code: Tensor, sigma: Sigma) -> Tensor:
        """kappa (cos(theta - mu) - 1) - log(2 pi exp(-kappa) I0(kappa)).

        cos(theta - mu) - 1 is computed as minus half the squared distance of the two points, which is precise for
        small angles.
        """
        direction, concentration = self.direction_and_concentration(q, sigma)
        half_squared = (code - direction).square().sum(1, keepdim=True) / 2
        return (-concentration * half_squared - (2 * math.pi * torch.special.i0e(concentration)).log()).sum(1)

    def ceiling(self, sigma: Sigma) -> float:
        """kappa - log I0(kappa) at the highest concentration."""
        return -math.log(torch.special.i0e(torch.tensor(sigma.smallest**-2, dtype=torch.float64)))

    def divergence(self, q: Tensor, other: Tensor, sigma: Sigma) -> Tensor:
        """log(I0(k') / I0(k)) + A(k) (k - k' cos(mu - mu')), from E[cos(theta - mu)] = A(k)."""
        direction, concentration = self.direction_and_concentration(q, sigma)
        other_direction, other_concentration = self.direction_and_concentration(other, sigma)
        cosine = (direction * other_direction).sum(1, keepdim=True)
        scale, other_scale = torch.special.i0e(concentration), torch.special.i0e(other_concentration)
        mean_cosine = torch.special.i1e(concentration) / scale
        difference = other_concentration * (1 - mean_cosine * cosine) - concentration * (1 - mean_cosine)
        return (other_scale / scale).log() + difference

    def estimate(self, q: Tensor, sigma: Sigma) -> Tensor:
        return torch.atan2(q[:, 1], q[:, 0])

    def outputs(self, q: Tensor, sigma: Sigma) -> dict[str, Tensor]:
        """mu in radians, -pi to pi, and kappa as ``_concentration``."""
        _, concentration = self.direction_and_concentration(q, sigma)
        return {"": self.estimate(q, sigma), "_concentration": concentration[:, 0]}

    def embed(self, value: float, name: str) -> Tensor:
        """The columns of an angle in radians. Angles outside [-pi, pi] are valid too."""
        return on_circle(torch.tensor([float(value)], dtype=torch.float64)).float()

    def value_of(self, columns: Tensor) -> Tensor:
        return torch.atan2(columns[..., 1], columns[..., 0])

    def traversal(self, columns: int) -> Traversed:
        """Angles from -pi to pi. The last column equals the first one."""
        return Traversed(np.linspace(-math.pi, math.pi, columns).tolist(), (0, columns - 1))

    def widget(self) -> dict[str, Any]:
        return {"control": "slider", "reach": [-math.pi, math.pi], "inside": [-math.pi, math.pi]}

    def summary(self, name: str, reading: Mapping[str, Any]) -> list[Row]:
        value, spread = reading[name], reading[f"{name}_concentration"] ** -0.5
        return [Row("", (value + math.pi) / (2 * math.pi), f"{value:.2f} ± {spread:.2f} rad")]


def on_circle(angle: Tensor) -> Tensor:
    """Cosine and sine (..., 2) of angles (..., 1)."""
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
