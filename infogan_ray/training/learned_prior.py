"""Learned priors of categorical codes: training learns the probability of each category.

A uniform prior requires categories of equal size. If some kinds of images are rarer than others in the data, G must
split a frequent kind over several categories and merge rare kinds. Elastic-InfoGAN (Ojha, Singh, Hsieh & Lee 2020,
arXiv:1910.01112) therefore learns the probabilities. There are two methods:

``real``: the new p(c) is the mean of Q(c|x) over real images. This is the EM update of mixture weights (Dempster, Laird
& Rubin 1977), with an average that each batch updates (Cappe & Moulines 2009). EM needs the posterior under the prior
in use. Q approximates it, since Q learns on images that G generates from that prior.
``gumbel``: as in the paper. G's loss has gradients with respect to the probabilities: categories are sampled by
straight-through Gumbel-softmax (Jang, Gu & Poole 2017; Maddison, Mnih & Teh 2017).

The prior in use changes every few steps. Between changes it is a plain ``cat=K@p1:...:pK`` specification. The bound's
H(c), ceilings, the consistency term, checkpoints and published models read it as they read any specification.
Shapes: B rows of a batch, latents (B, L), k categories of one code, Q's parameters (B, P).
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
GRAIN = 1_000_000  # probabilities are multiples of 1 / GRAIN, whose six digits the text form keeps exactly
MAX_METRICS = 20  # for a code of more categories, the probabilities are not metrics


@dataclass(frozen=True)
class PriorConfig:
    """Whether training learns the probabilities of categorical codes, and how. They start from those of --codes."""

    learn: bool = False
    """Learn the probabilities of categorical codes. Use it if some kinds of things are much rarer than others."""
    method: Literal["real", "gumbel"] = "real"
    """real: the mean of Q's probabilities on real images. gumbel: gradients of G's loss, as in Elastic-InfoGAN."""
    rate: float = 0.01
    """real: weight of the newest batch in the moving average; 0.01 averages over about 100 steps."""
    lr: float = 1e-3
    """gumbel: Adam's learning rate for the logits."""
    temperature: float = 0.1
    """gumbel: temperature of the Gumbel-softmax samples; the paper uses 0.1."""
    floor: float = 0.1
    """Smallest probability of a category, as a share of 1/k. A category that is never sampled could not recover."""
    start: int = 300
    """The prior does not change up to this step, since Q's predictions on real images mean little before."""
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
        for name, minimum in (("start", 0), ("every", 1)):
            if getattr(self, name) < minimum:
                raise UserError(f"prior.{name} is {getattr(self, name)}; it must be at least {minimum}")

    def check(self, spec: LatentSpec) -> None:
        """Raises UserError if ``learn`` is on and the latents have no categorical code."""
        if self.learn and not any(code.one_hot for code in spec.codes):
            raise UserError("prior.learn is on, and codes has no categorical code; add one, for example cat=10")


