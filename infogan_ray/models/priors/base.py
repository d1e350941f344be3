"""The interface of priors. All other code uses priors only through it.

To add a kind, add a module with one class here, and an entry in ``registry.py``. Other code does not test for a class.
It tests properties of the object: ``prior.categories is not None``, ``prior.one_hot``.

Shapes: B or N rows, ``dim`` columns of the code in a latent, ``q_dim`` outputs of Q for it. All information is in nats.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from infogan_ray import UserError

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Sigma:
    """The limits of Q's standard deviation for continuous codes.

    ``floor``: the minimum of a learned standard deviation. Without it, sigma -> 0 would raise the bound without more
    information. ``fixed``: a constant in place of the learned one.
    """

    floor: float = 0.1
    fixed: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("network.sigma_min", self.floor), ("network.sigma_fixed", self.fixed)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} is {value}; it must be a positive number, for example 0.1")

    @property
    def smallest(self) -> float:
        return self.floor if self.fixed is None else self.fixed


class Traversed(NamedTuple):
    """The values of a code in a traversal."""

    values: list[float]
    inside: tuple[int, int] | None
    """Index of the first and last value inside the prior, for a continuous code. None for a discrete one."""


class Row(NamedTuple):
    """One line about Q's prediction for an image, as the explorer shows it."""

    label: str
    """The text after the code's name: " = 3", or empty."""
    share: float
    """Length of the bar, 0 to 1."""
    words: str


