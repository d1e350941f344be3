"""Compute the registry's metrics for a model. Results are dictionaries of values by metric name.

Shapes: uint8 images (N, C, H, W). Bounds are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from infogan_ray.data.labels import is_unbalanced
from infogan_ray.evaluation.bound import EvaluationConfig, bound_by_code, no_callback
from infogan_ray.evaluation.clustering import count_categories, one_category_error
from infogan_ray.evaluation.metrics import (
    BOUND,
    LABELLED,
    ONE_CATEGORY_ERROR,
    QUALITY,
    SORTING,
    SPREAD,
    USAGE,
    compared,
    values_of,
)
from infogan_ray.evaluation.sliced_wasserstein import images_to_compare
from infogan_ray.evaluation.spread import distances
from infogan_ray.evaluation.unsupervised_metrics import q_score, sort_real_images
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import Discriminator, Generator


def measure_bound(
    spec: LatentSpec, generator: Generator, discriminator: Discriminator, config: EvaluationConfig,
    before_batch: Callable[[], None] = no_callback,
) -> dict[str, float]:  # fmt: skip
    """The metrics of the bound, and ``mi/<code>`` in nats, on codes sampled with a fixed seed."""
    bounds = bound_by_code(spec, generator, discriminator, config, before_batch)
    return values_of(BOUND, spec, bounds) | {f"mi/{name}": bound for name, bound in bounds.items()}


def measure_clustering(
    spec: LatentSpec, discriminator: Discriminator,
    images: Tensor, labels: Tensor, test_images: Tensor, test_labels: Tensor,
    before_batch: Callable[[], None] = no_callback, training_precision: AbstractContextManager[Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The metrics that compare categories with labels. Empty without a categorical code.

    The result also has ``clustering_code``, the code's name, and ``confusion``, the counts of test images by category
    and label. For unbalanced labels it has ``one_category_error``, the error of one category for everything. For the
    arguments see ``count_categories``.
    """
    counts = count_categories(
        spec, discriminator, images, labels, test_images, test_labels, before_batch, training_precision
    )
    if counts is None:
        return {}
    of_label = counts.test.sum(0)
    baseline = {}
    if is_unbalanced(of_label[of_label > 0].tolist()):
        baseline = {ONE_CATEGORY_ERROR: one_category_error(counts.train, counts.test)}
    return {
        "clustering_code": counts.code, **values_of(LABELLED, counts), **baseline, "confusion": counts.test.tolist(),
    }  # fmt: skip


def measure_sorting(
    spec: LatentSpec, discriminator: Discriminator, images: Tensor, before_batch: Callable[[], None] = no_callback
) -> tuple[dict[str, float], dict[str, list[int]]]:
    """Two dictionaries: the sorting metrics of the best categorical code, and the categories of each image by code.

    Both are empty without a categorical code.
    """
    sortings = sort_real_images(spec, discriminator, images, before_batch)
    if not sortings:
        return {}, {}
    best = max(sortings.values(), key=q_score)
    categories = {name: sorting.categories.tolist() for name, sorting in sortings.items()}
    return values_of(SORTING, best) | values_of(USAGE, best), categories


def measure_spread(
    spec: LatentSpec, generator: Generator, discriminator: Discriminator, images: Tensor,
    before_batch: Callable[[], None] = no_callback,
) -> dict[str, float]:  # fmt: skip
    """The spread of generated images, compared with real ones. Empty if no two real images differ."""
    found = distances(spec, generator, discriminator, images, before_batch)
    return {} if found is None else {n: value for n, value in values_of(SPREAD, found).items() if not math.isnan(value)}


def measure_image_quality(
    spec: LatentSpec, generator: Generator, images: Tensor, before_batch: Callable[[], None] = no_callback
) -> dict[str, float]:
    """The metrics between generated and real images. NAME_data is the same between two halves of the real images.

    Empty for fewer than two images.
    """
    before_batch()
    sets = images_to_compare(spec, generator, images)
    return {} if sets is None else compared(QUALITY, *sets)
