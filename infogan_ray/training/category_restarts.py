"""Restarts of dead categories: categories that Q rarely predicts on real images.

When two kinds of images share one category, another category stays without images, and no gradient changes that.
A restart therefore copies a frequently used category to the dead one and adds noise. It copies the category's row of
Q's last layer and its column of G's first layer. K-means restarts dead centres in this way, and Dhariwal et al. 2020
(arXiv:2005.00341, section 3.1) restart dead codebook entries.
Shapes: B rows, P width of Q's output, K categories of all categorical codes together, k categories of one code.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import Discriminator, Generator
from infogan_ray.models.priors.base import one_hot
from infogan_ray.models.priors.discrete import probabilities_on
from infogan_ray.models.rng import seeded_generator
from infogan_ray.training.regularisers import StabilityConfig

NOISE_SCALE = 0.1  # standard deviation of the noise on a copy, as a share of the copied weights' root mean square
DECAY_PER_INTERVAL = 4.0  # over one interval between restarts, the weight of older shares in ``usage`` falls to exp(-4)


class Restarts:
    """Measures how often Q predicts each category on real images, and restarts dead categories.

    Counts are whole numbers, summed over ranks. All ranks therefore decide the same, for any world size. The noise
    depends on (seed, step) alone. ``usage`` (K,) is an exponential average of each category's share. Checkpoints
    contain it.
    """

    def __init__(
        self, spec: LatentSpec, config: StabilityConfig, seed: int,
        networks: tuple[Generator, Generator, Discriminator], optimizers: tuple[torch.optim.Adam, torch.optim.Adam],
    ) -> None:  # fmt: skip
        """``networks``: G, the averaged G, and D with Q. ``optimizers``: of G, and of D with Q."""
        config.check_codes(spec)
        self.spec, self.config, self.seed = spec, config, seed
        generator, average, discriminator = networks
        self.first_layer, self.averaged_first_layer = generator.first_layer, average.first_layer
        self.recognition = _linear(discriminator.recognition[-1])
        self.opt_g, self.opt_d = optimizers
        device = self.recognition.weight.device
        self.prior = torch.cat([probabilities_on(code, device) for _, code in spec.one_hot_items()])
        self.usage = self.prior.clone()

    @torch.no_grad()
    def after_step(self, step: int, q: Tensor) -> Tensor:
        """Update ``usage``. Every ``restart_every`` steps, also restart dead categories.

        ``step``: number of steps made, including this one. ``q``: Q's parameters (B, P) for real images. Returns the
        number of restarted categories, a scalar. Does not wait for the device.
        """
        parts = self.spec.split_q(q)
        counts = torch.cat(
            [one_hot(parts[name].argmax(1), code.dim).sum(0) for name, code in self.spec.one_hot_items()]
        )
        rows = counts.new_full((1,), len(q))
        if dist.is_initialized() and dist.get_world_size() > 1:
            sums = torch.cat([counts, rows])
            dist.all_reduce(sums)
            counts, rows = sums[:-1], sums[-1:]
        self.usage.lerp_(counts / rows, min(1.0, DECAY_PER_INTERVAL / self.config.restart_every))
        restarted = counts.new_zeros(())
        if step % self.config.restart_every:
            return restarted
        generator = seeded_generator(self.seed, "restarts", step, q.device)
        column, row, category = self.spec.noise, 0, 0
        for code in self.spec.codes:
            if code.one_hot:
                restarted = restarted + self._restart(code.dim, column, row, category, generator)
                category += code.dim
            column, row = column + code.dim, row + code.q_dim(self.spec.sigma)
        return restarted

    def _restart(self, k: int, column: int, row: int, category: int, generator: torch.Generator) -> Tensor:
        """Restart the dead ones of a code's ``k`` categories. Returns their number, a scalar.

        The other numbers are the code's first column of G's first layer, first row of Q's last layer, and first
        position in ``usage``.
        """
        usage, prior = self.usage[category : category + k], self.prior[category : category + k]
        dead = usage < self.config.restart_below * prior
        sources = choose_sources(usage / prior, dead)
        rows, columns = slice(row, row + k), slice(column, column + k)

        weight = self.recognition.weight[rows]
        weight.copy_(torch.where(dead[:, None], weight[sources] + copy_noise(weight[sources], 1, generator), weight))
        self.recognition.bias[rows] = self.recognition.bias[rows][sources]
        weight = self.first_layer.weight[:, columns]
        noise = copy_noise(weight[:, sources], 0, generator)
        for layer in (self.first_layer, self.averaged_first_layer):
            weight = layer.weight[:, columns]
            weight.copy_(torch.where(dead, weight[:, sources] + noise, weight))

        # Adam's mean gradient restarts from 0. Its mean square is copied. From 0 the next update would be up to
        # 1 / sqrt(1 - beta2) = 32 times too large, since Adam corrects for a zero start in its first steps only.
        self._restart_moments(self.opt_d, self.recognition.weight, rows, dead[:, None], sources)
        self._restart_moments(self.opt_d, self.recognition.bias, rows, dead, sources)
        for name, moment in _adam_moments(self.opt_g, self.first_layer.weight):
            part = moment[:, columns]
            part.copy_(torch.where(dead, part[:, sources] if name == "exp_avg_sq" else 0, part))
        usage.copy_(torch.where(dead, prior, usage))
        return dead.sum().float()

    def _restart_moments(
        self, adam: torch.optim.Adam, parameter: Tensor, rows: slice, dead: Tensor, sources: Tensor
    ) -> None:
        for name, moment in _adam_moments(adam, parameter):
            part = moment[rows]
            part.copy_(torch.where(dead, part[sources] if name == "exp_avg_sq" else 0, part))


def choose_sources(usage: Tensor, dead: Tensor) -> Tensor:
    """(k,) indices: the category that each category is copied from.

    Dead categories get the categories in use in turn, the most used first. A category in use gets its own index.
    ``usage`` (k,) is relative to the prior. ``dead`` (k,) are booleans, not all true.
    """
    by_usage = usage.masked_fill(dead, -1.0).argsort(descending=True, stable=True)
    position = (dead.cumsum(0) - 1).clamp(min=0) % (~dead).sum()
    return torch.where(dead, by_usage[position], torch.arange(len(usage), device=usage.device))


def copy_noise(weight: Tensor, axis: int, generator: torch.Generator) -> Tensor:
    """Normal noise of the shape of ``weight``: NOISE_SCALE times the root mean square of ``weight`` along ``axis``."""
    noise = torch.randn(weight.shape, generator=generator, device=weight.device)
    return NOISE_SCALE * weight.square().mean(axis, keepdim=True).sqrt() * noise


def _linear(layer: nn.Module) -> nn.Linear:
    assert isinstance(layer, nn.Linear)
    return layer


def _adam_moments(adam: torch.optim.Adam, parameter: Tensor) -> list[tuple[str, Tensor]]:
    """Names and values of the moments of one parameter."""
    return [(name, adam.state[parameter][name]) for name in ("exp_avg", "exp_avg_sq")]
