"""The source of shards: images of any format, in memory or in files, by row."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from infogan_ray import UserError
from infogan_ray.data.conversion import DEFAULT, Conversion
from infogan_ray.data.datasets import NAMES, DataConfig, load_images
from infogan_ray.data.formats.collection import EncodedImages
from infogan_ray.data.formats.recognise import open_collection
from infogan_ray.data.image_files import Broken, ImageFiles, read_file
from infogan_ray.data.image_loader import sample_values
from infogan_ray.data.image_set import ImageSet
from infogan_ray.data.pixel_range import range_line


class ShardSource(Protocol):
    """Images by row. It can be pickled. ``read`` yields the images in any order."""

    @property
    def count(self) -> int: ...

    @property
    def labels(self) -> np.ndarray | None: ...

    @property
    def random_access(self) -> bool:
        """Whether any rows are read about as fast as consecutive ones."""

    @property
    def crop(self) -> int | None:
        """Side in pixels of the middle square to cut out of each image. None: the largest that fits."""

    @property
    def names(self) -> Sequence[str]: ...

    def read(self, rows: Sequence[int]) -> Iterator[tuple[int, bytes | np.ndarray | Broken]]:
        """Yield rows with a file's bytes or uint8 pixels (H, W[, C]). Without ``random_access``, pass rows in order."""


@dataclass(frozen=True)
class SourceInMemory:
    """uint8 images (N, C, H, W) and, if there are any, labels (N,)."""

    images: np.ndarray
    labels: np.ndarray | None
    prefix: str
    random_access: bool = True
    crop: None = None

    @property
    def count(self) -> int:
        return len(self.images)

    @property
    def names(self) -> list[str]:
        return [f"{self.prefix}/{row}" for row in range(self.count)]

    def read(self, rows: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        for row in rows:
            image = np.ascontiguousarray(self.images[row].transpose(1, 2, 0))
            yield row, image[..., 0] if image.shape[2] == 1 else image


@dataclass(frozen=True)
class SourceInFiles:
    """Encoded images in a folder, an archive or a table."""

    files: Any
    labels: np.ndarray | None

    @property
    def count(self) -> int:
        return len(self.files.names)

    @property
    def random_access(self) -> bool:
        """True for a folder and a .zip. A tar and a compressed table are read forwards."""
        return isinstance(self.files, ImageFiles) and (
            self.files.path.is_dir() or self.files.path.suffix.lower() == ".zip"
        )

    @property
    def crop(self) -> int | None:
        return getattr(self.files, "crop", None)

    @property
    def names(self) -> Sequence[str]:
        names: Sequence[str] = self.files.names
        return names

    def read(self, rows: Sequence[int]) -> Iterator[tuple[int, bytes | Broken]]:
        for row, content in self.files.contents(rows):
            try:
                yield row, read_file(content) if isinstance(content, Path) else content
            except Broken as reason:
                yield row, reason


@dataclass(frozen=True)
class OpenedSource:
    """A source: its training split, its test split if it has one, and a hash of its content."""

    name: str
    kind: str
    train: ShardSource
    test: ShardSource | None
    classes: tuple[str, ...] | None
    content: str
    """SHA-256 of the pixels, or of the names, sizes and modification times of the files."""
    how: Conversion = DEFAULT
    """How images become square pixels of 8 bits, or for arrays became."""


def open_source(source: str, config: DataConfig, say: Callable[[str], None]) -> OpenedSource:
    """Open a named dataset or the images at a path. Raises UserError, in one line, for data that cannot be read.

    Images in memory are converted to the size and channels of ``config`` here, as in training.
    """
    path = Path(source).expanduser().absolute()  # other processes read it, in other folders
    if source in NAMES:
        return _in_memory(load_images(source, config, say))
    if not path.exists():
        raise UserError(f"SRC is '{source}': neither a dataset ({', '.join(NAMES)}) nor a path that exists")
    found = open_collection(path, config.labels, say)
    if not isinstance(found, EncodedImages):  # pixels in one file: training also reads it as a whole
        return _in_memory(load_images(source, config, say))
    how = config.conversion
    values = sample_values(found.files, say, how.fit)
    if values is not None:
        fixed, how = how.pixel_range is not None, how.with_range_of(values)
        assert how.pixel_range is not None
        say(f"data: {range_line(how.pixel_range, values, fixed)}")
    elif how.pixel_range is not None:
        say(f"data: pixel_range is {how.pixel_range}; no image of more than 8 bits was found in a sample of {source}")
    test = None if found.test is None else SourceInFiles(found.test.files, found.test.labels)  # type: ignore[attr-defined]
    classes = None if found.classes is None else tuple(found.classes)
    return OpenedSource(
        path.name, found.kind, SourceInFiles(found.files, found.labels), test, classes, fingerprint(path), how
    )


def _in_memory(found: ImageSet) -> OpenedSource:
    arrays = [
        None if tensor is None else tensor.numpy()
        for tensor in (found.images, found.labels, found.test_images, found.test_labels)
    ]
    images, labels, test_images, test_labels = arrays
    assert images is not None
    names = None
    existing = [split for split in (labels, test_labels) if split is not None]
    if existing:
        all_labels = np.concatenate(existing)
        if all_labels.min() < 0:
            raise UserError(
                f"data: the labels of {found.name} begin at {all_labels.min()}; the smallest valid one is 0"
            )
        names = found.classes or (
            tuple(str(number) for number in range(all_labels.max() + 1)) if all_labels.max() < len(all_labels) else None
        )
    test = None if test_images is None else SourceInMemory(test_images, test_labels, "test")
    content = _digest(*arrays)
    train = SourceInMemory(images, labels, "train")
    return OpenedSource(found.name, "arrays", train, test, names, content, found.conversion)


def fingerprint(path: Path) -> str:
    """SHA-256 of the names, sizes and modification times of all files of a path. No file is read."""
    total = hashlib.sha256()

    def add(name: str, status: os.stat_result) -> None:
        total.update(os.fsencode(name) + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())

    if not path.is_dir():
        add("", path.stat())
    for folder, subfolders, names in os.walk(path):
        subfolders.sort()
        for name in sorted(names):
            file = os.path.join(folder, name)
            try:
                add(os.path.relpath(file, path), os.stat(file))
            except OSError:
                total.update(os.fsencode(name) + b"\0gone\n")
    return total.hexdigest()


def _digest(*arrays: np.ndarray | None) -> str:
    total = hashlib.sha256()
    for array in arrays:
        if array is not None:
            total.update(f"{array.dtype}{array.shape}".encode())
            total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
