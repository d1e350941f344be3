"""``cat=K``: one of K categories."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.models.priors.base import Prior, Row, Sigma, constant, one_hot
from infogan_ray.models.priors.discrete import Discrete, probabilities_on

SHOWN_CATEGORIES = 3  # in the summary of one image


@dataclass(frozen=True)
class Categorical(Discrete):
    """One of ``k`` categories, one-hot. ``probs``: the probabilities, which must sum to 1; None is uniform."""

    k: int
    probs: tuple[float, ...] | None = None
    kind = "cat"
    form = "cat=K@p1:...:pK"
    family = "categorical"
    lambda_field = "lambda_categorical"
    examples = (0, 1)
    one_hot = True

    def __post_init__(self) -> None:
        if self.k < 2:
            raise UserError(f"codes: cat={self.k}; a categorical code needs at least 2 categories, for example cat=10")
        if self.probs is not None:
            valid = len(self.probs) == self.k and all(p > 0 for p in self.probs) and abs(sum(self.probs) - 1) < 1e-6
            if not valid:
                raise UserError(
                    f"codes: cat={self.k}@{':'.join(map(str, self.probs))}; "
                    f"give {self.k} positive probabilities that sum to 1"
                )

    @classmethod
    def parse(cls, number: int, parameters: tuple[float, ...]) -> list[Prior]:
        return [cls(number, parameters or None)]

    @property
    def parameters(self) -> tuple[float, ...]:
        return self.probs or ()

    def count(self, times: int) -> str:
        return f"{self.k}x{times}" if times > 1 else str(self.k)

    @property
    def dim(self) -> int:
        return self.k

    @property
    def categories(self) -> int:
        return self.k

    @property
    def probabilities(self) -> tuple[float, ...]:
        return (1 / self.k,) * self.k if self.probs is None else self.probs

    def with_probabilities(self, probabilities: tuple[float, ...]) -> Categorical:
        return Categorical(self.k, probabilities)

    def entropy(self) -> float:
        """log k for uniform probabilities."""
        return math.log(self.k) if self.probs is None else -sum(p * math.log(p) for p in self.probs)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """One-hot rows (n, k)."""
        if self.probs is None:
            index = torch.randint(self.k, (n,), generator=generator, device=generator.device)
        else:
            weights = constant(self.probs, generator.device)
            index = torch.multinomial(weights, n, replacement=True, generator=generator)
        return one_hot(index, self.k)

    def sample_apart(self, n: int, gap: float | Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pairs (a, b) sampled from P(a) P(b), under the condition that a and b differ."""
        prior = probabilities_on(self, generator.device)
        joint = torch.outer(prior, prior).fill_diagonal_(0).flatten()
        pairs = torch.multinomial(joint, n, replacement=True, generator=generator)
        return one_hot(pairs // self.k, self.k), one_hot(pairs % self.k, self.k)

    def q_dim(self, sigma: Sigma) -> int:
        return self.k

    def log_likelihood(self, q: Tensor, code: Tensor, sigma: Sigma) -> Tensor:
        """log Q(c|x) from logits q (B, k) and a one-hot code (B, k)."""
        return (F.log_softmax(q, dim=1) * code).sum(1)

    def log_probabilities(self, q: Tensor) -> Tensor:
        return F.log_softmax(q, dim=1)

    def estimate(self, q: Tensor, sigma: Sigma) -> Tensor:
        return q.argmax(1)

    def outputs(self, q: Tensor, sigma: Sigma) -> dict[str, Tensor]:
        """The probabilities (N, k)."""
        return {"": q.softmax(1)}

    def columns(self, q: Tensor, sigma: Sigma) -> dict[str, Tensor]:
        """The most probable category, its probability, and the probabilities of all k categories."""
        found = q.softmax(1)
        return {"": found.argmax(1), "_probability": found.max(1).values, "_probabilities": found}

    def embed(self, value: float, name: str) -> Tensor:
        if value != int(value) or not 0 <= value < self.k:
            raise UserError(f"{name} is {value:g}; valid are the categories 0 to {self.k - 1}")
        row = torch.zeros(self.k)
        row[int(value)] = 1
        return row

    def value_of(self, columns: Tensor) -> Tensor:
        return columns.argmax(-1)

    def summary(self, name: str, reading: Mapping[str, Any]) -> list[Row]:
        """The most probable categories."""
        ranked = sorted(enumerate(reading[f"{name}_probabilities"]), key=lambda each: -each[1])
        return [Row(f" = {category}", share, f"{share:.1%}") for category, share in ranked[:SHOWN_CATEGORIES]]
