"""Agreement of categories with labels, against scikit-learn. Run: pytest tests/evaluation/test_clustering.py"""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn import metrics as reference

from infogan_ray.data.image_set import ImageSet
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


@pytest.mark.parametrize("seed", range(3))
def test_balanced_error_is_one_minus_the_mean_recall(seed: int) -> None:
    categories, labels, table = pairs(seed)
    predicted = table.argmax(1)[categories]
    recall = reference.balanced_accuracy_score(labels, predicted)
    assert clustering.balanced_error(table, table) == pytest.approx(1 - recall)
    unused = np.concatenate([table, np.zeros((len(table), 1), int)], 1)
    assert clustering.balanced_error(unused, unused) == pytest.approx(1 - recall), "a label that no image has"


def test_one_category_for_everything_is_wrong_about_all_but_the_largest_class() -> None:
    train, test = np.array([[50, 3], [40, 2]]), np.array([[5, 1], [4, 2]])
    assert clustering.one_category_error(train, test) == pytest.approx(3 / 12)
    assert clustering.majority_error(train, test) == pytest.approx(3 / 12)
    assert clustering.balanced_error(train, test) == pytest.approx(1 / 2)


def images(train: list[int], test: list[int] | None) -> ImageSet:
    def blank(count: int) -> torch.Tensor:
        return torch.zeros(count, 1, 2, 2, dtype=torch.uint8)

    test_labels = None if test is None else torch.tensor(test)
    held = None if test is None else blank(len(test))
    return ImageSet("a", blank(len(train)), torch.tensor(train), held, test_labels, classes=("ant", "bee", "cow"))


def test_agreement_is_undefined_without_test_images_of_each_class() -> None:
    why = clustering.why_not_measured
    assert why(images([0, 0, 1, 2], [2, 1, 0])) is None
    assert why(ImageSet("a", torch.zeros(3, 1, 2, 2, dtype=torch.uint8))) is None
    assert why(images([0] * 103 + [1] * 3 + [2], [0] * 17)) == (
        "the test part, 17 images, has none of 2 of the 3 classes: bee (3 to train on), cow (1 to train on)"
    )
    assert why(images([0, 0, 1], [0])) == "the test part, 1 image, has none of 1 of the 2 classes: bee (1 to train on)"
    assert clustering.untested_classes(images([0, 0, 1], [0])) is None
    assert why(images([0, 0, 1, 1, 2], [0, 1])) is None, "nothing of one image can be held out"
    alone = clustering.untested_classes(images([0, 0, 1, 1, 2], [0, 1]))
    assert alone == "agreement with labels does not test 1 class of one image: cow"
    assert clustering.untested_classes(images([0, 0, 1, 1], [0, 1])) is None
    assert why(images([0, 0], [0])) == "all 3 images have the same label"
    assert why(images([0, 1], None)) == "the data has no test part, and none of its 2 labelled images is held out"
    assert why(images([0, 0], [0, 1])) is None, "a class that is only tested has an error"
