"""Chooses the test part of labelled images whose source has none. Training never uses it; errors are measured on it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np

SHARE = 7
"""One image of this many is held out."""
FEWEST = 2 * SHARE
"""Of fewer images none is held out."""
STRATIFIED, EVERY_SEVENTH, NONE = "stratified", "every_seventh", "none"
RULES = (STRATIFIED, EVERY_SEVENTH, NONE)
SEED = b"test"


def held_out(rule: str, names: Sequence[str], labels: np.ndarray | None) -> np.ndarray:
    """Which images are the test part, bool (N,). None is held out without labels and of fewer than 14 images.

    ``names``: different for each image. ``labels``: integers (N,). ``stratified`` takes about a seventh of each class.
    It takes at least one image of a class that has two, and none of a class that has one. Only names and labels
    decide, so neither the order of the images nor the folder that contains all of them matters.
    ``every_seventh`` is the rule of earlier versions, which goes by the order.
    """
    held = np.zeros(len(names), bool)
    if labels is None or len(names) < FEWEST or rule == NONE:
        return held
    if rule == EVERY_SEVENTH:
        held[SHARE - 1 :: SHARE] = True
        return held
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    quota = np.where(counts > 1, np.maximum(1, (2 * counts + SHARE) // (2 * SHARE)), 0)
    order = np.lexsort((_random_keys(names), classes))  # by class, in random order within each
    place_in_class = np.arange(len(names)) - np.repeat(np.cumsum(counts) - counts, counts)
    held[order[place_in_class < np.repeat(quota, counts)]] = True
    return held


def _random_keys(names: Sequence[str]) -> np.ndarray:
    """A random number for each name. A hash: generators of random numbers may change with the version of NumPy."""
    folder = os.path.commonpath([min(names), max(names)])  # of all names, since all others lie between these
    start = len(folder) + 1 if folder else 0
    digests = (hashlib.blake2b(os.fsencode(name[start:]), digest_size=8, key=SEED).digest() for name in names)
    return np.frombuffer(b"".join(digests), "<u8")
