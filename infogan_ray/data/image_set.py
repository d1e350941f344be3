"""The images of a run: in memory, or as a prepared dataset with a sample of it in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from infogan_ray.data.shards.dataset import ShardSet

AUTO, MEMORY, STREAM = "auto", "memory", "stream"
"""The feeds that may be asked for: images in memory, or a stream of a prepared dataset."""
HOLD_OUT = 7
"""Every seventh image of a labelled folder or file is kept out of training, to count errors on."""


@dataclass(frozen=True)
class ImageSet:
    """uint8 images (N, C, H, W) and, where there are any, labels (N,) and a held-out test part.

    With ``shards``, training streams those, and the tensors are a sample of them for evaluation.
    """

    name: str
    images: Tensor
    labels: Tensor | None = None
    test_images: Tensor | None = None
    test_labels: Tensor | None = None
    shards: ShardSet | None = None
    classes: tuple[str, ...] | None = None
    """What labels 0, 1, ... are called, where that is known."""

    @property
    def count(self) -> int:
        """All training images."""
        return len(self.images) if self.shards is None else self.shards.count()

    @property
    def bytes(self) -> int:
        """Of all training images as uint8, wherever they are."""
        return self.count * math.prod(self.images.shape[1:])

    @property
    def feed(self) -> str:
        """Which feed these images go with."""
        return MEMORY if self.shards is None else STREAM

    @property
    def image_size(self) -> int:
        return self.images.shape[-1]

    @property
    def channels(self) -> int:
        return self.images.shape[1]
