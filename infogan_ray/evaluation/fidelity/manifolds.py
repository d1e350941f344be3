"""Improved precision and recall: the share of generated images that look real, and of real ones that are covered.

Kynkäänniemi et al. 2019 ("Improved precision and recall metric for assessing generative models", arXiv:1904.06991),
equations 1 and 2. A ball around each feature reaches its k-th nearest neighbour in the same set. The union of all balls
is the set's manifold. Low precision means blurred or unrealistic images. Low recall means that the generator misses
some real images. A distance does not separate these two faults.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.evaluation.fidelity.distances import BLOCK, checked

NEIGHBOURS = 3  # k, as in the paper


def precision(real: Tensor, generated: Tensor, k: int = NEIGHBOURS) -> float:
    """The share of generated features (M, D) inside the manifold of real features (N, D). Best used with N = M.

    Memory is limited to BLOCK rows of distances. Raises UserError if a set has k or fewer features.
    """
    real, generated = _centred(real, generated, k)
    return inside(generated, real, radii(real, k))


def recall(real: Tensor, generated: Tensor, k: int = NEIGHBOURS) -> float:
    """The share of real features inside the generated manifold. Otherwise as ``precision``."""
    real, generated = _centred(real, generated, k)
    return inside(real, generated, radii(generated, k))


def _centred(real: Tensor, generated: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Both sets in float64, minus the real mean. Small numbers have small rounding errors in the distances below."""
    real, generated = checked(real), checked(generated)
    if k < 1 or min(len(real), len(generated)) <= k:
        raise UserError(f"precision and recall with k={k} need more than {k} images of each kind; there are "
                         f"{len(real):,} real and {len(generated):,} generated")  # fmt: skip
    centre = real.mean(0)
    return real - centre, generated - centre


def radii(features: Tensor, k: int) -> Tensor:
    """(N,) squared distances to the k-th nearest other feature. A feature's distance to itself is the smallest."""
    return torch.cat([block.kthvalue(k + 1, dim=1).values for block in _squared_distances(features, features)])


def inside(points: Tensor, centres: Tensor, squared_radii: Tensor) -> float:
    """The share of points (M, D) inside at least one of the balls around centres (N, D)."""
    hits = sum(int((block <= squared_radii).any(1).sum()) for block in _squared_distances(points, centres))
    return hits / len(points)


def _squared_distances(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    """Yields the squared distances in blocks (BLOCK, N)."""
    lengths = second.square().sum(1)
    for rows in first.split(BLOCK):
        yield (rows.square().sum(1, keepdim=True) + lengths - 2 * rows @ second.T).clamp_min(0)
