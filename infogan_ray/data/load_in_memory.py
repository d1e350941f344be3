"""Loads a collection into memory and converts every image to the configured size and channels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.formats.collection import Collection, EncodedImages, RawImages
from infogan_ray.data.image_files import Say
from infogan_ray.data.image_loader import read_pictures, summary
from infogan_ray.storage.visible_text import shell_word


def load_in_memory(
    collection: Collection, size: int | None, channels: int | None, max_bad: float, say: Say
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Load images uint8 (N, C, S, S), labels (N,), if there are any, and N names. The collection's test split is not
    loaded.

    Raises UserError, in one line, if too many images are broken or a size is missing.
    """
    if isinstance(collection, EncodedImages):
        return _decoded(collection, size, channels, max_bad, say)
    assert isinstance(collection, RawImages)
    height, width = collection.shape[:2]
    if height != width and size is None:
        raise UserError(f"data: the images are {height}x{width}; set image_size to make them square")
    images: Tensor | None = None
    for first, _, chunk in collection.chunks(0, collection.count):
        part = with_size_and_channels(channels_first(chunk), size, channels)
        if images is None:
            images = torch.empty((collection.count, *part.shape[1:]), dtype=torch.uint8)
        images[first : first + len(part)] = part
    assert images is not None
    labels = None if collection.labels is None else torch.from_numpy(collection.labels)
    return images, labels, [str(row) for row in range(collection.count)]


def channels_first(images: np.ndarray) -> Tensor:
    """Convert uint8 (N, H, W[, C]) to (N, C, H, W)."""
    return torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2).contiguous()


def _decoded(
    collection: EncodedImages, size: int | None, channels: int | None, max_bad: float, say: Say
) -> tuple[Tensor, Tensor | None, list[str]]:
    if size is None:
        raise UserError(
            f"image_size is not set; {collection.kind} ({collection.path}) needs it, for example --image-size 32; "
            f"for a proposal: infogan data inspect {shell_word(str(collection.path))}"
        )
    pictures = read_pictures(collection.files, size, channels or 3, say, max_bad)
    for line in summary(collection.files, pictures):
        say(line)
    if collection.labels is None:
        return pictures.images, None, pictures.names
    return pictures.images, torch.from_numpy(collection.labels[pictures.rows]), pictures.names


def with_size_and_channels(images: Tensor, size: int | None, channels: int | None) -> Tensor:
    """Convert uint8 (N, C, H, W) to (N, channels, size, size). None leaves a value unchanged."""
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
