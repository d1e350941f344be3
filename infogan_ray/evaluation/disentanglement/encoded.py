"""Q's codes of images with known factors. All disentanglement scores are computed from these.

Shapes: N images, D codes, F factors. Scores compare codes, so each code of an image is one number:

- A continuous code is the mean of Q, divided by the standard deviation of its prior. InfoGAN-CR (Lin et al. 2020,
  arXiv:1906.06034) and disentanglement_lib (Locatello et al. 2019, arXiv:1811.12359) also use the posterior's mean.
  They have standard priors only; the division keeps their thresholds valid for other priors.
- A categorical or Bernoulli code is its most probable category. The two papers have no discrete codes. If the k
  probabilities were k codes, all would describe the same factor, and a perfect code would have no gap in MIG or SAP.
  So it counts as one code. Its categories are the bins, two values are either equal or different, and a predictor gets
  it as one-hot columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.datasets import DataConfig, fit
from infogan_ray.data.image_set import ImageSet
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.recognition import recognise


@dataclass(frozen=True)
class Representation:
    """``read`` computes codes (N, D) float64 of uint8 images (N, C, H, W).

    ``categories``: the number of categories of each code, 0 for a continuous one.
    """

    names: tuple[str, ...]
    categories: tuple[int, ...]
    read: Callable[[Tensor], np.ndarray]


@dataclass(frozen=True)
class Encoded:
    """Codes (N, D) of images, and the classes (N, F) of their factors.

    Raises UserError for codes that are not finite, and for fewer than two factors.
    """

    codes: np.ndarray
    categories: tuple[int, ...]
    """The number of categories of each code, 0 for a continuous one."""
    classes: np.ndarray
    sizes: tuple[int, ...]
    """The number of classes of each factor."""
    ordered: tuple[bool, ...]
    """Whether the classes of each factor have an order."""

    def __post_init__(self) -> None:
        if len(self.sizes) < 2:
            raise UserError(f"disentanglement needs two factors or more; there is {len(self.sizes)}")
        if not np.isfinite(self.codes).all():
            raise UserError("the recognition network predicts NaN or infinity for some images; it cannot be measured")

    def columns(self, code: int) -> np.ndarray:
        """A code as input columns for a predictor: a continuous one (N, 1), a discrete one as one-hot (N, k)."""
        values = self.codes[:, code]
        return np.eye(self.categories[code])[values.astype(int)] if self.categories[code] else values[:, None]


def model_representation(model: InfoGAN) -> Representation:
    """The codes of a trained model. Images are converted to the model's size and channel count."""
    spec = model.spec
    config = DataConfig(None, spec.image_size, spec.channels)

    def read(images: Tensor) -> np.ndarray:
        q = recognise(model.discriminator, fit(ImageSet("factors", images), config).images)
        columns = []
        for name, part in spec.latents.split_q(q).items():
            code = spec.latents[name]
            columns.append(code.estimate(part, spec.latents.sigma).numpy() / code.deviation)
        return np.stack(columns, 1).astype(np.float64)

    sizes = tuple(code.categories or 0 for code in spec.latents.codes)
    return Representation(spec.latents.names, sizes, read)
