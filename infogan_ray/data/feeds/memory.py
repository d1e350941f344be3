"""The interface of feeds, and the feed of uint8 images in memory, which permutes the images in each epoch.

The batch of step S depends only on (images, seed, S). Every rank computes the same permutation and takes its own rows
of each global batch. So ranks see disjoint images and make the same number of steps. A resumed run needs no saved
position. The number of workers does not change the batches, and need not divide the batch size.
Images after the last whole batch of an epoch are left out of it. The next epoch shuffles them in again.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from infogan_ray.models.rng import seeded_generator
from infogan_ray.models.value_range import to_unit_range as to_unit_range


def share(batch_size: int, rank: int, world_size: int) -> slice:
    """A rank's rows of the global batch. The numbers of rows of two ranks differ by at most one."""
    return slice(batch_size * rank // world_size, batch_size * (rank + 1) // world_size)


def onto(device: torch.device, tensor: Tensor) -> Tensor:
    """Copy a tensor to the device. It goes to a GPU through pinned memory, so that the host need not wait."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Feed(Protocol):
    """Gives a rank its images. At each step all feeds share one global batch, and each returns its rank's rows."""

    batch_size: int
    """Size of the global batch."""
    steps_per_epoch: int

    def batch(self, step: int) -> Tensor:
        """This rank's uint8 images (B / world size, C, H, W) of a step. Steps may be requested in any order."""

    def close(self) -> None:
        """Release the feed's resources. It may be called more than once."""


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
