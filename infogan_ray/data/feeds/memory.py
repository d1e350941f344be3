"""The interface of feeds, and the feed whose images are in memory as uint8: a permutation for each epoch.

The batch of step S is a function of (images, seed, S) alone. Every rank makes the same permutation and takes its own
rows of each global batch. So ranks see disjoint images and make the same number of steps. A resumed run needs no saved
position. The number of workers changes nothing and need not divide the batch.
Images past the last whole batch of an epoch are left out of that epoch; the next one shuffles them in again.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from infogan_ray.models.rng import seeded_generator


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0...255 to float32 -1...1, the range of the generator's tanh."""
    return images.float().div_(127.5).sub_(1.0)


def share(batch_size: int, rank: int, world_size: int) -> slice:
    """The rows of the global batch that belong to a rank; shares differ by one row at most."""
    return slice(batch_size * rank // world_size, batch_size * (rank + 1) // world_size)


def onto(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor on the device. It is copied to a GPU through pinned memory, so that the host need not wait."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Feed(Protocol):
    """Gives a rank its images. At a step all feeds of a run share one global batch; each gives its rank's rows."""

    batch_size: int
    """Of the global batch."""
    steps_per_epoch: int

    def batch(self, step: int) -> Tensor:
        """This rank's uint8 images (B / world size, C, H, W) of a step: of any step, in any order."""

    def close(self) -> None:
        """Release what the feed holds. It may be called more than once."""


class InMemoryFeed:
    """Gives each rank its rows of ``batch_size`` images per step."""

    def __init__(self, images: Tensor, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        assert world_size <= batch_size <= len(images)
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.share = share(batch_size, rank, world_size)
        self.steps_per_epoch = len(images) // batch_size
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long)

    def batch(self, step: int) -> Tensor:
        """This rank's uint8 images (B / world size, C, H, W) of a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.images), generator=seeded_generator(self.seed, "shuffle", epoch))
            self._epoch, self._order = epoch, onto(self.images.device, order)
        start = position * self.batch_size
        return self.images[self._order[start : start + self.batch_size][self.share]]

    def close(self) -> None:
        """There is nothing to release."""
