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
from infogan_ray.models.networks import Discriminator, Generator
from infogan_ray.models.recognition import recognise
from infogan_ray.models.rng import seeded_generator
from infogan_ray.models.traversal import to_bytes

IMAGES, FEATURES = 500, 2000
SIDE = 32  # images are averaged down by the largest factor that leaves this many pixels


@dataclass(frozen=True)
class Distances:
    """Mean distances between images, in any unit. ``real`` is above 0."""

    real: float
    generated: float
    in_category: Mapping[str, tuple[float, float]]
    """By categorical code: the mean distance in a category, between real images and between generated images.

    Q decides the categories of real images. Only categories with real images are compared. Where all images of a kind
    look alike, both distances are small, so this is no collapse.
    """


@torch.inference_mode()
def distances(
    spec: LatentSpec, generator: Generator, discriminator: Discriminator, images: Tensor,
    before_batch: Callable[[], None] = no_callback,
) -> Distances | None:  # fmt: skip
    """The distances in IMAGES generated images from a fixed seed, and in as many of the real uint8 ``images``.

    None if real images do not differ, or if there are fewer than two.
    """
    order = torch.randperm(len(images), generator=seeded_generator(0, "spread"))
    chosen = images[order[:IMAGES]]
    real = pixels(chosen)
    if not (distance := mean_distance(real)) > 0:
        return None
    codes = [name for name, _ in spec.one_hot_items()]
    recognised = spec.split_q(recognise(discriminator, chosen, before_batch)) if codes else {}
    device = next(generator.parameters()).device
    latents = spec.sample(IMAGES, seeded_generator(0, "spread", 1, device))
    with evaluating(generator):
        generated = pixels(torch.cat([to_bytes(generator(part)).cpu() for part in latents.split(BATCH)]))
    in_category = {}
    for name in codes:
        real_distances = distances_in(real, recognised[name].argmax(1))
        generated_distances = distances_in(generated, latents[:, spec.columns(name)].argmax(1).cpu())
        if shared := real_distances.keys() & generated_distances.keys():
            means = (sum(found[c] for c in shared) / len(shared) for found in (real_distances, generated_distances))
            in_category[name] = (next(means), next(means))
    return Distances(distance, mean_distance(generated), in_category)


def pixels(images: Tensor) -> Tensor:
    """float32 (N, D) from uint8 images, averaged down."""
    factor = max(1, min(images.shape[-2:]) // SIDE)
    return F.avg_pool2d(to_unit_range(images), factor).flatten(1)


def distances_in(rows: Tensor, categories: Tensor) -> dict[int, float]:
    """The mean distance between the rows (N, D) of each category (N,) that has two rows or more."""
    counts = categories.bincount().tolist()
    return {c: mean_distance(rows[categories == c]) for c, count in enumerate(counts) if count > 1}


def feature_spread(real: Tensor, generated: Tensor) -> float:
    """The spread of FEATURES generated images and as many real ones, from their features (N, D) and (M, D)."""
    return mean_distance(generated[:FEATURES]) / mean_distance(real[:FEATURES])


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
    """The same among images of one category, for the code with the smallest value.

    NaN without a categorical code, and if the real images of a category do not differ.
    """
    ratios = [generated / real for real, generated in found.in_category.values() if real > 0]
    return min(ratios, default=float("nan"))
