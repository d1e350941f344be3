"""The common form of all formats: images in a fixed order, each with a name and perhaps a class.

Any range of images can be read. A collection holds a path and an index but no open file, so it can be pickled.
"""

from __future__ import annotations

import dataclasses
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from infogan_ray.data.decoding import decode
from infogan_ray.data.formats.records import StoredImages
from infogan_ray.data.image_files import Broken, Files, Say, read_file
from infogan_ray.data.labels import class_names, to_numbers


@dataclass(frozen=True)
class Item:
    """An image of a collection: an encoded file's bytes, or uint8 pixels (H, W) or (H, W, C)."""

    image: bytes | np.ndarray
    path: str
    """Its origin, shown to users; unique in the collection."""
    label: int | None
    """Index of its class in ``Collection.classes``. None without classes."""


class Collection(Protocol):
    """Images of any format. ``test``: the test split of the dataset, if it has one."""

    @property
    def path(self) -> Path: ...

    @property
    def kind(self) -> str:
        """The layout, shown to users: 'SVHN .mat', 'CelebA folder', 'folder of images'."""

    @property
    def announced(self) -> bool:
        """Whether a message describes the collection to the user."""

    @property
    def count(self) -> int: ...

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes in order, or None without labels."""

    @property
    def labels(self) -> np.ndarray | None:
        """The class index of each image, (N,), or None."""

    @property
    def test(self) -> Collection | None: ...

    def read(self, start: int, stop: int) -> Iterator[tuple[int, Item | Broken]]:
        """Yield images ``start`` to ``stop`` with their indices, in any order."""


@dataclass(frozen=True)
class EncodedImages:
    """Images in files, in an archive or in a table."""

    files: Files
    kind: str
    classes: list[str] | None = None
    labels: np.ndarray | None = None
    test: Collection | None = None
    announced: ClassVar[bool] = True

    @property
    def path(self) -> Path:
        return self.files.path

    @property
    def count(self) -> int:
        return len(self.files.names)

    def read(self, start: int, stop: int) -> Iterator[tuple[int, Item | Broken]]:
        for row, content in self.files.contents(range(start, min(stop, self.count))):
            yield row, self._item(row, content)

    def _item(self, row: int, content: bytes | Path | Broken) -> Item | Broken:
        label = None if self.labels is None else int(self.labels[row])
        try:
            if isinstance(content, Path):
                content = read_file(content)
            if isinstance(content, Broken):
                return content
            image: Any = content
            if self.files.crop is not None:  # readers of the item do not know the crop
                image = decode(content, self.files.crop, 3, crop=self.files.crop)[0].transpose(1, 2, 0)
            return Item(image, self.files.shown(self.files.names[row]), label)
        except Broken as reason:
            return reason


@dataclass(frozen=True)
class RawImages:
    """Images of one size as uint8 pixels, in one file or in several consecutive files."""

    path: Path
    kind: str
    parts: tuple[StoredImages, ...]
    classes: list[str] | None = None
    labels: np.ndarray | None = None
    test: Collection | None = None
    announced: bool = True
    """False for the user's own arrays, which they know already."""

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W) or (H, W, C)."""
        return self.parts[0].shape

    def chunks(self, start: int, stop: int) -> Iterator[tuple[int, StoredImages, np.ndarray]]:
        """Yield the index of the first image, the file, and a few images, uint8 (n, H, W[, C])."""
        before = 0
        for part in self.parts:
            first, last = max(start - before, 0), min(stop - before, part.count)
            if first < last:
                for images in part.chunks(first, last):
                    yield before + first, part, images
                    first += len(images)
            before += part.count

    def read(self, start: int, stop: int) -> Iterator[tuple[int, Item | Broken]]:
        before = {}
        total = 0
        for part in self.parts:
            before[part] = total
            total += part.count
        for first, part, images in self.chunks(start, stop):
            for row, image in enumerate(images, start=first):
                label = None if self.labels is None else int(self.labels[row])
                yield row, Item(image, f"{part.name}/{row - before[part]}", label)


def numbered(labels: np.ndarray, names: Sequence[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """Convert integer labels (N,) to class indices 0…K-1. Also returns the names of the K classes in order.

    With ``names``, the labels are indices into it. Without ``names``, each label that occurs is a class.
    """
    if names is not None:
        return labels.astype(np.int64), list(names)
    values, numbers = np.unique(labels, return_inverse=True)
    return numbers.reshape(-1).astype(np.int64), [str(value) for value in values]


def with_labels(images: EncodedImages, table: str | None, say: Say) -> EncodedImages:
    """Add classes from the CSV file ``table``, which lists the images of both splits. None changes nothing."""
    if table is None:
        return images
    if images.test is None:
        return with_classes(images, class_names(images.files, images.files.names, table, say))
    test = images.test
    assert isinstance(test, EncodedImages)
    train_names, test_names = (
        class_names(split.files, split.files.names, table, lambda line: None) or [] for split in (images, test)
    )
    numbers, classes = to_numbers([*train_names, *test_names])
    test = dataclasses.replace(test, classes=classes, labels=numbers[len(train_names) :].numpy())
    return dataclasses.replace(images, classes=classes, labels=numbers[: len(train_names)].numpy(), test=test)


def with_classes(images: EncodedImages, names: list[str] | None) -> EncodedImages:
    """Add classes: ``names`` has the class name of each image. None changes nothing."""
    if names is None:
        return images
    numbers, classes = to_numbers(names)
    return dataclasses.replace(images, classes=classes, labels=numbers.numpy())


def of_a_test_part(path: Path, root: Path) -> bool:
    """Whether a file, or a folder between it and ``root``, has a name like test-00000-of-00001."""
    return any(re.match(r"test(?![a-z])", part, re.IGNORECASE) for part in path.relative_to(root).parts)


class Joined(Sequence[str]):
    """Names of images in several files: the file, and a name or number in it. Built on demand.

    ``names``: for each file, the names in it or their number.
    """

    def __init__(self, files: Sequence[str], names: Sequence[Sequence[str] | int]) -> None:
        self.files, self.names = files, names
        sizes = [count if isinstance(count, int) else len(count) for count in names]
        self.starts = [0, *accumulate(sizes)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        index = bisect_right(self.starts, row) - 1
        names, row = self.names[index], row - self.starts[index]
        return f"{self.files[index]}/{row if isinstance(names, int) else names[row]}"
