"""WebDataset's tars. Members whose names are equal up to the first dot are a sample, here an image and its label.

For example 000000.jpg, with 000000.cls (an integer as text) or 000000.json (an object with 'label', 'cls' or 'class').
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infogan_ray import UserError
from infogan_ray.data.archives import followed, inside, link_target
from infogan_ray.data.class_folders import class_of
from infogan_ray.data.formats.collection import EncodedImages, Joined, with_labels
from infogan_ray.data.formats.parts import divide, part_of_file
from infogan_ray.data.image_files import (
    TARS,
    Broken,
    ImageFiles,
    Say,
    first_data_file,
    list_image_files,
)
from infogan_ray.data.image_kinds import ENDINGS
from infogan_ray.data.labels import as_classes, to_numbers

FIRST_MEMBERS = 64  # members by which this layout is recognised
SIDE_FILES = ("cls", "cls.txt", "json")
KEYS = ("label", "cls", "class")
MOST_LABEL_BYTES = 1 << 20


@dataclass(frozen=True)
class Tars:
    """The images of several tars, in the order of the tars."""

    path: Path
    parts: tuple[ImageFiles, ...]
    skipped: Counter[str] = field(default_factory=Counter)
    crop: int | None = None

    @property
    def names(self) -> Sequence[str]:
        files = [str(part.path.relative_to(self.path)) for part in self.parts]
        return Joined(files, [part.names for part in self.parts])

    def shown(self, name: str) -> str:
        return str(self.path / name)

    def contents(self, rows: Sequence[int] | None = None) -> Iterator[tuple[int, bytes | Path | Broken]]:
        wanted = np.array(range(len(self.names)) if rows is None else sorted(rows), np.int64)
        start = 0
        for part in self.parts:
            wanted_in_tar = wanted[(wanted >= start) & (wanted < start + len(part.names))]
            if len(wanted_in_tar):
                for row, content in part.contents((wanted_in_tar - start).tolist()):
                    yield start + row, content
            start += len(part.names)


def is_tar(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(TARS)


def looks_like_webdataset(path: Path) -> bool:
    """Whether the first members of a tar contain an image with a side file. False for a broken tar."""
    split = [_split(name) for name in first_members(path)]
    images = {key for key, ending in split if _is_image(ending)}
    return any(key in images for key, ending in split if ending in SIDE_FILES)


def first_members(path: Path) -> list[str]:
    """Names of a tar's first members; empty for a broken tar."""
    try:
        with tarfile.open(path, "r:*") as archive:
            return [member.name for _, member in zip(range(FIRST_MEMBERS), archive, strict=False)]
    except (tarfile.TarError, OSError, EOFError, zlib.error):
        return []


def tars(folder: Path) -> list[Path]:
    """All tars in a folder and its subfolders, sorted, without hidden ones."""
    return sorted(
        path for path in folder.rglob("*")
        if is_tar(path) and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )  # fmt: skip


def matches(path: Path) -> bool:
    """Whether a path is a tar of samples or a folder of them."""
    tar = path if path.is_file() else first_data_file(path)
    return tar is not None and is_tar(tar) and looks_like_webdataset(tar)


def open_images(path: Path, labels: str | None, say: Say) -> EncodedImages:
    """Open a tar or a folder of tars. For the test split see ``parts``. Raises UserError, in one line."""
    return with_labels(_open(path, say), labels, say)


def _open(path: Path, say: Say) -> EncodedImages:
    if path.is_file():
        source, labels = _open_tar(path)
        numbers, classes = _numbered([(source, labels)], say, path)
        return EncodedImages(source, "WebDataset tar", classes, numbers)
    files = tars(path)
    train_files, test_files = divide(files, [part_of_file(file, path) for file in files], path, say)
    train, test = [_open_tar(file) for file in train_files], [_open_tar(file) for file in test_files]
    numbers, classes = _numbered([*train, *test], say, path)
    shards = _joined(path, train)
    test_split = None
    if test:
        test_split = EncodedImages(_joined(path, test), "WebDataset tars", classes, _from(numbers, len(shards.names)))
    return EncodedImages(
        shards, "WebDataset tars", classes, None if numbers is None else numbers[: len(shards.names)], test_split
    )


def _from(numbers: np.ndarray | None, start: int) -> np.ndarray | None:
    return None if numbers is None else numbers[start:]


def _joined(path: Path, parts: list[tuple[ImageFiles, dict[str, str]]]) -> Tars:
    skipped = sum((source.skipped for source, _ in parts), Counter())
    return Tars(path, tuple(source for source, _ in parts), skipped)


def _split(name: str) -> tuple[str, str]:
    """A member's sample (with its folder) and its ending: all after the first dot, in lower case."""
    folder, _, last = inside(name).rpartition("/")
    stem, _, ending = last.partition(".")
    return f"{folder}/{stem}" if folder else stem, ending.lower()


def _is_image(ending: str) -> bool:
    return f".{ending.rpartition('.')[2]}" in ENDINGS


def _open_tar(path: Path) -> tuple[ImageFiles, dict[str, str]]:
    """Open a tar: its images, one for each sample, and its labels by sample."""
    source = list_image_files(path)
    side_files: dict[str, str | None] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                place = inside(member.name)
                ending = _split(place)[1]
                if ending not in SIDE_FILES:
                    continue
                if member.issym() or member.islnk():
                    links[place] = link_target(member)
                elif member.isfile() and member.size <= MOST_LABEL_BYTES:
                    file = archive.extractfile(member)
                    side_files[place] = _label(file.read() if file else b"", ending)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"data: {path} is not a whole .tar file ({error or 'it is cut off'})") from None
    labels: dict[str, str] = {}
    for place, label in (*side_files.items(), *followed(links, side_files)):
        key = _split(place)[0]
        if label is not None and labels.setdefault(key, label) != label:
            raise UserError(f"data: {path} gives {key} the labels '{labels[key]}' and '{label}'")
    kept: dict[str, str] = {}
    for name in source.names:
        kept.setdefault(_split(name)[0], name)
    names = tuple(name for name in source.names if kept[_split(name)[0]] == name)
    skipped = source.skipped.copy()
    if len(names) < len(source.names):
        skipped["further images of a sample"] += len(source.names) - len(names)
    return ImageFiles(source.path, names, skipped, source.members), labels


def _label(content: bytes, ending: str) -> str | None:
    text = content.decode("utf-8", "replace").strip()
    if ending != "json":
        return text or None
    try:
        values: Any = json.loads(text)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    label = next((values[key] for key in KEYS if isinstance(values.get(key), (int, float, str))), None)
    if isinstance(label, float) and label.is_integer():
        label = int(label)  # as the same label in a .cls file
    return None if label is None else str(label)


def _numbered(
    parts: list[tuple[ImageFiles, dict[str, str]]], say: Say, path: Path
) -> tuple[np.ndarray | None, list[str] | None]:
    """Class indices of all samples, and class names: from the side files, else from class folders."""
    labels = [of_sample.get(_split(name)[0]) for source, of_sample in parts for name in source.names]
    known = [label for label in labels if label is not None]
    if len(known) == len(labels):
        names: Sequence[str] | None = as_classes(known, f"the labels in {path}", say)
    else:
        if known:
            missing = len(labels) - len(known)
            say(f"data: {missing:,} of {len(labels):,} samples of {path} have no label; no labels are used")
        names = class_of([name for source, _ in parts for name in source.names]) if not known else None
    if not names:
        return None, None
    numbers, classes = to_numbers(names)
    return numbers.numpy(), classes
