"""Decodes an image file to uint8 pixels of a given size and number of channels. Also lists the conversions."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, UnidentifiedImageError  # comes with torchvision

from infogan_ray.data.conversion import CROP, DEFAULT, FITS, PAD, SQUEEZE, Conversion, border_colours
from infogan_ray.data.image_files import Broken
from infogan_ray.data.image_kinds import FORMATS
from infogan_ray.data.pixel_range import CLIPPED, NotFinite, Values, measure
from infogan_ray.data.wide_colour import lost_bits, wide_colour

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
    fit: str = CROP
    values: Values | None = None
    """The values of an image of more than eight bits."""

    def conversions(self, size: int, channels: int) -> list[str]:
        """All conversions, as texts that can be counted."""
        done = list(self.changes)
        if self.grey and channels == 3:
            done.append("grey repeated in three channels")
        elif not self.grey and channels == 1:
            done.append("colour to grey")
        if self.width != self.height and self.crop is None:
            done.append(FITS[self.fit])
            if self.fit == SQUEEZE:
                return done
        side = self.crop or (max if self.fit == PAD else min)(self.width, self.height)
        if side != size:
            done.append(f"{'reduced' if side > size else 'enlarged'} to {size}x{size}")
        return done


def decode(
    content: bytes, size: int, channels: int, most_pixels: int = MOST_PIXELS, crop: int | None = None,
    how: Conversion = DEFAULT,
) -> tuple[np.ndarray, Facts]:  # fmt: skip
    """Decode the bytes of a file to uint8 pixels (channels, size, size). Raises Broken if they are not a valid image.

    ``crop``: side in pixels of the middle square to cut out first; of a smaller image, the largest that fits. Without a
    pixel range in ``how``, an image of more than eight bits is scaled by a range for it alone.
    """
    with _opened(content, most_pixels) as image:
        colours = wide_colour(image, content)
        lost = lost_bits(image, content) if colours is None else None
        pixels, facts = to_square(image, size, channels, crop, how, colours)
        if lost is not None:
            facts = replace(facts, changes=(*facts.changes, f"{lost}-bit colour reduced to 8 bits"))
        return pixels, facts


def wide_values(content: bytes, crop: int | None = None, fit: str = CROP) -> Values | None:
    """The values of an image of more than eight bits, else None without decoding it. Raises Broken."""
    with _opened(content, MOST_PIXELS) as image:
        colours = wide_colour(image, content)
        if colours is None and not image.mode.startswith(("I", "F")):
            return None
        return to_square(image, 1, 1, crop, Conversion(fit), colours)[1].values


@contextmanager
def _opened(content: bytes, most_pixels: int) -> Iterator[Image.Image]:
    """Open the bytes of a file. Errors, also those of the work with the image, become Broken."""
    if not content:
        raise Broken("is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > most_pixels:
                raise Broken(f"has {image.width:,} x {image.height:,} pixels; at most {most_pixels:,} are read")
            yield image
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


def to_square(
    image: Image.Image, size: int, channels: int, crop: int | None = None, how: Conversion = DEFAULT,
    colours: np.ndarray | None = None,
) -> tuple[np.ndarray, Facts]:  # fmt: skip
    """Make an opened image square, turn it upright, put it on white and resize it.

    ``colours``: its pixels uint16 (H, W, C), if the image itself has only eight bits of them. Returns uint8 pixels
    (channels, size, size). Raises Pillow's errors for a damaged file, and Broken for values that are not finite.
    """
    kind, mode, width, height = image.format or "none", image.mode, image.width, image.height
    orientation = _orientation(image)  # it may load the image
    if crop is None:
        image.draft(None, (2 * size, 2 * size))  # decodes a large JPEG at 1/2, 1/4 or 1/8 of its size, which is faster
    image.load()
    box = (0, 0, *image.size)
    if crop is not None or how.fit == CROP:
        side = min(image.size)
        if crop is not None:
            side = crop = min(side, crop)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
    values = None
    if colours is not None:
        part, changes, values = _scaled(colours[box[1] : box[3], box[0] : box[2]], "16-bit", how)
        part, more = _grey_or_rgb(part)
        changes += more
    elif mode.startswith(("I", "F")):
        what = "floats" if mode.startswith("F") else "16-bit" if mode.startswith("I;16") else "32-bit"
        part, changes, values = _scaled(np.asarray(image.crop(box)), what, how)
    else:
        part, changes = _grey_or_rgb(image.crop(box))
    transposition = UPRIGHT.get(_orientation(image))  # Pillow turns only TIFF upright by itself
    if transposition is not None:
        part = part.transpose(transposition)
    if orientation in UPRIGHT:
        changes.append("turned upright as EXIF says")
    if _is_animated(image):
        changes.append(f"{kind} of which the first frame is taken")
    if crop is not None and crop < min(width, height):
        changes.append(f"cropped to the middle {crop}x{crop}")
    grey = part.mode == "L"
    pixels = part.convert("L" if channels == 1 else "RGB")
    if how.fit == PAD:
        pixels = _padded(pixels)
    if pixels.size != (size, size):
        pixels = pixels.resize((size, size), Image.Resampling.BILINEAR)
    array = np.array(pixels).reshape(size, size, channels).transpose(2, 0, 1)
    form = "JPEG" if kind == "MPO" else kind
    return array, Facts(form, mode, width, height, grey, tuple(changes), crop, how.fit, values)


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
    if image.has_transparency_data:
        name = mode if mode in ("LA", "La", "PA", "RGBA", "RGBa") else f"{mode} with transparency"
        return on_white(image), [f"{name} composited on white"]
    if mode in ("L", "RGB"):
        return image, []
    if mode == "1":
        return image.convert("L"), ["1-bit to 0 and 255"]
    if mode == "P":
        return image.convert("RGB"), ["palette to RGB"]
    return image.convert("RGB"), [f"{mode} to RGB"]  # CMYK and YCbCr; Pillow refuses what it cannot convert


def on_white(image: Image.Image) -> Image.Image:
    """An image with transparency on a white background, as L or RGB."""
    grey = image.mode in ("L", "LA", "La", "1")
    whole = image.convert("LA" if grey else "RGBA").convert("RGBA")
    white = Image.new("RGBA", whole.size, "white")
    white.alpha_composite(whole)
    return white.convert("L" if grey else "RGB")


def _scaled(array: np.ndarray, what: str, how: Conversion) -> tuple[Image.Image, list[str], Values]:
    """Scale values (H, W) or (H, W, C) by the pixel range to 8 bits. Also returns the conversions."""
    try:
        values = measure(array)
    except NotFinite:
        raise Broken("holds values that are not numbers") from None
    pixel_range = how.pixel_range or values.range_of_one
    low, _, high = str(pixel_range).partition(":")
    changes = [f"{what} scaled from {low}...{high}"]
    if pixel_range.clips(values):
        changes.append(CLIPPED)
    return Image.fromarray(pixel_range.to_pixels(array)), changes, values


def _padded(image: Image.Image) -> Image.Image:
    """An L or RGB image in the middle of a square that has the colour of its border."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    pixels = np.asarray(image).reshape(height, width, -1).transpose(2, 0, 1)
    colour = border_colours(pixels[None])[0].tolist()
    square = Image.new(image.mode, (side, side), colour[0] if len(colour) == 1 else tuple(colour))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
