"""Loads a collection into memory and converts every image to the configured size and channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.conversion import CROP, DEFAULT, FITS, PAD, SQUEEZE, Conversion, to_squares
from infogan_ray.data.decoding import on_white
from infogan_ray.data.formats.collection import Collection, EncodedImages, RawImages
from infogan_ray.data.image_files import Say
from infogan_ray.data.image_loader import read_pictures, summary
from infogan_ray.data.pixel_range import CLIPPED, NotFinite, PixelRange, Values, measure, range_line
from infogan_ray.data.progress import counted
from infogan_ray.storage.visible_text import shell_word

ALPHA = {2: "grey with alpha", 4: "RGBA"}
"""Numbers of channels that end with alpha, and their names."""


@dataclass(frozen=True)
class Loaded:
    """``images`` uint8 (N, C, S, S), labels (N,) if there are any, and N names, which differ.

    ``how``: the conversion, with the pixel range that was set or found. It has none if all images have 8 bits.
    """

    images: Tensor
    labels: Tensor | None
    names: list[str]
    how: Conversion


def load_in_memory(
    collection: Collection, size: int | None, channels: int | None, max_bad: float, say: Say,
    how: Conversion = DEFAULT,
) -> Loaded:  # fmt: skip
    """Load a collection without its test split.

    Raises UserError, in one line, if too many images are broken or a size is missing.
    """
    if isinstance(collection, EncodedImages):
        return _decoded(collection, size, channels, max_bad, say, how)
    assert isinstance(collection, RawImages)
    check_size(collection.shape[:2], size, how.fit)
    how = _with_range(collection, how, say)
    images: Tensor | None = None
    for first, _, chunk in collection.chunks(0, collection.count):
        part = to_images(chunk, size, channels, how)
        if images is None:
            images = torch.empty((collection.count, *part.shape[1:]), dtype=torch.uint8)
        images[first : first + len(part)] = part
    assert images is not None
    if done := array_conversions(collection.shape, how.fit):
        say(f"data: {counted(collection.count, 'image')} of {collection.path}: {', '.join(done)}")
    labels = None if collection.labels is None else torch.from_numpy(collection.labels)
    return Loaded(images, labels, [str(row) for row in range(collection.count)], how)


def array_conversions(shape: tuple[int, ...], fit: str) -> list[str]:
    """What is done to arrays (H, W) or (H, W, C) before they are resized, as texts."""
    done = [f"{name} composited on white" for channels, name in ALPHA.items() if shape[2:] == (channels,)]
    return [*done, FITS[fit]] if shape[0] != shape[1] else done


def check_size(shape: tuple[int, ...], size: int | None, fit: str) -> None:
    """Raises UserError if images are to be squeezed to a square of unknown size."""
    height, width = shape
    if height != width and size is None and fit == SQUEEZE:
        raise UserError(
            f"data: the images are {height}x{width}; to squeeze them, set image_size; or --fit {CROP} or {PAD}"
        )


def array_values(collection: RawImages) -> Values | None:
    """The values of all images; None for pixels of eight bits or fewer. Raises UserError for NaN and infinity."""
    values: Values | None = None
    for first, part, chunk in collection.chunks(0, collection.count):
        if not is_wide(chunk):
            return None
        for row, image in enumerate(chunk, start=first):
            try:
                values = measure(image) | values
            except NotFinite:
                raise UserError(
                    f"data: image {row:,} of {part.path} holds NaN or infinity; replace them, or leave the image out"
                ) from None
    return values


def is_wide(images: np.ndarray) -> bool:
    """Whether an array has numbers of more than eight bits."""
    return images.dtype not in (np.uint8, np.bool_)


def to_images(chunk: np.ndarray, size: int | None, channels: int | None, how: Conversion) -> Tensor:
    """Convert arrays (n, H, W[, C]) of any numbers, perhaps with alpha, to uint8 (n, channels, size, size)."""
    if chunk.dtype == np.bool_:
        chunk = chunk * np.uint8(255)
    elif is_wide(chunk):
        assert how.pixel_range is not None
        chunk = np.stack([how.pixel_range.to_pixels(image) for image in chunk])
    if chunk.shape[3:] in ((2,), (4,)):
        chunk = np.stack([np.asarray(on_white(Image.fromarray(image))) for image in chunk])
    return with_size_and_channels(channels_first(chunk), size, channels, how.fit)


def channels_first(images: np.ndarray) -> Tensor:
    """Convert uint8 (N, H, W[, C]) to (N, C, H, W)."""
    return torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2).contiguous()


def _with_range(collection: RawImages, how: Conversion, say: Say) -> Conversion:
    """``how`` with the pixel range of a collection; without one if its pixels have eight bits."""
    values = array_values(collection)
    if values is None:
        return dataclasses.replace(how, pixel_range=None)
    fixed, how = how.pixel_range is not None, how.with_range_of(values)
    used = how.pixel_range
    assert used is not None
    say(f"data: {range_line(used, values, fixed)}")
    if used.clips(values):
        say(f"data: {counted(count_clipped(collection, used), 'image')} of {collection.path} {CLIPPED}")
    return how


def count_clipped(collection: RawImages, used: PixelRange) -> int:
    """The number of images with values outside the range."""
    return sum(used.clips(measure(image)) for _, _, chunk in collection.chunks(0, collection.count) for image in chunk)


def _decoded(
    collection: EncodedImages, size: int | None, channels: int | None, max_bad: float, say: Say, how: Conversion
) -> Loaded:
    if size is None:
        raise UserError(
            f"image_size is not set; {collection.kind} ({collection.path}) needs it, for example --image-size 32; "
            f"for a proposal: infogan data inspect {shell_word(str(collection.path))}"
        )
    pictures = read_pictures(collection.files, size, channels or 3, say, max_bad, how)
    for line in summary(collection.files, pictures):
        say(line)
    labels = None if collection.labels is None else torch.from_numpy(collection.labels[pictures.rows])
    return Loaded(pictures.images, labels, pictures.names, pictures.how)


def with_size_and_channels(images: Tensor, size: int | None, channels: int | None, fit: str = CROP) -> Tensor:
    """Convert uint8 (N, C, H, W) to (N, channels, size, size). None leaves a value unchanged.

    Images that are not square become square by ``fit``, one of FITS.
    """
    images = to_squares(images, fit)
    if channels == 3 and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1).contiguous()
    elif channels == 1 and images.shape[1] == 3:
        images = torch.cat([_grey(part) for part in images.split(1024)])
    if size is not None and tuple(images.shape[2:]) != (size, size):
        images = torch.cat(list(_resized(images, size)))
    return images


def _grey(images: Tensor) -> Tensor:
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601
    return (images * luma).sum(1, keepdim=True).round().byte()


def _resized(images: Tensor, size: int) -> Iterator[Tensor]:
    for part in images.split(1024):
        resized = F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True)
        yield resized.round().clamp(0, 255).byte()
