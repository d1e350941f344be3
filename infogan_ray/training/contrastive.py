"""The contrastive term of InfoGAN-CR: a third network H predicts which code two generated images share.

Lin, Thekumparampil, Fanti & Oh 2020, "InfoGAN-CR and ModelCentrality" (arXiv:1906.06034, section 3). A pair is two
latents that share the value of one code. The other codes differ. The shared code is sampled for each pair. G generates
both images, and H predicts the shared code. H and G both minimise H's cross-entropy, so each code gets an effect that
does not depend on the other codes. The objective is min over G, Q, H and max over D of
V_GAN - lambda L_I + weight * L_c. L_c is the cross-entropy in nats. It is log K if H guesses among K codes.

As in the authors' code (fjxmlzn/InfoGAN-CR), both images of a pair have the same noise. H has its own Adam with D's
learning rate. The pairs are used for this term only. The gap is the authors' "progressive training". At first the
values of a code that is not shared are at least a gap apart. So H can see the difference. Later they are independent.
Their gap drops in one step, and H restarts then. Here the gap falls linearly, and H continues.

The paper's codes are all uniform. For other codes this module adds two rules:
- The gap of a Gaussian code is a share of the prior's probability. For a uniform prior it equals the paper's gap.
- A categorical or Bernoulli code has no gap. If it is not shared, its two values always differ. Random values would
  often be equal, and then H could not find the shared code. With ``discrete`` off, discrete codes do not take part,
  and both images of a pair have the same value.

Shapes: B pairs, latents (B, L), K codes that take part, (B, 2C, H, W) the two images of a pair, stacked on channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infogan_ray import UserError
from infogan_ray.models.initialisation import initialise
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import ModelSpec, frozen, initialise_trunk_and_head, recognition_head, trunk


@dataclass(frozen=True)
class ContrastiveConfig:
    """Weight of the contrastive term, its first step, and the schedule of the gap."""

    weight: float = 0.0
    """Weight of the term in G's loss; 0 turns it off. The paper's authors use 1 to 3."""
    start: int = 1000
    """The term is off up to this step. G must first generate images that show something."""
    gap: float = 0.95
    """Smallest share of a continuous prior between the two values of a code that is not shared. It applies when the
    term starts. For U(-1, 1), 0.95 is the paper's gap of 1.9."""
    gap_end: float = 0.0
    """The gap after gap_steps steps."""
    gap_steps: int = 2000
    """Number of steps in which the gap falls linearly from gap to gap_end."""
    discrete: bool = True
    """Whether categorical and Bernoulli codes take part. If not, both images of a pair have the same value."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise UserError(f"contrastive.weight is {self.weight}; it must be a number of at least 0")
        if not 0 <= self.gap_end <= self.gap < 1:
            raise UserError(
                f"contrastive.gap is {self.gap} and contrastive.gap_end is {self.gap_end}; "
                "0 <= gap_end <= gap < 1 must hold"
            )
        for name, minimum in (("start", 0), ("gap_steps", 1)):
            if getattr(self, name) < minimum:
                raise UserError(f"contrastive.{name} is {getattr(self, name)}; it must be at least {minimum}")

    def codes(self, spec: LatentSpec) -> tuple[str, ...]:
        """The names of the codes that take part. Raises UserError if the term is on and fewer than two take part."""
        names = tuple(name for name, code in spec.items() if self.discrete or code.categories is None)
        if self.weight and len(names) < 2:
            kind = "codes" if self.discrete else "continuous codes (contrastive.discrete is off)"
            raise UserError(
                f"contrastive.weight is {self.weight:g}, which needs two {kind} or more, and codes is '{spec}'; "
                f"add some, for example uniform=2, or set contrastive.weight to 0"
            )
        return names

    def gap_at(self, step: int) -> float:
        """The gap in the step that follows ``step`` finished steps."""
        remaining = 1 - min(1.0, max(0.0, (step - self.start) / self.gap_steps))
        return self.gap_end + (self.gap - self.gap_end) * remaining


class Pairs(NamedTuple):
    """Two latents (B, L) for each pair, and the index (B,) of the shared code, 0 to K - 1."""

    first: Tensor
    second: Tensor
    shared: Tensor

    def rows(self, indices: slice) -> Pairs:
        return Pairs(self.first[indices], self.second[indices], self.shared[indices])

    def images(self, generate: nn.Module) -> Tensor:
        """The generated images, (B, 2C, H, W).

        G generates all of them in one pass. All get the same batch-norm statistics, which H cannot use.
        """
        return torch.cat(generate(torch.cat([self.first, self.second])).chunk(2), 1)


def sample_pairs(
    spec: LatentSpec, codes: tuple[str, ...], gap: float | Tensor, n: int, generator: torch.Generator
) -> Pairs:
    """Sample ``n`` pairs. Each shares one of ``codes``, the noise, and every code that is not in ``codes``."""
    shared = torch.randint(len(codes), (n,), generator=generator, device=generator.device)
    first = [spec.sample_noise(n, generator)]
    second = list(first)
    for name, code in spec.items():
        same_value, (value, other_value) = code.sample(n, generator), code.sample_apart(n, gap, generator)
        is_shared = shared == codes.index(name) if name in codes else torch.ones_like(shared, dtype=torch.bool)
        first.append(torch.where(is_shared[:, None], same_value, value))
        second.append(torch.where(is_shared[:, None], same_value, other_value))
    return Pairs(torch.cat(first, 1), torch.cat(second, 1), shared)


class PairDiscriminator(nn.Module):
    """H: predicts the shared code of a pair, as logits (B, K), from its images (B, 2C, H, W).

    H has the architecture of D's trunk and Q's head.
    """

    def __init__(self, spec: ModelSpec, codes: int) -> None:
        super().__init__()
        self.trunk, features = trunk(spec.image_size, spec.channels, spec.network, images=2)
        self.head = recognition_head(features, codes, spec.network)
        initialise(self)
        initialise_trunk_and_head(self.trunk, self.head, spec.network)

    def forward(self, stacked: Tensor) -> Tensor:
        return self.head(self.trunk(stacked)).float()


class ContrastiveTerm:
    """H, its Adam and their part of a training step. torch's global generator initialises H's weights."""

    def __init__(self, spec: ModelSpec, config: ContrastiveConfig, device: torch.device) -> None:
        self.config, self.codes = config, config.codes(spec.latents)
        self.discriminator = PairDiscriminator(spec, len(self.codes)).to(device)
        self.compare: nn.Module = self.discriminator
        """H for ``learn``. With several ranks it is the DistributedDataParallel wrapper, which averages gradients."""
        self.adam: torch.optim.Adam
        """H's optimiser for ``learn``; TrainState sets it."""

    def sample_pairs(self, spec: LatentSpec, gap: float | Tensor, n: int, generator: torch.Generator) -> Pairs:
        """Sample ``n`` pairs; ``spec`` has the priors in use."""
        return sample_pairs(spec, self.codes, gap, n, generator)

    def step(self, pairs: Pairs, generate: nn.Module, weight: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Update H on generated pairs. Returns G's loss from the updated H, and the metrics of ``learn``."""
        stacked = pairs.images(generate)
        metrics = self.learn(stacked, pairs.shared, weight)
        return self.loss(stacked, pairs.shared), metrics

    def learn(self, stacked: Tensor, shared: Tensor, weight: float = 1.0) -> dict[str, Tensor]:
        """Update H once on image pairs (B, 2C, H, W) and shared codes (B,). No gradient reaches the images.

        Returns two metrics from before the update. ``contrastive_loss`` is in nats. ``contrastive_accuracy`` is the
        share of pairs whose shared code H predicts. ``weight`` is that of a ``Microbatch``.
        """
        logits = self.compare(stacked.detach())
        loss = contrastive_loss(logits, shared)
        self.adam.zero_grad()
        (weight * loss).backward()
        self.adam.step()
        accuracy = (logits.argmax(1) == shared).float().mean()
        return {"contrastive_loss": loss, "contrastive_accuracy": accuracy}

    def loss(self, stacked: Tensor, shared: Tensor) -> Tensor:
        """The weighted cross-entropy for G's loss, a scalar in nats, with H frozen."""
        with frozen(self.discriminator):
            return self.config.weight * contrastive_loss(self.discriminator(stacked), shared)


def contrastive_loss(logits: Tensor, shared: Tensor) -> Tensor:
    """L_c = -E log H(shared | x, x') in nats, the mean over pairs, from logits (B, K) (Lin et al. 2020, section 3)."""
    return F.cross_entropy(logits, shared)
