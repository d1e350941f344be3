"""Metrics between generated and real images.

Each metric is also computed between two halves of the real images. This NAME_data is the value of a perfect generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.image_set import ImageSet
from infogan_ray.evaluation.fidelity.classifier import ClassifierConfig, Labelled, load_or_train
from infogan_ray.evaluation.fidelity.inception import Inception
from infogan_ray.evaluation.fidelity.manifolds import NEIGHBOURS
from infogan_ray.evaluation.metrics import FIDELITY, INCEPTION_GROUP, compared
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.rng import seeded_generator


@dataclass(frozen=True)
class FidelityConfig:
    samples: int = 10_000
    """Number of images in each of three sets: generated, real, and other real images. Small data gives smaller sets."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples <= NEIGHBOURS:
            raise UserError(f"quality_samples is {self.samples}; it must be at least {NEIGHBOURS + 1}, best 10000")


def measure_fidelity(
    model: InfoGAN, data: ImageSet, config: FidelityConfig | None = None,
    classifier_config: ClassifierConfig | None = None, say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """The registry's fidelity metrics, on the features of a classifier of the data's labels.

    Each metric also has a value NAME_data between two halves of the real images. The result describes the images and
    the classifier too.

    The classifier learns from one half of the training images. Real images come from the other half, because features
    of images in the classifier's training set lie closer together. Raises UserError for data without labels or with
    too few images.
    """
    config = config or FidelityConfig()
    labelled, rest = split_data(data, config.seed)
    if len(rest) < 2 * (NEIGHBOURS + 1):
        raise UserError(
            f"quality needs {4 * (NEIGHBOURS + 1)} labelled training images or more, best 40,000; {data.name} has "
            f"{len(data.images)}"
        )
    classifier = load_or_train(labelled, classifier_config, say)
    if classifier.is_poor:
        say(
            f"quality: the classifier is right on only {classifier.accuracy:.1%} of held-out images (guessing: "
            f"{classifier.chance:.1%}); its features are poor, and distances on them mean little"
        )
    real, other = two_real_sets(rest, config)
    if len(real) < classifier.network.head.in_features:
        say(
            f"quality: only {len(real):,} images in each set, so distances are overestimated; "
            "compare them with the distances between two halves of the data"
        )
    generated = generate(model, len(real), config.seed)
    found = compared(FIDELITY, *(classifier.features(images) for images in (real, generated, other)))
    return found | {
        "images": len(real), "features": classifier.network.head.in_features,
        "classifier": classifier.fingerprint[:12], "classifier_accuracy": classifier.accuracy,
        "classifier_chance": classifier.chance,
    }  # fmt: skip


def measure_fid(
    model: InfoGAN, images: Tensor, inception: Inception, config: FidelityConfig | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """``fid`` and ``kid`` of a model, against real uint8 images (N, C, H, W).

    Each also has a value NAME_data between two halves of the real images. The result includes the number of images in
    each set and the SHA-256 of the weights. Raises UserError for fewer than four images.
    """
    config = config or FidelityConfig()
    if len(images) < 4:
        raise UserError(f"fid needs four images or more, best 20,000; the data has {len(images)}")
    order = torch.randperm(len(images), generator=seeded_generator(config.seed, "fid"))
    real, other = two_real_sets(images[order[: 2 * config.samples]], config)
    generated = generate(model, len(real), config.seed)
    sets = (("real images", real), ("generated images", generated), ("other real images", other))
    found = [inception.features(part, say, name) for name, part in sets]
    if len(real) < found[0].shape[1]:
        say(
            f"fid: only {len(real):,} images in each set, so FID is overestimated; "
            "compare it with the FID between two halves of the data"
        )
    return {
        **compared(INCEPTION_GROUP, *found), "images": len(real), "weights_sha256": inception.fingerprint,
    }  # fmt: skip


def split_data(data: ImageSet, seed: int) -> tuple[Labelled, Tensor]:
    """The classifier's training and held-out images, and the other half (N/2, C, H, W) of the training images."""
    if data.labels is None or data.test_images is None or data.test_labels is None:
        lacks = "no labels"
        if data.labels is not None:
            lacks = "labels, but no test part" if data.test_images is None else "labels, but none in its test part"
        raise UserError(
            f"quality needs labels to learn features from, and a test part with labels; {data.name} has {lacks}; name "
            "other data by --data, or give --fid FILE with Inception's weights, which needs no labels"
        )
    order = torch.randperm(len(data.images), generator=seeded_generator(seed, "fidelity"))
    train, rest = order.tensor_split(2)
    return Labelled(data.images[train], data.labels[train], data.test_images, data.test_labels), data.images[rest]


def two_real_sets(images: Tensor, config: FidelityConfig) -> tuple[Tensor, Tensor]:
    """Two disjoint sets of at most ``samples`` images each, of equal size."""
    count = min(config.samples, len(images) // 2)
    return images[:count], images[count : 2 * count]


def generate(model: InfoGAN, count: int, seed: int) -> Tensor:
    """uint8 images (count, C, H, W) from the model's generator, which has averaged weights."""
    return model.generate(model.spec.latents.sample(count, seeded_generator(seed, "fidelity", 1)))
