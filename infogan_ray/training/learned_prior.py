"""Learned priors of categorical codes: how often each category occurs is found while training.

A uniform prior asks for categories of equal size. Where the kinds of things in the data are not equally frequent, G has
to spread a frequent kind over several categories and to put rare ones together. Elastic-InfoGAN (Ojha, Singh, Hsieh &
Lee 2020, arXiv:1910.01112) learns the probabilities instead. Two ways to learn them:

``real``: as the weights of a mixture are learned by EM. The new p(c) is the mean of Q(c|x) over real images (Dempster,
Laird & Rubin 1977; an average that moves on with every batch: Cappe & Moulines 2009). Q is near the posterior of G's
mixture under the prior in use, so the expectation is the one that EM asks for.
``gumbel``: as in the paper. Categories are drawn by Gumbel-softmax with hard samples and soft gradients (Jang, Gu &
Poole 2017; Maddison, Mnih & Teh 2017), through which G's loss reaches the probabilities.

The prior in use changes every few steps and is a plain ``cat=K@p1:...:pK`` in between: the bound's H(c), ceilings, the
consistency term's balance, checkpoints and what is published read it as any other specification.
Shapes: B rows of a batch, k categories, (N, P) parameters of Q.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.priors.base import one_hot

METHODS = ("real", "gumbel")
GRAIN = 1_000_000  # probabilities are multiples of 1 / GRAIN: six digits, which the text form keeps to the last
SHOWN = 20  # categories up to which each probability is a metric


@dataclass(frozen=True)
class PriorConfig:
    """Whether the probabilities of categorical codes are learned, and how. Those of --codes are where they start."""

    learn: bool = False
    method: Literal["real", "gumbel"] = "real"
    """real: how often Q finds each category in real images; gumbel: by G's gradient, as in Elastic-InfoGAN."""
    rate: float = 0.01
    """real: share of a step's batch in the average that the prior follows; 0.01 looks back some 100 steps."""
    lr: float = 1e-3
    """gumbel: Adam's learning rate of the logits."""
    temperature: float = 0.1
    """gumbel: of the soft samples whose gradients are taken; 0.1 as in the paper."""
    floor: float = 0.1
    """No category falls below this share of 1/k: one that is never drawn could never come back."""
    start: int = 300
    """Step up to which the prior stays as it is: before that Q knows nothing of real images."""
    every: int = 10
    """Steps between two changes of the prior."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"prior.method is '{self.method}'; valid are {', '.join(METHODS)}")
        for name in ("rate", "lr", "floor"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"prior.{name} is {getattr(self, name)}; it must lie between 0 and 1, both excluded")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"prior.temperature is {self.temperature}; it must be a positive number, for example 0.1")
        for name, least in (("start", 0), ("every", 1)):
            if getattr(self, name) < least:
                raise UserError(f"prior.{name} is {getattr(self, name)}; it must be at least {least}")

    def check(self, spec: LatentSpec) -> None:
        """Raises UserError where a prior is to be learned and no code has one that could be."""
        if self.learn and not any(code.one_hot for code in spec.codes):
            raise UserError("prior.learn is on, and codes has no categorical code; add one, for example cat=10")


class LearnedPrior:
    """The part of the training state that learns the prior: averages, or logits with their moments.

    Nothing happens in any method where ``config.learn`` is off.
    """

    def __init__(self, config: PriorConfig, spec: LatentSpec, device: torch.device | str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        learned = dict(spec.one_hot_items()) if config.learn else {}
        first = {name: torch.tensor(rounded(code.probabilities)) for name, code in learned.items()}
        self.in_use = {name: p.to(self.device) for name, p in first.items()}
        """By code, (k,): the probabilities of the specification in use."""
        self.entropy = {name: torch.special.entr(p).sum() for name, p in self.in_use.items()}
        self.average: dict[str, Tensor] = {}
        self.logits: dict[str, Tensor] = {}
        self.gathered: dict[str, Tensor] = {}
        """Sums of the logits' gradients since the prior last changed, over ranks and steps."""
        self.adam: torch.optim.Adam | None = None
        if config.method == "real":
            self.average = {name: p.clone() for name, p in self.in_use.items()}
        elif learned:
            self.logits = {name: self._inverse(p).requires_grad_() for name, p in self.in_use.items()}
            self.gathered = {name: torch.zeros_like(p) for name, p in self.in_use.items()}
            self.adam = torch.optim.Adam(self.logits.values(), config.lr)

    def first(self, spec: LatentSpec) -> LatentSpec:
        """The specification to begin with: that of ``spec``, with every probability that is learned written out."""
        return self._take({name: rounded(p.tolist()) for name, p in self.in_use.items()}, spec)

    @property
    def reads_real(self) -> bool:
        """Whether ``see`` needs what Q says of real images."""
        return bool(self.average)

    def relaxed(self, spec: LatentSpec, latents: Tensor, generator: torch.Generator, step: int) -> Tensor:
        """Latents (B, L) whose categories are drawn anew so that gradients reach the logits; ``gumbel`` alone.

        argmax_i(log p_i + g_i) with Gumbel noise g has the probabilities p; the gradient is that of
        softmax((log p + g) / temperature) (Jang, Gu & Poole 2017, equations 1 and 2, straight-through).
        """
        if not self.logits or step < self.config.start:
            return latents
        noise, codes = spec.split(latents)
        for name, logits in self.logits.items():
            uniform = torch.rand(codes[name].shape, generator=generator, device=generator.device)
            gumbel = -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()
            perturbed = self._probabilities(logits).log() + gumbel
            soft = (perturbed / self.config.temperature).softmax(1)
            hard = one_hot(perturbed.argmax(1), soft.shape[1])
            codes[name] = hard + soft - soft.detach()
        return torch.cat([noise, *codes.values()], dim=1)

    @torch.no_grad()
    def see(self, spec: LatentSpec, q: Tensor, weight: float, step: int) -> None:
        """Take what Q says (B, P) of this rank's real images into the average; ``real`` alone.

        ``weight``: B over the mean share of all ranks, so that the mean over ranks is that of all rows.
        """
        if not self.average or step < self.config.start:
            return
        parts = spec.split_q(q)
        for name, average in self.average.items():
            average.lerp_(over_ranks(weight * parts[name].softmax(1).mean(0)), self.config.rate)

    @torch.no_grad()
    def renewed(self, spec: LatentSpec, step: int) -> LatentSpec:
        """The specification from here on, after ``step`` steps: another one every ``every`` steps after the start.

        What is not finite changes nothing; the losses tell of it.
        """
        about = self.config
        for name, one in self.logits.items():
            if one.grad is not None:  # from the start on
                self.gathered[name] += over_ranks(one.grad)
                one.grad = None
        if not self.in_use or step <= about.start or step % about.every:
            return spec
        if self.adam is not None:
            for name, one in self.logits.items():
                one.grad = self.gathered[name] / about.every
                self.gathered[name].zero_()
            self.adam.step()
            self.adam.zero_grad()
        found = {name: self._probabilities(one) for name, one in self.logits.items()} or self.average
        rows = {name: p.tolist() for name, p in found.items()}
        if not all(math.isfinite(value) for row in rows.values() for value in row):
            return spec
        return self._take({name: rounded(floored(row, about.floor)) for name, row in rows.items()}, spec)

    def metrics(self) -> dict[str, Tensor]:
        """``prior/<code>/entropy`` in nats and, for up to SHOWN categories, ``prior/<code>/<category>``.

        They change with the prior in use: a row of metrics, read after several steps, has no mean over them but the
        prior as it is then, which a checkpoint of that step has as well.
        """
        found: dict[str, Tensor] = {}
        for name, p in self.in_use.items():
            found[f"prior/{name}/entropy"] = self.entropy[name]
            if len(p) <= SHOWN:
                found |= {f"prior/{name}/{category}": one for category, one in enumerate(p.unbind())}
        return found

    def tensors(self) -> dict[str, Tensor]:
        """What training needs to continue, by name: copies, for the state changes in place."""
        found = {f"in_use.{name}": p for name, p in self.in_use.items()}
        found |= {f"average.{name}": p for name, p in self.average.items()}
        for index, (name, one) in enumerate(self.logits.items()):
            assert self.adam is not None
            found |= {f"logits.{name}": one.detach(), f"gathered.{name}": self.gathered[name]}
            moments = self.adam.state_dict()["state"].get(index, {})
            found |= {f"adam.{name}.{kind}": tensor for kind, tensor in moments.items()}
        return {name: tensor.clone() for name, tensor in found.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], spec: LatentSpec) -> LatentSpec:
        """Go on from ``tensors``; returns the specification in use. A checkpoint without any starts from ``spec``.

        Raises UserError if they belong to another model or method.
        """
        if tensors and not self.in_use:
            raise UserError("the checkpoint's prior was learned, and prior.learn is off: give --prior.learn as before")
        if not tensors:
            return spec
        try:
            for kind, own in (("average", self.average), ("logits", self.logits), ("gathered", self.gathered)):
                for name, tensor in own.items():
                    tensor.copy_(tensors[f"{kind}.{name}"])
            moments: dict[int, dict[str, Tensor]] = {}
            for index, name in enumerate(self.logits):
                start = f"adam.{name}."
                found = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
                moments |= {index: found} if found else {}
            if self.adam is not None:
                self.adam.load_state_dict({**self.adam.state_dict(), "state": moments})
            return self._take({name: rounded(tensors[f"in_use.{name}"].tolist()) for name in self.in_use}, spec)
        except (KeyError, RuntimeError):
            raise UserError(
                f"the checkpoint's prior was learned for other codes or by another method than {self.config.method}; "
                "resume with the --codes and the --prior.method that the run began with"
            ) from None

    def _take(self, found: Mapping[str, tuple[float, ...]], spec: LatentSpec) -> LatentSpec:
        if not found:
            return spec
        for name, p in found.items():
            self.in_use[name].copy_(torch.tensor(p))
            self.entropy[name].copy_(torch.special.entr(self.in_use[name]).sum())
        codes = (code.with_probabilities(found[name]) if name in found else code for name, code in spec.items())
        return dataclasses.replace(spec, codes=tuple(codes))

    def _probabilities(self, logits: Tensor) -> Tensor:
        """(k,) with the floor, differentiable: floor / k + (1 - floor) softmax."""
        return self.config.floor / len(logits) + (1 - self.config.floor) * logits.softmax(0)

    def _inverse(self, p: Tensor) -> Tensor:
        """The logits of probabilities; of those below the floor, such that they begin just above it."""
        return (p - self.config.floor / len(p)).clamp_min(1e-3 / len(p)).log()


