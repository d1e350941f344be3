"""What a run measures and draws of itself: at each checkpoint, and of its best one in the end. No files, no Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from infogan_ray.config import RunConfig
from infogan_ray.data import ImageSet
from infogan_ray.evaluation import measure_bound, measure_clustering
from infogan_ray.model import InfoGAN
from infogan_ray.precision import autocast, resolve_precision
from infogan_ray.quality import measure_quality
from infogan_ray.runs import RunDirectory, sample_picture, traversal_picture
from infogan_ray.selection import measure_sorting
from infogan_ray.state import TrainState
from infogan_ray.traversal import draw, png, tile, to_bytes, traverse


def evaluate_state(state: TrainState, images: ImageSet, config: RunConfig, each: Callable[[], None]) -> dict[str, Any]:
    """The bound on fresh codes, and agreement with the first ``evaluation.labelled`` labels where there are any.

    How Q sorts real images, too, where that decides something (``evaluation.sorting``).
    """
    latents, generator = state.spec.latents, state.averaged_generator()
    with state.autocast():  # half of the time with bf16; the best checkpoint is measured again in the end, in fp32
        metrics: dict[str, Any] = measure_bound(latents, generator, state.discriminator, config.evaluation, each)
        if config.evaluation.sorting or config.metric == "q_score":
            metrics |= measure_sorting(latents, state.discriminator, images.images, each).scores
        if images.labels is not None and images.test_images is not None and images.test_labels is not None:
            some = config.evaluation.labelled
            metrics |= measure_clustering(
                latents, state.discriminator,
                images.images[:some], images.labels[:some], images.test_images, images.test_labels, each,
            )  # fmt: skip
    return metrics


def evaluate_checkpoint(
    model: InfoGAN, images: ImageSet, config: RunConfig, device: torch.device, each: Callable[[], None]
) -> dict[str, Any]:  # fmt: skip
    """In fp32, as ``infogan evaluate`` does: a saved checkpoint's bound, image quality, sorting of real images, and
    agreement with all labels if there are any. Training images, which name the categories, are read in the precision
    of training.

    ``categories``: what the sorting of a fixed choice of real images is, by code; models are compared by it.
    """
    latents, generator, discriminator = model.spec.latents, model.generator.to(device), model.discriminator.to(device)
    metrics: dict[str, Any] = measure_bound(latents, generator, discriminator, config.evaluation, each)
    metrics |= measure_quality(latents, generator, images.images, each)
    sorting = measure_sorting(latents, discriminator, images.images, each)
    metrics |= {**sorting.scores, "categories": sorting.categories}
    if images.labels is not None and images.test_images is not None and images.test_labels is not None:
        metrics |= measure_clustering(
            latents, discriminator, images.images, images.labels, images.test_images, images.test_labels, each,
            naming=autocast(device, resolve_precision(config.precision, device)),
        )  # fmt: skip
    return metrics


def draw_pictures(state: TrainState, run: RunDirectory) -> dict[tuple[str, str], bytes]:
    """PNG files by folder and file name: samples, and one traversal per code."""
    generator, latents = state.averaged_generator(), state.spec.latents
    with torch.inference_mode():
        draws = latents.sample(64, torch.Generator(state.device).manual_seed(0))
        samples = tile(to_bytes(generator(draws)).cpu(), columns=8, scale=2)
    pictures = {(run.samples.name, sample_picture(state.step)): png(samples)}
    for name in latents.names:
        picture = draw(traverse(latents, generator, name))
        pictures[run.traversals.name, traversal_picture(state.step, name)] = png(picture)
    return pictures
