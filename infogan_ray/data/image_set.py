"""The images of a run: all in memory, or a prepared dataset to stream with a sample of it in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from infogan_ray.data.conversion import DEFAULT, Conversion
from infogan_ray.data.shards.dataset import ShardSet

AUTO, MEMORY, STREAM = "auto", "memory", "stream"
"""Valid feeds: images in memory, a stream of a prepared dataset, or the choice between both."""


@dataclass(frozen=True)
class ImageSet:
    """uint8 images (N, C, H, W) and, if there are any, labels (N,) and a held-out test split.

    With ``shards``, training streams the shards, and the tensors are a sample of them for evaluation.
    """

    name: str
    images: Tensor
    labels: Tensor | None = None
    test_images: Tensor | None = None
    test_labels: Tensor | None = None
    shards: ShardSet | None = None
    classes: tuple[str, ...] | None = None
    """Names of the labels 0, 1, ..., if they are known."""
    conversion: Conversion = DEFAULT
    """How the images became square pixels of 8 bits, with the pixel range if they had more."""

    @property
    def count(self) -> int:
        """Number of all training images."""
        return len(self.images) if self.shards is None else self.shards.count()

    @property
    def bytes(self) -> int:
        """Size of all training images as uint8, streamed or in memory."""
        return self.count * math.prod(self.images.shape[1:])

    @property
    def feed(self) -> str:
        """The feed that these images need."""
        return MEMORY if self.shards is None else STREAM

    @property
    def image_size(self) -> int:
        return self.images.shape[-1]

    @property
    def channels(self) -> int:
        return self.images.shape[1]
