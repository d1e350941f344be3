"""The settings by which images of any size and any numbers become square uint8 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.pixel_range import PixelRange, Values

CROP, PAD, SQUEEZE = "crop", "pad", "squeeze"
FITS = {
    CROP: "cropped to the middle square",
    PAD: "padded to a square with the colour of its border",
    SQUEEZE: "squeezed to a square",
}
"""How an image that is not square becomes square, and what users are shown about it."""


@dataclass(frozen=True)
class Conversion:
    """``fit``: one of FITS. ``pixel_range``: for numbers of more than eight bits; None if it is not known."""

    fit: str = CROP
    pixel_range: PixelRange | None = None

    @classmethod
    def of(cls, fit: str, pixel_range: str | None) -> Conversion:
        """Raises UserError, in one line, for values that are not valid."""
        if fit not in FITS:
            raise UserError(f"fit is '{fit}'; valid are {', '.join(FITS)}")
        return cls(fit, None if pixel_range is None else PixelRange.parse(pixel_range))

    def with_range_of(self, values: Values) -> Conversion:
        """These settings with the pixel range of ``values``, if they have none."""
        return self if self.pixel_range is not None else replace(self, pixel_range=values.range)

    @property
    def range_text(self) -> str | None:
        """LOW:HIGH, or None."""
        return None if self.pixel_range is None else str(self.pixel_range)


DEFAULT = Conversion()


@dataclass(frozen=True)
class NotSquare:
    """``images`` images are not square. Of these, cropping loses a share of the pixels: at the median, and at most."""

    images: int
    median_lost: float
    most_lost: float
    fit: str

    def __str__(self) -> str:
        if self.fit != CROP:
            return f"{self.images:,}; {FITS[self.fit]}"
        lost = f"{self.median_lost:.0%} of the pixels at the median, {self.most_lost:.0%} at most"
        return f"{self.images:,}; cropping loses {lost}; --fit {PAD} or --fit {SQUEEZE} keeps them"


def not_square(sizes: Sequence[tuple[int, int]], fit: str) -> NotSquare | None:
    """What ``fit`` means for images of these widths and heights. None if all are square."""
    lost = [1 - min(size) / max(size) for size in sizes if size[0] != size[1]]
    return NotSquare(len(lost), round(median(lost), 3), round(max(lost), 3), fit) if lost else None


def to_squares(images: Tensor, fit: str) -> Tensor:
    """Crop or pad uint8 images (N, C, H, W) to squares (N, C, S, S). ``squeeze`` leaves that to resizing."""
    height, width = images.shape[2:]
    if height == width or fit == SQUEEZE:
        return images
    if fit == CROP:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return images[:, :, top : top + side, left : left + side].contiguous()
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    colours = torch.from_numpy(border_colours(images.numpy()))
    squares = colours[:, :, None, None].repeat(1, 1, side, side)
    squares[:, :, top : top + height, left : left + width] = images
    return squares


def border_colours(images: np.ndarray) -> np.ndarray:
    """The median of the outermost pixels of uint8 images (N, C, H, W), for each channel: uint8 (N, C).

    With it a uniform background continues over the padding, whatever its colour is.
    """
    edges = (images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1])
    return np.median(np.concatenate(edges, axis=2), axis=2).round().astype(np.uint8)
