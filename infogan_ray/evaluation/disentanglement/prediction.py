"""SAP and DCI: scores of predicting factors from codes.

**SAP** (Kumar et al. 2018, "Variational Inference of Disentangled Latent Concepts", arXiv:1711.00848, section 3)
predicts each factor from each single code. The score is the difference between the two best codes, averaged over
factors. For an ordered factor, a code is scored by the R^2 of a linear fit. For an unordered factor (shape), it is
scored by the accuracy of a linear classifier on the test split, as in InfoGAN-CR. (disentanglement_lib treats all
factors as unordered.) The second best code has at least chance accuracy, so a factor of three classes adds at most 2/3.

**DCI** (Eastwood and Williams 2018, "A Framework for the Quantitative Evaluation of Disentangled Representations",
openreview By-7dz-AZ, section 2) predicts each factor from all codes with boosted trees. Their importances are R (D, F).
Disentanglement is 1 - the entropy of a code's row in units of log F, weighted by the row's share of R. Completeness is
the same for columns, in units of log D. Informativeness is the accuracy on the test split.

The classifier is scikit-learn's GradientBoostingClassifier, as in disentanglement_lib, which uses 100 rounds on 10,000
images. The number of rounds matters for low scores: an InfoGAN's disentanglement was 0.077 with our default (20 rounds,
5,000 images) and 0.033 with 100 rounds. So compare only scores with equal rounds. Compare published scores only with
``measure_disentanglement.THOROUGH``.
"""

from __future__ import annotations

import numpy as np

from infogan_ray.evaluation.disentanglement.encoded import Encoded
from infogan_ray.evaluation.disentanglement.information import gaps


def sap(train: Encoded, test: Encoded, seed: int = 0) -> float:
    """The SAP score, 0 to 1."""
    table = np.zeros((len(train.categories), len(train.sizes)))
    for code in range(len(train.categories)):
        for factor, ordered in enumerate(train.ordered):
            if ordered:
                table[code, factor] = explained_variance(train, code, train.classes[:, factor].astype(float))
            else:
                table[code, factor] = _accuracy(train, test, code, factor, seed)
    return float(gaps(table).mean())


def explained_variance(encoded: Encoded, code: int, values: np.ndarray) -> float:
    """R^2 of the best linear fit of values (N,) by one code.

    For a continuous code this is the squared correlation, for a discrete one the variance between categories.
    """
    total = values.var()
    categories = encoded.categories[code]
    if not total:
        return 0.0
    if not categories:
        centred = encoded.codes[:, code] - encoded.codes[:, code].mean()
        return float((centred * (values - values.mean())).mean() ** 2 / (centred.var() or 1.0) / total)
    labels = encoded.codes[:, code].astype(int)
    counts = np.bincount(labels, minlength=categories)
    means = np.bincount(labels, values, categories) / np.maximum(counts, 1)
    return float((counts * (means - values.mean()) ** 2).sum() / len(values) / total)


def _accuracy(train: Encoded, test: Encoded, code: int, factor: int, seed: int) -> float:
    from sklearn.svm import LinearSVC

    train_columns, test_columns = train.columns(code), test.columns(code)
    if not train.categories[code]:  # the classifier penalises large weights, so its result depends on a code's scale
        mean, deviation = train_columns.mean(), train_columns.std() or 1.0
        train_columns, test_columns = (train_columns - mean) / deviation, (test_columns - mean) / deviation
    classifier = LinearSVC(C=0.01, class_weight="balanced", random_state=seed)
    return float(classifier.fit(train_columns, train.classes[:, factor]).score(test_columns, test.classes[:, factor]))


def dci(train: Encoded, test: Encoded, rounds: int, seed: int = 0) -> dict[str, float]:
    """``dci_disentanglement``, ``dci_completeness`` and ``dci_informativeness``, each 0 to 1."""
    from sklearn.ensemble import GradientBoostingClassifier

    codes = range(len(train.categories))
    train_columns, test_columns = (np.hstack([split.columns(code) for code in codes]) for split in (train, test))
    code_of_column = np.repeat(codes, [max(k, 1) for k in train.categories])
    importance, accuracies = np.zeros((len(codes), len(train.sizes))), []
    for factor in range(len(train.sizes)):
        trees = GradientBoostingClassifier(n_estimators=rounds, random_state=seed)
        trees.fit(train_columns, train.classes[:, factor])
        np.add.at(importance[:, factor], code_of_column, np.abs(trees.feature_importances_))  # -1e-17 can occur
        accuracies.append(trees.score(test_columns, test.classes[:, factor]))
    return {
        "dci_disentanglement": disentanglement(importance),
        "dci_completeness": disentanglement(importance.T),
        "dci_informativeness": float(np.mean(accuracies)),
    }


def disentanglement(importance: np.ndarray) -> float:
    """The degree to which each row of R (D, F) has its weight in one column, 0 to 1.

    For R it is disentanglement, and for its transpose completeness.
    """
    total = importance.sum()
    if not total:
        return 0.0
    if importance.shape[1] == 1:
        return 1.0
    weight = importance.sum(1)
    share = importance / np.where(weight, weight, 1)[:, None]
    entropy = -(share * np.log(np.where(share, share, 1))).sum(1) / np.log(importance.shape[1])
    return float(np.maximum(0, ((1 - entropy) * weight).sum() / total))  # rounding errors can be negative
