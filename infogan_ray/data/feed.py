"""The in-memory feed: uint8 images and a permutation per epoch. What step S reads is a function of (seed, S) alone.

Every rank permutes alike and takes its own share of each global batch: ranks see disjoint images, all make the same
number of steps by construction, a resumed run needs no saved position, and the number of workers does not matter.
Images past the last whole batch of an epoch are left out of that epoch; the next one shuffles them in again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infogan_ray.streams import seeded_generator


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0...255 to float32 -1...1, the range of the generator's tanh."""
    return images.float().div_(127.5).sub_(1.0)


class InMemoryFeed:
    """Deals ``batch_size`` images per step, ``batch_size / world_size`` of them to each rank."""

    def __init__(self, images: Tensor, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        assert batch_size % world_size == 0 and batch_size <= len(images)
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.share = batch_size // world_size
        self.offset = rank * self.share
        self.steps_per_epoch = len(images) // batch_size
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long)

    def batch(self, step: int) -> Tensor:
        """This rank's uint8 images (B / world size, C, H, W) of a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.images), generator=seeded_generator(self.seed, "shuffle", epoch))
            self._epoch, self._order = epoch, order.to(self.images.device)
        start = position * self.batch_size + self.offset
        return self.images[self._order[start : start + self.share]]
