"""How well factors can be told from codes, and from which: SAP and DCI.

**SAP** (Kumar et al. 2018, "Variational Inference of Disentangled Latent Concepts", arXiv:1711.00848, section 3): each
factor is told from each single code; the difference between the two best codes, as a mean over factors. An ordered
factor's score is the R^2 of a linear fit, that of one that is only a kind (shape) the accuracy of a linear classifier
on other images, as in InfoGAN-CR (disentanglement_lib takes all factors for kinds). The second best code has the
accuracy of chance at least, so that a kind of three classes adds at most 2/3.

**DCI** (Eastwood and Williams 2018, "A Framework for the Quantitative Evaluation of Disentangled Representations",
openreview By-7dz-AZ, section 2): each factor is told from all codes by boosted trees, which say how much each code
mattered, R (D, F). Disentanglement: 1 - entropy of a code's row, in units of log F, weighted by the row's share of R.
Completeness: the same of columns, in units of log D. Informativeness: the accuracy on other images. The classifier is
disentanglement_lib's, scikit-learn's GradientBoostingClassifier, which there has 100 rounds on 10,000 images. The
number of rounds matters where scores are low: an InfoGAN's disentanglement was 0.077 with 20 rounds on 5,000 images,
our default, and 0.033 with 100. So compare figures of equal rounds only, and with published ones only those of
``measure.THOROUGH``.
"""

from __future__ import annotations

import numpy as np

from infogan_ray.evaluation.disentanglement.encoded import Encoded
from infogan_ray.evaluation.disentanglement.information import gaps


def sap(learn: Encoded, judge: Encoded, seed: int = 0) -> float:
    """Between 0 and 1."""
    table = np.zeros((len(learn.categories), len(learn.sizes)))
    for code in range(len(learn.categories)):
        for factor, ordered in enumerate(learn.ordered):
            if ordered:
                table[code, factor] = explained(learn, code, learn.classes[:, factor].astype(float))
            else:
                table[code, factor] = _accuracy(learn, judge, code, factor, seed)
    return float(gaps(table).mean())


def explained(encoded: Encoded, code: int, values: np.ndarray) -> float:
    """R^2 of the best linear fit of values (N,) by one code: the squared correlation, or what categories explain."""
    total = values.var()
    categories = encoded.categories[code]
    if not total:
        return 0.0
    if not categories:
        known = encoded.codes[:, code] - encoded.codes[:, code].mean()
        return float((known * (values - values.mean())).mean() ** 2 / (known.var() or 1.0) / total)
    labels = encoded.codes[:, code].astype(int)
    counts = np.bincount(labels, minlength=categories)
    means = np.bincount(labels, values, categories) / np.maximum(counts, 1)
    return float((counts * (means - values.mean()) ** 2).sum() / len(values) / total)


def _accuracy(learn: Encoded, judge: Encoded, code: int, factor: int, seed: int) -> float:
    from sklearn.svm import LinearSVC

    known, asked = learn.columns(code), judge.columns(code)
    if not learn.categories[code]:  # in units of its deviation: the classifier's weights are bounded, and units are not
        mean, deviation = known.mean(), known.std() or 1.0
        known, asked = (known - mean) / deviation, (asked - mean) / deviation
    classifier = LinearSVC(C=0.01, class_weight="balanced", random_state=seed)
    return float(classifier.fit(known, learn.classes[:, factor]).score(asked, judge.classes[:, factor]))


def dci(learn: Encoded, judge: Encoded, rounds: int, seed: int = 0) -> dict[str, float]:
    """``dci_disentanglement``, ``dci_completeness`` and ``dci_informativeness``, each between 0 and 1."""
    from sklearn.ensemble import GradientBoostingClassifier

    codes = range(len(learn.categories))
    known, asked = (np.hstack([encoded.columns(code) for code in codes]) for encoded in (learn, judge))
    belongs = np.repeat(codes, [max(k, 1) for k in learn.categories])  # a category's columns are one code
    importance, right = np.zeros((len(codes), len(learn.sizes))), []
    for factor in range(len(learn.sizes)):
        trees = GradientBoostingClassifier(n_estimators=rounds, random_state=seed)
        trees.fit(known, learn.classes[:, factor])
        np.add.at(importance[:, factor], belongs, np.abs(trees.feature_importances_))  # -1e-17 happens
        right.append(trees.score(asked, judge.classes[:, factor]))
    return {
        "dci_disentanglement": disentanglement(importance),
        "dci_completeness": disentanglement(importance.T),
        "dci_informativeness": float(np.mean(right)),
    }


def disentanglement(importance: np.ndarray) -> float:
    """Of R (D, F), and completeness of its transpose: how far each row has its weight in one place, 0 to 1."""
    total = importance.sum()
    if not total:
        return 0.0
    if importance.shape[1] == 1:
        return 1.0
    weight = importance.sum(1)
    share = importance / np.where(weight, weight, 1)[:, None]
    entropy = -(share * np.log(np.where(share, share, 1))).sum(1) / np.log(importance.shape[1])
    return float(np.maximum(0, ((1 - entropy) * weight).sum() / total))  # rounding
