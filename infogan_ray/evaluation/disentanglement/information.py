"""Mutual information between codes and factors, and the gap in it (MIG).

MIG (Chen et al. 2018, "Isolating Sources of Disentanglement in VAEs", arXiv:1802.04942, section 4) uses the two codes
with the most information about a factor. The difference is divided by the factor's entropy and averaged over factors.
Information is estimated as in disentanglement_lib: counts on 10,000 images, 20 equal bins over a continuous code's
range.

Twenty bins hold at most log 20 nats. So a code without error gets 0.85, not 1, for a factor of 32 values.
"""

from __future__ import annotations

import numpy as np

from infogan_ray.evaluation.clustering import contingency, entropy
from infogan_ray.evaluation.disentanglement.encoded import Encoded

BINS = 20


def shares(encoded: Encoded) -> np.ndarray:
    """I(code; factor) / H(factor), (D, F), each between 0 and 1."""
    found = np.zeros((len(encoded.categories), len(encoded.sizes)))
    for code, categories in enumerate(encoded.categories):
        bins = encoded.codes[:, code].astype(int) if categories else bin_indices(encoded.codes[:, code])
        for factor, size in enumerate(encoded.sizes):
            table = contingency(bins, encoded.classes[:, factor], categories or BINS, size)
            factor_entropy = entropy(table.sum(0))
            if factor_entropy:
                mutual = entropy(table.sum(1)) + factor_entropy - entropy(table.ravel())
                found[code, factor] = mutual / factor_entropy
    return np.clip(found, 0, 1)  # rounding errors can leave the range


def gaps(table: np.ndarray) -> np.ndarray:
    """(F,) the difference between the largest and the second largest value of each column of (D, F).

    With a single code, the second largest value is 0.
    """
    ordered = np.sort(table, axis=0)
    return ordered[-1] - (ordered[-2] if len(table) > 1 else 0)


def mig(encoded: Encoded) -> float:
    """The mutual information gap, 0 to 1."""
    return float(gaps(shares(encoded)).mean())


def bin_indices(values: np.ndarray) -> np.ndarray:
    """(N,) bin indices 0 to BINS - 1 for equal bins over the range. All 0 if the values are equal."""
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(len(values), int)
    return np.digitize(values, np.histogram_bin_edges(values, BINS)[1:-1])
