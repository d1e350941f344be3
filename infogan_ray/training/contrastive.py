"""The contrastive regulariser of InfoGAN-CR: of two images that G draws, a third network is to see what they share.

Lin, Thekumparampil, Fanti and Oh 2020, "InfoGAN-CR and ModelCentrality" (arXiv:1906.06034, section 3). Of a pair of
latents one code, drawn anew for each pair, is the same and the others are not. G makes both images, and H, a network of
its own, says which code it was. H and G both lower its cross-entropy, so that G makes what each code does something of
its own, whatever the others are: the game is min over G, Q, H and max over D of V_GAN - lambda L_I + weight * L_c,
where L_c is the cross-entropy in nats, log K where H is at a loss among K codes.

As in the authors' code (fjxmlzn/InfoGAN-CR): the noise is the same in both images; H learns by an Adam of its own at
D's learning rate; the pairs serve nothing but this term. The gap is theirs ("progressive training"): at first the codes
that are not shared lie far apart, which is easy to see, and later as chance has it. Theirs falls in one step, after
which H begins anew; here it falls linearly, and H continues.

What the paper does not have, since its codes are all uniform:
- a Gaussian code's gap is one of the prior's share between the two values, which for a uniform prior is the paper's;
- a categorical or Bernoulli code has no gap. Where it is not shared its two values always differ, whatever the gap is:
  left to chance they would often be equal, and no H could say which code was shared. With ``discrete`` off such codes
  take no part, and both images have the same value, as they have the same noise.

Shapes: B pairs, L width of a latent, K codes that take part, (B, 2C, H, W) a pair's two images stacked on channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infogan_ray import UserError
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import ModelSpec, frozen, initialise, recognition_head, trunk


@dataclass(frozen=True)
class ContrastiveConfig:
    """The weight of the term, which is off at 0, when it begins, and the gap's course."""

    weight: float = 0.0
    """In G's step, beside the adversarial loss and the bound; the paper's authors take 1 to 3."""
    start: int = 1000
    """Step up to which there are no pairs: G has first to make images in which something can be seen."""
    gap: float = 0.95
    """At the start, the least share of a continuous prior that lies between the two values of a code that is not
    shared: 0.95 is the paper's 1.9 for U(-1, 1)."""
    gap_end: float = 0.0
    """The same in the end."""
    gap_steps: int = 2000
    """Steps from the start over which it falls from the one to the other, linearly."""
    discrete: bool = True
    """Whether categorical and Bernoulli codes take part; if not, both images of a pair have the same value."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise UserError(f"contrastive.weight is {self.weight}; it must be a number of at least 0")
        if not 0 <= self.gap_end <= self.gap < 1:
            raise UserError(
                f"contrastive.gap is {self.gap} and contrastive.gap_end is {self.gap_end}; "
                "0 <= gap_end <= gap < 1 must hold"
            )
        for name, least in (("start", 0), ("gap_steps", 1)):
            if getattr(self, name) < least:
                raise UserError(f"contrastive.{name} is {getattr(self, name)}; it must be at least {least}")

    def codes(self, spec: LatentSpec) -> tuple[str, ...]:
        """The names of the codes that take part. Raises UserError where the term is on and they are less than two."""
        names = tuple(name for name, code in spec.items() if self.discrete or code.categories is None)
        if self.weight and len(names) < 2:
            which = "codes" if self.discrete else "continuous codes (contrastive.discrete is off)"
            raise UserError(
                f"contrastive.weight is {self.weight:g}, which needs two {which} or more, and codes is '{spec}'; "
                f"add some, for example uniform=2, or leave contrastive.weight at 0"
            )
        return names

    def gap_at(self, step: int) -> float:
        """The gap in the step after ``step`` steps."""
        left = 1 - min(1.0, max(0.0, (step - self.start) / self.gap_steps))
        return self.gap_end + (self.gap - self.gap_end) * left


class Pairs(NamedTuple):
    """Latents (B, L) of each pair's two images, and the number of the code that they share, 0 to K - 1, (B,)."""

    first: Tensor
    second: Tensor
    shared: Tensor

    def rows(self, part: slice) -> Pairs:
        return Pairs(self.first[part], self.second[part], self.shared[part])

    def images(self, generate: nn.Module) -> Tensor:
        """(B, 2C, H, W): one pass of G, so that nothing in its batch norm tells the first images from the second."""
        return torch.cat(generate(torch.cat([self.first, self.second])).chunk(2), 1)


