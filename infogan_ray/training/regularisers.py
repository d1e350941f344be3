"""Regularisers of adversarial training: R1 and R2, instance noise, label smoothing, warm-up and G's initial bias.

All are off by default. Augmentation in front of D is in ``d_augmentation.py``, spectral normalisation in
``models/spectral_norm.py``, restarts of dead categories in ``category_restarts.py``, re-splits in
``category_splits.py``. docs/research/experiments.md compares them.
Shapes: B this rank's rows of the global batch, images (B, C, H, W) in [-1, 1], D's logits (B,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.models.convolutions import no_weight_gradients
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.precision import widen
from infogan_ray.training.d_augmentation import parse

MAX_MEAN = 0.95  # of pixels in [-1, 1]


@dataclass(frozen=True)
class StabilityConfig:
    """Regularisers against mode collapse and oscillation. (For spectral normalisation see network.spectral_norm.)"""

    r1: float = 0.0
    """Weight gamma of R1, the penalty on D's gradient at real images. 0.1 to 0.5 is usual for the relativistic game,
    and 1 to 10 for the logistic one."""
    r2: float = 0.0
    """Weight gamma of R2, the same penalty at generated images. The relativistic game needs both."""
    r1_every: int = 1
    """Steps between two steps with R1 and R2, which are multiplied by this number. 16 costs little time."""
    instance_noise: float = 0.0
    """Standard deviation, at the first step, of noise on D's input images in training. Images are in [-1, 1]."""
    instance_noise_share: float = 0.5
    """Share of steps at the start of the run in which the noise falls linearly to 0. With 0 it never falls."""
    label_smoothing: float = 0.0
    """D's target for real images is 1 minus this; 0.1 is usual."""
    lambda_warmup: int = 0
    """Steps at the start of the run in which the bound's weights rise linearly from 0."""
    restart_every: int = 0
    """Steps between restarts of dead categories, which Q rarely predicts on real images. A dead category becomes a copy
    of another category."""
    restart_below: float = 0.1
    """A category is dead if Q predicts it less often than this share of its prior probability."""
    resplit_every: int = 0
    """Steps between re-splits, in the first half of the run. A re-split looks for two categories that share two kinds
    of images, and divides their images anew. It assumes that the transformations of consistency, and a shear of
    0.3, do not change the kind."""
    augment_d: str = ""
    """What changes the images that D sees, real and generated alike: any of colour, translation, cutout and flip. Use
    it for fewer than about 10,000 images. G generates unchanged images. With the word adaptive, an image is changed
    with a probability that follows D's accuracy (ADA). Example: 'colour translation'."""
    augment_q: bool = False
    """With augment_d, Q reads the changed images too. Steps are faster, and codes cannot represent the changes."""
    augment_d_target: float = 0.6
    """adaptive: the probability rises while 2 * d_accuracy - 1 is above this, and falls otherwise."""
    augment_d_images: int = 500_000
    """adaptive: images (steps times batch) in which the probability can rise from 0 to 1."""
    mean_bias: bool = False
    """Initialise G so that its first images have the mean of the training images. By default they are grey. Use it for
    images that are mostly background."""

    def __post_init__(self) -> None:
        for name in ("r1", "r2", "instance_noise"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"stability.{name} is {value}; it must be a number of at least 0 (0 is off)")
        parse(self.augment_d)  # raises UserError
        if not 0 < self.augment_d_target < 1:
            raise UserError(
                f"stability.augment_d_target is {self.augment_d_target}; it must lie between 0 and 1, both excluded"
            )
        if self.augment_d_images < 1:
            raise UserError(
                f"stability.augment_d_images is {self.augment_d_images}; it must be a number of images, 1 or more"
            )
        for name, minimum in (("r1_every", 1), ("lambda_warmup", 0), ("restart_every", 0), ("resplit_every", 0)):
            if getattr(self, name) < minimum:
                raise UserError(
                    f"stability.{name} is {getattr(self, name)}; it must be a number of steps, {minimum} or more"
                )
        if not 0 <= self.instance_noise_share <= 1:
            raise UserError(
                f"stability.instance_noise_share is {self.instance_noise_share}; it must lie between 0 and 1"
            )
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"stability.label_smoothing is {self.label_smoothing}; it must be at least 0 and less than 0.5"
            )
        if not 0 < self.restart_below < 1:
            raise UserError(
                f"stability.restart_below is {self.restart_below}; it must lie between 0 and 1, both excluded"
            )

    def warmed(self, lambdas: dict[str, float], step: int) -> dict[str, float]:
        """The bound's weights, by code name, in the step that follows ``step`` finished steps."""
        if step >= self.lambda_warmup:
            return lambdas
        return {name: weight * step / self.lambda_warmup for name, weight in lambdas.items()}

    def noise_at(self, step: int, steps: int) -> float:
        """The noise's standard deviation in the step that follows ``step`` of ``steps`` steps.

        Sønderby et al. 2017 (arXiv:1610.04490, section 3).
        """
        if self.instance_noise_share == 0:
            return self.instance_noise
        return self.instance_noise * max(0.0, 1 - step / (self.instance_noise_share * steps))

    def check_codes(self, spec: LatentSpec) -> None:
        """Raises UserError if restarts are on and the latents have no categorical code."""
        if self.restart_every and not any(code.one_hot for code in spec.codes):
            raise UserError(
                f"stability.restart_every is {self.restart_every}, and codes is '{spec}', without a categorical code; "
                "add one (cat=10), or set stability.restart_every to 0"
            )

    @property
    def d_policies(self) -> tuple[str, ...]:
        """The policies of augment_d."""
        return parse(self.augment_d)[0]

    @property
    def is_adaptive(self) -> bool:
        return parse(self.augment_d)[1]

    @property
    def penalties(self) -> dict[str, float]:
        """The weights of the penalties that are on, by the name of their metric."""
        weights = {"r1_penalty": self.r1, "r2_penalty": self.r2}
        return {name: weight for name, weight in weights.items() if weight}

    def has_penalty(self, step: int) -> bool:
        """Whether the step that follows ``step`` finished steps has the penalties R1 and R2."""
        return bool(self.penalties) and step % self.r1_every == 0


