"""What a recognition network says of images whose factors are known: what all scores are computed from.

Shapes: N images, D codes, F factors. Scores compare codes with each other, so each is one number:

- a continuous code is the mean of Q, in units of its prior's standard deviation, as InfoGAN-CR (Lin et al. 2020,
  arXiv:1906.06034) and disentanglement_lib (Locatello et al. 2019, arXiv:1811.12359) take the posterior's mean. They
  have standard priors only; the units keep their thresholds right for other ones;
- a categorical or Bernoulli code is its most probable category. Neither of the two has such codes. k probabilities as
  k codes would all speak of the same factor, and a perfect categorical code would get no gap in MIG or SAP for it. So
  it is one code: bins are its categories, two values differ or do not, and where a column of numbers is needed it is
  one-hot.
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
    """``read`` turns uint8 images (N, C, H, W) into codes (N, D) float64; ``categories`` has each code's number of
    categories, or 0 for a continuous one."""

    names: tuple[str, ...]
    categories: tuple[int, ...]
    read: Callable[[Tensor], np.ndarray]


@dataclass(frozen=True)
class Encoded:
    """Codes (N, D) of images and the classes (N, F) of their factors. Raises UserError for codes that are not finite,
    and for less than two factors, among which there is nothing to disentangle."""

    codes: np.ndarray
    categories: tuple[int, ...]
    classes: np.ndarray
    sizes: tuple[int, ...]
    ordered: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) < 2:
            raise UserError(f"disentanglement needs two factors or more; there is {len(self.sizes)}")
        if not np.isfinite(self.codes).all():
            raise UserError("the recognition network says NaN or infinity of some images; it cannot be measured")

    def columns(self, code: int) -> np.ndarray:
        """A code as numbers: itself (N, 1), or one-hot (N, k)."""
        values = self.codes[:, code]
        return np.eye(self.categories[code])[values.astype(int)] if self.categories[code] else values[:, None]


def of_model(model: InfoGAN) -> Representation:
    """The codes of a trained model. Images of another size or channel count are brought to the model's."""
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
