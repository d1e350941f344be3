"""FactorVAE and beta-VAE scores: the accuracy of identifying a fixed factor from the codes.

**FactorVAE** (Kim and Mnih 2018, "Disentangling by Factorising", arXiv:1802.05983, section 4). A vote uses 64 images
with one fixed factor. The code with the smallest variance, relative to all images, votes for this factor. On the train
split, each code is assigned the factor with most of its votes. The score is the accuracy of this assignment on the test
split.

**beta-VAE** (Higgins et al. 2017, "beta-VAE", openreview Sy2fzU9gl, section 3). A vote uses 64 pairs of images. The two
images of a pair share one factor. A linear classifier predicts the factor from the mean distance of each code within
the pairs. The score is its accuracy on the test split. Codes that mix factors can also reach 1.

The numbers are those of disentanglement_lib: 10,000 training votes and 5,000 test votes. Codes with a deviation below
0.05 of their prior's are not active and do not vote. disentanglement_lib generates new images for each vote, in total
960,000. Here votes sample from the images that all scores share, and the two splits have different images. Chance is
1/F for both scores.

Categories have no distance, so two of them differ by 0 or 1. The variance of a number is half the mean squared
difference of two images. In the same way, the variance of a category is half the share of pairs that differ.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from infogan_ray.evaluation.disentanglement.encoded import Encoded

GROUP = 64
TRAIN_VOTES, TEST_VOTES = 10_000, 5_000
MIN_DEVIATION = 0.05  # of an active code, as a share of its prior's deviation
CHUNK = 500  # votes that are computed together


def factor_vae(train: Encoded, test: Encoded, rng: np.random.Generator) -> float:
    """The FactorVAE score, 0 to 1. It is 0 if no code is active."""
    overall = variances(train.codes[None], train.categories)[0]
    prior = np.array([(1 - 1 / k) / 2 if k else 1.0 for k in train.categories])
    active = overall >= MIN_DEVIATION**2 * prior
    if not active.any():
        return 0.0

    def votes(encoded: Encoded, count: int) -> np.ndarray:
        table = np.zeros((len(active), len(encoded.sizes)))
        for factors, groups in _sample_groups(encoded, count, rng):
            relative = np.full((len(factors), len(active)), np.inf)
            relative[:, active] = (variances(encoded.codes[groups], encoded.categories) / np.maximum(overall, 1e-300))[
                :, active
            ]
            np.add.at(table, (relative.argmin(1), factors), 1)
        return table

    assigned_factor = votes(train, TRAIN_VOTES).argmax(1)
    test_votes = votes(test, TEST_VOTES)
    return float(test_votes[np.arange(len(active)), assigned_factor].sum() / test_votes.sum())


def beta_vae(train: Encoded, test: Encoded, rng: np.random.Generator) -> float:
    """The beta-VAE score, 0 to 1. Codes are scaled to deviation 1, so their units do not matter."""
    from sklearn.linear_model import LogisticRegression

    scale = np.array([1.0 if k else s or 1.0 for k, s in zip(train.categories, train.codes.std(0), strict=True)])

    def features_and_targets(encoded: Encoded, count: int) -> tuple[np.ndarray, np.ndarray]:
        features, targets = [], []
        discrete = np.array(encoded.categories) > 0
        for factors, groups in _sample_groups(encoded, count, rng, pairs=True):
            distance = np.abs(encoded.codes[groups[:, 0]] - encoded.codes[groups[:, 1]]) / scale
            features.append(np.where(discrete, distance > 0, distance).mean(1))
            targets.append(factors)
        return np.concatenate(features), np.concatenate(targets)

    classifier = LogisticRegression(max_iter=1000).fit(*features_and_targets(train, TRAIN_VOTES))
    return float(classifier.score(*features_and_targets(test, TEST_VOTES)))


def variances(codes: np.ndarray, categories: tuple[int, ...]) -> np.ndarray:
    """(G, D) the variance of each code in groups (G, n, D): half the mean over pairs of (a - b)^2, or of a != b."""
    found = codes.var(1, ddof=1)
    n = codes.shape[1]
    for code, k in enumerate(categories):
        if k:
            counts = np.stack([(codes[:, :, code] == category).sum(1) for category in range(k)], 1)
            found[:, code] = (1 - (counts * (counts - 1)).sum(1) / (n * (n - 1))) / 2
    return found


def _sample_groups(
    encoded: Encoded, count: int, rng: np.random.Generator, pairs: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the fixed factors (V,) of V votes and the indices of each vote's images.

    A vote has GROUP images with the same class of the factor, (V, GROUP). With ``pairs`` it has GROUP pairs whose two
    images have the same class, (V, 2, GROUP). Images are sampled with replacement.
    """
    order = [np.argsort(classes, kind="stable") for classes in encoded.classes.T]
    counts = [
        np.bincount(classes, minlength=size) for classes, size in zip(encoded.classes.T, encoded.sizes, strict=True)
    ]
    starts = [np.cumsum(c) - c for c in counts]
    images = len(encoded.codes)
    for begin in range(0, count, CHUNK):
        factors = rng.integers(len(encoded.sizes), size=min(CHUNK, count - begin))
        first = rng.integers(images, size=(len(factors), GROUP if pairs else 1))
        chance = rng.random((len(factors), GROUP))
        same = np.empty(chance.shape, int)
        for factor in range(len(encoded.sizes)):
            rows = factors == factor
            classes = encoded.classes[first[rows], factor]
            same[rows] = order[factor][starts[factor][classes] + (chance[rows] * counts[factor][classes]).astype(int)]
        yield factors, np.stack([first, same], 1) if pairs else same
