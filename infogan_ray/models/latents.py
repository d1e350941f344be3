"""Code priors and the latent specification: sample, split, entropy, log-likelihood.

Shapes: B batch, L = ``spec.dim`` width of a latent, P = ``spec.q_dim`` width of what Q says of it.
A latent is laid out ``[noise | code 0 | code 1 | ...]``; a categorical code is one-hot. All information is in nats.

A specification has a text form, used by flags, configs and checkpoints alike::

    noise=62 cat=10 uniform=2              62 noise variables, one Categorical(10), two Uniform(-1, 1)
    noise=124 cat=10x4 uniform=4           four Categorical(10) named cat0 ... cat3
    noise=8 cat=3@0.5:0.3:0.2 uniform=1@-2:2 gaussian=1@0:2 bernoulli=3@0.3     parameters behind '@'
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from infogan_ray import UserError

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
SPEC_EXAMPLE = "'noise=62 cat=10 uniform=2'"
WIDEST = 65_536  # of a latent: more, and a slip of the keyboard asks for more memory than there is


@functools.lru_cache(maxsize=1024)  # far more than a run has: a recorded step reads its own where they lie
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(n,) of these values on a device, not to be written to. Copied there once: a copy waits for all that a GPU has
    still to do, and a training step must not."""
    with torch.inference_mode(False):  # whoever asks first, autograd may need it later
        return torch.tensor(values, device=device)


def written(number: float) -> str:
    """A number in the fewest digits that give it back exactly: a specification is read again from its text."""
    return repr(float(number)).removesuffix(".0")


def one_hot(index: Tensor, k: int) -> Tensor:
    """(n, k) of floats from indices (n,). F.one_hot would read the largest index, on all devices but CUDA."""
    return torch.zeros(len(index), k, device=index.device).scatter_(1, index.unsqueeze(1), 1.0)


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


@dataclass(frozen=True)
class Categorical:
    """One of ``k`` categories, one-hot. Uniform unless ``probs`` (they must sum to 1) says otherwise."""

    k: int
    probs: tuple[float, ...] | None = None
    kind = "cat"
    family = "categorical"

    def __post_init__(self) -> None:
        if self.k < 2:
            raise UserError(f"codes: cat={self.k}; a categorical code needs at least 2 categories, for example cat=10")
        if self.probs is not None:
            good = len(self.probs) == self.k and all(p > 0 for p in self.probs) and abs(sum(self.probs) - 1) < 1e-6
            if not good:
                raise UserError(
                    f"codes: cat={self.k}@{':'.join(map(str, self.probs))}; "
                    f"give {self.k} positive probabilities that sum to 1"
                )

    @property
    def dim(self) -> int:
        return self.k

    def q_dim(self, sigma: Sigma) -> int:
        return self.k

    def entropy(self) -> float:
        """H(c) in nats: log k for uniform probabilities."""
        return math.log(self.k) if self.probs is None else -sum(p * math.log(p) for p in self.probs)

    def ceiling(self, sigma: Sigma) -> float:
        """The largest value that L_I can take: H(c), since log Q <= 0 for a discrete code."""
        return self.entropy()

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, k) one-hot."""
        if self.probs is None:
            index = torch.randint(self.k, (n,), generator=generator, device=generator.device)
        else:
            weights = constant(self.probs, generator.device)
            index = torch.multinomial(weights, n, replacement=True, generator=generator)
        return one_hot(index, self.k)

    def log_likelihood(self, q: Tensor, code: Tensor, sigma: Sigma) -> Tensor:
        """log Q(c|x) per row: q holds logits (B, k), code is one-hot (B, k); returns (B,)."""
        return (F.log_softmax(q, dim=1) * code).sum(1)

    def text(self) -> str:
        return f"{self.k}" + ("" if self.probs is None else "@" + ":".join(map(written, self.probs)))


@dataclass(frozen=True)
class Bernoulli:
    """A coin with P(1) = ``p``."""

    p: float = 0.5
    kind = "bernoulli"
    family = "bernoulli"
    dim = 1

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise UserError(f"codes: bernoulli=1@{self.p:g}; the probability must lie between 0 and 1, both excluded")

    def q_dim(self, sigma: Sigma) -> int:
        return 1

    def entropy(self) -> float:
        return -self.p * math.log(self.p) - (1 - self.p) * math.log(1 - self.p)

    def ceiling(self, sigma: Sigma) -> float:
        return self.entropy()

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 1) of zeros and ones."""
        return (torch.rand(n, 1, generator=generator, device=generator.device) < self.p).float()

    def log_likelihood(self, q: Tensor, code: Tensor, sigma: Sigma) -> Tensor:
        """log Q(c|x) per row of a logistic Q with logit q (B, 1)."""
        return -F.softplus(torch.where(code > 0.5, -q, q)).sum(1)

    def text(self) -> str:
        return "1" if self.p == 0.5 else f"1@{written(self.p)}"


