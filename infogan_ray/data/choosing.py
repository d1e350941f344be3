"""Which feed a run gets: its images in memory where they fit there, else a stream of a prepared dataset."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from infogan_ray.data.feed import Feed, InMemoryFeed
from infogan_ray.data.streaming import StreamingFeed
from infogan_ray.display import size

if TYPE_CHECKING:
    from infogan_ray.data.datasets import ImageSet

AUTO, MEMORY, STREAM = "auto", "memory", "stream"
WORKING = 1.25  # what images take while they are read, for each byte that they have
SHARE = 0.5  # of the memory that is free: the rest is for networks, for Ray and for whoever else is there
PREPARE = "write it once as shards, by: infogan data prepare, and name them as --data"


@dataclass(frozen=True)
class Room:
    """The memory of one machine in bytes, and how many copies of the images it holds: one for each of its workers."""

    free: int
    copies: int = 1

    def fits(self, images: int) -> bool:
        """Whether so many bytes of images do, with room to work."""
        return images * self.copies * WORKING <= self.free * SHARE

    def refuse(self, data: str, images: int, asked: str) -> str:
        """A line to be said about images that are not prepared and have little room; nothing where they have enough.

        Raises ValueError where they cannot fit at all, unless memory was asked for.
        """
        if self.fits(images):
            return ""
        if images * self.copies > self.free and asked != MEMORY:
            raise ValueError(f"data: {data} has {self.against(images)}; {PREPARE}; or --feed memory tries all the same")
        return f"data: {data} has {self.against(images)}, which is tight; {PREPARE}"

    def against(self, images: int) -> str:
        each = f" for each of {self.copies} workers" if self.copies > 1 else ""
        return f"{size(images)} of images{each} against {size(self.free)} of free memory"


def choose(asked: str, images: int, room: Room | None) -> str:
    """The feed for so many bytes of prepared images; without a room, memory unless a stream is asked for."""
    if asked != AUTO:
        return asked
    return MEMORY if room is None or room.fits(images) else STREAM


def feed_line(asked: str, images: ImageSet, room: Room) -> str:
    """What is said of the choice, and why: 'feed: streaming, 48.0 GB of images against 12.1 GB of free memory; …'."""
    name = "streaming" if images.feed == STREAM else "in memory"
    if asked == images.feed:
        return f"feed: {name}, as asked for; {room.against(images.bytes)}"
    other = f"; --feed {MEMORY} overrides" if images.feed == STREAM else ""
    return f"feed: {name}, {room.against(images.bytes)}{other}"


def make_feed(
    images: ImageSet, batch_size: int, seed: int, rank: int = 0, world_size: int = 1,
    device: torch.device | None = None,
) -> Feed:  # fmt: skip
    """The feed of a rank. Images in memory lie on the device if they fit into half of what it has free, else beside it:
    what is dealt is the same."""
    if images.shards is not None:
        return StreamingFeed(images.shards, images.image_size, images.channels, batch_size, seed, rank, world_size)
    tensor = images.images
    if device is not None and device.type == "cuda" and Room(torch.cuda.mem_get_info(device)[0]).fits(tensor.nbytes):
        tensor = tensor.to(device)
    return InMemoryFeed(tensor, batch_size, seed, rank, world_size)


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: what the machine has, or less where a control group (a container, a
    scheduler's job) says so. File caches count as free."""
    free = [_meminfo(root)]
    for group in _groups(root):
        free += _left(group, "memory.max", "memory.current", "inactive_file")
        free += _left(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return max(0, min(free))


def _meminfo(root: Path) -> int:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # a system that has no /proc


def _groups(root: Path) -> list[Path]:
    """The folders of this process's control groups that may limit its memory, each with those above it."""
    mount = root / "sys/fs/cgroup"
    folders = [mount, mount / "memory"]
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        top = mount / "memory" if controllers else mount
        parts = [part for part in path.split("/") if part not in ("", "..")]
        folders += [top.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]
    return folders


def _left(group: Path, limit: str, used: str, cached: str) -> list[int]:
    try:
        most = (group / limit).read_text().strip()
        if not most.isdigit():  # "max"
            return []
        found = re.search(rf"^{cached} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        return [int(most) - int((group / used).read_text()) + (int(found[1]) if found else 0)]
    except (OSError, ValueError):
        return []
