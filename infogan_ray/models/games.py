"""The adversarial games: the losses of D and of G, as pure functions of D's logits.

To add a game, add a class and an entry of ``GAMES``. All losses are in nats, means over the batch, and computed from
logits by softplus, so that large logits give no infinities. Shapes: B this rank's rows of the global batch.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import torch.nn.functional as F
from torch import Tensor

GameName = Literal["logistic", "relativistic"]


class Game(Protocol):
    """V_GAN(D, G) of Chen et al. 2016 (arXiv:1606.03657, equation 1), or another game in its place."""

    needs_real_in_g_step: bool
    """Whether G's loss depends on D's logits for real images."""
    needs_penalties: bool
    """Whether it converges only with R1 and R2 (``stability.r1``, ``stability.r2``)."""

    def discriminator_loss(self, real: Tensor, generated: Tensor, smoothing: float = 0.0) -> Tensor:
        """D's loss, a scalar in nats, from logits (B,). With ``smoothing``, the target of "real" is 1 - smoothing."""
        ...

    def generator_loss(self, real: Tensor | None, generated: Tensor) -> Tensor:
        """G's loss, a scalar in nats, from logits (B,). ``real`` may be None unless ``needs_real_in_g_step``."""
        ...

    def decisions(self, real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
        """Two tensors (B,): D's logits of "real" for real images and for generated images."""
        ...


class Logistic:
    """D classifies each image alone (Goodfellow et al. 2014, arXiv:1406.2661)."""

    needs_real_in_g_step = needs_penalties = False

    def discriminator_loss(self, real: Tensor, generated: Tensor, smoothing: float = 0.0) -> Tensor:
        """-E log D(x) - E log(1 - D(G(z, c))), equation 1 of the paper.

        With ``smoothing``, the target t of real images is 1 - smoothing, and that of generated images stays 0 (Salimans
        et al. 2016, arXiv:1606.03498, section 3.4). For a logit l, -t log D - (1 - t) log(1 - D) = softplus(-l) +
        (1 - t) l.
        """
        loss = F.softplus(-real).mean() + F.softplus(generated).mean()
        return loss + smoothing * real.mean() if smoothing else loss

    def generator_loss(self, real: Tensor | None, generated: Tensor) -> Tensor:
        """-E log D(G(z, c)): the non-saturating form (section 3 of the paper)."""
        return F.softplus(-generated).mean()

    def decisions(self, real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
        return real, generated


class Relativistic:
    """D compares each real image with one generated image (Jolicoeur-Martineau 2018, arXiv:1807.00734).

    The logit of "x is real, and not G(z, c)" is D(x) - D(G(z, c)). The pairs are the rows of the batch: real image i
    and generated image i. Sun et al. 2020 (arXiv:2011.04926) show that this game has no bad local minima in which G
    leaves out modes of the data. Huang et al. 2024 (R3GAN, arXiv:2501.05441, section 2) show that it converges with
    R1 and R2.
    """

    needs_real_in_g_step = needs_penalties = True

    def discriminator_loss(self, real: Tensor, generated: Tensor, smoothing: float = 0.0) -> Tensor:
        """E softplus(D(G(z, c)) - D(x)). With ``smoothing``, the target of each pair is 1 - smoothing."""
        margins = real - generated
        loss = F.softplus(-margins).mean()
        return loss + smoothing * margins.mean() if smoothing else loss

    def generator_loss(self, real: Tensor | None, generated: Tensor) -> Tensor:
        """E softplus(D(x) - D(G(z, c)))."""
        assert real is not None
        return F.softplus(real - generated).mean()

    def decisions(self, real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
        return real - generated, generated - real


GAMES: dict[GameName, Game] = {"logistic": Logistic(), "relativistic": Relativistic()}
assert set(GAMES) == set(get_args(GameName))
