"""Fréchet distance and kernel distance between two sets of features. The caller chooses the features.

Shapes: (N, D) and (M, D) features. All computations are in float64, in blocks that limit the memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from infogan_ray import UserError

BLOCK = 1000  # rows


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), between Gaussians with the sets' means and covariances.

    The formula is equation 4 of Dowson & Landau 1982, "The Fréchet distance between multivariate normal distributions".
    Heusel et al. 2017 (arXiv:1706.08500), equation 6, use it for images: it is called FID only on Inception's features.
    It is overestimated for few images, especially for fewer than D. Raises UserError if a set has fewer than two rows,
    and for features that are not finite.
    """
    first, second = checked(first), checked(second)
    mean_term = (first.mean(0) - second.mean(0)).square().sum()
    factors = [_factor(features) for features in (first, second)]
    # tr (S1 S2)^(1/2) is the sum of the singular values of F1 F2^T, where S = F^T F. Eigenvalues of S1 S2 would need a
    # square root, which turns a rounding error of 1e-16 into 1e-8 in every direction without variance.
    common = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    return max(0.0, float(mean_term + sum(factor.square().sum() for factor in factors) - 2 * common))


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy, with the kernel (x.y / D + 1)^3.

    The estimator is equation 3 of Gretton et al. 2012, "A kernel two-sample test". The kernel is from Bińkowski et al.
    2018 (arXiv:1801.01401), section 4. Their KID is this distance on Inception's features, averaged over subsets. Here
    all pairs are used together. The mean does not depend on the number of images: for two sets from one distribution
    it is 0, and values can be negative. Raises UserError as ``frechet_distance`` does.
    """
    first, second = checked(first), checked(second)
    across = sum(float(block.sum()) for block in _kernels(first, second))
    return _within(first) + _within(second) - 2 * across / (len(first) * len(second))


def checked(features: Tensor) -> Tensor:
    """The features in float64. Raises UserError for a wrong shape, fewer than two rows, or values not finite."""
    if features.dim() != 2 or len(features) < 2:
        raise UserError(f"features are {tuple(features.shape)}; they must be (N, D) of two images or more")
    if not features.isfinite().all():
        raise UserError("some features are NaN or infinite; these images cannot be compared")
    return features.double()


def _factor(features: Tensor) -> Tensor:
    """F with F^T F = covariance and at most D rows: the centred features, or the covariance's root for N > D."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    if len(features) <= features.shape[1]:
        return centred
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _within(features: Tensor) -> float:
    """The kernel's mean over all pairs of different rows."""
    count, width = features.shape
    diagonal = (features.square().sum(1) / width + 1).pow(3).sum()
    total = sum(float(block.sum()) for block in _kernels(features, features))
    return (total - float(diagonal)) / (count * (count - 1))


def _kernels(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    """Yields the kernel matrix in blocks: BLOCK rows of the first set with all rows of the second."""
    for rows in first.split(BLOCK):
        yield (rows @ second.T / first.shape[1] + 1).pow(3)
