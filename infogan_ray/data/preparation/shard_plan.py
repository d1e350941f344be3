"""The plan of a prepared dataset: which rows of the source are in which shard.

The plan depends only on the source and the settings. So each shard is a separate task, which writes the same bytes on
any machine and may be repeated. Tasks run in parallel, and a killed preparation continues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from infogan_ray import UserError
from infogan_ray.data.conversion import CROP, Conversion
from infogan_ray.data.hold_out import STRATIFIED, held_out
from infogan_ray.data.image_files import Broken
from infogan_ray.data.preparation.shard_source import OpenedSource, ShardSource
from infogan_ray.data.shards.dataset import ENCODED, FORMAT, RAW, TEST, TRAIN

SHARD_BYTES, GROUP_BYTES = 64_000_000, 4_000_000  # of images, uncompressed
LEAST_GROUP, MOST_GROUP = 64, 4096  # rows
FEWEST_SHARDS = 16  # also for a small source, so that several processes can work
MOST_SHARD_BYTES = 1_000_000_000  # a shard is made in memory
SIZED = 32  # the first images, from which the size of an encoded image is estimated
ENCODINGS = (RAW, ENCODED)


@dataclass(frozen=True)
class Settings:
    """The settings that determine the bytes of the shards. image_size and channels are None for encoded images."""

    encoding: str
    image_size: int | None
    channels: int | None
    rows_per_shard: int
    rows_per_group: int
    seed: int = 0
    fit: str = CROP
    pixel_range: str | None = None
    """For images of more than 8 bits. None if a sample of the source has none."""

    @property
    def how(self) -> Conversion:
        return Conversion.of(self.fit, self.pixel_range)

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Datasets of earlier versions have no ``fit`` and ``pixel_range``, so defaults are left out."""
        defaults = {"fit": CROP, "pixel_range": None}.items()
        return {key: value for key, value in asdict(self).items() if (key, value) not in defaults}


@dataclass(frozen=True)
class Part:
    """Images of one split. Images in ``held``, bool (N,), go to the test split."""

    source: ShardSource
    split: str
    held: np.ndarray | None = None

    def split_of(self, row: int) -> str:
        return TEST if self.held is not None and self.held[row] else self.split

    def count(self, split: str) -> int:
        held = 0 if self.held is None else int(self.held.sum())
        return held * (split == TEST) + (self.source.count - held) * (split == self.split)


@dataclass(frozen=True)
class ShardTask:
    """Rows ``start`` to ``stop`` of the part with index ``part``, in its shuffled order."""

    number: int
    part: int
    start: int
    stop: int

    def file(self, split: str) -> str:
        return f"{split}-{self.number:05d}.parquet"


@dataclass(frozen=True)
class ShardPlan:
    """The plan of all shards. ``image_bytes``: size of one image, exact if raw, estimated if encoded."""

    name: str
    kind: str
    content: str
    classes: tuple[str, ...] | None
    parts: tuple[Part, ...]
    settings: Settings
    image_bytes: int

    def count(self, split: str | None = None) -> int:
        splits = (TRAIN, TEST) if split is None else (split,)
        return sum(part.count(split) for part in self.parts for split in splits)

    @property
    def request(self) -> dict[str, Any]:
        """The source and the settings. A preparation continues an unfinished dataset only if they are equal."""
        holds_out = any(part.held is not None for part in self.parts)
        return {
            "format": FORMAT, "source": self.name, "kind": self.kind, "images": self.count(), "content": self.content,
            "classes": None if self.classes is None else len(self.classes), **self.settings.to_dict(),
            **({"hold_out": STRATIFIED} if holds_out else {}),
        }  # fmt: skip

    def tasks(self) -> list[ShardTask]:
        step = self.settings.rows_per_shard
        ranges = [
            (index, start, min(start + step, part.source.count))
            for index, part in enumerate(self.parts)
            for start in range(0, part.source.count, step)
        ]
        return [ShardTask(number, *each) for number, each in enumerate(ranges)]

    def rows(self, task: ShardTask) -> list[int]:
        """Rows of the source, in their order in the shard.

        The streaming feed shuffles only a few row groups at a time. So neighbours in the source, for example images of
        one class, must not be neighbours in the shards. A source with random access is shuffled as a whole. For another
        source, each shard is shuffled separately, and the streaming feed shuffles the shards.
        """
        source, seed = self.parts[task.part].source, self.settings.seed
        if source.random_access:
            order = np.random.default_rng([seed, task.part]).permutation(source.count)
            return order[task.start : task.stop].tolist()
        order = np.random.default_rng([seed, task.part, task.start]).permutation(task.stop - task.start)
        return (task.start + order).tolist()


def plan_shards(
    opened: OpenedSource, encoding: str, image_size: int | None, channels: int | None,
    rows_per_shard: int | None = None, rows_per_group: int | None = None, seed: int = 0,
) -> ShardPlan:  # fmt: skip
    """Plan the shards. None means the default. Raises UserError, in one line, for numbers out of range."""
    count = opened.train.count
    if encoding == RAW:
        assert image_size and channels
        image_bytes = channels * image_size * image_size
    else:
        image_bytes, image_size, channels = mean_image_bytes(opened.train), None, None
    for name, value in (("rows_per_shard", rows_per_shard), ("rows_per_group", rows_per_group)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    if seed < 0:
        raise UserError(f"seed is {seed}; it must be at least 0")
    group = rows_per_group or min(max(GROUP_BYTES // image_bytes, LEAST_GROUP), MOST_GROUP)
    shard = rows_per_shard or min(max(SHARD_BYTES // image_bytes, group), max(group, -(-count // FEWEST_SHARDS)))
    if shard * image_bytes > MOST_SHARD_BYTES:
        raise UserError(
            f"rows_per_shard is {shard:,}, at about {image_bytes:,} bytes per image; a shard is built in memory, so "
            f"use {max(1, MOST_SHARD_BYTES // image_bytes):,} or fewer"
        )
    settings = Settings(
        encoding, image_size, channels, shard, min(group, shard), seed, opened.how.fit, opened.how.range_text
    )
    train, held = opened.train, None
    if opened.test is None and train.labels is not None:
        held = held_out(STRATIFIED, train.names, train.labels)
    parts = [Part(train, TRAIN, held if held is not None and held.any() else None)]
    if opened.test is not None:
        parts.append(Part(opened.test, TEST))
    return ShardPlan(opened.name, opened.kind, opened.content, opened.classes, tuple(parts), settings, image_bytes)


def mean_image_bytes(source: ShardSource) -> int:
    """Mean size of an encoded image in bytes, estimated from the first few."""
    found = [image for _, image in source.read(range(min(SIZED, source.count))) if not isinstance(image, Broken)]
    sizes = [image.nbytes if isinstance(image, np.ndarray) else len(image) for image in found]
    return max(1, sum(sizes) // len(sizes)) if sizes else 1


def differences(saved: Mapping[str, Any], requested: Mapping[str, Any]) -> list[str]:
    """The settings that differ, one text for each."""
    texts = []
    for key in dict.fromkeys([*requested, *saved]):
        if saved.get(key) != requested.get(key):
            same_source = saved.get("source") == requested.get("source")
            if key != "content":
                texts.append(f"{key} is {_shown(requested.get(key))} and was {_shown(saved.get(key))}")
            elif same_source:
                texts.append("files of the source have changed")
    return texts


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "unknown" if value is None else str(value)
