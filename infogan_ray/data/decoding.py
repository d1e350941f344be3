"""Decodes an image file to uint8 pixels of a given size and number of channels. Also lists the conversions."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError  # comes with torchvision

from infogan_ray.data.image_files import Broken
from infogan_ray.data.image_kinds import FORMATS

MOST_PIXELS = 100_000_000  # of one decoded image
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {  # the transposition that makes an image upright, by its EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """Properties of an image file. Width and height are those before the image is turned upright."""

    format: str
    mode: str
    width: int
    height: int
    grey: bool
    """The file stores no colour."""
    changes: tuple[str, ...]
    """Conversions that were made, for example 'RGBA composited on white'."""
    crop: int | None = None
    """Side in pixels of the middle square that was cut out, if the caller requested one."""

    def conversions(self, size: int, channels: int) -> list[str]:
        """All conversions, as texts that can be counted."""
        done = list(self.changes)
        if self.grey and channels == 3:
            done.append("grey repeated in three channels")
        elif not self.grey and channels == 1:
            done.append("colour to grey")
        if self.width != self.height and self.crop is None:
            done.append("cropped to the middle square")
        side = self.crop or min(self.width, self.height)
        if side != size:
            done.append(f"{'reduced' if side > size else 'enlarged'} to {size}x{size}")
        return done


def decode(
    content: bytes, size: int, channels: int, most_pixels: int = MOST_PIXELS, crop: int | None = None
) -> tuple[np.ndarray, Facts]:
    """Decode the bytes of a file to uint8 pixels (channels, size, size). Raises Broken if they are not a valid image.

    ``crop``: side in pixels of the middle square. By default, and for a smaller image, the largest that fits.
    """
    if not content:
        raise Broken("is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > most_pixels:
                raise Broken(f"has {image.width:,} x {image.height:,} pixels; at most {most_pixels:,} are read")
            return to_square(image, size, channels, crop)
    except (Broken, MemoryError):
        raise
    except UnidentifiedImageError:
        raise Broken(f"is not a readable image (no {', '.join(FORMATS[:-1])} or {FORMATS[-1]})") from None
    except Image.DecompressionBombError:
        raise Broken(f"has too many pixels; at most {most_pixels:,} are read") from None
    except Exception as error:  # Pillow's readers raise SyntaxError, struct.error, IndexError and more for bad bytes
        text = " ".join(str(error).split()) or type(error).__name__
        if "truncated" in text.lower() or isinstance(error, EOFError):
            raise Broken(f"is cut off ({text})") from None
        raise Broken(f"is not a readable image ({text})") from None


def to_square(image: Image.Image, size: int, channels: int, crop: int | None = None) -> tuple[np.ndarray, Facts]:
    """Cut out the middle square of an opened image, turn it upright, put it on white and resize it.

    Returns uint8 pixels (channels, size, size). Raises Pillow's errors for a damaged file, and Broken for values that
    are not finite.
    """
    kind, mode, width, height = image.format or "none", image.mode, image.width, image.height
    orientation = _orientation(image)
    if crop is None:
        image.draft(None, (2 * size, 2 * size))  # decodes a large JPEG at 1/2, 1/4 or 1/8 of its size, which is faster
    image.load()
    side = min(image.size)
    if crop is not None:
        side = crop = min(side, crop)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square, changes = _grey_or_rgb(image.crop((left, top, left + side, top + side)))
    transposition = UPRIGHT.get(_orientation(image))  # Pillow turns only TIFF upright by itself
    if transposition is not None:
        square = square.transpose(transposition)
    if orientation in UPRIGHT:
        changes.append("turned upright as EXIF says")
    if _is_animated(image):
        changes.append(f"{kind} of which the first frame is taken")
    if crop is not None and crop < min(width, height):
        changes.append(f"cropped to the middle {crop}x{crop}")
    grey = square.mode == "L"
    pixels = square.convert("L" if channels == 1 else "RGB")
    if side != size:
        pixels = pixels.resize((size, size), Image.Resampling.BILINEAR)
    array = np.array(pixels).reshape(size, size, channels).transpose(2, 0, 1)
    return array, Facts("JPEG" if kind == "MPO" else kind, mode, width, height, grey, tuple(changes), crop)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # an image with damaged EXIF is still an image
        return 1


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a later frame is damaged; the first frame is used
        return True


def _grey_or_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Convert an image of any mode to L or RGB. Also returns the conversions."""
    mode = image.mode
    if mode.startswith(("I", "F")):
        return _scaled(image)
    if image.has_transparency_data:
        grey = mode in ("L", "LA", "La", "1")
        whole = image.convert("LA" if grey else "RGBA").convert("RGBA")
        white = Image.new("RGBA", whole.size, "white")
        white.alpha_composite(whole)
        name = mode if mode in ("LA", "La", "PA", "RGBA", "RGBa") else f"{mode} with transparency"
        return white.convert("L" if grey else "RGB"), [f"{name} composited on white"]
    if mode in ("L", "RGB"):
        return image, []
    if mode == "1":
        return image.convert("L"), ["1-bit to 0 and 255"]
    if mode == "P":
        return image.convert("RGB"), ["palette to RGB"]
    return image.convert("RGB"), [f"{mode} to RGB"]  # CMYK and YCbCr; Pillow refuses what it cannot convert


def _scaled(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Scale values of more than eight bits by their range to 0...255. Nothing is clipped."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise Broken("holds values that are not numbers")
    minimum, maximum = float(values.min()), float(values.max())
    if image.mode.startswith("I;16") or (image.mode == "I" and minimum >= 0 and maximum <= 65535):
        low, high, done = 0.0, 65535.0, "16-bit scaled from 0...65535"
    elif image.mode == "F" and minimum >= 0 and maximum <= 1:
        low, high, done = 0.0, 1.0, "floats scaled from 0...1"
    elif image.mode == "F" and minimum >= 0 and maximum <= 255:
        low, high, done = 0.0, 255.0, "floats of 0...255 rounded"
    else:
        low, high, done = minimum, maximum, "32-bit scaled from each picture's own least and greatest value"
    scaled = (values - low) * (255.0 / ((high - low) or 1.0))
    return Image.fromarray(scaled.round().astype(np.uint8)), [done]
