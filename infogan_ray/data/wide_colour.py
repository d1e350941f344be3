"""Colour of more than eight bits, which Pillow reduces to eight: read at full width, or said to be reduced."""

from __future__ import annotations

import io
import re
import sys

import numpy as np
from PIL import Image, ImageFile  # comes with torchvision

from infogan_ray.data.image_files import Broken
from infogan_ray.data.image_kinds import FORMATS

OTHER_BYTE = {  # by how 16-bit colour is stored (B: upper byte first, L: lower byte first, N: as this machine does)
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}
PLANES, DEPTHS = 284, 258  # TIFF's tags PlanarConfiguration, which is 2 for one plane a channel, and BitsPerSample
WIDEST = 65535


def wide_colour(image: Image.Image, content: bytes) -> np.ndarray | None:
    """The pixels of an opened image with more than eight bits of colour, uint16 (H, W, C). None for other images.

    None also for the formats of which Pillow only gives eight bits: see ``lost_bits``. Raises Broken.
    """
    if image.format == "PPM" and image.mode == "RGB":
        return _ppm(image, content)
    modes = _raw_modes(image)
    if _has_planes(image):
        if not all(";16" in mode for mode in modes):  # Pillow would read each byte as a pixel
            raise Broken("has 16-bit colour in separate planes, which Pillow cannot read; save it with one plane")
        return None
    return _sixteen_bits(image, content, modes) if modes and set(modes) <= OTHER_BYTE.keys() else None


def lost_bits(image: Image.Image, content: bytes) -> int | None:
    """The bits of each channel of an opened image, if Pillow reduces them to eight. None if it keeps them.

    Call it before the image is loaded, and only for an image without ``wide_colour``.
    """
    if image.mode.startswith(("I", "F")):
        return None
    bits = 8
    if any(";16" in mode for mode in _raw_modes(image)):  # grey with alpha, CMYK and separate planes
        bits = 16
    elif image.format == "JPEG2000":
        start = content.find(b"\xff\x4f\xff\x51")  # of the codestream; SIZ has the number of channels and their bits
        channels = int.from_bytes(content[start + 40 : start + 42])
        bits = max((1 + (depth & 0x7F) for depth in content[start + 42 :: 3][:channels]), default=8)
    elif image.format == "AVIF":
        flags = content[content.find(b"av1C") + 6]  # seq_tier_0, high_bitdepth, twelve_bit, ... from the highest on
        bits = 8 if not flags & 0x40 else 12 if flags & 0x20 else 10
    return bits if bits > 8 else None


def _raw_modes(image: Image.Image) -> list[str]:
    """How the pixels are stored in the file, for example RGB;16B. Empty after the image is loaded."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    return [str(tile[3][0] if isinstance(tile[3], tuple) else tile[3]) for tile in tiles]


def _sixteen_bits(image: Image.Image, content: bytes, modes: list[str]) -> np.ndarray:
    """The pixels of a PNG or TIFF.

    Pillow reads the upper byte of each number. With the other byte order it reads the lower one.
    """
    upper = np.asarray(image)
    with Image.open(io.BytesIO(content), formats=FORMATS) as second:
        assert isinstance(second, ImageFile.ImageFile)
        second.tile = [
            type(tile)(*tile[:3], (OTHER_BYTE[mode], *tile[3][1:]) if isinstance(tile[3], tuple) else OTHER_BYTE[mode])
            for tile, mode in zip(second.tile, modes, strict=True)
        ]
        pixels = upper.astype(np.uint16) * np.uint16(256) + np.asarray(second)
    key = image.info.get("transparency")  # the colour of transparent pixels
    if key is not None and pixels.shape[2] == 3:
        alpha = np.where((pixels == np.array(key)).all(2, keepdims=True), 0, WIDEST).astype(np.uint16)
        pixels = np.concatenate([pixels, alpha], 2)
    return pixels


def _has_planes(image: Image.Image) -> bool:
    """Whether a TIFF has one plane for each channel of more than eight bits."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(PLANES) == 2 and max(tags.get(DEPTHS, (1,))) > 8


def _ppm(image: Image.Image, content: bytes) -> np.ndarray | None:
    """The pixels of a colour PPM, scaled to 0...65535 as Pillow scales grey ones. None with eight bits or fewer."""
    assert isinstance(image, ImageFile.ImageFile)
    decoder, _, start, arguments = image.tile[0]
    greatest = int(arguments[-1]) if isinstance(arguments, tuple) else 255
    if greatest <= 255:
        return None
    shape = (image.height, image.width, 3)
    if decoder == "ppm_plain":  # numbers as text, with comments
        words = re.sub(rb"#[^\r\n]*", b"", content[start:]).split()
        values = np.array([int(word) for word in words[: np.prod(shape)]])
    else:
        values = np.frombuffer(content[start : start + 2 * int(np.prod(shape))], ">u2")
    if values.size < np.prod(shape):
        raise Broken("is cut off (it has fewer numbers than pixels)")
    if values.min() < 0 or values.max() > greatest:
        raise Broken(f"is not a readable image (a number is not in 0...{greatest})")
    return np.rint(values.reshape(shape) * (WIDEST / greatest)).astype(np.uint16)
