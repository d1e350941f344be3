"""Clustering metrics against scikit-learn and scipy; the bound; traversals.

Run: pytest tests/evaluation/test_bound_and_clustering.py
"""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn import metrics as reference

from infogan_ray.evaluation import bound_and_clustering
from infogan_ray.evaluation.bound_and_clustering import EvaluationConfig, measure_bound
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import ModelSpec, NetworkConfig
from infogan_ray.models.traversal import draw, traverse


def pairs(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    k, classes = rng.integers(2, 12, 2)
    labels = rng.integers(0, classes, 400)
    categories = np.where(rng.random(400) < 0.6, labels % k, rng.integers(0, k, 400))
    return categories, labels, bound_and_clustering.contingency(categories, labels, k, classes)


@pytest.mark.parametrize("seed", range(10))
def test_agreement_with_reference_implementations(seed: int) -> None:
    categories, labels, table = pairs(seed)
    assert bound_and_clustering.normalised_mutual_information(table) == pytest.approx(
        reference.normalized_mutual_info_score(labels, categories)
    )
    assert bound_and_clustering.adjusted_rand_index(table) == pytest.approx(
        reference.adjusted_rand_score(labels, categories)
    )
    rows, columns = linear_sum_assignment(-table)
    assert bound_and_clustering.hungarian_accuracy(table) == pytest.approx(table[rows, columns].sum() / table.sum())
    assert bound_and_clustering.entropy(table.sum(1)) == pytest.approx(
        reference.mutual_info_score(categories, categories)
    )


@pytest.mark.parametrize("size", [1, 2, 5, 20])
def test_assignment_is_the_cheapest(size: int) -> None:
    cost = np.random.default_rng(size).normal(size=(size, size))
    columns = bound_and_clustering.assign(cost)
    assert sorted(columns) == list(range(size))
    assert cost[np.arange(size), columns].sum() == pytest.approx(cost[linear_sum_assignment(cost)].sum())


def test_few_rows_are_assigned_among_many_columns() -> None:
    cost = np.random.default_rng(0).normal(size=(5, 900))
    columns = bound_and_clustering.assign(cost)
    assert len(set(columns)) == 5
    assert cost[np.arange(5), columns].sum() == pytest.approx(cost[linear_sum_assignment(cost)].sum())


def test_one_cluster_and_perfect_clusters() -> None:
    perfect, single = np.diag([5, 7, 3]), np.array([[4, 4, 4]])
    assert (
        bound_and_clustering.adjusted_rand_index(perfect)
        == bound_and_clustering.normalised_mutual_information(perfect)
        == 1
    )
    assert bound_and_clustering.hungarian_accuracy(perfect) == 1
    assert (
        bound_and_clustering.adjusted_rand_index(single)
        == bound_and_clustering.normalised_mutual_information(single)
        == 0
    )


def test_majority_is_named_on_the_training_set_and_counted_on_the_test_set() -> None:
    train, test = np.array([[9, 1], [4, 5]]), np.array([[2, 8], [0, 10]])
    assert bound_and_clustering.majority_error(train, test) == pytest.approx(1 - (2 + 10) / 20)


def small_model() -> ModelSpec:
    return ModelSpec(LatentSpec.parse("noise=4 cat=3 uniform=1 bernoulli=1"), 16, 1, NetworkConfig(width=4))


def test_bound_is_repeatable_and_leaves_training_mode_alone() -> None:
    spec = small_model()
    generator, discriminator = spec.build()
    first = measure_bound(spec.latents, generator, discriminator, EvaluationConfig(samples=700))
    assert first == measure_bound(spec.latents, generator, discriminator, EvaluationConfig(samples=700))
    assert discriminator.training and generator.training

    def give_up() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_bound(spec.latents, generator, discriminator, EvaluationConfig(samples=700), each=give_up)
    assert discriminator.training and generator.training, "an interrupted measurement too"
    assert set(first) == {"mi_bound", "mi_fraction", "mi/cat0", "mi/uniform0", "mi/bernoulli0"}


def test_the_bound_is_that_of_drawn_images_whatever_statistics_training_left_in_d() -> None:
    spec, samples = small_model(), EvaluationConfig(samples=700)
    generator, discriminator = spec.build()
    with torch.no_grad():
        for parameter in discriminator.recognition.parameters():
            parameter.mul_(20)  # so that Q says something
    discriminator(generator(spec.latents.sample(64, torch.Generator().manual_seed(0))))
    first = measure_bound(spec.latents, generator, discriminator, samples)
    for name, buffer in discriminator.named_buffers():
        buffer.add_(3) if name.endswith("mean") else buffer.mul_(9)  # as real images may that look otherwise
    left = {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
    assert measure_bound(spec.latents, generator, discriminator, samples) == first
    calls: list[None] = []

    def give_up() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_bound(spec.latents, generator, discriminator, samples, each=give_up)
    for name, buffer in discriminator.named_buffers():
        assert torch.equal(buffer, left[name]), f"{name} is training's, and a checkpoint's"


@pytest.mark.parametrize(("code", "rows"), [("cat0", 3), ("uniform0", 3), ("bernoulli0", 2)])
def test_a_traversal_has_a_named_row_per_category(code: str, rows: int) -> None:
    spec = small_model()
    generator, _ = spec.build()
    grid = traverse(spec.latents, generator.eval(), code)
    assert grid.images.shape == (rows, 9, 1, 16, 16) and len(grid.rows) == rows
    assert not torch.equal(grid.images[0], grid.images[1])
    picture = draw(grid)
    assert picture.width > 9 * 16 and picture.height > rows * 16
    with pytest.raises(ValueError, match="cat9.*cat0, uniform0, bernoulli0"):
        traverse(spec.latents, generator, "cat9")