class _Continuous:
    """Shared by the continuous priors: Q(c|x) is a Gaussian with Q's mean and a learned or fixed deviation."""

    family = "continuous"
    dim = 1

    def entropy(self) -> float:
        raise NotImplementedError

    def quantile(self, share: Tensor) -> Tensor:
        raise NotImplementedError

    def q_dim(self, sigma: Sigma) -> int:
        return 2 if sigma.fixed is None else 1

    def ceiling(self, sigma: Sigma) -> float:
        """H(c) - log sigma - 1/2 log 2 pi: a Q without error at its smallest deviation."""
        return self.entropy() - math.log(sigma.smallest) - HALF_LOG_2PI

    def mean_and_deviation(self, q: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
        """Q's mean and standard deviation, each (B, 1), from q (B, 1 or 2)."""
        mean = q[:, :1]
        if sigma.fixed is not None:
            return mean, torch.full_like(mean, sigma.fixed)
        return mean, sigma.floor + F.softplus(q[:, 1:])

    def log_likelihood(self, q: Tensor, code: Tensor, sigma: Sigma) -> Tensor:
        """log N(c; mean, deviation) per row, (B,)."""
        mean, deviation = self.mean_and_deviation(q, sigma)
        return (-0.5 * ((code - mean) / deviation) ** 2 - deviation.log() - HALF_LOG_2PI).sum(1)


@dataclass(frozen=True)
class Uniform(_Continuous):
    """Uniform on [low, high]."""

    low: float = -1.0
    high: float = 1.0
    kind = "uniform"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"codes: uniform=1@{self.low:g}:{self.high:g}; low must be smaller than high")

    def entropy(self) -> float:
        return math.log(self.high - self.low)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.quantile(torch.rand(n, 1, generator=generator, device=generator.device))

    def quantile(self, share: Tensor) -> Tensor:
        """The values below which these shares (between 0 and 1) of the prior lie."""
        return self.low + (self.high - self.low) * share

    def text(self) -> str:
        return "1" if (self.low, self.high) == (-1.0, 1.0) else f"1@{written(self.low)}:{written(self.high)}"


@dataclass(frozen=True)
class Gaussian(_Continuous):
    """Normal with ``mean`` and standard deviation ``std``."""

    mean: float = 0.0
    std: float = 1.0
    kind = "gaussian"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise UserError(f"codes: gaussian=1@{self.mean:g}:{self.std:g}; the standard deviation must be positive")

    def entropy(self) -> float:
        return HALF_LOG_2PI + 0.5 + math.log(self.std)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.mean + self.std * torch.randn(n, 1, generator=generator, device=generator.device)

    def quantile(self, share: Tensor) -> Tensor:
        """The values below which these shares of the prior lie; a millionth at either end counts as the next one."""
        return self.mean + self.std * torch.special.ndtri(share.clamp(1e-6, 1 - 1e-6))

    def text(self) -> str:
        return "1" if (self.mean, self.std) == (0.0, 1.0) else f"1@{written(self.mean)}:{written(self.std)}"


Code = Categorical | Uniform | Gaussian | Bernoulli
KINDS = ("cat", "uniform", "gaussian", "bernoulli")


