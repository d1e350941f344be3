"""What the codes learned: the bound apart from training, and how categories agree with labels.

Shapes: (N, C, H, W) images, (B, L) latents. Bounds are in nats. Everything runs with batch norm in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infogan_ray import UserError
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.losses import information_bound, mi_fraction
from infogan_ray.models.networks import Discriminator, Generator, calibrate
from infogan_ray.models.recognition import BATCH, evaluating, recognise
from infogan_ray.models.rng import seeded_generator

STATISTICS_OF = 2000  # images


@dataclass(frozen=True)
class EvaluationConfig:
    samples: int = 10_000
    """Fresh codes on which the bound is measured."""
    labelled: int = 10_000
    """Labelled training images that are read at each checkpoint; the final evaluation reads all."""
    sorting: bool = False
    """Measure at each checkpoint how Q sorts real images; the final evaluation always does."""
    seed: int = 20160612
    """Of the fresh codes: the same for every run, so that bounds compare."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.labelled < 1:
            raise UserError(f"evaluation.samples is {self.samples} and labelled {self.labelled}; both must be positive")


def go_on() -> None:
    """The default of ``each``: what is called before every batch, and may raise to end a measurement early."""


@contextmanager
def normalising_as(module: nn.Module, batches: Iterable[Tensor]) -> Iterator[None]:
    """Inside, batch norm has the statistics of these batches of input; afterwards its own again."""
    kept = [buffer.clone() for buffer in module.buffers()]
    try:
        calibrate(module, batches)
        yield
    finally:
        for buffer, before in zip(module.buffers(), kept, strict=True):
            buffer.copy_(before)


@torch.inference_mode()
def measure_bound(
    spec: LatentSpec, generator: Generator, discriminator: Discriminator, config: EvaluationConfig,
    each: Callable[[], None] = go_on,
) -> dict[str, float]:  # fmt: skip
    """``mi/<code>`` and ``mi_bound`` (nats) and ``mi_fraction`` on fresh codes of a fixed seed.

    Batch norm normalises by statistics of what this generator draws, of other fresh codes. Those that D gathers in
    training are of real and drawn images together, and where the two differ, Q, which reads drawn ones by themselves
    when it learns, reads them wrongly by these: on ``shapes`` a bound of 6.8 nats came out as -9. Real images are still
    read by D's own: with statistics of real images alone, clustering errors and scores of disentanglement of the models
    that were looked at differed by less than seeds do. With ``network.joint_batchnorm`` Q learns by D's own.
    """
    device = next(generator.parameters()).device

    def codes(samples: int, stream: str) -> Iterator[Tensor]:
        for index, start in enumerate(range(0, samples, BATCH)):
            each()
            yield spec.sample(min(BATCH, samples - start), seeded_generator(config.seed, stream, index, device))

    totals = dict.fromkeys(spec.names, 0.0)
    drawn = (generator(latents) for latents in codes(STATISTICS_OF, "statistics"))
    as_trained = nullcontext() if discriminator.joint_batchnorm else normalising_as(discriminator, drawn)
    with evaluating(generator, discriminator), as_trained:
        for latents in codes(config.samples, "evaluate"):
            _, q = discriminator(generator(latents))
            for name, bound in information_bound(spec, latents, q).items():
                totals[name] += float(bound) * len(latents)
    bounds = {name: total / config.samples for name, total in totals.items()}
    return {
        "mi_bound": sum(bounds.values()),
        "mi_fraction": mi_fraction(spec, bounds),
        **{f"mi/{name}": bound for name, bound in bounds.items()},
    }


