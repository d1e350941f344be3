"""Writes the shards of a task: reads its rows, decodes or checks them, and returns a record."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from infogan_ray.data.decoding import decode, to_square
from infogan_ray.data.image_files import Broken
from infogan_ray.data.preparation.shard_plan import Settings, ShardPlan, ShardTask
from infogan_ray.data.shards.dataset import COLUMNS, RAW, TEST, TRAIN, Shard
from infogan_ray.storage.file_system import Storage
from infogan_ray.storage.visible_text import to_utf8

CHECKED_SIZE = 32  # an encoded image is decoded once at this size, to check it
LEVEL = 3  # of zstd compression


@dataclass(frozen=True)
class TaskRecord:
    """The result of a task: shards by split (without empty ones), conversions, and broken images by name."""

    number: int
    shards: dict[str, Shard]
    conversions: Counter[str]
    broken: dict[str, str]

    @property
    def rows(self) -> int:
        """Number of all images, including broken ones."""
        return sum(shard.rows for shard in self.shards.values()) + len(self.broken)

    def to_dict(self) -> dict[str, Any]:
        shards = {
            split: {"file": s.file, "groups": list(s.groups), "bytes": s.bytes, "sha256": s.sha256}
            for split, s in self.shards.items()
        }
        return {
            "number": self.number, "shards": shards, "conversions": dict(sorted(self.conversions.items())),
            "broken": self.broken,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> TaskRecord:
        """Read a record. Raises KeyError, TypeError or ValueError if it is not valid."""
        shards = {
            split: Shard(str(s["file"]), tuple(int(n) for n in s["groups"]), int(s["bytes"]), str(s["sha256"]))
            for split, s in found["shards"].items()
        }
        return cls(int(found["number"]), shards, Counter(found["conversions"]), dict(found["broken"]))


def write_shards(plan: ShardPlan, task: ShardTask, folder: Storage) -> TaskRecord:
    """Write the shards of a task, each in one write. Raises StorageError.

    Raises UserError, in one line, if the source cannot be read.
    """
    part, settings = plan.parts[task.part], plan.settings
    source, order = part.source, plan.rows(task)
    names = source.names
    position = {row: number for number, row in enumerate(order)}
    kept: dict[int, tuple[str, bytes, int | None, str]] = {}
    broken: dict[int, str] = {}
    conversions: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings about single files; conversions are counted instead
        for row, image in source.read(order if source.random_access else range(task.start, task.stop)):
            try:
                if isinstance(image, Broken):
                    raise image
                content, changes = _content(image, settings, source.crop)
            except Broken as reason:
                broken[row] = str(reason)
                continue
            conversions.update(changes)
            label = None if source.labels is None else int(source.labels[row])
            kept[position[row]] = (part.split_of(row), content, label, names[row])
    shards = {}
    for split in (TRAIN, TEST):
        chosen = [kept[number][1:] for number in sorted(kept) if kept[number][0] == split]
        if chosen:
            content, groups = to_parquet(chosen, settings)
            folder.write(task.file(split), content)
            shards[split] = Shard(task.file(split), groups, len(content), hashlib.sha256(content).hexdigest())
    return TaskRecord(task.number, shards, conversions, {names[row]: broken[row] for row in sorted(broken)})


def _content(image: bytes | np.ndarray, settings: Settings, crop: int | None) -> tuple[bytes, list[str]]:
    """The bytes to store for an image, and its conversions. Raises Broken."""
    size, channels, how = settings.image_size, settings.channels, settings.how
    if isinstance(image, np.ndarray):
        picture = Image.fromarray(image)
        if settings.encoding == RAW:
            assert size and channels
            pixels, facts = to_square(picture, size, channels)
            return pixels.tobytes(), facts.conversions(size, channels)
        return _png(picture), ["pixels packed as PNG"]
    if settings.encoding == RAW:
        assert size and channels
        pixels, facts = decode(image, size, channels, crop=crop, how=how)
        changes = facts.conversions(size, channels)
    elif crop is not None:  # readers of the shard do not know the crop
        pixels, facts = decode(image, crop, 3, crop=crop, how=how)
        changes = [f"cropped to {crop}x{crop} and packed as PNG"]
    else:
        _, facts = decode(image, CHECKED_SIZE, 1, how=how)
        changes = []
    if facts.values is not None and how.pixel_range is None:
        raise Broken("has more than 8 bits, and no image of the sample had; set --pixel-range LOW:HIGH")
    if settings.encoding == RAW:
        return pixels.tobytes(), changes
    if crop is not None:
        return _png(Image.fromarray(pixels.transpose(1, 2, 0))), changes
    return image, changes


def _png(picture: Image.Image) -> bytes:
    packed = io.BytesIO()
    picture.save(packed, "PNG")
    return packed.getvalue()


def to_parquet(rows: list[tuple[bytes, int | None, str]], settings: Settings) -> tuple[bytes, tuple[int, ...]]:
    """The bytes of a Parquet file and the number of rows of each row group. Equal rows give equal bytes."""
    raw, groups = settings.encoding == RAW, []
    packing = {"image": "zstd" if raw else "none", "label": "zstd", "path": "zstd"}
    levels = {name: LEVEL for name, kind in packing.items() if kind == "zstd"}
    sink = io.BytesIO()
    # No statistics and dictionaries of pixels: they need time and space and have no use.
    with pq.ParquetWriter(
        sink, COLUMNS, compression=packing, compression_level=levels, use_dictionary=["label"],
        write_statistics=["label"],
    ) as writer:  # fmt: skip
        for start in range(0, len(rows), settings.rows_per_group):
            group = rows[start : start + settings.rows_per_group]
            writer.write_table(_table(group), row_group_size=len(group))
            groups.append(len(group))
    return sink.getvalue(), tuple(groups)


def _table(rows: Iterable[tuple[bytes, int | None, str]]) -> pa.Table:
    images, labels, paths = zip(*rows, strict=True)
    shown = [to_utf8(path).decode() for path in paths]  # a file name may be invalid text
    return pa.table([pa.array(images, pa.binary()), pa.array(labels, pa.int64()), pa.array(shown)], schema=COLUMNS)