class LearnedPrior:
    """The state of the learned prior: averages of Q's probabilities, or logits with their Adam moments.

    If ``config.learn`` is off, no method has an effect.
    """

    def __init__(self, config: PriorConfig, spec: LatentSpec, device: torch.device | str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        learned = dict(spec.one_hot_items()) if config.learn else {}
        initial = {name: torch.tensor(round_probabilities(code.probabilities)) for name, code in learned.items()}
        self.in_use = {name: p.to(self.device) for name, p in initial.items()}
        """Probabilities in use, (k,), by code name."""
        self.entropy = {name: torch.special.entr(p).sum() for name, p in self.in_use.items()}
        """H(c) in nats of the probabilities in use, by code name."""
        self.average: dict[str, Tensor] = {}
        """``real``: moving average (k,) of Q's probabilities on real images, by code name."""
        self.logits: dict[str, Tensor] = {}
        """``gumbel``: logits (k,) of the probabilities, by code name."""
        self.gradients: dict[str, Tensor] = {}
        """``gumbel``: the logits' gradients, a mean over ranks, summed over steps since the prior last changed."""
        self.adam: torch.optim.Adam | None = None
        if config.method == "real":
            self.average = {name: p.clone() for name, p in self.in_use.items()}
        elif learned:
            self.logits = {name: self._to_logits(p).requires_grad_() for name, p in self.in_use.items()}
            self.gradients = {name: torch.zeros_like(p) for name, p in self.in_use.items()}
            self.adam = torch.optim.Adam(self.logits.values(), config.lr)

    def initial_spec(self, spec: LatentSpec) -> LatentSpec:
        """``spec`` with the learned probabilities written explicitly, for the first step."""
        return self._use({name: round_probabilities(p.tolist()) for name, p in self.in_use.items()}, spec)

    @property
    def needs_q_on_real(self) -> bool:
        """Whether ``update_average`` needs Q's parameters for real images."""
        return bool(self.average)

    def gumbel_softmax(self, spec: LatentSpec, latents: Tensor, generator: torch.Generator, step: int) -> Tensor:
        """Latents (B, L) with newly sampled categories, differentiable in the logits. For ``gumbel`` only.

        argmax_i(log p_i + g_i) with Gumbel noise g has the probabilities p. The gradient is that of
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
    def update_average(self, spec: LatentSpec, q: Tensor, weight: float, step: int) -> None:
        """Update the average with Q's parameters (B, P) for this rank's real images. For ``real`` only.

        ``weight``: B over the mean B of all ranks. The mean over ranks is then the mean over all rows.
        """
        if not self.average or step < self.config.start:
            return
        parts = spec.split_q(q)
        for name, average in self.average.items():
            average.lerp_(mean_over_ranks(weight * parts[name].softmax(1).mean(0)), self.config.rate)

    @torch.no_grad()
    def updated_spec(self, spec: LatentSpec, step: int) -> LatentSpec:
        """The specification to use after ``step`` steps. It changes every ``every`` steps after ``start``.

        If a probability is not finite, the specification does not change. The losses show the divergence.
        """
        config = self.config
        for name, logits in self.logits.items():
            if logits.grad is not None:  # None before ``start``
                self.gradients[name] += mean_over_ranks(logits.grad)
                logits.grad = None
        if not self.in_use or step <= config.start or step % config.every:
            return spec
        if self.adam is not None:
            for name, logits in self.logits.items():
                logits.grad = self.gradients[name] / config.every
                self.gradients[name].zero_()
            self.adam.step()
            self.adam.zero_grad()
        learned = {name: self._probabilities(logits) for name, logits in self.logits.items()} or self.average
        rows = {name: p.tolist() for name, p in learned.items()}
        if not all(math.isfinite(value) for row in rows.values() for value in row):
            return spec
        return self._use({name: round_probabilities(with_floor(row, config.floor)) for name, row in rows.items()}, spec)

    def metrics(self) -> dict[str, Tensor]:
        """``prior/<code>/entropy`` in nats and, for up to MAX_METRICS categories, ``prior/<code>/<category>``.

        The tensors change in place with the prior in use. A row of metrics that covers several steps therefore has the
        prior at the time of reading, not a mean. A checkpoint of that step has the same prior.
        """
        metrics: dict[str, Tensor] = {}
        for name, p in self.in_use.items():
            metrics[f"prior/{name}/entropy"] = self.entropy[name]
            if len(p) <= MAX_METRICS:
                metrics |= {f"prior/{name}/{category}": value for category, value in enumerate(p.unbind())}
        return metrics

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that training needs to continue, by name. They are copies, since the state changes in place."""
        tensors = {f"in_use.{name}": p for name, p in self.in_use.items()}
        tensors |= {f"average.{name}": p for name, p in self.average.items()}
        for index, (name, logits) in enumerate(self.logits.items()):
            assert self.adam is not None
            tensors |= {f"logits.{name}": logits.detach(), f"gathered.{name}": self.gradients[name]}
            moments = self.adam.state_dict()["state"].get(index, {})
            tensors |= {f"adam.{name}.{kind}": tensor for kind, tensor in moments.items()}
        return {name: tensor.clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], spec: LatentSpec) -> LatentSpec:
        """Continue from a checkpoint's ``tensors``. Returns the specification in use: ``spec`` if there are none.

        Raises UserError if they belong to another model or method, or if ``config.learn`` is off.
        """
        if tensors and not self.in_use:
            raise UserError("the checkpoint's prior was learned, and prior.learn is off: give --prior.learn as before")
        if not tensors:
            return spec
        try:
            for kind, by_code in (("average", self.average), ("logits", self.logits), ("gathered", self.gradients)):
                for name, tensor in by_code.items():
                    tensor.copy_(tensors[f"{kind}.{name}"])
            moments: dict[int, dict[str, Tensor]] = {}
            for index, name in enumerate(self.logits):
                prefix = f"adam.{name}."
                saved = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
                moments |= {index: saved} if saved else {}
            if self.adam is not None:
                self.adam.load_state_dict({**self.adam.state_dict(), "state": moments})
            in_use = {name: tensors[f"in_use.{name}"].tolist() for name in self.in_use}
            return self._use({name: round_probabilities(row) for name, row in in_use.items()}, spec)
        except (KeyError, RuntimeError):
            raise UserError(
                f"the checkpoint's prior was learned for other codes or by another method than {self.config.method}; "
                "resume with the --codes and the --prior.method that the run began with"
            ) from None

    def _use(self, probabilities: Mapping[str, tuple[float, ...]], spec: LatentSpec) -> LatentSpec:
        """Set ``in_use`` and ``entropy`` to new probabilities by code name. Returns ``spec`` with them."""
        if not probabilities:
            return spec
        for name, p in probabilities.items():
            self.in_use[name].copy_(torch.tensor(p))
            self.entropy[name].copy_(torch.special.entr(self.in_use[name]).sum())
        codes = (
            code.with_probabilities(probabilities[name]) if name in probabilities else code
            for name, code in spec.items()
        )
        return dataclasses.replace(spec, codes=tuple(codes))

    def _probabilities(self, logits: Tensor) -> Tensor:
        """(k,), differentiable: floor / k + (1 - floor) softmax(logits)."""
        return self.config.floor / len(logits) + (1 - self.config.floor) * logits.softmax(0)

    def _to_logits(self, p: Tensor) -> Tensor:
        """The logits (k,) of probabilities. Probabilities below the floor get logits just above it."""
        return (p - self.config.floor / len(p)).clamp_min(1e-3 / len(p)).log()


