"""Generates images with known factors: a shape with a scale, a rotation and a position, on the grid of dSprites.

dSprites (Matthey et al. 2017, github.com/google-deepmind/dsprites-dataset) has 3 shapes x 6 scales x 40 rotations x
32 x 32 positions: 737,280 images of 64 x 64. The last factor changes fastest. This module generates the same grid in
the same order. The factors are the same; the pixels differ from the original. It renders the 720 sprites once. An image
is a sprite at its position, so only requested images use memory.

**Images do not show the whole rotation**, here and in dSprites. The 40 values include both 0 and 2 pi, so the first and
the last image are equal. A square looks the same after 90 degrees, and an ellipse after 180. Steps of 360/39 degrees do
not meet these angles exactly, but the images are almost equal, and some small ones are equal in every pixel. No code
can contain more of the rotation than the image shows. So the score for rotation is low even for the best models.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from infogan_ray import UserError

NAMES = ("shape", "scale", "orientation", "x", "y")
SIZES = (3, 6, 40, 32, 32)
KINDS = ("square", "ellipse", "heart")
SIZE = 64
SPRITE = 33  # height and width; odd, so that the centre of a sprite is the centre of a pixel
FIRST = SPRITE // 2  # the first position of a sprite's centre, in pixels: the sprite touches the border
RADIUS = 15.5  # of the largest sprite, in pixels
SUBPIXELS = 5  # points per side at which each pixel is computed
SUBSET = 56_000  # images of the dataset ``shapes``; the whole grid would need 3 GB
SUBSET_SEED = 64


class Shapes:
    """The whole grid, a ``factors.FactorSet``. ``antialias``: grey borders, not black and white as in dSprites."""

    names, sizes = NAMES, SIZES
    ordered = (False, True, True, True, True)

    def __init__(self, antialias: bool = False) -> None:
        self._views = _views(antialias)

    def __len__(self) -> int:
        return math.prod(SIZES)

    def classes(self, indices: Tensor) -> Tensor:
        """The classes (N, 5) int64 of images with the indices (N,) int64 in the order of dSprites."""
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise UserError(f"indices reach from {indices.min()} to {indices.max()}; valid are 0 to {len(self) - 1}")
        return torch.stack(torch.unravel_index(indices, SIZES), 1)

    def values(self, classes: Tensor) -> Tensor:
        """The factor values (N, 5) float64 of classes (N, 5).

        Shape 0 to 2 (``KINDS``), scale 0.5 to 1, orientation 0 to 2 pi radians counter-clockwise, x and y from 0 (left,
        top) to 1.
        """
        ends = ((0.0, 2.0), (0.5, 1.0), (0.0, 2 * math.pi), (0.0, 1.0), (0.0, 1.0))
        columns = [
            torch.linspace(low, high, size, dtype=torch.float64)[classes[:, factor]]
            for factor, ((low, high), size) in enumerate(zip(ends, SIZES, strict=True))
        ]
        return torch.stack(columns, 1)

    def images(self, classes: Tensor) -> Tensor:
        """Images uint8 (N, 1, 64, 64) for classes (N, 5) int64. Raises UserError for classes outside the grid."""
        check_classes(classes, NAMES, SIZES)
        shape, scale, orientation, x, y = classes.unbind(1)
        sprite = (shape * SIZES[1] + scale) * SIZES[2] + orientation
        return self._views[sprite, SIZES[4] - 1 - y, SIZES[3] - 1 - x].unsqueeze(1)


def check_classes(classes: Tensor, names: tuple[str, ...], sizes: tuple[int, ...]) -> None:
    """Raise UserError, which names the factor, unless classes are int64 (N, F) within the factors' sizes."""
    if classes.dtype != torch.int64 or classes.dim() != 2 or classes.shape[1] != len(sizes):
        raise UserError(f"classes are {classes.dtype} {tuple(classes.shape)}; they must be int64 (N, {len(sizes)})")
    for name, size, column in zip(names, sizes, classes.unbind(1), strict=True):
        if len(column) and not 0 <= int(column.min()) <= int(column.max()) < size:
            raise UserError(f"{name} is from {column.min()} to {column.max()}; valid are the classes 0 to {size - 1}")


def subset() -> tuple[Tensor, Tensor]:
    """The dataset ``shapes``: SUBSET different images of the grid (N, 1, 64, 64), and their shapes (N,) as labels.

    The order is random, with a fixed seed.
    """
    shapes = Shapes()
    order = torch.randperm(len(shapes), generator=torch.Generator().manual_seed(SUBSET_SEED))
    classes = shapes.classes(order[:SUBSET])
    return shapes.images(classes), classes[:, 0]


@cache
def _views(antialias: bool) -> Tensor:
    """Every sprite at every position, (720, 32, 32, 64, 64): views of 720 canvases with the sprite in the middle.

    The window that starts ``o`` pixels from the left of a canvas shows the sprite ``o`` pixels further left.
    """
    steps = SIZES[3] - 1
    canvas = torch.zeros(SIZES[0] * SIZES[1] * SIZES[2], SIZE + steps, SIZE + steps, dtype=torch.uint8)
    canvas[:, steps : steps + SPRITE, steps : steps + SPRITE] = _sprites(antialias)
    return canvas.unfold(1, SIZE, 1).unfold(2, SIZE, 1)


def _sprites(antialias: bool) -> Tensor:
    """(720, 33, 33) uint8: the share of each pixel inside the shape, without ``antialias`` rounded to 0 or 255."""
    fine = (torch.arange(SPRITE * SUBPIXELS, dtype=torch.float64) + 0.5) / SUBPIXELS - SPRITE / 2
    right, up = fine.view(1, -1), -fine.view(-1, 1)  # row numbers of an image increase downwards
    sprites = []
    for shape in range(SIZES[0]):
        for scale in torch.linspace(0.5, 1.0, SIZES[1], dtype=torch.float64).tolist():
            for angle in torch.linspace(0.0, 2 * math.pi, SIZES[2], dtype=torch.float64).tolist():
                radius = RADIUS * scale
                cosine, sine = math.cos(angle), math.sin(angle)
                u, v = (right * cosine + up * sine) / radius, (up * cosine - right * sine) / radius
                share = _inside(shape, u, v).double().view(SPRITE, SUBPIXELS, SPRITE, SUBPIXELS).mean((1, 3))
                sprites.append((share * 255).round().byte() if antialias else (share >= 0.5).byte() * 255)
    return torch.stack(sprites)


def _inside(shape: int, u: Tensor, v: Tensor) -> Tensor:
    """Which points are inside a shape at rotation 0. All of them are within 1 of (0, 0). v points up."""
    if KINDS[shape] == "square":
        return torch.maximum(u.abs(), v.abs()) <= math.sqrt(0.5)
    if KINDS[shape] == "ellipse":
        return u**2 + (1.8 * v) ** 2 <= 1
    x, y = 1.35 * u, 1.35 * v + 0.1  # the heart curve (x^2 + y^2 - 1)^3 = x^2 y^3, centred
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3
