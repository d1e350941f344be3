"""Agreement between the categories of a code and labels. Training does not use these labels.

Shapes: (N, C, H, W) images; (k, classes) counts of images by category and label. Entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infogan_ray.data.image_set import ImageSet
from infogan_ray.data.progress import counted
from infogan_ray.evaluation.bound import no_callback
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import Discriminator
from infogan_ray.models.recognition import recognise

MOST_NAMED = 3


@dataclass(frozen=True)
class CategoryCounts:
    """Counts (k, classes) of images by category of one code and by label, for the training and the test set."""

    code: str
    train: np.ndarray
    test: np.ndarray


def count_categories(
    spec: LatentSpec, discriminator: Discriminator,
    images: Tensor, labels: Tensor, test_images: Tensor, test_labels: Tensor,
    before_batch: Callable[[], None] = no_callback, training_precision: AbstractContextManager[Any] | None = None,
) -> CategoryCounts | None:  # fmt: skip
    """The counts of the categorical code with the smallest majority error on the training set. None without a code.

    ``training_precision``: a context that is active while Q evaluates training images. These only decide the majority
    label of each category, so autocast is precise enough.
    """
    codes = [name for name, _ in spec.one_hot_items()]
    if not codes:
        return None
    with training_precision or nullcontext():
        train_q = spec.split_q(recognise(discriminator, images, before_batch))
    test_q = spec.split_q(recognise(discriminator, test_images, before_batch))
    truth, test_truth = labels.numpy(), test_labels.numpy()
    classes = int(max(truth.max(), test_truth.max())) + 1
    best, smallest_error = None, float("inf")
    for name in codes:
        k = train_q[name].shape[1]
        train = contingency(train_q[name].argmax(1).numpy(), truth, k, classes)
        test = contingency(test_q[name].argmax(1).numpy(), test_truth, k, classes)
        error = 1 - train.max(1).sum() / train.sum()
        if best is None or error < smallest_error:
            best, smallest_error = CategoryCounts(name, train, test), error
    return best


def contingency(categories: np.ndarray, labels: np.ndarray, k: int, classes: int) -> np.ndarray:
    """(k, classes) counts of images in each category with each label."""
    return np.bincount(categories * classes + labels, minlength=k * classes).reshape(k, classes)


def majority_error(train_table: np.ndarray, test_table: np.ndarray) -> float:
    """Share of test images whose label is not the majority training label of their category.

    A category without training images has the majority label 0.
    """
    correct = test_table[np.arange(len(test_table)), train_table.argmax(1)].sum()
    return float(1 - correct / test_table.sum())


def balanced_error(train_table: np.ndarray, test_table: np.ndarray) -> float:
    """Mean over labels of the share of a label's test images that ``majority_error`` counts as wrong.

    Labels without test images have no share.
    """
    label_of = train_table.argmax(1)
    right = np.array([test_table[label_of == label, label].sum() for label in range(test_table.shape[1])])
    total = test_table.sum(0)
    return float(1 - (right[total > 0] / total[total > 0]).mean())


def one_category_error(train_table: np.ndarray, test_table: np.ndarray) -> float:
    """The majority error of one category for everything."""
    return majority_error(train_table.sum(0, keepdims=True), test_table.sum(0, keepdims=True))


def why_not_measured(images: ImageSet) -> str | None:
    """Why agreement with the labels is undefined. None if it is defined, or without labels in memory.

    It needs two classes, and test images of each class. A class of one image has none, and so does not count if two
    other classes have some: see ``untested_classes``.
    """
    labels, test_labels = images.labels, images.test_labels
    if labels is None or not len(labels):
        return None
    if test_labels is None or not len(test_labels):
        return f"the data has no test part, and none of its {len(labels):,} labelled images is held out"
    classes = torch.cat([labels, test_labels]).unique()
    if len(classes) < 2:
        return f"all {len(labels) + len(test_labels):,} images have the same label"
    missing = _missing(labels, test_labels)
    if all(count == 1 for count in missing.values()) and (not missing or len(classes) - len(missing) > 1):
        return None
    shown = [f"{name} ({missing[label]:,} to train on)" for label, name in _named(missing, images)]
    return (
        f"the test part, {counted(len(test_labels), 'image')}, has none of {len(missing):,} of the {len(classes):,} "
        f"classes: {', '.join(shown)}{_more(missing)}"
    )


def untested_classes(images: ImageSet) -> str | None:
    """What to say of classes of one image, which agreement with the labels does not test. None if there are none."""
    if images.labels is None or images.test_labels is None or why_not_measured(images) is not None:
        return None
    missing = _missing(images.labels, images.test_labels)
    names = ", ".join(name for _, name in _named(missing, images))
    classes = counted(len(missing), "class of one image", "classes of one image each")
    return f"agreement with labels does not test {classes}: {names}{_more(missing)}" if missing else None


def _missing(labels: Tensor, test_labels: Tensor) -> dict[int, int]:
    """The number of training images of each class that has no test image."""
    present = set(test_labels.tolist())
    counts = zip(*(part.tolist() for part in labels.unique(return_counts=True)), strict=True)
    return {label: count for label, count in counts if label not in present}


def _named(missing: dict[int, int], images: ImageSet) -> list[tuple[int, str]]:
    """The first few classes and their names."""
    names = images.classes
    return [(label, str(label) if names is None else " ".join(names[label].split())) for label in missing][:MOST_NAMED]


def _more(missing: dict[int, int]) -> str:
    return f", and {len(missing) - MOST_NAMED:,} more" if len(missing) > MOST_NAMED else ""


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of a distribution given by counts."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def normalised_mutual_information(table: np.ndarray) -> float:
    """I(category; label) divided by the mean of the two entropies (Strehl & Ghosh 2002, arithmetic form)."""
    rows, columns = entropy(table.sum(1)), entropy(table.sum(0))
    mutual = rows + columns - entropy(table.ravel())
    return 1.0 if rows + columns == 0 else float(max(mutual, 0.0) / ((rows + columns) / 2))


def adjusted_rand_index(table: np.ndarray) -> float:
    """Share of image pairs on which categories and labels agree, corrected for chance (Hubert & Arabie 1985)."""

    def pairs(counts: np.ndarray) -> float:
        counts = counts.astype(np.float64)
        return float((counts * (counts - 1) / 2).sum())

    together, rows, columns = pairs(table.ravel()), pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / max(pairs(np.array([table.sum()])), 1.0)
    ceiling = (rows + columns) / 2
    return 1.0 if ceiling == expected else (together - expected) / (ceiling - expected)


def hungarian_accuracy(table: np.ndarray) -> float:
    """Accuracy under the best one-to-one matching of categories and labels. Needs scipy."""
    from scipy.optimize import linear_sum_assignment

    return float(table[linear_sum_assignment(table, maximize=True)].sum() / table.sum())