class Prior(ABC):
    """The prior of one code. Subclasses are frozen dataclasses whose fields are the prior's parameters."""

    kind: ClassVar[str]
    """The kind's word in a specification: ``kind=NUMBER@parameters``. It is also the first part of codes' names."""
    form: ClassVar[str]
    """The text form with all parameters, for messages: "uniform=N@low:high"."""
    family: ClassVar[str]
    """The name of the kind in exported descriptions."""
    lambda_field: ClassVar[str]
    """The field of ``ObjectiveConfig`` with the weight of its bound. ``lambda_code`` can replace it by code."""
    examples: ClassVar[tuple[float, float]]
    """Two valid values. Documents show the second one."""
    one_hot: ClassVar[bool] = False
    """Whether each category has its own column of the latent and its own logit of Q. Only these codes sort images into
    clusters, and only they support learned probabilities and restarted categories."""

    @classmethod
    @abstractmethod
    def parse(cls, number: int, parameters: tuple[float, ...]) -> list[Prior]:
        """The codes of ``kind=number@parameters``. Raises UserError, or TypeError for too many parameters."""

    @classmethod
    def width(cls, number: int) -> int:
        """The number of latent columns of ``kind=number``."""
        return number

    @property
    @abstractmethod
    def parameters(self) -> tuple[float, ...]:
        """The parameters after '@' in the text form. Empty for the kind's defaults."""

    def count(self, times: int) -> str:
        """The part before '@' in the text form of ``times`` equal codes."""
        return str(times)

    def text(self, times: int = 1) -> str:
        """The text form of ``times`` equal codes, without ``kind=``."""
        return "@".join([self.count(times), *([":".join(map(exact_text, self.parameters))] if self.parameters else [])])

    def __str__(self) -> str:
        return f"{self.kind}={self.text()}"

    @property
    def title(self) -> str:
        """The prior as tables show it: "Categorical(10)"."""
        return f"{type(self).__name__}({self.text()})"

    # The prior ----------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def dim(self) -> int:
        """The number of columns of the code in G's input."""

    @property
    def categories(self) -> int | None:
        """The number of values of a discrete code. None for a continuous one."""
        return None

    @property
    @abstractmethod
    def deviation(self) -> float:
        """Standard deviation of a continuous code. 1 for a discrete one."""

    @abstractmethod
    def entropy(self) -> float:
        """H(c) in nats. For a continuous code, this is the differential entropy."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Samples (n, dim) on the generator's device."""

    @abstractmethod
    def sample_apart(self, n: int, gap: float | Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``n`` pairs of different values for the contrastive term, as two tensors (n, dim).

        Both tensors have the same distribution. The two values of a real-valued code are separated by at least the
        share ``gap`` of the prior. Discrete values always differ, for every gap. With equal values, the code that a
        pair shares would be ambiguous.
        """

    def quantile(self, share: Tensor) -> Tensor:
        """Quantiles (n, dim) of the prior for shares (n, 1). Continuous codes only."""
        raise NotImplementedError(f"{self} has no quantiles")

    @property
    def probabilities(self) -> tuple[float, ...]:
        """The prior probability of each category. Discrete codes only."""
        raise NotImplementedError(f"{self} has no categories")

    def with_probabilities(self, probabilities: tuple[float, ...]) -> Prior:
        """The same code with other probabilities. ``one_hot`` codes only."""
        raise NotImplementedError(f"{self} has no probabilities that can be replaced")

    # Q's prediction -------------------------------------------------------------------------------------------------

    @abstractmethod
    def q_dim(self, sigma: Sigma) -> int:
        """The number of Q's outputs for the code."""

    @abstractmethod
    def log_likelihood(self, q: Tensor, code: Tensor, sigma: Sigma) -> Tensor:
        """log Q(c|x) in nats per row, (B,), from Q's outputs (B, q_dim) and the code's columns (B, dim)."""

    @abstractmethod
    def ceiling(self, sigma: Sigma) -> float:
        """The largest possible value of L_I, in nats."""

    def divergence(self, q: Tensor, other: Tensor, sigma: Sigma) -> Tensor:
        """KL(Q || Q') in nats per row, (N, 1), from Q's outputs for two images per row. Continuous codes only."""
        raise NotImplementedError(f"{self} is discrete")

    def log_probabilities(self, q: Tensor) -> Tensor:
        """log Q (N, k) of each category. Discrete codes only."""
        raise NotImplementedError(f"{self} has no categories")

    @abstractmethod
    def estimate(self, q: Tensor, sigma: Sigma) -> Tensor:
        """The predicted values (N,): Q's mean, or its most probable category."""

    @abstractmethod
    def outputs(self, q: Tensor, sigma: Sigma) -> dict[str, Tensor]:
        """The outputs of an exported graph for the code: tensors of N rows, by the suffix of the output's name."""

    def columns(self, q: Tensor, sigma: Sigma) -> dict[str, Tensor]:
        """The columns of ``InfoGAN.encode``, by the suffix of the column's name. "" is the predicted value."""
        return self.outputs(q, sigma)

    # Values for users -------------------------------------------------------------------------------------------------

    @abstractmethod
    def embed(self, value: float, name: str) -> Tensor:
        """The columns (dim,) of a finite value. Raises UserError, with the code's name, for an invalid value."""

    @abstractmethod
    def value_of(self, columns: Tensor) -> Tensor:
        """The values (...) of columns (..., dim): the inverse of ``embed``."""

    def nearest(self, value: float) -> float:
        """The value nearest to a value from ``encode`` that ``embed`` accepts."""
        return value

    @abstractmethod
    def traversal(self, columns: int) -> Traversed:
        """The values in a traversal: all values of a discrete code, or ``columns`` values of a continuous one."""

    @abstractmethod
    def widget(self) -> dict[str, Any]:
        """The explorer's control as JSON, for ``static/code_controls.js``.

        Either ``{"control": "choices", "choices": [values]}`` or ``{"control": "slider", "reach": [low, high],
        "inside": [low, high]}``. ``reach`` is the slider's range, and ``inside`` is the prior's range.
        """

    @abstractmethod
    def summary(self, name: str, reading: Mapping[str, Any]) -> list[Row]:
        """Q's prediction for one image as lines of text, from the columns of ``InfoGAN.encode``."""


@functools.lru_cache(maxsize=1024)  # far more than a run has, because a recorded step needs them at fixed addresses
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The values as a tensor (n,) on a device. Do not write to it: the tensor is cached.

    The cache avoids copies in training steps. A copy waits until the GPU has finished all earlier work.
    """
    with torch.inference_mode(False):  # autograd may need the tensor later, even if the first call is in inference mode
        return torch.tensor(values, device=device)


def exact_text(number: float) -> str:
    """The shortest text that gives exactly this number when parsed, so that a specification survives its text form."""
    return repr(float(number)).removesuffix(".0")


def one_hot(index: Tensor, k: int) -> Tensor:
    """One-hot floats (n, k) from indices (n,). F.one_hot would read the largest index on all devices except CUDA."""
    return torch.zeros(len(index), k, device=index.device).scatter_(1, index.unsqueeze(1), 1.0)
