"""A prepared dataset: Parquet shards and a manifest, on a disk or in a bucket. ``infogan data prepare`` writes it.

    DEST/MANIFEST.json              describes the dataset; written last, so a folder without it is not a dataset
    DEST/train-00000.parquet …      and test-….parquet, if there is a test split

The columns are ``image`` (binary), ``label`` (int64, null without one) and ``path`` (the origin). A raw image
is uint8 pixels in the order (C, S, S). An encoded image is the bytes of a file, which are decoded when they are read. A
row group is the smallest unit that is read. The manifest has the number of rows of each, so the position of every row
is known before a shard is opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infogan_ray import UserError
from infogan_ray.data.conversion import CROP, DEFAULT, Conversion
from infogan_ray.data.decoding import decode
from infogan_ray.data.image_files import Broken
from infogan_ray.storage.file_system import Storage

FORMAT = 1
MANIFEST = "MANIFEST.json"
PROGRESS = ".progress"  # the folder of finished tasks
RAW, ENCODED = "raw", "encoded"
TRAIN, TEST = "train", "test"
COLUMNS = pa.schema([("image", pa.binary()), ("label", pa.int64()), ("path", pa.string())])


@dataclass(frozen=True)
class Shard:
    """One file: the rows of each of its row groups, its size and its SHA-256."""

    file: str
    groups: tuple[int, ...]
    bytes: int
    sha256: str

    @property
    def rows(self) -> int:
        return sum(self.groups)


@dataclass(frozen=True)
class ShardSet:
    """The content of a manifest. ``image_size`` and ``channels`` are those of raw images, None for encoded ones."""

    folder: Storage
    encoding: str
    image_size: int | None
    channels: int | None
    classes: tuple[str, ...] | None
    train: tuple[Shard, ...]
    test: tuple[Shard, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    """For users: the source, its kind, the conversions and the broken files."""
    conversion: Conversion = DEFAULT
    """How images become square pixels of 8 bits, now for encoded images, at the preparation for raw ones."""

    def count(self, split: str = TRAIN) -> int:
        return sum(shard.rows for shard in self.split(split))

    def split(self, name: str) -> tuple[Shard, ...]:
        return self.train if name == TRAIN else self.test

    @cached_property
    def groups(self) -> list[tuple[Shard, int]]:
        """All row groups of the training split in order: the shard, and the group's index in it."""
        return [(shard, number) for shard in self.train for number in range(len(shard.groups))]

    def with_conversion(self, requested: Conversion) -> ShardSet:
        """These shards, read with ``requested`` and by default with their own pixel range. Raw images do not change."""
        if self.encoding == RAW:
            return self
        used = requested.pixel_range or self.conversion.pixel_range
        return replace(self, conversion=replace(requested, pixel_range=used))

    @property
    def identity(self) -> str:
        """SHA-256 of the manifest, which contains the SHA-256 of every shard."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        def shards(split: Sequence[Shard]) -> list[dict[str, Any]]:
            return [
                {"file": s.file, "rows": s.rows, "groups": list(s.groups), "bytes": s.bytes, "sha256": s.sha256}
                for s in split
            ]

        content = {
            "format": FORMAT, "encoding": self.encoding, "image_size": self.image_size, "channels": self.channels,
            "classes": self.classes, "images": {TRAIN: self.count(TRAIN), TEST: self.count(TEST)},
            TRAIN: shards(self.train), TEST: shards(self.test), "about": self.about,
        }  # fmt: skip
        return json.dumps(content, indent=1).encode()


def is_prepared(folder: Storage) -> bool:
    """Whether a folder is a prepared dataset, finished or not. It must not be read as plain Parquet files."""
    return folder.is_file(MANIFEST) or folder.exists(PROGRESS)


def open_shards(folder: Storage) -> ShardSet:
    """Open a prepared dataset. Raises UserError, in one line, if the folder is not one."""
    try:
        found = json.loads(folder.read(MANIFEST))
        if found["format"] != FORMAT:
            raise UserError(
                f"data: {folder}/{MANIFEST} has format {found['format']}, and this version reads {FORMAT}; "
                "prepare the images again"
            )
        splits = {
            name: tuple(
                Shard(str(s["file"]), tuple(int(n) for n in s["groups"]), int(s["bytes"]), str(s["sha256"]))
                for s in found[name]
            )
            for name in (TRAIN, TEST)
        }
        encoding, size, channels = found["encoding"], found["image_size"], found["channels"]
        if encoding not in (RAW, ENCODED) or (encoding == RAW and not (size and channels)):
            raise KeyError("encoding")
        classes = None if found["classes"] is None else tuple(found["classes"])
        about = found.get("about", {})
        asked = about.get("asked", {})
        conversion = Conversion.of(asked.get("fit", CROP), asked.get("pixel_range"))
    except FileNotFoundError:
        raise UserError(f"data: {folder} has no {MANIFEST}: infogan data prepare has not finished") from None
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"data: {folder}/{MANIFEST} is not the manifest of a prepared dataset") from None
    return ShardSet(folder, encoding, size, channels, classes, splits[TRAIN], splits[TEST], about, conversion)


def read_group(shards: ShardSet, shard: Shard, number: int, size: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Read one row group: images uint8 (n, channels, size, size) and labels int64 (n,), -1 for none.

    Raises UserError, in one line, for data that differ from the manifest. Only ``infogan data verify`` checks the
    SHA-256 of whole shards: here it would slow down every read.
    """
    location = f"{shards.folder}/{shard.file}"

    def read(file: pa.NativeFile) -> pa.Table:
        return pq.ParquetFile(file).read_row_group(number, columns=["image", "label"], use_threads=False)

    try:
        table = shards.folder.parse(shard.file, read)
    except FileNotFoundError:
        raise UserError(f"data: {location} is missing; prepare the images again") from None
    except (pa.ArrowException, IndexError) as error:
        raise UserError(f"data: {location} cannot be read ({' '.join(str(error).split())}); prepare it again") from None
    if len(table) != shard.groups[number]:
        raise UserError(f"data: {location} does not match the manifest; delete it and prepare again")
    labels = table["label"].fill_null(-1).to_numpy().astype(np.int64)
    return _pixels(table["image"], shards, location, size, channels), labels


def _pixels(column: pa.ChunkedArray, shards: ShardSet, location: str, size: int, channels: int) -> np.ndarray:
    if shards.encoding == RAW:
        assert (size, channels) == (shards.image_size, shards.channels)
        flat = b"".join(value.as_py() for value in column)
        if len(flat) != len(column) * channels * size * size:
            raise UserError(f"data: an image of {location} does not have the size in the manifest; prepare it again")
        return np.frombuffer(flat, np.uint8).reshape(-1, channels, size, size)
    images = np.empty((len(column), channels, size, size), np.uint8)
    for row, value in enumerate(column):
        try:
            images[row], _ = decode(value.as_py(), size, channels, how=shards.conversion)
        except Broken as reason:
            raise UserError(f"data: image {row} of {location} {reason}; prepare the images again") from None
    return images


def check(shards: ShardSet, shard: Shard) -> str | None:
    """Compare a shard with the manifest. Returns the error in one line; None if all bytes match."""
    sha, size = hashlib.sha256(), 0
    try:
        for chunk in shards.folder.read_chunks(shard.file):
            sha.update(chunk)
            size += len(chunk)
    except FileNotFoundError:
        return f"data: {shards.folder}/{shard.file} is missing; prepare the images again"
    if (size, sha.hexdigest()) != (shard.bytes, shard.sha256):
        return f"data: {shards.folder}/{shard.file} does not match the manifest; delete it and prepare again"
    return None
