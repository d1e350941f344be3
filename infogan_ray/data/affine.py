"""Random affine transformations of images: rotation, resizing and shifts.

Shapes: images (N, C, H, W). A map (2, 3) converts coordinates in [-1, 1] of the result to those of the image.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def affine_maps(uniforms: Tensor, degrees: float, scale: float, shift: float) -> Tensor:
    """Maps (N, 2, 3) from random numbers ``uniforms`` (4, N) in [-1, 1]: rotation, size, right, down."""
    angle, size, right, down = uniforms.unbind(0)
    angle, size = angle * math.radians(degrees), 1 + size * scale
    cosine, sine = angle.cos() * size, angle.sin() * size
    return torch.stack([cosine, -sine, 2 * shift * right, sine, cosine, 2 * shift * down], 1).view(-1, 2, 3)


def transform(images: Tensor, maps: Tensor) -> Tensor:
    """Apply a map (N, 2, 3) to each image (N, C, H, W) of floats. Differentiable in the images.

    Call it outside autocast: in bf16 coordinates are wrong by a tenth of a pixel, and by more in large images.
    """
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
