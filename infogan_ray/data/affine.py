"""Affine transformations of images by chance: turns, sizes and shifts.

Shapes: N images, (N, C, H, W); a map (2, 3) takes coordinates in [-1, 1] of the result to those of the image.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def affine_maps(draws: Tensor, degrees: float, scale: float, shift: float) -> Tensor:
    """(N, 2, 3) maps of coordinates in [-1, 1] from draws (4, N) in [-1, 1]: turn, size, right, down."""
    angle, size, right, down = draws.unbind(0)
    angle, size = angle * math.radians(degrees), 1 + size * scale
    cosine, sine = angle.cos() * size, angle.sin() * size
    return torch.stack([cosine, -sine, 2 * shift * right, sine, cosine, 2 * shift * down], 1).view(-1, 2, 3)


def transform(images: Tensor, maps: Tensor) -> Tensor:
    """Each image (N, C, H, W) of floats under its own map (N, 2, 3); differentiable in the images.

    Call it outside of an autocast: in bf16 places are off by a tenth of a pixel, in large images by more.
    """
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
