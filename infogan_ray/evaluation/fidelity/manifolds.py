"""Improved precision and recall: which share of drawn images looks real, and which share of the real ones is drawn.

Kynkäänniemi et al. 2019 ("Improved precision and recall metric for assessing generative models", arXiv:1904.06991),
equations 1 and 2: around each feature of a set a ball reaches to its k-th nearest neighbour in the same set; all balls
together are the set's manifold. A distance mixes both faults; these two tell smudges (low precision) from images that
are never drawn (low recall).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.evaluation.fidelity.distances import BLOCK, checked

NEIGHBOURS = 3  # k, as in the paper


def precision_and_recall(real: Tensor, drawn: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Of features (N, D) and (M, D), best in equal numbers: the shares, 0 to 1, of the drawn inside the real manifold
    and of the real inside the drawn one.

    Memory is bounded by BLOCK rows of distances. Raises UserError for k or fewer features on a side.
    """
    real, drawn = checked(real), checked(drawn)
    if k < 1 or min(len(real), len(drawn)) <= k:
        raise UserError(f"precision and recall with k={k} need more than {k} images of each kind; there are "
                         f"{len(real):,} real and {len(drawn):,} drawn")  # fmt: skip
    centre = real.mean(0)  # small numbers lose the least in the distances below
    real, drawn = real - centre, drawn - centre
    return inside(drawn, real, radii(real, k)), inside(real, drawn, radii(drawn, k))


def radii(features: Tensor, k: int) -> Tensor:
    """(N,) squared distances to the k-th nearest of the others: a feature's distance to itself is the least of all."""
    return torch.cat([block.kthvalue(k + 1, dim=1).values for block in _squared_distances(features, features)])


def inside(points: Tensor, centres: Tensor, squared_radii: Tensor) -> float:
    """The share of points (M, D) that lie in one of the balls around centres (N, D)."""
    hits = sum(int((block <= squared_radii).any(1).sum()) for block in _squared_distances(points, centres))
    return hits / len(points)


def _squared_distances(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    """(BLOCK, N) at a time."""
    lengths = second.square().sum(1)
    for rows in first.split(BLOCK):
        yield (rows.square().sum(1, keepdim=True) + lengths - 2 * rows @ second.T).clamp_min(0)