def with_floor(p: list[float], floor: float) -> list[float]:
    """Probabilities that sum to 1, each at least floor / k; the same as ``p`` if none was below."""
    minimum = floor / len(p)
    above = [max(value - minimum, 0.0) for value in p]
    scale = (1 - floor) / sum(above)
    return [minimum + value * scale for value in above]


def round_probabilities(p: Sequence[float]) -> tuple[float, ...]:
    """Round to positive multiples of 1 / GRAIN that sum to 1 exactly (largest remainder method)."""
    total = sum(p)
    shares = [value / total * GRAIN for value in p]
    whole = [max(1, math.floor(share)) for share in shares]
    order = sorted(range(len(p)), key=lambda i: (whole[i] - shares[i], i))
    for i in order[: max(0, GRAIN - sum(whole))]:
        whole[i] += 1
    whole[whole.index(max(whole))] -= sum(whole) - GRAIN  # the excess, if values below 1 were rounded up to 1
    return tuple(value / GRAIN for value in whole)


def with_measured_prior(spec: LatentSpec, metrics: Mapping[str, object]) -> LatentSpec:
    """``spec`` with the learned probabilities in a row of metrics, for codes whose probabilities it has."""
    codes = list(spec.codes)
    for index, (name, code) in enumerate(spec.items()):
        values = [metrics.get(f"prior/{name}/{category}") for category in range(code.dim)]
        probabilities = [value for value in values if isinstance(value, float) and 0 < value <= 1]
        if code.one_hot and len(probabilities) == code.dim:
            codes[index] = code.with_probabilities(round_probabilities(probabilities))
    return dataclasses.replace(spec, codes=tuple(codes))


def mean_over_ranks(local: Tensor) -> Tensor:
    """The mean of a tensor over all ranks. With one rank it is ``local`` itself."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return local
    total = local.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