@dataclass(frozen=True)
class LatentSpec:
    """Noise of width ``noise`` (standard normal) and independent codes: P(z, c) = P(z) prod_j P(c_j)."""

    noise: int
    codes: tuple[Code, ...]
    sigma: Sigma = field(default_factory=Sigma)

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise UserError(f"codes: noise={self.noise}; it must be 0 or more, for example {SPEC_EXAMPLE}")
        if not self.codes:
            raise UserError(f"codes: no code is named; add one of {', '.join(KINDS)}, for example {SPEC_EXAMPLE}")

    @classmethod
    def parse(cls, text: str, sigma: Sigma | None = None) -> LatentSpec:
        """Read the text form. Raises UserError, naming the word that is wrong and what is valid."""
        noise, width, codes = 0, 0, []
        for word in text.split():
            match = re.fullmatch(r"(\w+)=(\d+)(?:x(\d+))?(?:@([^\s]+))?", word)
            kind = match[1] if match else word.split("=")[0]
            if kind not in ("noise", *KINDS):
                raise UserError(f"codes: '{word}' names no prior; valid are noise, {', '.join(KINDS)}: {SPEC_EXAMPLE}")
            if match is None or (kind == "noise" and (match[3] or match[4])):
                raise UserError(f"codes: cannot read '{word}'; write {kind}=NUMBER, for example {SPEC_EXAMPLE}")
            number, times = int(match[2]), int(match[3] or 1)
            if (width := width + number * times) > WIDEST:
                raise UserError(f"codes: '{word}' makes the latent {width:,} wide; {WIDEST:,} is the most")
            try:
                parameters = tuple(float(p) for p in match[4].split(":")) if match[4] else ()
                if kind == "noise":
                    noise += number
                elif kind == "cat":
                    codes += [Categorical(number, parameters or None)] * times
                else:
                    prior = {"uniform": Uniform, "gaussian": Gaussian, "bernoulli": Bernoulli}[kind]
                    codes += [prior(*parameters)] * (number * times)
            except (TypeError, ValueError) as error:
                if str(error).startswith("codes:"):
                    raise
                raise UserError(
                    f"codes: cannot read the parameters of '{word}'; valid are cat=K@p1:...:pK, uniform=N@low:high, "
                    "gaussian=N@mean:std, bernoulli=N@p"
                ) from None
        return cls(noise, tuple(codes), sigma or Sigma())

    def __str__(self) -> str:
        """The text form; ``LatentSpec.parse(str(spec), spec.sigma) == spec``."""
        words = [f"noise={self.noise}"]
        for code in self.codes:
            words.append(f"{code.kind}={code.text()}")
        return " ".join(_fold(words))

    @property
    def names(self) -> tuple[str, ...]:
        """Kind and index within the kind: cat0, uniform0, uniform1, ..."""
        seen: dict[str, int] = {}
        names = []
        for code in self.codes:
            index = seen.get(code.kind, 0)
            seen[code.kind] = index + 1
            names.append(f"{code.kind}{index}")
        return tuple(names)

    @property
    def dim(self) -> int:
        return self.noise + sum(code.dim for code in self.codes)

    @property
    def q_dim(self) -> int:
        return sum(code.q_dim(self.sigma) for code in self.codes)

    def items(self) -> Iterator[tuple[str, Code]]:
        return zip(self.names, self.codes, strict=True)

    def __getitem__(self, name: str) -> Code:
        for own, code in self.items():
            if own == name:
                return code
        raise UserError(f"code '{name}' does not exist; this model has {', '.join(self.names)}")

    def sample_noise(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, self.noise, generator=generator, device=generator.device)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw (n, L) latents on the generator's device."""
        codes = [code.sample(n, generator) for code in self.codes]
        return torch.cat([self.sample_noise(n, generator), *codes], dim=1)

    def split(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, L) into the noise (B, noise) and each code's columns by name."""
        parts = latents.split([self.noise, *(code.dim for code in self.codes)], dim=1)
        return parts[0], dict(zip(self.names, parts[1:], strict=True))

    def split_q(self, q: Tensor) -> dict[str, Tensor]:
        """(B, P) of Q's outputs into each code's parameters by name."""
        parts = q.split([code.q_dim(self.sigma) for code in self.codes], dim=1)
        return dict(zip(self.names, parts, strict=True))

    def log_likelihood(self, q: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """log Q(c_j|x) in nats per code: q (B, P), latents (B, L), each value (B,)."""
        _, codes = self.split(latents)
        parameters = self.split_q(q)
        return {name: code.log_likelihood(parameters[name], codes[name], self.sigma) for name, code in self.items()}


def _fold(words: list[str]) -> list[str]:
    """Join runs of equal words: cat=10 cat=10 -> cat=10x2, uniform=1 uniform=1 -> uniform=2."""
    folded: list[str] = []
    position = 0
    while position < len(words):
        word, times = words[position], 1
        while position + times < len(words) and words[position + times] == word:
            times += 1
        if times > 1:
            kind, value = word.split("=")
            number, _, parameters = value.partition("@")
            count = f"{number}x{times}" if kind == "cat" else str(times)
            word = f"{kind}={count}" + (f"@{parameters}" if parameters else "")
        folded.append(word)
        position += times
    return folded
