"""Which factor stood still? Two scores that ask the codes: FactorVAE's and beta-VAE's.

**FactorVAE** (Kim and Mnih 2018, "Disentangling by Factorising", arXiv:1802.05983, section 4): 64 images with one
factor fixed; the code that varies least among them, relative to all images, votes for the factor. Each code then
stands for the factor that most of its votes came with, and the score is how often this is right on other votes.

**beta-VAE** (Higgins et al. 2017, "beta-VAE", openreview Sy2fzU9gl, section 3): 64 pairs of images that share one
factor; the mean distance of each code within the pairs goes to a linear classifier, which says the factor. The score
is its accuracy on other pairs. It is lenient: codes that mix factors can reach 1.

Numbers as in disentanglement_lib: 10,000 votes to learn from and 5,000 to be judged on; codes whose deviation is under
0.05 of their prior's have no vote. There each vote's images are drawn anew, 960,000 of them in all; here from the
images that are read once for all scores, others for judging than for learning. Chance is 1/F in both.

A category has no distance. Two of them differ by 0 or 1, and where variance is half the mean squared difference of two
images, that of a category is half the share of pairs that differ.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from infogan_ray.evaluation.disentanglement.encoded import Encoded

GROUP = 64
LEARN, JUDGE = 10_000, 5_000
LEAST = 0.05  # of the prior's deviation
PART = 500  # votes at once


def factor_vae(learn: Encoded, judge: Encoded, rng: np.random.Generator) -> float:
    """Between 0 and 1; 0 if no code is active."""
    overall = spreads(learn.codes[None], learn.categories)[0]
    prior = np.array([(1 - 1 / k) / 2 if k else 1.0 for k in learn.categories])
    active = overall >= LEAST**2 * prior
    if not active.any():
        return 0.0

    def votes(encoded: Encoded, count: int) -> np.ndarray:
        table = np.zeros((len(active), len(encoded.sizes)))
        for factors, groups in _fixed(encoded, count, rng):
            relative = np.full((len(factors), len(active)), np.inf)
            relative[:, active] = (spreads(encoded.codes[groups], encoded.categories) / np.maximum(overall, 1e-300))[
                :, active
            ]
            np.add.at(table, (relative.argmin(1), factors), 1)
        return table

    stands_for = votes(learn, LEARN).argmax(1)
    judged = votes(judge, JUDGE)
    return float(judged[np.arange(len(active)), stands_for].sum() / judged.sum())


def beta_vae(learn: Encoded, judge: Encoded, rng: np.random.Generator) -> float:
    """Between 0 and 1. Codes are scaled to deviation 1, so that their units do not matter."""
    from sklearn.linear_model import LogisticRegression

    scale = np.array([1.0 if k else s or 1.0 for k, s in zip(learn.categories, learn.codes.std(0), strict=True)])

    def questions(encoded: Encoded, count: int) -> tuple[np.ndarray, np.ndarray]:
        features, answers = [], []
        discrete = np.array(encoded.categories) > 0
        for factors, groups in _fixed(encoded, count, rng, pairs=True):
            apart = np.abs(encoded.codes[groups[:, 0]] - encoded.codes[groups[:, 1]]) / scale
            features.append(np.where(discrete, apart > 0, apart).mean(1))
            answers.append(factors)
        return np.concatenate(features), np.concatenate(answers)

    classifier = LogisticRegression(max_iter=1000).fit(*questions(learn, LEARN))
    return float(classifier.score(*questions(judge, JUDGE)))


def spreads(codes: np.ndarray, categories: tuple[int, ...]) -> np.ndarray:
    """The variance of each code in groups (G, n, D), (G, D): half the mean of (a - b)^2, or of a != b, over pairs."""
    found = codes.var(1, ddof=1)
    n = codes.shape[1]
    for code, k in enumerate(categories):
        if k:
            counts = np.stack([(codes[:, :, code] == category).sum(1) for category in range(k)], 1)
            found[:, code] = (1 - (counts * (counts - 1)).sum(1) / (n * (n - 1))) / 2
    return found


def _fixed(
    encoded: Encoded, count: int, rng: np.random.Generator, pairs: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Factors (V,) and the images of a vote each: GROUP images that share the factor's class, (V, GROUP), or GROUP
    pairs whose two images share it, (V, 2, GROUP). Drawn with replacement."""
    order = [np.argsort(classes, kind="stable") for classes in encoded.classes.T]
    counts = [
        np.bincount(classes, minlength=size) for classes, size in zip(encoded.classes.T, encoded.sizes, strict=True)
    ]
    starts = [np.cumsum(c) - c for c in counts]
    images = len(encoded.codes)
    for begin in range(0, count, PART):
        factors = rng.integers(len(encoded.sizes), size=min(PART, count - begin))
        first = rng.integers(images, size=(len(factors), GROUP if pairs else 1))
        chance = rng.random((len(factors), GROUP))
        same = np.empty(chance.shape, int)
        for factor in range(len(encoded.sizes)):
            rows = factors == factor
            classes = encoded.classes[first[rows], factor]
            same[rows] = order[factor][starts[factor][classes] + (chance[rows] * counts[factor][classes]).astype(int)]
        yield factors, np.stack([first, same], 1) if pairs else same
