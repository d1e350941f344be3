"""Maps numbers of more than eight bits to uint8 pixels, by one range for all images of a dataset.

The range is found from the least and the greatest value of all these images:

| values                      | range                                                                     |
|-----------------------------|---------------------------------------------------------------------------|
| whole numbers, 0 to 65535   | 0 to 1, 255, 1023, 4095, 16383 or 65535: the smallest that holds them all |
| floats, 0 to 1              | 0 to 1                                                                    |
| floats, -1 to 1             | -1 to 1                                                                   |
| floats, 0 to 255            | 0 to 255                                                                  |
| all others                  | the least to the greatest value                                           |

Cameras and scanners digitise with 8, 10, 12, 14 or 16 bits. A whole bit range keeps black at 0, and it does not change
if the dataset gets another image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from infogan_ray import UserError

BIT_RANGES = (1, 255, 1023, 4095, 16383, 65535)
CLIPPED = "with values outside the pixel range, which are clipped"


class NotFinite(Exception):
    """The values contain NaN or infinity."""


@dataclass(frozen=True)
class PixelRange:
    """The values that become pixels 0 and 255. Values outside are clipped."""

    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> PixelRange:
        """Read LOW:HIGH. Raises UserError, in one line, for other text."""
        low, _, high = text.partition(":")
        try:
            found = cls(float(low), float(high))
        except ValueError:
            found = cls(math.nan, math.nan)
        if not (math.isfinite(found.low) and math.isfinite(found.high) and found.low < found.high):
            raise UserError(
                f"pixel_range is '{text}'; it must be LOW:HIGH, two numbers of which LOW is smaller, for example 0:4095"
            )
        return found

    def __str__(self) -> str:
        return f"{_number(self.low)}:{_number(self.high)}"

    def to_pixels(self, image: np.ndarray) -> np.ndarray:
        """uint8 pixels, rounded, of an image (H, W) or (H, W, C). Two and four channels end with alpha."""
        pixels = self._scale(image)
        if _has_alpha(image):
            # Alpha has the whole range of its type, also where the colours have not.
            whole = image.dtype.kind in "iu"
            most = float(np.iinfo(image.dtype).max) if whole else 1.0 if self.high <= 1 else self.high
            pixels[..., -1] = PixelRange(0, most)._scale(image[..., -1])
        return pixels

    def _scale(self, values: np.ndarray) -> np.ndarray:
        scaled = (values.astype(np.float64) - self.low) * (255.0 / (self.high - self.low))
        return scaled.round().clip(0, 255).astype(np.uint8)

    def clips(self, values: Values) -> bool:
        """Whether some of the values are outside."""
        return values.low < self.low or values.high > self.high


@dataclass(frozen=True)
class Values:
    """The least and the greatest value of ``images`` images. ``whole``: they are integers."""

    low: float
    high: float
    whole: bool
    images: int = 1

    def __or__(self, other: Values | None) -> Values:
        """The values of both."""
        if other is None:
            return self
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Values(low, high, self.whole and other.whole, self.images + other.images)

    def __str__(self) -> str:
        return f"{self.low:.6g}...{self.high:.6g}"

    @property
    def range(self) -> PixelRange:
        """The range for a dataset with these values, as the module's docstring describes."""
        low, high = self.low, self.high
        if self.whole and low >= 0 and high <= BIT_RANGES[-1]:
            return PixelRange(0, next(full for full in BIT_RANGES if high <= full))
        if not self.whole:
            for least, most in ((0, 1), (-1, 1), (0, 255)):
                if least <= low and high <= most:
                    return PixelRange(least, most)
        return PixelRange(low, high if high > low else low + 1)

    @property
    def range_of_one(self) -> PixelRange:
        """The range for one image of an unknown dataset: for whole numbers 16 bits, since the image may be dark."""
        sixteen_bits = self.whole and self.low >= 0 and self.high <= BIT_RANGES[-1]
        return PixelRange(0, BIT_RANGES[-1]) if sixteen_bits else self.range


def measure(image: np.ndarray) -> Values:
    """The values of an image (H, W) or (H, W, C), without alpha. Raises NotFinite for NaN and infinity."""
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise NotFinite
    colours = image[..., :-1] if _has_alpha(image) else image
    return Values(float(colours.min()), float(colours.max()), image.dtype.kind in "iu")


def _has_alpha(image: np.ndarray) -> bool:
    return image.ndim == 3 and image.shape[2] in (2, 4)


def range_line(used: PixelRange, found: Values, fixed: bool) -> str:
    """What users are shown about the range. ``fixed``: it was set and not found from these values."""
    images = f"{found.images:,} image{'s' if found.images != 1 else ''} of more than 8 bits"
    if not fixed:
        return f"pixel range {used}, from the values {found} of {images}; --pixel-range LOW:HIGH overrides"
    outside = "; values outside are clipped" if used.clips(found) else ""
    return f"pixel range {used}, as set, for {images} with the values {found}{outside}"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))
