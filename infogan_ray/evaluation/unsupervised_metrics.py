"""Metrics that see no labels: how well Q sorts real images, and how far models agree on it.

The bound says how well Q reads generated images. It does not say how Q reads real ones. These metrics do, for
categorical codes. tests/evaluation/test_unsupervised_metrics.py has cases with known answers; docs/selection.md says
how far each agrees with the clustering error over real searches.
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
SIDE = 16  # neighbours are looked for in images brought to about this size
DEGREES, SCALE, SHIFT = 10.0, 0.1, 0.06  # of the copies that Q should sort as the original; shift in widths


@dataclass(frozen=True)
class Sorting:
    """What Q makes of N real images by one categorical code."""

    code: Prior
    logits: Tensor
    """(N, k)"""
    copies: Tensor
    """(N,) the category of a slightly turned, scaled and moved copy of each image."""
    nearest: Tensor
    """(N,) index of the other image that looks most like each image."""

    @property
    def categories(self) -> Tensor:
        """(N,)"""
        return self.logits.argmax(1)


@torch.inference_mode()
def sort_real_images(
    spec: LatentSpec, discriminator: Discriminator, images: Tensor, before_batch: Callable[[], None] = no_callback
) -> dict[str, Sorting]:
    """By categorical code; empty without one, or for fewer than two images.

    ``images``: uint8 (N, C, H, W) of the data; the same IMAGES of them for every model.
    """
    codes = list(spec.one_hot_items())
    if not codes or len(images) < 2:
        return {}
    order = torch.randperm(len(images), generator=seeded_generator(0, "sorting"))
    some = images[order[:IMAGES]]
    logits = spec.split_q(recognise(discriminator, some, before_batch))
    copies = spec.split_q(recognise(discriminator, slightly_moved(some), before_batch))
    nearest = nearest_other(some)
    return {name: Sorting(code, logits[name], copies[name].argmax(1), nearest) for name, code in codes}


def q_information(sorting: Sorting) -> float:
    """I(x; c) by Q on real images over H(c), 0 ... 1.

    I is H(mean of Q) - mean of H(Q) in nats (Bridle, Heading & MacKay 1991); H(c) is log k for a uniform prior.
    """
    return share_of_information(sorting.logits.softmax(1), sorting.code)


def q_consistency(sorting: Sorting) -> float:
    """Share of images that keep their category in the copy, beyond chance (Cohen's kappa)."""
    return kappa(sorting.categories, sorting.copies, sorting.code.dim)


def q_neighbours(sorting: Sorting) -> float:
    """Share of images whose nearest other image has the same category, beyond chance (Cohen's kappa)."""
    return kappa(sorting.categories, sorting.categories[sorting.nearest], sorting.code.dim)


def q_score(sorting: Sorting) -> float:
    """The geometric mean of the three, since something fools each of them.

    A confident sorting by chance has all the information; a few coarse categories are consistent and have neighbours.
    """
    return math.prod(score(sorting) for score in (q_information, q_consistency, q_neighbours)) ** (1 / 3)


def share_of_information(q: Tensor, code: Prior) -> float:
    """``information`` of probabilities (N, k) over the entropy of the code's prior, 0 ... 1."""
    return min(max(information(q), 0.0) / code.entropy(), 1.0)


def information(q: Tensor) -> float:
    """I(x; c) in nats of (N, k) probabilities: entropy of their mean less the mean of their entropies."""
    mean = q.mean(0)
    return float(torch.special.entr(mean).sum() - torch.special.entr(q).sum(1).mean())


def kappa(one: Tensor, other: Tensor, k: int) -> float:
    """Agreement of two (N,) sortings beyond chance (Cohen 1960), clipped at 0; 0 if one category has all images."""
    agree = float((one == other).float().mean())
    shares = [torch.bincount(each, minlength=k).double() / len(each) for each in (one, other)]
    chance = float((shares[0] * shares[1]).sum())
    return max(0.0, (agree - chance) / (1 - chance)) if chance < 1 else 0.0


def nearest_other(images: Tensor) -> Tensor:
    """(N,) index of the nearest other image by squared distance of pixels, coarsened to about SIDE pixels."""
    coarse = to_unit_range(images)
    factor = max(1, min(coarse.shape[-2:]) // SIDE)
    flat = functional.avg_pool2d(coarse, factor).flatten(1)
    distances = torch.cdist(flat, flat)
    distances.fill_diagonal_(torch.inf)
    return distances.argmin(1)


def slightly_moved(images: Tensor) -> Tensor:
    """Copies turned by up to DEGREES, scaled by up to SCALE and moved by up to SHIFT, at random with a fixed seed."""
    generator = seeded_generator(0, "moved")
    draws = torch.rand(4, len(images), generator=generator) * 2 - 1
    with torch.autocast("cpu", enabled=False):  # of a measurement in bf16
        return transform(images.float(), affine_maps(draws, DEGREES, SCALE, SHIFT)).round().to(torch.uint8)


def agreement(sortings: Sequence[Mapping[str, Sequence[int]]]) -> list[float | None]:
    """How far each model's sorting of the same images is that of the others: its median NMI with them.

    After ModelCentrality (Lin et al. 2020, "InfoGAN-CR and ModelCentrality"): what several seeds find is in the data,
    and what only one finds is chance. Of two models, the pair of codes that agrees best counts. None for a model
    without a categorical code, and for all where fewer than two models have one.
    """
    able = [number for number, codes in enumerate(sortings) if codes]
    between: dict[tuple[int, int], float] = {}
    for number in able:
        for other in able:
            if number < other:
                pairs = [nmi(one, two) for one in sortings[number].values() for two in sortings[other].values()]
                between[number, other] = between[other, number] = max(pairs)
    result: list[float | None] = [None] * len(sortings)
    for number in able:
        if len(able) > 1:
            result[number] = float(np.median([between[number, other] for other in able if other != number]))
    return result


def nmi(one: Sequence[int], other: Sequence[int]) -> float:
    """Normalised mutual information of two sortings of the same images; 0 if one of them has a single category.

    It has a ceiling below 1 where the two use different numbers of categories.
    """
    if len(one) != len(other):
        raise UserError(f"sortings of {len(one)} and {len(other)} images do not compare")
    if len(set(one)) < 2 or len(set(other)) < 2:
        return 0.0
    table = contingency(np.asarray(one), np.asarray(other), max(one) + 1, max(other) + 1)
    return normalised_mutual_information(table)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, with mean ranks for equals; NaN for fewer than two or where all are equal."""
    first, second = (_ranks(np.asarray(values, dtype=float)) for values in (one, other))
    if len(first) < 2 or first.std() == 0 or second.std() == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])
