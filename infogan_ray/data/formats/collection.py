"""The common form of all formats: images in a fixed order, each with a name and perhaps a class.

Any range of images can be read. A collection holds a path and an index but no open file, so it can be pickled.
"""

from __future__ import annotations

import dataclasses
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
from infogan_ray.data.labels import as_classes, class_names, to_numbers


@dataclass(frozen=True)
class Item:
    """An image of a collection: an encoded file's bytes, or pixels (H, W) or (H, W, C) as they are stored."""

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
    """Images of one size as pixels of 8 bits or of wider numbers, in one file or in several consecutive files."""

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
        """Yield the index of the first image, the file, and a few images, (n, H, W[, C]) as they are stored."""
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


def class_indices(labels: np.ndarray, what: str, say: Say) -> tuple[np.ndarray, list[str]] | None:
    """Class indices (N,) and class names of integer, float, boolean or text labels (N,).

    None, after a message about ``what``, for float labels that are missing or not whole.
    """
    if labels.dtype.kind in "iu":
        return numbered(labels)
    values = labels.tolist()
    names = as_classes(values, what, say) if labels.dtype.kind == "f" else [str(value) for value in values]
    if names is None:
        return None
    numbers, classes = to_numbers(names)
    return numbers.numpy(), classes


def with_labels(images: EncodedImages, table: str | None, say: Say) -> EncodedImages:
    """Add classes from the CSV or JSON file ``table``, which lists the images of both splits. None changes nothing."""
    if table is None:
        return images
    test = images.test
    assert test is None or isinstance(test, EncodedImages)
    if test is None:
        values = class_names(images.files, images.files.names, table, say)
    else:  # a row of the other split is no mistake
        values = [
            name
            for split in (images, test)
            for name in class_names(split.files, split.files.names, table, lambda line: None)
        ]
    names = as_classes(values, f"the labels in {table}", say)
    if names is None:
        return images
    numbers, classes = to_numbers(names)
    labels = numbers.numpy()
    if test is not None:
        test = dataclasses.replace(test, classes=classes, labels=labels[images.count :])
    return dataclasses.replace(images, classes=classes, labels=labels[: images.count], test=test)


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