def floored(p: list[float], floor: float) -> list[float]:
    """Probabilities of at least floor / k each that sum to 1; as they are, if none was below."""
    least = floor / len(p)
    above = [max(one - least, 0.0) for one in p]
    scale = (1 - floor) / sum(above)
    return [least + one * scale for one in above]


def rounded(p: Sequence[float]) -> tuple[float, ...]:
    """Multiples of 1 / GRAIN, none of them 0, that sum to 1 exactly (largest remainders)."""
    total = sum(p)
    shares = [one / total * GRAIN for one in p]
    whole = [max(1, math.floor(share)) for share in shares]
    order = sorted(range(len(p)), key=lambda i: (whole[i] - shares[i], i))
    for i in order[: max(0, GRAIN - sum(whole))]:
        whole[i] += 1
    whole[whole.index(max(whole))] -= sum(whole) - GRAIN  # what those gained that would have been 0
    return tuple(one / GRAIN for one in whole)


def as_measured(spec: LatentSpec, metrics: Mapping[str, object]) -> LatentSpec:
    """``spec`` with the learned probabilities that a row of metrics tells, where it tells any."""
    codes = list(spec.codes)
    for place, (name, code) in enumerate(spec.items()):
        told = [metrics.get(f"prior/{name}/{category}") for category in range(code.dim)]
        numbers = [one for one in told if isinstance(one, float) and 0 < one <= 1]
        if code.one_hot and len(numbers) == code.dim:
            codes[place] = code.with_probabilities(rounded(numbers))
    return dataclasses.replace(spec, codes=tuple(codes))


def over_ranks(mine: Tensor) -> Tensor:
    """The mean over all ranks; ``mine`` where there is one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return mine
    total = mine.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
