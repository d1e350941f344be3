"""Two distances between sets of features. Which features, and so what a figure means, is the caller's to say.

Shapes: (N, D) and (M, D) features. Everything is computed in float64; blocks bound the memory, whatever N is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from infogan_ray import UserError

BLOCK = 1000  # rows at once


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), between Gaussians of the sets' means and covariances.

    Dowson & Landau 1982, "The Fréchet distance between multivariate normal distributions", equation 4; for images
    Heusel et al. 2017 (arXiv:1706.08500), equation 6, whose FID is this on the features of Inception and of nothing
    else. It is overestimated for few images, most of all for fewer than D. Raises UserError for less than two
    features on a side, and for features that are not finite.
    """
    first, second = checked(first), checked(second)
    apart = (first.mean(0) - second.mean(0)).square().sum()
    factors = [_factor(features) for features in (first, second)]
    # tr (S1 S2)^(1/2) is the sum of the singular values of F1 F2^T, where S = F^T F. Eigenvalues of S1 S2 would need a
    # root taken afterwards, which makes 1e-8 of a rounding error of 1e-16, in every direction that has no variance.
    common = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    return max(0.0, float(apart + sum(factor.square().sum() for factor in factors) - 2 * common))


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy, with the kernel (x.y / D + 1)^3.

    Gretton et al. 2012, "A kernel two-sample test", equation 3; the kernel of Bińkowski et al. 2018
    (arXiv:1801.01401), section 4, whose KID is this on the features of Inception, averaged over subsets; here all
    pairs are taken at once. Its mean does not depend on the number of images, so for sets of one kind it is around 0,
    and as often below as above. Raises UserError as ``frechet_distance`` does.
    """
    first, second = checked(first), checked(second)
    across = sum(float(block.sum()) for block in _kernels(first, second))
    return _within(first) + _within(second) - 2 * across / (len(first) * len(second))


def checked(features: Tensor) -> Tensor:
    """In float64."""
    if features.dim() != 2 or len(features) < 2:
        raise UserError(f"features are {tuple(features.shape)}; they must be (N, D) of two images or more")
    if not features.isfinite().all():
        raise UserError("some features are NaN or infinite; these images cannot be compared")
    return features.double()


def _factor(features: Tensor) -> Tensor:
    """F (at most D, D) with F^T F the covariance: the centred features, or its symmetric root where those are more."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    if len(features) <= features.shape[1]:
        return centred
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _within(features: Tensor) -> float:
    """The kernel's mean over all pairs of two different rows."""
    count, width = features.shape
    itself = (features.square().sum(1) / width + 1).pow(3).sum()
    total = sum(float(block.sum()) for block in _kernels(features, features))
    return (total - float(itself)) / (count * (count - 1))


def _kernels(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    """The kernel of BLOCK rows of the first with all of the second at a time."""
    for rows in first.split(BLOCK):
        yield (rows @ second.T / first.shape[1] + 1).pow(3)
