"""Small prepared datasets for tests, written row group by row group."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from infogan_ray.data.shards.dataset import COLUMNS, ENCODED, MANIFEST, RAW, TEST, TRAIN, Shard, ShardSet
from infogan_ray.storage.file_system import open_storage


def numbered(count: int, size: int = 4) -> np.ndarray:
    """uint8 (N, 1, S, S): each image holds its own number."""
    images = np.zeros((count, size * size), np.uint8)
    images[:, :4] = np.arange(count, dtype="<u4").view(np.uint8).reshape(count, 4)
    return images.reshape(count, 1, size, size)


def numbers(images: object) -> list[int]:
    """The numbers that ``numbered`` wrote into the images of a tensor or an array."""
    flat = np.asarray(images).reshape(len(images), -1)[:, :4]  # type: ignore[arg-type]
    return np.ascontiguousarray(flat).view("<u4").ravel().tolist()


def write_shards(
    folder: Path, images: np.ndarray, groups: Sequence[Sequence[int]], *, labels: np.ndarray | None = None,
    encoding: str = RAW, test: int = 0,
) -> ShardSet:  # fmt: skip
    """Write one shard per item of ``groups``, which lists the rows of its row groups.

    The first ``test`` images are also written as the test split."""
    folder.mkdir(parents=True)
    assert sum(map(sum, groups)) == len(images)
    store = open_storage(folder)

    def contents(image: np.ndarray) -> bytes:
        if encoding == RAW:
            return image.tobytes()
        file = io.BytesIO()
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "PNG")
        return file.getvalue()

    def write(name: str, first: int, rows: Sequence[int]) -> Shard:
        path = folder / name
        with pq.ParquetWriter(path, COLUMNS) as writer:
            for count in rows:
                part = slice(first, first + count)
                kinds = [None] * count if labels is None else labels[part].tolist()
                columns = [[contents(image) for image in images[part]], kinds, [str(n) for n in range(count)]]
                writer.write_table(pa.table(columns, schema=COLUMNS), row_group_size=max(count, 1))
                first += count
        content = path.read_bytes()
        return Shard(name, tuple(rows), len(content), hashlib.sha256(content).hexdigest())

    starts = np.cumsum([0, *map(sum, groups)])
    train = tuple(write(f"{TRAIN}-{n:05d}.parquet", int(starts[n]), rows) for n, rows in enumerate(groups))
    held_out = (write(f"{TEST}-00000.parquet", 0, [test]),) if test else ()
    raw = encoding == RAW
    classes = None if labels is None else tuple(str(kind) for kind in np.unique(labels))
    shards = ShardSet(
        store, encoding, images.shape[-1] if raw else None, images.shape[1] if raw else None, classes, train, held_out
    )  # fmt: skip
    store.write(MANIFEST, shards.to_json())
    return shards


__all__ = ["ENCODED", "RAW", "numbered", "numbers", "write_shards"]
