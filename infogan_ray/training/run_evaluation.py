"""Measurements and pictures of a run: at each checkpoint, and of its best one in the end. No files, no Ray."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from infogan_ray.data.image_set import ImageSet
from infogan_ray.evaluation.bound import no_callback
from infogan_ray.evaluation.measure import measure_bound, measure_clustering, measure_image_quality, measure_sorting
from infogan_ray.evaluation.metrics import SORTING, is_in_group
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import Discriminator
from infogan_ray.models.precision import autocast, resolve_precision
from infogan_ray.models.traversal import draw, png, tile, to_bytes, traverse
from infogan_ray.storage.run_directory import RunDirectory, sample_picture_name, traversal_picture_name
from infogan_ray.training.config import RunConfig
from infogan_ray.training.train_state import TrainState


def evaluate_state(state: TrainState, images: ImageSet, config: RunConfig, each: Callable[[], None]) -> dict[str, Any]:
    """The bound on fresh codes, and agreement with the first ``evaluation.labelled`` labels where there are any.

    Also how Q sorts real images, where that is asked for (``evaluation.sorting``) or decides which checkpoint is best.
    """
    latents, generator = state.spec.latents, state.averaged_generator()
    with state.autocast():  # takes half the time with bf16; the best checkpoint is measured again in fp32 at the end
        metrics: dict[str, Any] = measure_bound(latents, generator, state.discriminator, config.evaluation, each)
        if config.evaluation.sorting or is_in_group(config.metric, SORTING):
            metrics |= measure_sorting(latents, state.discriminator, images.images, each)[0]
        metrics |= measure_agreement(latents, state.discriminator, images, each, most=config.evaluation.labelled)
    return metrics


def evaluate_checkpoint(
    model: InfoGAN, images: ImageSet, config: RunConfig, device: torch.device, each: Callable[[], None]
) -> dict[str, Any]:  # fmt: skip
    """A saved checkpoint's bound, image quality, sorting of real images, and agreement with labels if there are any.

    All are in fp32, as in ``infogan evaluate``. Only training images, whose labels name the categories, are read in the
    precision of training. ``categories`` has Q's categories of a fixed sample of real images, by code: models are
    compared by it.
    """
    latents, generator, discriminator = model.spec.latents, model.generator.to(device), model.discriminator.to(device)
    metrics: dict[str, Any] = measure_bound(latents, generator, discriminator, config.evaluation, each)
    metrics |= measure_image_quality(latents, generator, images.images, each)
    scores, categories = measure_sorting(latents, discriminator, images.images, each)
    metrics |= {**scores, "categories": categories}
    in_training = autocast(device, resolve_precision(config.precision, device))
    return metrics | measure_agreement(latents, discriminator, images, each, naming=in_training)


def measure_agreement(
    latents: LatentSpec, discriminator: Discriminator, images: ImageSet, each: Callable[[], None] = no_callback, *,
    most: int | None = None, naming: AbstractContextManager[Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """``measure_clustering`` with at most ``most`` labels, and the classes' names if known; empty without labels."""
    if images.labels is None or images.test_images is None or images.test_labels is None:
        return {}
    found = measure_clustering(
        latents, discriminator, images.images[:most], images.labels[:most], images.test_images, images.test_labels,
        each, naming,
    )  # fmt: skip
    if found and images.classes is not None:
        found["classes"] = list(images.classes)
    return found


def draw_pictures(state: TrainState, run: RunDirectory) -> dict[tuple[str, str], bytes]:
    """PNG files by folder and file name: samples, and one traversal per code."""
    generator, latents = state.averaged_generator(), state.spec.latents
    with torch.inference_mode():
        draws = latents.sample(64, torch.Generator(state.device).manual_seed(0))
        samples = tile(to_bytes(generator(draws)).cpu(), columns=8, scale=2)
    pictures = {(run.samples.name, sample_picture_name(state.step)): png(samples)}
    for name in latents.names:
        picture = draw(traverse(latents, generator, name))
        pictures[run.traversals.name, traversal_picture_name(state.step, name)] = png(picture)
    return pictures
