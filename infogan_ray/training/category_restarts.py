"""Restarts of dead categories: what Q does not use on real images begins anew beside what it uses most.

Two kinds of images that share a category leave another one without any; there is no gradient that would move it. So,
as dead centres are in k-means and dead entries of a codebook are (Dhariwal et al. 2020, arXiv:2005.00341, section 3.1),
it is put next to one that is in use: with its row of Q's last layer and its column of G's first one, and some noise.
Shapes: B rows, P width of Q's output, K categories of all categorical codes together.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infogan_ray import UserError
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import Discriminator, Generator
from infogan_ray.models.priors.base import one_hot
from infogan_ray.models.priors.discrete import probabilities_on
from infogan_ray.models.rng import seeded_generator
from infogan_ray.training.regularisers import StabilityConfig

SPREAD = 0.1  # of the noise on a copied row or column, as a share of its root mean square
MEMORY = 4.0  # an interval weighs exp(-4) in the average use at the end of the next


def check_restarts(spec: LatentSpec, config: StabilityConfig) -> None:
    """Raises UserError where there is nothing to restart."""
    if config.restart_every and not any(code.one_hot for code in spec.codes):
        raise UserError(
            f"stability.restart_every is {config.restart_every}, and codes is '{spec}', without a categorical code; "
            "add one (cat=10), or leave the restarts off (0)"
        )


class Restarts:
    """Counts how often Q uses each category on real images and restarts those that it hardly does.

    Ranks count together, in whole numbers, so that all decide alike, whatever their number; what is drawn depends on
    (seed, step). ``usage`` (K,), the exponential average of shares, is state and travels with checkpoints.
    """

    def __init__(
        self, spec: LatentSpec, config: StabilityConfig, seed: int,
        players: tuple[Generator, Generator, Discriminator], optimizers: tuple[torch.optim.Adam, torch.optim.Adam],
    ) -> None:  # fmt: skip
        """``players``: G, its average, and D with Q; ``optimizers``: those of G and of D."""
        check_restarts(spec, config)
        self.spec, self.config, self.seed = spec, config, seed
        generator, average, discriminator = players
        self.inputs, self.average = _linear(generator.layers[0]), _linear(average.layers[0])
        self.recognition = _linear(discriminator.recognition[-1])
        self.opt_g, self.opt_d = optimizers
        device = self.recognition.weight.device
        self.prior = torch.cat([probabilities_on(code, device) for _, code in spec.one_hot_items()])
        self.usage = self.prior.clone()

    @torch.no_grad()
    def after(self, step: int, q: Tensor) -> Tensor:
        """Take note of what Q says (B, P) of real images; every so many steps, restart. How many were, a scalar.

        ``step``: how many are made, this one included. Nothing waits for the device.
        """
        parts = self.spec.split_q(q)
        counts = torch.cat(
            [one_hot(parts[name].argmax(1), code.dim).sum(0) for name, code in self.spec.one_hot_items()]
        )
        rows = counts.new_full((1,), len(q))
        if dist.is_initialized() and dist.get_world_size() > 1:
            both = torch.cat([counts, rows])
            dist.all_reduce(both)
            counts, rows = both[:-1], both[-1:]
        self.usage.lerp_(counts / rows, min(1.0, MEMORY / self.config.restart_every))
        restarted = counts.new_zeros(())
        if step % self.config.restart_every:
            return restarted
        generator = seeded_generator(self.seed, "restarts", step, q.device)
        column, row, at = self.spec.noise, 0, 0
        for code in self.spec.codes:
            if code.one_hot:
                restarted = restarted + self._restart(code.dim, column, row, at, generator)
                at += code.dim
            column, row = column + code.dim, row + code.q_dim(self.spec.sigma)
        return restarted

    def _restart(self, k: int, column: int, row: int, at: int, generator: torch.Generator) -> Tensor:
        """Of one code, which begins at a column of G's first layer, a row of Q's last, and a place of ``usage``."""
        usage, prior = self.usage[at : at + k], self.prior[at : at + k]
        dead = usage < self.config.restart_below * prior
        donors = chosen_donors(usage / prior, dead)
        rows, columns = slice(row, row + k), slice(column, column + k)

        weight = self.recognition.weight[rows]
        weight.copy_(torch.where(dead[:, None], weight[donors] + spread(weight[donors], 1, generator), weight))
        self.recognition.bias[rows] = self.recognition.bias[rows][donors]
        weight = self.inputs.weight[:, columns]
        noise = spread(weight[:, donors], 0, generator)
        for layer in (self.inputs, self.average):
            weight = layer.weight[:, columns]
            weight.copy_(torch.where(dead, weight[:, donors] + noise, weight))

        # The mean gradient starts from 0. The mean square is the donor's: with 0, Adam, whose correction for its first
        # steps is long over, would move by 1 / sqrt(1 - beta2) = 32 times what is meant.
        self._moments(self.opt_d, self.recognition.weight, rows, dead[:, None], donors)
        self._moments(self.opt_d, self.recognition.bias, rows, dead, donors)
        for name, moment in _of(self.opt_g, self.inputs.weight):
            part = moment[:, columns]
            part.copy_(torch.where(dead, part[:, donors] if name == "exp_avg_sq" else 0, part))
        usage.copy_(torch.where(dead, prior, usage))
        return dead.sum().float()

    def _moments(self, adam: torch.optim.Adam, parameter: Tensor, rows: slice, dead: Tensor, donors: Tensor) -> None:
        for name, moment in _of(adam, parameter):
            part = moment[rows]
            part.copy_(torch.where(dead, part[donors] if name == "exp_avg_sq" else 0, part))


def chosen_donors(use: Tensor, dead: Tensor) -> Tensor:
    """(k,) for each dead category one that is alive, beginning with the most used; for others themselves.

    ``use`` (k,): how often, as a multiple of the prior; ``dead`` (k,) booleans, not all true.
    """
    alive = use.masked_fill(dead, -1.0).argsort(descending=True, stable=True)
    place = (dead.cumsum(0) - 1).clamp(min=0) % (~dead).sum()
    return torch.where(dead, alive[place], torch.arange(len(use), device=use.device))


def spread(weight: Tensor, axis: int, generator: torch.Generator) -> Tensor:
    """Noise like ``weight``, SPREAD times the root mean square along ``axis``."""
    noise = torch.randn(weight.shape, generator=generator, device=weight.device)
    return SPREAD * weight.square().mean(axis, keepdim=True).sqrt() * noise


def _linear(layer: nn.Module) -> nn.Linear:
    assert isinstance(layer, nn.Linear)
    return layer


def _of(adam: torch.optim.Adam, parameter: Tensor) -> list[tuple[str, Tensor]]:
    return [(name, adam.state[parameter][name]) for name in ("exp_avg", "exp_avg_sq")]
