"""Reads rows of a prepared dataset: a whole split, or a sample of it to evaluate a streamed dataset on."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.shards.dataset import ENCODED, TEST, TRAIN, ShardSet, is_prepared, open_shards, read_group
from infogan_ray.models.rng import seeded_generator
from infogan_ray.storage.file_system import StorageError, open_storage

SAMPLE = 10_000  # images of each split on which a streamed dataset is evaluated
SAMPLE_BYTES = 256 * 1024**2  # largest size of a sample
SPREAD = 32  # a sample comes from at least this number of row groups, at equal distances


def prepared(data: str) -> ShardSet | None:
    """Open the prepared dataset that ``--data`` names. None for other data. Raises UserError, in one line."""
    is_uri = "://" in data
    if not is_uri and not Path(data).expanduser().is_dir():
        return None
    try:
        folder = open_storage(data if is_uri else str(Path(data).expanduser().absolute()))
        return open_shards(folder) if is_uri or is_prepared(folder) else None
    except StorageError as error:
        raise UserError(f"data: {error}") from None


def resolve_size(shards: ShardSet, image_size: int | None, channels: int | None) -> tuple[int, int]:
    """Image size and channels of streamed images. Raises UserError if raw images have other ones than requested."""
    if shards.encoding == ENCODED:
        if image_size is None:
            raise UserError(f"image_size is not set, and {shards.folder} holds encoded images; give --image-size")
        return image_size, channels or 3
    assert shards.image_size is not None and shards.channels is not None
    settings = (("image_size", image_size, shards.image_size), ("channels", channels, shards.channels))
    for name, requested, stored in settings:
        if requested not in (None, stored):
            raise UserError(
                f"{name} is {requested}, and the raw images of {shards.folder} have {stored}; a stream cannot convert; "
                f"drop --{name.replace('_', '-')}, prepare them again, or use --feed memory"
            )
    return shards.image_size, shards.channels


def read_rows(
    shards: ShardSet, split: str, image_size: int, channels: int, limit: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Read all rows of a split in order: uint8 images (n, C, S, S), and labels (n,) or None without classes.

    With ``limit``, read that number of random rows from row groups across the whole split. The choice is always the
    same.
    """
    groups = [(shard, number) for shard in shards.split(split) for number in range(len(shard.groups))]
    rows = [shard.groups[number] for shard, number in groups]
    total = sum(rows)
    chosen, order = list(range(len(groups))), torch.arange(total)
    if limit is not None and limit < total:
        count = min(len(groups), max(SPREAD, -(-limit * len(groups) // total)))
        chosen = [(2 * index + 1) * len(groups) // (2 * count) for index in range(count)]
        order = torch.randperm(sum(rows[g] for g in chosen), generator=seeded_generator(0, f"sample {split}"))[:limit]
    starts = [0, *accumulate(rows[group] for group in chosen)]
    images = np.empty((len(order), channels, image_size, image_size), np.uint8)
    labels = np.empty(len(order), np.int64)
    wanted: dict[int, list[int]] = {}
    for position, row in enumerate(order.tolist()):
        wanted.setdefault(bisect_right(starts, row) - 1, []).append(position)
    for index, positions in wanted.items():
        shard, number = groups[chosen[index]]
        group_images, group_labels = read_group(shards, shard, number, image_size, channels)
        rows_in_group = order[positions].numpy() - starts[index]
        images[positions], labels[positions] = group_images[rows_in_group], group_labels[rows_in_group]
    return torch.from_numpy(images), None if shards.classes is None else torch.from_numpy(labels)


def read_sample(
    shards: ShardSet, image_size: int, channels: int, limit: int = SAMPLE
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Read at most ``limit`` images and labels of the training split, then of the test split if there is one."""
    limit = min(limit, SAMPLE_BYTES // (channels * image_size**2))
    images, labels = read_rows(shards, TRAIN, image_size, channels, limit)
    if not shards.test:
        return images, labels, None, None
    return images, labels, *read_rows(shards, TEST, image_size, channels, limit)
