"""Agreement of categories with labels, against scikit-learn. Run: pytest tests/evaluation/test_clustering.py"""

from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn import metrics as reference

from infogan_ray.evaluation import clustering


def pairs(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    k, classes = rng.integers(2, 12, 2)
    labels = rng.integers(0, classes, 400)
    categories = np.where(rng.random(400) < 0.6, labels % k, rng.integers(0, k, 400))
    return categories, labels, clustering.contingency(categories, labels, k, classes)


@pytest.mark.parametrize("seed", range(10))
def test_agreement_with_reference_implementations(seed: int) -> None:
    categories, labels, table = pairs(seed)
    assert clustering.normalised_mutual_information(table) == pytest.approx(
        reference.normalized_mutual_info_score(labels, categories)
    )
    assert clustering.adjusted_rand_index(table) == pytest.approx(reference.adjusted_rand_score(labels, categories))
    rows, columns = linear_sum_assignment(-table)
    assert clustering.hungarian_accuracy(table) == pytest.approx(table[rows, columns].sum() / table.sum())
    assert clustering.entropy(table.sum(1)) == pytest.approx(reference.mutual_info_score(categories, categories))


def test_one_cluster_and_perfect_clusters() -> None:
    perfect, single = np.diag([5, 7, 3]), np.array([[4, 4, 4]])
    assert clustering.adjusted_rand_index(perfect) == clustering.normalised_mutual_information(perfect) == 1
    assert clustering.hungarian_accuracy(perfect) == 1
    assert clustering.adjusted_rand_index(single) == clustering.normalised_mutual_information(single) == 0


def test_majority_classes_come_from_training_data_and_errors_from_test_data() -> None:
    train, test = np.array([[9, 1], [4, 5]]), np.array([[2, 8], [0, 10]])
    assert clustering.majority_error(train, test) == pytest.approx(1 - (2 + 10) / 20)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (5, 40)])
def test_one_to_one_accuracy_is_the_best_of_all_matchings(shape: tuple[int, int]) -> None:
    table = np.random.default_rng(shape[0]).integers(0, 50, shape)
    few = table if shape[0] <= shape[1] else table.T
    if few.shape[1] > 7:
        few = np.concatenate([few[:, :6], np.zeros((few.shape[0], 1), int)], 1)
        table = few
    best = max(few[np.arange(len(few)), list(columns)].sum() for columns in permutations(range(few.shape[1]), len(few)))
    assert clustering.hungarian_accuracy(table) == best / table.sum()
