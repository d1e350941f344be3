"""Generated images whose factors are known: a shape with its scale, rotation and place, on the grid of dSprites.

dSprites (Matthey et al. 2017, github.com/google-deepmind/dsprites-dataset) has 3 shapes x 6 scales x 40 rotations x
32 x 32 places, 737,280 images of 64 x 64, the last factor changing fastest. This is the same grid in the same order,
drawn here: pixels differ from the original's, factors do not. The 720 sprites are drawn once; an image is a sprite at
its place, so that a million images cost no more memory than those that are asked for.

**Rotation is not what it seems**, here as there. Its 40 values go from 0 to 2 pi with both ends, so that the first and
the last are the same image. And a square looks the same after 90 degrees, an ellipse after 180: steps of 360/39 degrees
never meet there exactly, and yet nobody can tell quarter turns of a square apart (some small ones are equal to the last
pixel). No code can carry more of the rotation than the image shows, so its share of every score is low for
the best of models, too.
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
SPRITE = 33  # odd: a sprite's middle is a pixel's
FIRST = SPRITE // 2  # the first place, in pixels: there a sprite touches the border and is whole
REACH = 15.5  # pixels from the middle to the farthest point of the largest sprite
INSIDE = 5  # points a side that are asked within each pixel
SUBSET = 56_000  # of the grid, as the dataset ``shapes``: all of it would take 3 GB
SUBSET_SEED = 64


class Shapes:
    """The whole grid, a ``factors.FactorSet``. ``antialias``: grey borders; without, black or white as there."""

    names, sizes = NAMES, SIZES
    ordered = (False, True, True, True, True)

    def __init__(self, antialias: bool = False) -> None:
        self._views = _placed(antialias)

    def __len__(self) -> int:
        return math.prod(SIZES)

    def classes(self, indices: Tensor) -> Tensor:
        """The factors' classes (N, 5) int64 of images by their number in dSprites' order, (N,) int64."""
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise UserError(f"indices reach from {indices.min()} to {indices.max()}; valid are 0 to {len(self) - 1}")
        return torch.stack(torch.unravel_index(indices, SIZES), 1)

    def values(self, classes: Tensor) -> Tensor:
        """What the classes (N, 5) stand for, (N, 5) float64: shape 0 to 2 (``KINDS``), scale 0.5 to 1, orientation in
        radians 0 to 2 pi, counter-clockwise, x and y from 0 (left, top) to 1."""
        ends = ((0.0, 2.0), (0.5, 1.0), (0.0, 2 * math.pi), (0.0, 1.0), (0.0, 1.0))
        columns = [
            torch.linspace(low, high, size, dtype=torch.float64)[classes[:, factor]]
            for factor, ((low, high), size) in enumerate(zip(ends, SIZES, strict=True))
        ]
        return torch.stack(columns, 1)

    def images(self, classes: Tensor) -> Tensor:
        """uint8 (N, 1, 64, 64) of classes (N, 5) int64. Raises UserError for classes outside the grid."""
        check_classes(classes, NAMES, SIZES)
        shape, scale, orientation, x, y = classes.unbind(1)
        sprite = (shape * SIZES[1] + scale) * SIZES[2] + orientation
        return self._views[sprite, SIZES[4] - 1 - y, SIZES[3] - 1 - x].unsqueeze(1)


def check_classes(classes: Tensor, names: tuple[str, ...], sizes: tuple[int, ...]) -> None:
    """Raises UserError, naming the factor, for classes that are not int64 (N, F) within the factors' sizes."""
    if classes.dtype != torch.int64 or classes.dim() != 2 or classes.shape[1] != len(sizes):
        raise UserError(f"classes are {classes.dtype} {tuple(classes.shape)}; they must be int64 (N, {len(sizes)})")
    for name, size, column in zip(names, sizes, classes.unbind(1), strict=True):
        if len(column) and not 0 <= int(column.min()) <= int(column.max()) < size:
            raise UserError(f"{name} is from {column.min()} to {column.max()}; valid are the classes 0 to {size - 1}")


def subset() -> tuple[Tensor, Tensor]:
    """The dataset ``shapes``: SUBSET images of the grid (N, 1, 64, 64), each once, in random order, always the same;
    and their shapes (N,) as labels."""
    drawn = Shapes()
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(SUBSET_SEED))
    classes = drawn.classes(order[:SUBSET])
    return drawn.images(classes), classes[:, 0]


@cache
def _placed(antialias: bool) -> Tensor:
    """Every sprite at every place, (720, 32, 32, 64, 64): views of 720 canvases, each with its sprite in the middle.

    The window that starts ``o`` pixels into a canvas shows the sprite ``o`` pixels nearer to the left.
    """
    steps = SIZES[3] - 1
    canvas = torch.zeros(SIZES[0] * SIZES[1] * SIZES[2], SIZE + steps, SIZE + steps, dtype=torch.uint8)
    canvas[:, steps : steps + SPRITE, steps : steps + SPRITE] = _sprites(antialias)
    return canvas.unfold(1, SIZE, 1).unfold(2, SIZE, 1)


def _sprites(antialias: bool) -> Tensor:
    """(720, 33, 33) uint8: the share of each pixel that is inside, or 255 where that is at least half."""
    fine = (torch.arange(SPRITE * INSIDE, dtype=torch.float64) + 0.5) / INSIDE - SPRITE / 2
    right, up = fine.view(1, -1), -fine.view(-1, 1)  # images count rows downwards
    sprites = []
    for shape in range(SIZES[0]):
        for scale in torch.linspace(0.5, 1.0, SIZES[1], dtype=torch.float64).tolist():
            for angle in torch.linspace(0.0, 2 * math.pi, SIZES[2], dtype=torch.float64).tolist():
                reach = REACH * scale
                cosine, sine = math.cos(angle), math.sin(angle)
                u, v = (right * cosine + up * sine) / reach, (up * cosine - right * sine) / reach
                share = _inside(shape, u, v).double().view(SPRITE, INSIDE, SPRITE, INSIDE).mean((1, 3))
                sprites.append((share * 255).round().byte() if antialias else (share >= 0.5).byte() * 255)
    return torch.stack(sprites)


def _inside(shape: int, u: Tensor, v: Tensor) -> Tensor:
    """Which points belong to a shape at rotation 0; none is farther than 1 from (0, 0). v points up."""
    if KINDS[shape] == "square":
        return torch.maximum(u.abs(), v.abs()) <= math.sqrt(0.5)
    if KINDS[shape] == "ellipse":
        return u**2 + (1.8 * v) ** 2 <= 1
    x, y = 1.35 * u, 1.35 * v + 0.1  # the heart curve (x^2 + y^2 - 1)^3 = x^2 y^3, moved to its middle
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3
