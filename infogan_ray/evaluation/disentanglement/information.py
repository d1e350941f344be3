"""Mutual information between codes and factors, and the gap in it (MIG).

Chen et al. 2018, "Isolating Sources of Disentanglement in VAEs" (arXiv:1802.04942, section 4): for each factor, the
difference between the two codes that tell most of it, as a share of the factor's entropy; the mean over factors.
Estimated as disentanglement_lib does: 20 equal bins over a continuous code's range, counts on 10,000 images.

Twenty bins hold at most log 20 nats, so that a factor of 32 values read without error gets 0.85, not 1.
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
        bins = encoded.codes[:, code].astype(int) if categories else in_bins(encoded.codes[:, code])
        for factor, size in enumerate(encoded.sizes):
            table = contingency(bins, encoded.classes[:, factor], categories or BINS, size)
            of_factor = entropy(table.sum(0))
            if of_factor:
                found[code, factor] = (entropy(table.sum(1)) + of_factor - entropy(table.ravel())) / of_factor
    return np.clip(found, 0, 1)  # rounding


def gaps(table: np.ndarray) -> np.ndarray:
    """Per factor, the difference between the largest and the second largest of (D, F); a single code has no second."""
    ordered = np.sort(table, axis=0)
    return ordered[-1] - (ordered[-2] if len(table) > 1 else 0)


def mig(encoded: Encoded) -> float:
    """Between 0 and 1."""
    return float(gaps(shares(encoded)).mean())


def in_bins(values: np.ndarray) -> np.ndarray:
    """(N,) of 0 to BINS - 1: equal parts of the range; all 0 where nothing varies."""
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(len(values), int)
    return np.digitize(values, np.histogram_bin_edges(values, BINS)[1:-1])
