"""WebDataset's tars. Members whose names are equal up to the first dot are a sample, here an image and its label.

For example 000000.jpg, with 000000.cls (an integer as text) or 000000.json (an object with 'label', 'cls' or 'class').
"""

from __future__ import annotations

import dataclasses
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
from infogan_ray.data.class_folders import class_folders
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
    train: list[Path] = [path]
    test: list[Path] = []
    if path.is_dir():
        files = tars(path)
        train, test = divide(files, [part_of_file(file, path) for file in files], path, say)
    opened = [_open_tar(file) for file in (*train, *test)]
    sources, names = [source for source, _ in opened], None
    if labels is None:
        sources, names = _classes(path, opened, say)
    numbers, classes = (None, None) if names is None else to_numbers(names)

    def split(parts: list[ImageFiles], start: int, test: EncodedImages | None) -> EncodedImages:
        files, kind = (_joined(path, parts), "WebDataset tars") if path.is_dir() else (parts[0], "WebDataset tar")
        of_images = None if numbers is None else numbers[start : start + len(files.names)].numpy()
        return EncodedImages(files, kind, classes, of_images, test)

    first = sources[: len(train)]
    count = sum(len(source.names) for source in first)
    test_split = split(sources[len(train) :], count, None) if test else None
    return with_labels(split(first, 0, test_split if test_split and test_split.count else None), labels, say)


def _joined(path: Path, parts: list[ImageFiles]) -> Tars:
    return Tars(path, tuple(parts), sum((part.skipped for part in parts), Counter()))


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


def _classes(
    path: Path, parts: list[tuple[ImageFiles, dict[str, str]]], say: Say
) -> tuple[list[ImageFiles], list[str] | None]:
    """The images and the class of each: from the side files, else from class folders. Images beside these are left out.

    None instead of classes if there are none.
    """
    sources = [source for source, _ in parts]
    labels = [of_sample.get(_split(name)[0]) for source, of_sample in parts for name in source.names]
    known = [label for label in labels if label is not None]
    if len(known) == len(labels):
        return sources, as_classes(known, f"the labels in {path}", say)
    if known:
        missing = len(labels) - len(known)
        say(f"data: {missing:,} of {len(labels):,} samples of {path} have no label; no labels are used")
        return sources, None
    names = [name for source in sources for name in source.names]
    folders = class_folders(names, path, say, shown=_joined(path, sources).names if path.is_dir() else names)
    if folders is None:
        return sources, None
    folder_of = iter(folders.of)
    kept = [tuple(name for name in source.names if next(folder_of) is not None) for source in sources]
    return (
        [dataclasses.replace(source, names=names) for source, names in zip(sources, kept, strict=True)],
        [folder for folder in folders.of if folder is not None],
    )