def draw_pairs(
    spec: LatentSpec, codes: tuple[str, ...], gap: float | Tensor, n: int, generator: torch.Generator
) -> Pairs:
    """``n`` pairs that share one of ``codes`` each, and besides it the noise and all codes that take no part."""
    shared = torch.randint(len(codes), (n,), generator=generator, device=generator.device)
    first = [spec.sample_noise(n, generator)]
    second = list(first)
    for name, code in spec.items():
        alike, (one, other) = code.sample(n, generator), code.sample_apart(n, gap, generator)
        same = shared == codes.index(name) if name in codes else torch.ones_like(shared, dtype=torch.bool)
        first.append(torch.where(same[:, None], alike, one))
        second.append(torch.where(same[:, None], alike, other))
    return Pairs(torch.cat(first, 1), torch.cat(second, 1), shared)


class PairDiscriminator(nn.Module):
    """H: logits (B, K) of which code the two images of a pair share, from (B, 2C, H, W). D's trunk, and Q's head."""

    def __init__(self, spec: ModelSpec, codes: int) -> None:
        super().__init__()
        self.trunk, features = trunk(spec.image_size, spec.channels, spec.network, images=2)
        self.head = recognition_head(features, codes, spec.network)
        initialise(self)

    def forward(self, stacked: Tensor) -> Tensor:
        return self.head(self.trunk(stacked)).float()


class Contrast:
    """H, its Adam, and what a step does with them. H's weights come from torch's global generator."""

    def __init__(self, spec: ModelSpec, config: ContrastiveConfig, device: torch.device) -> None:
        self.config, self.codes = config, config.codes(spec.latents)
        self.discriminator = PairDiscriminator(spec, len(self.codes)).to(device)
        self.compare: nn.Module = self.discriminator
        """H as it is trained: under several ranks, what averages its gradients."""
        self.adam: torch.optim.Adam
        """H's own, which ``learn`` uses; the training state makes it."""

    def draw(self, spec: LatentSpec, gap: float | Tensor, n: int, generator: torch.Generator) -> Pairs:
        """``n`` pairs; ``spec`` has the priors in use."""
        return draw_pairs(spec, self.codes, gap, n, generator)

    def step(self, pairs: Pairs, generate: nn.Module, weight: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """H learns on pairs that G makes; then what G is to lower, against H as it is now, and ``learn``'s metrics."""
        stacked = pairs.images(generate)
        metrics = self.learn(stacked, pairs.shared, weight)
        return self.term(stacked, pairs.shared), metrics

    def learn(self, stacked: Tensor, shared: Tensor, weight: float = 1.0) -> dict[str, Tensor]:
        """One update of H on pairs of images (B, 2C, H, W), which get no gradient of it, and what they share (B,).

        Returns ``contrastive_loss``, in nats, and ``contrastive_accuracy``, the share of pairs whose shared code is
        named, both from before the update. ``weight`` is a rank's, as in ``train_step``.
        """
        logits = self.compare(stacked.detach())
        loss = contrastive_loss(logits, shared)
        self.adam.zero_grad()
        (weight * loss).backward()
        self.adam.step()
        accuracy = (logits.argmax(1) == shared).float().mean()
        return {"contrastive_loss": loss, "contrastive_accuracy": accuracy}

    def term(self, stacked: Tensor, shared: Tensor) -> Tensor:
        """The weighted cross-entropy of H, which stays as it is."""
        with frozen(self.discriminator):
            return self.config.weight * contrastive_loss(self.discriminator(stacked), shared)


def contrastive_loss(logits: Tensor, shared: Tensor) -> Tensor:
    """-E log H(shared | x, x') in nats, a mean over pairs (the paper's L_c, section 3), from logits (B, K)."""
    return F.cross_entropy(logits, shared)