def mean_bias(images: Tensor, has_tanh: bool = True) -> Tensor:
    """The bias (C,) of G's last convolution with which G's images have the mean of uint8 images (N, C, H, W).

    By default, G's first images are grey and nearly equal. D's batch norm has separate statistics for generated images.
    It removes their common part and amplifies the differences. D then recognises them, and its gradient does not make
    them darker. On ``shapes`` two of three seeds stayed in this state. The mean is clamped to MAX_MEAN, since near 1
    the gradient of tanh is too small to change the bias.
    """
    assert len(images), "there are no images"
    # In parts of 500 images, since the sum needs 8 bytes of memory for each byte of the images.
    total = torch.stack([part.sum(dim=(0, 2, 3), dtype=torch.int64) for part in images.split(500)]).sum(0)
    mean = total.double() / (images.numel() // images.shape[1]) / 127.5 - 1
    return (mean.clamp(-MAX_MEAN, MAX_MEAN).atanh() if has_tanh else mean).float()


def gradient_penalties(
    config: StabilityConfig, signs: Tensor | None, logits: Tensor, images: Tensor
) -> dict[str, Tensor]:
    """R1 and R2, scalars by the name of their metric. A penalty that is off is left out.

    R1 = gamma / 2 * E |grad D(x)|^2 over real images x, and R2 the same over generated images (Mescheder et al. 2018,
    arXiv:1801.04406, equation 9). D(x) is the logit, as in the paper. ``images`` (2B, C, H, W) require a gradient, and
    ``logits`` (2B,) are theirs: B rows for real images, then B rows for generated images. Every ``r1_every``-th step
    has the penalties times ``r1_every``. Other steps have no signs and penalties of 0. The mean over steps is then the
    same (Karras et al. 2020, arXiv:1912.04958, appendix B).

    ``signs`` (2B,) are -1 or 1 at random, and 0 for images whose penalty is off. Without batch norm the choice between
    -1 and 1 has no effect, since an image changes only its own logit. With batch norm, an image changes all logits
    through the statistics. These changes cancel in a plain sum of logits: after a last batch norm and a linear head the
    sum is constant. With signs, the expectation is the sum of all squared derivatives of all logits, divided by B
    (Hutchinson's estimate of the Jacobian's squared norm).
    """
    if signs is None:
        return {name: logits.new_zeros(()) for name in config.penalties}
    with no_weight_gradients():
        (gradients,) = torch.autograd.grad((signs * logits).sum(), images, create_graph=True)
    real, generated = widen(gradients).square().flatten(1).sum(1).chunk(2)
    squares = {"r1_penalty": real.mean(), "r2_penalty": generated.mean()}
    return {name: config.r1_every * weight / 2 * squares[name] for name, weight in config.penalties.items()}
