"""The base class of discrete codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infogan_ray.models.priors.base import Prior, Sigma, Traversed, constant


class Discrete(Prior):
    """A code with k values, 0 to k - 1. Q predicts their probabilities."""

    deviation = 1.0

    def ceiling(self, sigma: Sigma) -> float:
        """H(c), because log Q <= 0 for a discrete code."""
        return self.entropy()

    def traversal(self, columns: int) -> Traversed:
        return Traversed([float(value) for value in range(len(self.probabilities))], None)

    def widget(self) -> dict[str, Any]:
        return {"control": "choices", "choices": list(range(len(self.probabilities)))}


def probabilities_on(prior: Prior, device: torch.device) -> Tensor:
    """The prior probabilities (k,) of a discrete code. Do not write to this tensor: it is cached."""
    return constant(prior.probabilities, device)
