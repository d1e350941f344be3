"""The spread of generated images: how much they differ from each other, compared with real images.

If G makes the same picture again and again (mode collapse), neither the bound nor the clustering error shows it: Q can
recognise every code of such pictures. Distances are Euclidean, between pixels of images that are averaged down to at
most 2 * SIDE - 1 pixels. Shapes: images (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from infogan_ray.data.feeds.memory import to_unit_range
from infogan_ray.evaluation.bound import BATCH, evaluating, no_callback
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import Generator
from infogan_ray.models.rng import seeded_generator
from infogan_ray.models.traversal import to_bytes

IMAGES = 500
SIDE = 32  # images are averaged down by the largest factor that leaves this many pixels


@dataclass(frozen=True)
class Distances:
    """Mean distances between images, in any unit. They are above 0 for ``real``."""

    real: float
    generated: float
    in_category: Mapping[str, float]
    """By categorical code: the mean over categories of the mean distance between generated images of the category."""


@torch.inference_mode()
def distances(
    spec: LatentSpec, generator: Generator, images: Tensor, before_batch: Callable[[], None] = no_callback
) -> Distances | None:
    """The distances in IMAGES generated images from a fixed seed, and in as many of the real uint8 ``images``.

    None if real images do not differ, or if there are fewer than two.
    """
    before_batch()
    order = torch.randperm(len(images), generator=seeded_generator(0, "spread"))
    real = mean_distance(pixels(images[order[:IMAGES]]))
    if not real > 0:
        return None
    device = next(generator.parameters()).device
    latents = spec.sample(IMAGES, seeded_generator(0, "spread", 1, device))
    with evaluating(generator):
        generated = pixels(torch.cat([to_bytes(generator(part)).cpu() for part in latents.split(BATCH)]))
    in_category = {}
    for name, _ in spec.one_hot_items():
        categories = latents[:, spec.columns(name)].argmax(1).cpu()
        found = [mean_distance(generated[categories == category]) for category in categories.unique()]
        known = [value for value in found if value == value]  # a category with one image has no distance
        if known:
            in_category[name] = sum(known) / len(known)
    return Distances(real, mean_distance(generated), in_category)


def pixels(images: Tensor) -> Tensor:
    """float32 (N, D) from uint8 images, averaged down."""
    factor = max(1, min(images.shape[-2:]) // SIDE)
    return F.avg_pool2d(to_unit_range(images), factor).flatten(1)


def mean_distance(rows: Tensor) -> float:
    """The mean Euclidean distance over all pairs of different rows (N, D). NaN for fewer than two rows."""
    if len(rows) < 2:
        return float("nan")
    with torch.autocast(rows.device.type, enabled=False):
        total = torch.cdist(rows.double(), rows.double()).sum()
    return float(total) / (len(rows) * (len(rows) - 1))


def spread(found: Distances) -> float:
    """1 if generated images differ as much as real ones, 0 if they are all the same."""
    return found.generated / found.real


def spread_in_category(found: Distances) -> float:
    """The same among images of one category, for the code with the smallest value. NaN without a categorical code."""
    return min(found.in_category.values(), default=float("nan")) / found.real
