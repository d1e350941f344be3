"""Chooses a run's feed: images in memory where they fit, else a stream of a prepared dataset."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.filesize import decimal
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.feeds.memory import Feed, InMemoryFeed
from infogan_ray.data.feeds.streaming import StreamingFeed
from infogan_ray.data.image_set import AUTO, MEMORY, STREAM, ImageSet

LOADING_FACTOR = 1.25  # memory that images take while they are loaded, for each byte that they have
USABLE_SHARE = 0.5  # of the free memory: the rest is for networks, for Ray and for other programs
PREPARE = "write it once as shards, by: infogan data prepare, and name them as --data"


@dataclass(frozen=True)
class MemoryBudget:
    """The free memory of one machine in bytes, and the copies of the images in it: one for each of its workers."""

    free: int
    copies: int = 1

    def fits(self, images: int) -> bool:
        """Whether so many bytes of images fit, and can be loaded."""
        return images * self.copies * LOADING_FACTOR <= self.free * USABLE_SHARE

    def check(self, data: str, images: int, asked: str) -> str:
        """A warning about images that are not prepared and barely fit; an empty text where they fit.

        Raises UserError where they cannot fit, unless memory was asked for.
        """
        if self.fits(images):
            return ""
        if images * self.copies > self.free and asked != MEMORY:
            raise UserError(f"data: {data} has {self.compared(images)}; {PREPARE}; or --feed memory tries all the same")
        return f"data: {data} has {self.compared(images)}, which is tight; {PREPARE}"

    def compared(self, images: int) -> str:
        each = f" for each of {self.copies} workers" if self.copies > 1 else ""
        return f"{decimal(images)} of images{each} against {decimal(self.free)} of free memory"


def choose_feed(asked: str, images: int, budget: MemoryBudget | None) -> str:
    """The feed for so many bytes of prepared images; without a budget, memory unless a stream is asked for."""
    if asked != AUTO:
        return asked
    return MEMORY if budget is None or budget.fits(images) else STREAM


def feed_line(asked: str, images: ImageSet, budget: MemoryBudget) -> str:
    """One line with the feed and the reason: 'feed: streaming, 48.0 GB of images against 12.1 GB of free memory; …'."""
    name = "streaming" if images.feed == STREAM else "in memory"
    if asked == images.feed:
        return f"feed: {name}, as asked for; {budget.compared(images.bytes)}"
    other = f"; --feed {MEMORY} overrides" if images.feed == STREAM else ""
    return f"feed: {name}, {budget.compared(images.bytes)}{other}"


def make_feed(
    images: ImageSet, batch_size: int, seed: int, rank: int = 0, world_size: int = 1,
    device: torch.device | None = None, resident: Tensor | None = None,
) -> Feed:  # fmt: skip
    """The feed of a rank. Images in memory are kept on the device if they fit into half of its free memory, else on the
    host; the batches are the same. ``resident``: images that are on the device already, for several runs."""
    if images.shards is not None:
        return StreamingFeed(images.shards, images.image_size, images.channels, batch_size, seed, rank, world_size)
    if resident is None:
        resident = images.images if device is None else make_resident(images, device)
    return InMemoryFeed(resident, batch_size, seed, rank, world_size)


def make_resident(images: ImageSet, device: torch.device) -> Tensor:
    """Images in memory, on the device if they fit there."""
    tensor = images.images
    fits = device.type == "cuda" and MemoryBudget(torch.cuda.mem_get_info(device)[0]).fits(tensor.nbytes)
    return tensor.to(device) if fits else tensor