def measure_clustering(
    spec: LatentSpec, discriminator: Discriminator,
    images: Tensor, labels: Tensor, test_images: Tensor, test_labels: Tensor, each: Callable[[], None] = go_on,
    naming: AbstractContextManager[Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Agreement of each categorical code with labels; the figures of the code that errs least on the training set.

    ``clustering_error``: each category stands for the label that most of its training images have; counted on the
    test set. ``clustering_acc_hungarian``: each label gets at most one category. ``nmi``, ``ari`` on the test set.
    ``code_usage``: entropy of the categories' use in nats. Empty without a categorical code.
    ``naming``: entered while training images are read. They decide no more than what each category stands for, by
    majority, and there are many: an autocast will do for them.
    """
    codes = [name for name, _ in spec.one_hot_items()]
    if not codes:
        return {}
    with naming or nullcontext():
        train_q = spec.split_q(recognise(discriminator, images, each))
    test_q = spec.split_q(recognise(discriminator, test_images, each))
    truth, test_truth = labels.numpy(), test_labels.numpy()
    classes = int(max(truth.max(), test_truth.max())) + 1
    best: dict[str, Any] = {}
    for name in codes:
        k = train_q[name].shape[1]
        train_table = contingency(train_q[name].argmax(1).numpy(), truth, k, classes)
        test_table = contingency(test_q[name].argmax(1).numpy(), test_truth, k, classes)
        train_error = 1 - train_table.max(1).sum() / train_table.sum()
        if not best or train_error < best["train_error"]:
            best = {
                "train_error": train_error,
                "clustering_code": name,
                "clustering_error": majority_error(train_table, test_table),
                "clustering_acc_hungarian": hungarian_accuracy(test_table),
                "nmi": normalised_mutual_information(test_table),
                "ari": adjusted_rand_index(test_table),
                "code_usage": entropy(test_table.sum(1)),
                "confusion": test_table.tolist(),
            }
    del best["train_error"]
    return best


def contingency(categories: np.ndarray, labels: np.ndarray, k: int, classes: int) -> np.ndarray:
    """(k, classes) counts of images in each category with each label."""
    return np.bincount(categories * classes + labels, minlength=k * classes).reshape(k, classes)


def majority_error(train_table: np.ndarray, test_table: np.ndarray) -> float:
    """Share of the test set whose category stands for another label; an unused category stands for label 0."""
    named = test_table[np.arange(len(test_table)), train_table.argmax(1)].sum()
    return float(1 - named / test_table.sum())


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of a distribution given by counts."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def normalised_mutual_information(table: np.ndarray) -> float:
    """I(category; label) over the mean of the two entropies (Strehl & Ghosh 2002, arithmetic form)."""
    rows, columns = entropy(table.sum(1)), entropy(table.sum(0))
    mutual = rows + columns - entropy(table.ravel())
    return 1.0 if rows + columns == 0 else float(max(mutual, 0.0) / ((rows + columns) / 2))


def adjusted_rand_index(table: np.ndarray) -> float:
    """Hubert & Arabie 1985: pairs that agree, corrected for chance."""

    def pairs(counts: np.ndarray) -> float:
        counts = counts.astype(np.float64)
        return float((counts * (counts - 1) / 2).sum())

    together, rows, columns = pairs(table.ravel()), pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / max(pairs(np.array([table.sum()])), 1.0)
    ceiling = (rows + columns) / 2
    return 1.0 if ceiling == expected else (together - expected) / (ceiling - expected)


def hungarian_accuracy(table: np.ndarray) -> float:
    """Largest share of images that a one-to-one matching of categories and labels explains."""
    few = table if table.shape[0] <= table.shape[1] else table.T
    columns = assign(few.max() - few.astype(np.float64))
    return float(few[np.arange(len(few)), columns].sum() / table.sum())


def assign(cost: np.ndarray) -> np.ndarray:
    """The column of each row in the assignment of least total cost: (R, C), R <= C, in O(R^2 C).

    Kuhn's Hungarian method with potentials, one shortest augmenting path per row (Jonker & Volgenant 1987). Kept here
    so that the metric does not bring scipy into every worker.
    """
    rows, size = cost.shape
    row_potential, column_potential = np.zeros(rows + 1), np.zeros(size + 1)
    owner = np.zeros(size + 1, int)  # row (1-based) that holds a column; column 0 is where each path starts
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        distance, came_from = np.full(size + 1, np.inf), np.zeros(size + 1, int)
        visited = np.zeros(size + 1, bool)
        while owner[column]:
            visited[column] = True
            free = ~visited[1:]
            reach = cost[owner[column] - 1] - row_potential[owner[column]] - column_potential[1:]
            closer = free & (reach < distance[1:])
            distance[1:][closer], came_from[1:][closer] = reach[closer], column
            nearest = int(np.where(free, distance[1:], np.inf).argmin()) + 1
            delta = distance[nearest]
            row_potential[owner[visited]] += delta
            column_potential[visited] -= delta
            distance[1:][free] -= delta
            column = nearest
        while column:
            owner[column] = owner[came_from[column]]
            column = came_from[column]
    columns = np.empty(rows, int)
    held = np.flatnonzero(owner[1:])
    columns[owner[1:][held] - 1] = held
    return columns
