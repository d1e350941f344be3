"""Metrics without labels: how well Q sorts real images into categories, and how far models agree on the categories.

The bound measures Q on generated images only. These metrics measure the categorical codes on real images.
tests/evaluation/test_unsupervised_metrics.py has cases with known answers. docs/research/selection.md compares each
metric with the clustering error over real searches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.affine import affine_maps, transform
from infogan_ray.data.feeds.memory import to_unit_range
from infogan_ray.evaluation.bound import no_callback
from infogan_ray.evaluation.clustering import contingency, normalised_mutual_information
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import Discriminator
from infogan_ray.models.priors.base import Prior
from infogan_ray.models.recognition import recognise
from infogan_ray.models.rng import seeded_generator

IMAGES = 2000
SIDE = 16  # nearest neighbours are found in images of about this size
DEGREES, SCALE, SHIFT = 10.0, 0.1, 0.06  # largest transformations that should keep the category; shift in image widths


@dataclass(frozen=True)
class Sorting:
    """Q's outputs for N real images and one categorical code."""

    code: Prior
    logits: Tensor
    """(N, k)"""
    copies: Tensor
    """(N,) the category of a slightly transformed copy of each image."""
    nearest: Tensor
    """(N,) index of the nearest other image of each image."""

    @property
    def categories(self) -> Tensor:
        """(N,)"""
        return self.logits.argmax(1)


@torch.inference_mode()
def sort_real_images(
    spec: LatentSpec, discriminator: Discriminator, images: Tensor, before_batch: Callable[[], None] = no_callback
) -> dict[str, Sorting]:
    """The sorting of each categorical code, by code. Empty without a categorical code or for fewer than two images.

    ``images``: real ones, uint8 (N, C, H, W). Every model uses the same IMAGES of them.
    """
    codes = list(spec.one_hot_items())
    if not codes or len(images) < 2:
        return {}
    order = torch.randperm(len(images), generator=seeded_generator(0, "sorting"))
    subset = images[order[:IMAGES]]
    logits = spec.split_q(recognise(discriminator, subset, before_batch))
    copies = spec.split_q(recognise(discriminator, transformed_copies(subset), before_batch))
    nearest = nearest_other(subset)
    return {name: Sorting(code, logits[name], copies[name].argmax(1), nearest) for name, code in codes}


def q_information(sorting: Sorting) -> float:
    """I(x; c) under Q on real images, divided by H(c); 0 to 1.

    I is H(mean of Q) - mean of H(Q) in nats (Bridle, Heading & MacKay 1991). H(c) is log k for a uniform prior.
    """
    return share_of_information(sorting.logits.softmax(1), sorting.code)


def q_consistency(sorting: Sorting) -> float:
    """Share of images whose copy has the same category, corrected for chance (Cohen's kappa)."""
    return kappa(sorting.categories, sorting.copies, sorting.code.dim)


def q_neighbours(sorting: Sorting) -> float:
    """Share of images whose nearest other image has the same category, corrected for chance (Cohen's kappa)."""
    return kappa(sorting.categories, sorting.categories[sorting.nearest], sorting.code.dim)


def q_score(sorting: Sorting) -> float:
    """The geometric mean of the three metrics, because each alone can be misleading.

    Confident but random categories have high information. A few coarse categories have high consistency and high
    agreement of neighbours.
    """
    return math.prod(score(sorting) for score in (q_information, q_consistency, q_neighbours)) ** (1 / 3)


def share_of_information(q: Tensor, code: Prior) -> float:
    """``information`` of probabilities (N, k) divided by the entropy of the code's prior; 0 to 1."""
    return min(max(information(q), 0.0) / code.entropy(), 1.0)


def information(q: Tensor) -> float:
    """I(x; c) in nats from probabilities (N, k): the entropy of their mean minus the mean of their entropies."""
    mean = q.mean(0)
    return float(torch.special.entr(mean).sum() - torch.special.entr(q).sum(1).mean())


def kappa(first: Tensor, second: Tensor, k: int) -> float:
    """Agreement of two category vectors (N,), corrected for chance (Cohen 1960) and clipped at 0.

    It is 0 if one category has all images.
    """
    agree = float((first == second).float().mean())
    shares = [torch.bincount(each, minlength=k).double() / len(each) for each in (first, second)]
    chance = float((shares[0] * shares[1]).sum())
    return max(0.0, (agree - chance) / (1 - chance)) if chance < 1 else 0.0


def nearest_other(images: Tensor) -> Tensor:
    """(N,) index of the nearest other image, by pixel distance after downsampling to a width of about SIDE."""
    coarse = to_unit_range(images)
    factor = max(1, min(coarse.shape[-2:]) // SIDE)
    flat = functional.avg_pool2d(coarse, factor).flatten(1)
    distances = torch.cdist(flat, flat)
    distances.fill_diagonal_(torch.inf)
    return distances.argmin(1)


def transformed_copies(images: Tensor) -> Tensor:
    """Copies with random rotation up to DEGREES, scaling up to SCALE and shift up to SHIFT. The seed is fixed."""
    generator = seeded_generator(0, "moved")
    uniform = torch.rand(4, len(images), generator=generator) * 2 - 1
    with torch.autocast("cpu", enabled=False):  # the measurement may run in bf16
        return transform(images.float(), affine_maps(uniform, DEGREES, SCALE, SHIFT)).round().to(torch.uint8)


def agreement(sortings: Sequence[Mapping[str, Sequence[int]]]) -> list[float | None]:
    """The median NMI of each model's categories with those of the other models, on the same images.

    This follows ModelCentrality (Lin et al. 2020, "InfoGAN-CR and ModelCentrality"): categories that several seeds
    find are in the data, and categories of only one seed are chance. For two models, the pair of codes with the
    highest NMI is used. The result is None for a model without a categorical code. It is None for all models if fewer
    than two have a categorical code.
    """
    valid = [number for number, codes in enumerate(sortings) if codes]
    between: dict[tuple[int, int], float] = {}
    for number in valid:
        for other in valid:
            if number < other:
                pairs = [nmi(a, b) for a in sortings[number].values() for b in sortings[other].values()]
                between[number, other] = between[other, number] = max(pairs)
    result: list[float | None] = [None] * len(sortings)
    for number in valid:
        if len(valid) > 1:
            result[number] = float(np.median([between[number, other] for other in valid if other != number]))
    return result


def nmi(first: Sequence[int], second: Sequence[int]) -> float:
    """Normalised mutual information of two lists of categories of the same images. 0 if one has a single category.

    The largest possible value is below 1 if the two lists have different numbers of categories.
    """
    if len(first) != len(second):
        raise UserError(f"sortings of {len(first)} and {len(second)} images cannot be compared")
    if len(set(first)) < 2 or len(set(second)) < 2:
        return 0.0
    table = contingency(np.asarray(first), np.asarray(second), max(first) + 1, max(second) + 1)
    return normalised_mutual_information(table)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, with mean ranks for ties. NaN for fewer than two values or if all are equal."""
    first_ranks, second_ranks = (_ranks(np.asarray(values, dtype=float)) for values in (first, second))
    if len(first_ranks) < 2 or first_ranks.std() == 0 or second_ranks.std() == 0:
        return float("nan")
    return float(np.corrcoef(first_ranks, second_ranks)[0, 1])


def _ranks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])
