"""Chooses a run's feed: images in memory if they fit, else a stream of a prepared dataset."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.filesize import decimal
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.feeds.memory import Feed, InMemoryFeed
from infogan_ray.data.feeds.streaming import StreamingFeed
from infogan_ray.data.image_set import AUTO, MEMORY, STREAM, ImageSet

LOADING_FACTOR = 1.25  # bytes of memory per byte of images during loading
USABLE_SHARE = 0.5  # of free memory for images; the rest is for networks, Ray and other programs
PREPARE = "write it once as shards with infogan data prepare, and pass them as --data"


@dataclass(frozen=True)
class MemoryBudget:
    """The free memory of one machine in bytes, and the number of copies of the images: one for each of its workers."""

    free: int
    copies: int = 1

    def fits(self, images: int) -> bool:
        """Whether this number of bytes of images can be loaded and fits."""
        return images * self.copies * LOADING_FACTOR <= self.free * USABLE_SHARE

    def check(self, data: str, images: int, requested: str) -> str:
        """A warning if images that are not prepared may not fit; an empty text if they fit.

        ``requested``: the feed in the configuration. If it is not memory, images that cannot fit raise UserError.
        """
        if self.fits(images):
            return ""
        if images * self.copies > self.free and requested != MEMORY:
            raise UserError(f"data: {data} has {self.compared(images)}; {PREPARE}; to try anyway, use --feed memory")
        return f"data: {data} has {self.compared(images)}, which may not be enough; {PREPARE}"

    def compared(self, images: int) -> str:
        per_worker = f" for each of {self.copies} workers" if self.copies > 1 else ""
        return f"{decimal(images)} of images{per_worker} against {decimal(self.free)} of free memory"


def choose_feed(requested: str, images: int, budget: MemoryBudget | None) -> str:
    """The feed for ``images`` bytes of prepared images. Without a budget, auto means memory."""
    if requested != AUTO:
        return requested
    return MEMORY if budget is None or budget.fits(images) else STREAM


def feed_line(requested: str, resolved: str, images: ImageSet, budget: MemoryBudget) -> str:
    """One line with the feed and the reason: 'feed: streaming, 48.0 GB of images against 12.1 GB of free memory; …'.

    ``requested``: the feed in the user's configuration. ``resolved``: also that of an earlier attempt, which stays.
    """
    name = "streaming" if images.feed == STREAM else "in memory"
    if images.feed in (requested, resolved):
        reason = "as requested" if requested == images.feed else "as before"
        return f"feed: {name}, {reason}; {budget.compared(images.bytes)}"
    other = f"; --feed {MEMORY} overrides" if images.feed == STREAM else ""
    return f"feed: {name}, {budget.compared(images.bytes)}{other}"


def make_feed(
    images: ImageSet, batch_size: int, seed: int, rank: int = 0, world_size: int = 1,
    device: torch.device | None = None, resident: Tensor | None = None,
) -> Feed:  # fmt: skip
    """Create the feed of a rank.

    Images in memory are kept on the device if they fit into half of its free memory, else on the host. The batches are
    the same. ``resident``: images that are already on the device, for several runs.
    """
    if images.shards is not None:
        return StreamingFeed(images.shards, images.image_size, images.channels, batch_size, seed, rank, world_size)
    if resident is None:
        resident = images.images if device is None else make_resident(images, device)
    return InMemoryFeed(resident, batch_size, seed, rank, world_size)


def make_resident(images: ImageSet, device: torch.device) -> Tensor:
    """The images in memory, copied to the device if they fit."""
    tensor = images.images
    fits = device.type == "cuda" and MemoryBudget(torch.cuda.mem_get_info(device)[0]).fits(tensor.nbytes)
    return tensor.to(device) if fits else tensor
