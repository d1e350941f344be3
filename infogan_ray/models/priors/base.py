"""What a prior kind must do: the one interface through which everything else uses codes.

A new kind is a module here with one class, and its entry in ``registry.py``. Nothing else asks for a prior's class;
what only some kinds can do is asked of the object (``prior.categories is not None``, ``prior.one_hot``).

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
    """What Q may say of a continuous code's spread.

    ``floor`` bounds a learned standard deviation from below: sigma -> 0 would fake a rising bound. ``fixed`` replaces
    the learned one by a constant.
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
    """The values that a traversal shows of a code."""

    values: list[float]
    inside: tuple[int, int] | None
    """First and last place whose value lies in the prior, for a continuous code; None for a discrete one."""


class Row(NamedTuple):
    """One line of what Q says of an image, for people."""

    label: str
    """Follows the code's name: " = 3", or nothing."""
    share: float
    """Length of a bar, 0 to 1."""
    words: str


class Prior(ABC):
    """The prior of one code. Subclasses are frozen dataclasses whose fields are the prior's parameters."""

    kind: ClassVar[str]
    """Its word in a specification: ``kind=NUMBER@parameters``; also the first part of codes' names."""
    form: ClassVar[str]
    """The text form with all parameters, for messages: "uniform=N@low:high"."""
    family: ClassVar[str]
    """How exported descriptions name the kind."""
    lambda_field: ClassVar[str]
    """The field of ``ObjectiveConfig`` that weighs its bound, where no weight is given by the code's name."""
    examples: ClassVar[tuple[float, float]]
    """Two values that a user may set; documents show the second one."""
    one_hot: ClassVar[bool] = False
    """Each category has a column of the latent and an output of Q of its own, a logit. Only such codes sort images
    into clusters, can have their probabilities learned, and can have categories restarted."""

    @classmethod
    @abstractmethod
    def parse(cls, number: int, parameters: tuple[float, ...]) -> list[Prior]:
        """The codes that ``kind=number@parameters`` means. Raises UserError, or TypeError for too many parameters."""

    @classmethod
    def width(cls, number: int) -> int:
        """Columns of the latent that ``kind=number`` takes."""
        return number

    @property
    @abstractmethod
    def parameters(self) -> tuple[float, ...]:
        """What stands behind '@' in the text form; empty for the kind's defaults."""

    def count(self, times: int) -> str:
        """What stands before '@' in the text form of so many equal codes."""
        return str(times)

    def text(self, times: int = 1) -> str:
        """The text form of so many equal codes, without ``kind=``."""
        return "@".join([self.count(times), *([":".join(map(exact_text, self.parameters))] if self.parameters else [])])

    def __str__(self) -> str:
        return f"{self.kind}={self.text()}"

    @property
    def title(self) -> str:
        """For tables: "Categorical(10)"."""
        return f"{type(self).__name__}({self.text()})"

    # The prior ----------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def dim(self) -> int:
        """Columns of the code in G's input."""

    @property
    def categories(self) -> int | None:
        """How many values a discrete code has; None for a continuous one."""
        return None

    @property
    @abstractmethod
    def deviation(self) -> float:
        """Standard deviation of a continuous code's value; 1 for a discrete one."""

    @abstractmethod
    def entropy(self) -> float:
        """H(c) in nats; of a continuous code, its differential entropy."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, dim) on the generator's device."""

    @abstractmethod
    def sample_apart(self, n: int, gap: float | Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two values of each of ``n`` codes, (n, dim) each, that the contrastive term tells apart.

        Both have the same distribution. Between continuous values on a line lies at least the share ``gap`` of the
        prior. Discrete values always differ, whatever the gap is: equal ones would say nothing of what a pair shares.
        """

    def quantile(self, share: Tensor) -> Tensor:
        """(n, dim): the values below which these shares (n, 1) of the prior lie. Continuous codes only."""
        raise NotImplementedError(f"{self} has no quantiles")

    @property
    def probabilities(self) -> tuple[float, ...]:
        """The prior of each category. Discrete codes only."""
        raise NotImplementedError(f"{self} has no categories")

    def with_probabilities(self, probabilities: tuple[float, ...]) -> Prior:
        """The same code with another prior. ``one_hot`` codes only."""
        raise NotImplementedError(f"{self} has no probabilities that could be replaced")

    # What Q says of it ----------------------------------------------------------------------------------------------

    @abstractmethod
    def q_dim(self, sigma: Sigma) -> int:
        """How many outputs Q has for the code."""

    @abstractmethod
    def log_likelihood(self, q: Tensor, code: Tensor, sigma: Sigma) -> Tensor:
        """log Q(c|x) per row, (B,), from Q's outputs (B, q_dim) and the code's columns (B, dim)."""

    @abstractmethod
    def ceiling(self, sigma: Sigma) -> float:
        """The largest value that L_I can take, in nats."""

    def divergence(self, q: Tensor, other: Tensor, sigma: Sigma) -> Tensor:
        """KL(Q || Q') in nats per row, (N, 1), from Q's outputs for two images each. Continuous codes only."""
        raise NotImplementedError(f"{self} is discrete")

    def log_probabilities(self, q: Tensor) -> Tensor:
        """(N, k) log Q of each category. Discrete codes only."""
        raise NotImplementedError(f"{self} has no categories")

    @abstractmethod
    def estimate(self, q: Tensor, sigma: Sigma) -> Tensor:
        """(N,) the value that Q finds: its mean, or the most probable category."""

    @abstractmethod
    def outputs(self, q: Tensor, sigma: Sigma) -> dict[str, Tensor]:
        """What an exported graph gives, by the end of its name: tensors of N rows."""

    def columns(self, q: Tensor, sigma: Sigma) -> dict[str, Tensor]:
        """What ``InfoGAN.encode`` writes, by the end of the column's name; "" is the value that Q finds."""
        return self.outputs(q, sigma)

    # Values as people give and see them -------------------------------------------------------------------------------

    @abstractmethod
    def embed(self, value: float, name: str) -> Tensor:
        """(dim,) the columns of a finite value. Raises UserError, with the code's name, for one that it cannot have."""

    @abstractmethod
    def value_of(self, columns: Tensor) -> Tensor:
        """(...) the values of columns (..., dim): the inverse of ``embed``."""

    def nearest(self, value: float) -> float:
        """The value nearest to one of ``encode`` that ``embed`` takes."""
        return value

    @abstractmethod
    def traversal(self, columns: int) -> Traversed:
        """The values that a traversal shows: all of a discrete code, ``columns`` of a continuous one."""

    @abstractmethod
    def widget(self) -> dict[str, Any]:
        """The explorer's control as JSON, for ``static/codes.js``.

        Either ``{"control": "choices", "choices": [values]}`` or ``{"control": "slider", "reach": [low, high],
        "inside": [low, high]}``, of which the second range is the prior's.
        """

    @abstractmethod
    def summary(self, name: str, reading: Mapping[str, Any]) -> list[Row]:
        """What Q says of one image, for people, from the columns of ``InfoGAN.encode``."""


@functools.lru_cache(maxsize=1024)  # far more than a run has: a recorded step reads its own where they lie
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(n,) of these values on a device, not to be written to.

    They are copied there once: a copy waits for all that a GPU has still to do, and a training step must not.
    """
    with torch.inference_mode(False):  # whoever asks first, autograd may need it later
        return torch.tensor(values, device=device)


def exact_text(number: float) -> str:
    """A number in the fewest digits that give it back exactly: a specification is read again from its text."""
    return repr(float(number)).removesuffix(".0")


def one_hot(index: Tensor, k: int) -> Tensor:
    """(n, k) of floats from indices (n,). F.one_hot would read the largest index, on all devices but CUDA."""
    return torch.zeros(len(index), k, device=index.device).scatter_(1, index.unsqueeze(1), 1.0)
