"""Generated images against real ones. Each metric is also taken of two halves of the real ones: what is good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.image_set import ImageSet
from infogan_ray.evaluation.fidelity.classifier import ClassifierConfig, Labelled, classifier_of
from infogan_ray.evaluation.fidelity.inception import Inception
from infogan_ray.evaluation.fidelity.manifolds import NEIGHBOURS
from infogan_ray.evaluation.metrics import FIDELITY, INCEPTION_GROUP, compared
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.rng import seeded_generator


@dataclass(frozen=True)
class FidelityConfig:
    samples: int = 10_000
    """Images of each kind: generated, real and other real ones; fewer where the data has fewer."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples <= NEIGHBOURS:
            raise UserError(f"quality_samples is {self.samples}; take {NEIGHBOURS + 1} or more, best 10000")


def measure_fidelity(
    model: InfoGAN, data: ImageSet, config: FidelityConfig | None = None,
    classifier: ClassifierConfig | None = None, say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """The registry's metrics of fidelity on the features of a classifier of the data's labels, each with ``_data`` for
    two halves of the real images; and what they were measured on.

    The classifier learns from one half of the training images, and real images are taken from the other half. It has
    seen neither these nor the generated ones: features of images that it learned from lie closer together. Raises
    UserError for data without labels or with too few images.
    """
    config = config or FidelityConfig()
    labelled, rest = divide(data, config.seed)
    if len(rest) < 2 * (NEIGHBOURS + 1):
        raise UserError(
            f"quality needs {4 * (NEIGHBOURS + 1)} labelled training images or more, best 40,000; {data.name} has "
            f"{len(data.images)}"
        )
    judge = classifier_of(labelled, classifier, say)
    if judge.poor:
        say(
            f"quality: the classifier is right on {judge.accuracy:.1%} of held-out images only, and guessing on "
            f"{judge.chance:.1%}: its features hardly know these labels, and the distances on them say little"
        )
    real, other = take(rest, config)
    if len(real) < judge.network.head.in_features:
        say(f"quality: only {len(real):,} images of each kind; distances are overestimated, see those of the data")
    generated = generate(model, len(real), config.seed)
    found = compared(FIDELITY, *(judge.features(images) for images in (real, generated, other)))
    return found | {
        "images": len(real), "features": judge.network.head.in_features, "classifier": judge.fingerprint[:12],
        "classifier_accuracy": judge.accuracy, "classifier_chance": judge.chance,
    }  # fmt: skip


def measure_fid(
    model: InfoGAN, images: Tensor, inception: Inception, config: FidelityConfig | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """``fid`` and ``kid``, each with ``_data`` for two halves of the real uint8 images (N, C, H, W); how many of each
    kind, and the SHA-256 of the weights. Raises UserError for fewer than four images."""
    config = config or FidelityConfig()
    if len(images) < 4:
        raise UserError(f"fid needs four images or more, best 20,000; the data has {len(images)}")
    order = torch.randperm(len(images), generator=seeded_generator(config.seed, "fid"))
    real, other = take(images[order[: 2 * config.samples]], config)
    generated = generate(model, len(real), config.seed)
    kinds = (("real images", real), ("generated images", generated), ("other real images", other))
    found = [inception.features(part, say, what) for what, part in kinds]
    if len(real) < found[0].shape[1]:
        say(f"fid: only {len(real):,} images of each kind; FID is overestimated, see that of the data")
    return {
        **compared(INCEPTION_GROUP, *found), "images": len(real), "weights_sha256": inception.fingerprint,
    }  # fmt: skip


def divide(data: ImageSet, seed: int) -> tuple[Labelled, Tensor]:
    """What the classifier learns from and is judged on, and the training images (N/2, C, H, W) that it does not see."""
    if data.labels is None or data.test_images is None or data.test_labels is None:
        raise UserError(
            f"quality needs labels to learn features from, and {data.name} has none; name data that has with --data, "
            "or give --fid FILE with Inception's weights, which need none"
        )
    order = torch.randperm(len(data.images), generator=seeded_generator(seed, "fidelity"))
    learn, rest = order.tensor_split(2)
    return Labelled(data.images[learn], data.labels[learn], data.test_images, data.test_labels), data.images[rest]


def take(images: Tensor, config: FidelityConfig) -> tuple[Tensor, Tensor]:
    """Two sets of different images, ``samples`` in each or half of what there is."""
    count = min(config.samples, len(images) // 2)
    return images[:count], images[count : 2 * count]


def generate(model: InfoGAN, count: int, seed: int) -> Tensor:
    """uint8 (count, C, H, W) of the averaged generator, which is the one that a model holds."""
    return model.generate(model.spec.latents.sample(count, seeded_generator(seed, "fidelity", 1)))
