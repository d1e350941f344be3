"""The latent specification: the noise and codes of G's input, its text form, and functions that split latents.

Shapes: B batch, L = ``spec.dim`` width of a latent, P = ``spec.q_dim`` width of Q's output. The layout of a latent is
``[noise | code 0 | code 1 | ...]``. All information is in nats.

Flags, configs and checkpoints use the text form of a specification::

    noise=62 cat=10 uniform=2              62 noise variables, one Categorical(10), two Uniform(-1, 1)
    noise=124 cat=10x4 uniform=4           four Categorical(10) named cat0 ... cat3
    noise=8 cat=3@0.5:0.3:0.2 uniform=1@-2:2 gaussian=1@0:2 bernoulli=3@0.3     parameters after '@'

The kinds of priors are in ``priors/``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.models.priors.base import Prior, Sigma
from infogan_ray.models.priors.registry import KINDS

SPEC_EXAMPLE = "'noise=62 cat=10 uniform=2'"
MAX_WIDTH = 65_536  # of a latent, so that a typing error does not allocate all memory


@dataclass(frozen=True)
class LatentSpec:
    """Noise of width ``noise`` (standard normal) and independent codes: P(z, c) = P(z) prod_j P(c_j)."""

    noise: int
    codes: tuple[Prior, ...]
    sigma: Sigma = field(default_factory=Sigma)

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise UserError(f"codes: noise={self.noise}; it must be 0 or more, for example {SPEC_EXAMPLE}")
        if not self.codes:
            raise UserError(f"codes: no code is named; add one of {', '.join(KINDS)}, for example {SPEC_EXAMPLE}")

    @classmethod
    def parse(cls, text: str, sigma: Sigma | None = None) -> LatentSpec:
        """Parse the text form. Raises UserError with the invalid word and the valid ones."""
        noise, width, codes = 0, 0, list[Prior]()
        for word in text.split():
            match = re.fullmatch(r"(\w+)=(\d+)(?:x(\d+))?(?:@([^\s]+))?", word)
            kind = match[1] if match else word.split("=")[0]
            if kind != "noise" and kind not in KINDS:
                raise UserError(f"codes: '{word}' is not a prior; valid are noise, {', '.join(KINDS)}: {SPEC_EXAMPLE}")
            if match is None or (kind == "noise" and (match[3] or match[4])):
                raise UserError(f"codes: cannot read '{word}'; write {kind}=NUMBER, for example {SPEC_EXAMPLE}")
            number, times = int(match[2]), int(match[3] or 1)
            width += number if kind == "noise" else KINDS[kind].width(number) * times
            if width > MAX_WIDTH:
                raise UserError(f"codes: with '{word}' the latent is {width:,} wide; the maximum is {MAX_WIDTH:,}")
            if kind == "noise":
                noise += number
            else:
                codes += _parse_codes(word, KINDS[kind], number, match[4]) * times
        return cls(noise, tuple(codes), sigma or Sigma())

    def __str__(self) -> str:
        """The text form; ``LatentSpec.parse(str(spec), spec.sigma) == spec``."""
        runs = [list(run) for _, run in itertools.groupby(self.codes)]
        return " ".join([f"noise={self.noise}", *(f"{run[0].kind}={run[0].text(len(run))}" for run in runs)])

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

    def items(self) -> Iterator[tuple[str, Prior]]:
        return zip(self.names, self.codes, strict=True)

    @property
    def ceilings(self) -> dict[str, float]:
        """The largest possible bound of each code, in nats, by name."""
        return {name: code.ceiling(self.sigma) for name, code in self.items()}

    def __getitem__(self, name: str) -> Prior:
        for code_name, code in self.items():
            if code_name == name:
                return code
        raise UserError(f"code '{name}' does not exist; this model has {', '.join(self.names)}")

    def one_hot_items(self) -> Iterator[tuple[str, Prior]]:
        """The codes that sort images into categories: those with ``Prior.one_hot``."""
        return ((name, code) for name, code in self.items() if code.one_hot)

    def columns(self, name: str) -> slice:
        """The columns of a latent that belong to a code."""
        index = self.names.index(name)
        start = self.noise + sum(code.dim for code in self.codes[:index])
        return slice(start, start + self.codes[index].dim)

    def q_columns(self, name: str) -> slice:
        """The columns of Q's output that belong to a code."""
        index = self.names.index(name)
        start = sum(code.q_dim(self.sigma) for code in self.codes[:index])
        return slice(start, start + self.codes[index].q_dim(self.sigma))

    def sample_noise(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, self.noise, generator=generator, device=generator.device)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Sample latents (n, L) on the generator's device."""
        codes = [code.sample(n, generator) for code in self.codes]
        return torch.cat([self.sample_noise(n, generator), *codes], dim=1)

    def split(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Split latents (B, L) into the noise (B, noise) and each code's columns by name."""
        parts = latents.split([self.noise, *(code.dim for code in self.codes)], dim=1)
        return parts[0], dict(zip(self.names, parts[1:], strict=True))

    def split_q(self, q: Tensor) -> dict[str, Tensor]:
        """Split Q's outputs (B, P) into each code's parameters by name."""
        parts = q.split([code.q_dim(self.sigma) for code in self.codes], dim=1)
        return dict(zip(self.names, parts, strict=True))

    def log_likelihood(self, q: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """log Q(c_j|x) in nats by code, each (B,), from q (B, P) and latents (B, L)."""
        _, codes = self.split(latents)
        parameters = self.split_q(q)
        return {name: code.log_likelihood(parameters[name], codes[name], self.sigma) for name, code in self.items()}


def _parse_codes(word: str, kind: type[Prior], number: int, parameters: str | None) -> list[Prior]:
    try:
        return kind.parse(number, tuple(float(p) for p in parameters.split(":")) if parameters else ())
    except UserError:
        raise
    except (TypeError, ValueError):
        valid = ", ".join(each.form for each in KINDS.values())
        raise UserError(f"codes: cannot read the parameters of '{word}'; valid are {valid}") from None
