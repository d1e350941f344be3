"""Reads rows of a prepared dataset: a whole split, or the sample on which a streamed dataset is evaluated."""

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

SAMPLE = 10_000  # images of each split that a streamed dataset is evaluated on
SAMPLE_BYTES = 256 * 1024**2  # at most, of each sample
SPREAD = 32  # row groups, at equal distances, from which a sample is taken if they hold enough


def prepared(data: str) -> ShardSet | None:
    """The shards that ``--data`` names, or None if it is something else. Raises UserError, in one line."""
    is_uri = "://" in data
    if not is_uri and not Path(data).expanduser().is_dir():
        return None
    try:
        folder = open_storage(data if is_uri else str(Path(data).expanduser().absolute()))
        return open_shards(folder) if is_uri or is_prepared(folder) else None
    except StorageError as error:
        raise UserError(f"data: {error}") from None


def resolve_size(shards: ShardSet, image_size: int | None, channels: int | None) -> tuple[int, int]:
    """Image size and channels of streamed images. Raises UserError for raw images that are to have others."""
    if shards.encoding == ENCODED:
        if image_size is None:
            raise UserError(f"image_size is not set, and {shards.folder} holds encoded images; give --image-size")
        return image_size, channels or 3
    assert shards.image_size is not None and shards.channels is not None
    for name, asked, own in (("image_size", image_size, shards.image_size), ("channels", channels, shards.channels)):
        if asked not in (None, own):
            raise UserError(
                f"{name} is {asked}, and the raw images of {shards.folder} have {own}, which a stream leaves as it is; "
                f"drop --{name.replace('_', '-')}, prepare them again, or take --feed memory"
            )
    return shards.image_size, shards.channels


def read_rows(
    shards: ShardSet, split: str, image_size: int, channels: int, most: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """uint8 images (n, C, S, S) and labels (n,), or None without classes: all rows of a split in their order.

    With ``most``: so many random rows, from row groups all over the split, always the same.
    """
    groups = [(shard, number) for shard in shards.split(split) for number in range(len(shard.groups))]
    rows = [shard.groups[number] for shard, number in groups]
    total = sum(rows)
    chosen, order = list(range(len(groups))), torch.arange(total)
    if most is not None and most < total:
        count = min(len(groups), max(SPREAD, -(-most * len(groups) // total)))
        chosen = [(2 * place + 1) * len(groups) // (2 * count) for place in range(count)]
        order = torch.randperm(sum(rows[g] for g in chosen), generator=seeded_generator(0, f"sample {split}"))[:most]
    starts = [0, *accumulate(rows[group] for group in chosen)]
    images = np.empty((len(order), channels, image_size, image_size), np.uint8)
    labels = np.empty(len(order), np.int64)
    wanted: dict[int, list[int]] = {}
    for place, row in enumerate(order.tolist()):
        wanted.setdefault(bisect_right(starts, row) - 1, []).append(place)
    for index, places in wanted.items():
        shard, number = groups[chosen[index]]
        found, kinds = read_group(shards, shard, number, image_size, channels)
        inside = order[places].numpy() - starts[index]
        images[places], labels[places] = found[inside], kinds[inside]
    return torch.from_numpy(images), None if shards.classes is None else torch.from_numpy(labels)


def read_sample(
    shards: ShardSet, image_size: int, channels: int, most: int = SAMPLE
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Images and labels of the training split, then of the test split if there is one: ``most`` of each."""
    most = min(most, SAMPLE_BYTES // (channels * image_size**2))
    images, labels = read_rows(shards, TRAIN, image_size, channels, most)
    if not shards.test:
        return images, labels, None, None
    return images, labels, *read_rows(shards, TEST, image_size, channels, most)
