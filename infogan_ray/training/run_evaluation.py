"""Measurements and pictures at each checkpoint, and of the best checkpoint at the end. No files, no Ray."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from infogan_ray.data.image_set import ImageSet
from infogan_ray.evaluation.bound import no_callback
from infogan_ray.evaluation.clustering import why_not_measured
from infogan_ray.evaluation.measure import (
    measure_bound,
    measure_clustering,
    measure_image_quality,
    measure_sorting,
    measure_spread,
)
from infogan_ray.evaluation.metrics import SORTING, is_in_group
from infogan_ray.evaluation.texts import NOT_MEASURED
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import Discriminator
from infogan_ray.models.precision import autocast, resolve_precision
from infogan_ray.models.traversal import draw, png, tile, to_bytes, traverse
from infogan_ray.storage.run_directory import RunDirectory, sample_picture_name, traversal_picture_name
from infogan_ray.training.config import RunConfig
from infogan_ray.training.train_state import TrainState

MOST_UNLIKE = 0.1  # total variation distance between the classes of the first images and of all


def evaluate_state(
    state: TrainState, images: ImageSet, config: RunConfig, before_batch: Callable[[], None]
) -> dict[str, Any]:
    """The bound on newly sampled codes, and agreement with ``evaluation.labelled`` labels if there are any.

    Also the scores of ``measure_sorting``, if ``evaluation.sorting`` is on or the run's metric is one of them.
    ``before_batch`` is called before each batch, and may raise to stop the evaluation.
    """
    latents, generator = state.spec.latents, state.averaged_generator()
    with state.autocast():  # bf16 halves the time. The end of the run measures the best checkpoint again in fp32.
        metrics: dict[str, Any] = measure_bound(
            latents, generator, state.discriminator, config.evaluation, before_batch
        )
        metrics |= measure_spread(latents, generator, state.discriminator, images.images, before_batch)
        if config.evaluation.sorting or is_in_group(config.metric, SORTING):
            metrics |= measure_sorting(latents, state.discriminator, images.images, before_batch)[0]
        metrics |= measure_agreement(
            latents, state.discriminator, images, before_batch, limit=config.evaluation.labelled
        )
    return metrics


def evaluate_checkpoint(
    model: InfoGAN, images: ImageSet, config: RunConfig, device: torch.device, before_batch: Callable[[], None]
) -> dict[str, Any]:  # fmt: skip
    """A checkpoint's bound, image quality, sorting of real images, and agreement with labels if there are any.

    Everything runs in fp32, as in ``infogan evaluate``, with one exception. Q's categories of training images, which
    give each category its label, are computed in the precision of training. ``categories`` has, by code, Q's
    categories of a fixed sample of real images. It serves to compare models.
    """
    latents, generator, discriminator = model.spec.latents, model.generator.to(device), model.discriminator.to(device)
    metrics: dict[str, Any] = measure_bound(latents, generator, discriminator, config.evaluation, before_batch)
    metrics |= measure_image_quality(latents, generator, images.images, before_batch)
    metrics |= measure_spread(latents, generator, discriminator, images.images, before_batch)
    scores, categories = measure_sorting(latents, discriminator, images.images, before_batch)
    metrics |= {**scores, "categories": categories}
    training = autocast(device, resolve_precision(config.precision, device))
    return metrics | measure_agreement(latents, discriminator, images, before_batch, training_precision=training)


def measure_agreement(
    latents: LatentSpec, discriminator: Discriminator, images: ImageSet,
    before_batch: Callable[[], None] = no_callback, *,
    limit: int | None = None, training_precision: AbstractContextManager[Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """``measure_clustering`` with at most ``limit`` training labels, and the class names if known.

    Empty without labels. If agreement is undefined, the result has only the reason, ``clustering_not_measured``.
    ``training_precision`` is the context for the categories of training images.
    """
    if reason := why_not_measured(images):
        return {NOT_MEASURED: reason}
    if images.labels is None or images.test_images is None or images.test_labels is None:
        return {}
    rows = labelled_rows(images.labels, limit)
    metrics = measure_clustering(
        latents, discriminator, images.images[rows], images.labels[rows], images.test_images, images.test_labels,
        before_batch, training_precision,
    )  # fmt: skip
    if metrics and images.classes is not None:
        metrics["classes"] = list(images.classes)
    return metrics


def labelled_rows(labels: Tensor, limit: int | None) -> Tensor | slice:
    """The rows of at most ``limit`` labels (N,): the first ones if they resemble all, else at equal distances.

    The images of a folder come class by class, so the first ones may have only a few of the classes.
    """
    if limit is None or limit >= len(labels):
        return slice(None)
    classes = int(labels.max()) + 1
    first, whole = (part.bincount(minlength=classes) / len(part) for part in (labels[:limit], labels))
    if (first - whole).abs().sum() / 2 <= MOST_UNLIKE:
        return slice(limit)
    return torch.arange(limit) * len(labels) // limit


def render_pictures(state: TrainState, run: RunDirectory) -> dict[tuple[str, str], bytes]:
    """PNG files by (folder name, file name): 64 samples, and one traversal per code."""
    generator, latents = state.averaged_generator(), state.spec.latents
    with torch.inference_mode():
        inputs = latents.sample(64, torch.Generator(state.device).manual_seed(0))
        samples = tile(to_bytes(generator(inputs)).cpu(), columns=8, scale=2)
    pictures = {(run.samples.name, sample_picture_name(state.step)): png(samples)}
    for name in latents.names:
        picture = draw(traverse(latents, generator, name))
        pictures[run.traversals.name, traversal_picture_name(state.step, name)] = png(picture)
    return pictures
