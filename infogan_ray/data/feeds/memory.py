"""What training reads its images through, and the feed whose images are in memory: uint8 and a permutation per epoch.

What step S reads is a function of (images, seed, S) alone. Every rank permutes alike and takes its own share of each
global batch: ranks see disjoint images, all make the same number of steps by construction, a resumed run needs no saved
position, and the number of workers does not matter, nor does it have to divide the batch.
Images past the last whole batch of an epoch are left out of that epoch; the next one shuffles them in again.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from infogan_ray.models.rng import seeded_generator
from infogan_ray.models.value_range import to_unit_range as to_unit_range


def share(batch_size: int, rank: int, world_size: int) -> slice:
    """The rows of the global batch that belong to a rank; shares differ by one row at most."""
    return slice(batch_size * rank // world_size, batch_size * (rank + 1) // world_size)


def onto(device: torch.device, tensor: Tensor) -> Tensor:
    """A tensor on the device. Of pinned memory the copy to a GPU is put behind what is still to be done there, and the
    host goes on; of other memory the host waits until it is made."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Feed(Protocol):
    """Where a rank's images come from. All feeds of a run deal the same global batch at a step, each its share."""

    batch_size: int
    """Of the global batch."""
    steps_per_epoch: int

    def batch(self, step: int) -> Tensor:
        """This rank's uint8 images (B / world size, C, H, W) of a step: of any step, in any order."""

    def close(self) -> None:
        """Give back what the feed holds. More than once does no harm."""


class InMemoryFeed:
    """Deals ``batch_size`` images per step, to each rank its share."""

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
        """There is nothing to give back."""
