"""CIFAR-10's and CIFAR-100's binary files, in a folder or in the .tar.gz as it is published."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from infogan_ray import UserError
from infogan_ray.data.archives import inside
from infogan_ray.data.formats.collection import RawImages
from infogan_ray.data.formats.records import DAMAGED, Records, damaged, exactly, open_stream, skip
from infogan_ray.data.formats.webdataset import first_members, is_tar
from infogan_ray.data.image_files import Say

SIDE, PIXELS = 32, 3 * 32 * 32
FOLDERS = ("cifar-10-batches-bin", "cifar-100-binary")
ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-100-binary.tar.gz")
PICKLED_FOLDERS = ("cifar-10-batches-py", "cifar-100-python")


@dataclass(frozen=True)
class BinaryFile:
    """A file in a folder, or in a .tar. There, its bytes begin at ``start`` of the unpacked archive."""

    path: Path
    size: int
    start: int = 0
    packing: Literal["none", "gzip"] = "none"
    member: str = ""

    def read(self) -> bytes:
        """The whole file. Raises UserError if it is damaged."""
        try:
            with closing(open_stream(self.path, self.packing)) as stream:
                skip(stream, self.start)
                return exactly(stream, self.size)
        except DAMAGED as error:
            raise damaged(self.path, error) from None


def matches(path: Path) -> bool:
    """Whether a path is a binary file, a folder or .tar of them, or the pickled version."""
    return (path.is_file() and path.name.lower().endswith(".bin")) or _place(path) is not None or _is_pickled(path)


def open_images(path: Path, labels_file: str | None, say: Say) -> RawImages:
    """Open CIFAR-10's or CIFAR-100's binary files: a folder, a .tar, or one file. CIFAR-100 has its fine classes."""
    if _is_pickled(path):
        raise UserError(_pickled_line(path.parent if path.parent.name in PICKLED_FOLDERS else path))
    place = _place(path) or path.parent
    single = path.name if path.is_file() and place != path else None
    files = _files(place)
    batches = sorted((name for name in files if re.fullmatch(r"data_batch_.*\.bin", name)), key=lambda n: (len(n), n))
    is_cifar100 = not batches and "train.bin" in files
    if single:
        is_cifar100 = single in ("train.bin", "test.bin")
    label_bytes = 2 if is_cifar100 else 1  # CIFAR-100: the coarse label, then the fine one
    test = "test.bin" if is_cifar100 else "test_batch.bin"
    train = [single] if single else ["train.bin"] if is_cifar100 else batches or [test]
    kind = f"CIFAR-{100 if is_cifar100 else 10} binary"
    if single is None and not is_cifar100 and batches and len(batches) < 5:
        say(f"data: {len(batches)} of CIFAR-10's five files data_batch_….bin are in {place}")
    names = _class_names(
        files.get("fine_label_names.txt" if is_cifar100 else "batches.meta.txt"), 100 if is_cifar100 else 10
    )
    records, labels = _read_files([files[name] for name in train], label_bytes, len(names))
    test_split = None
    if test in files and test not in train:
        test_records, test_labels = _read_files([files[test]], label_bytes, len(names))
        test_split = RawImages(files[test].path, kind, test_records, names, test_labels)
    return RawImages(path, kind, records, names, labels, test_split)


def _place(path: Path) -> Path | None:
    """The folder or .tar of binary files at a path or in it."""
    if path.is_file():
        return path if is_tar(path) and any(_is_in(FOLDERS, name) for name in first_members(path)) else None
    folders = (path, *(path / name for name in FOLDERS))
    found = [folder for folder in folders if any(_is_cifar_file(file.name) for file in folder.glob("*.bin"))]
    return next((place for place in (*found, *(path / name for name in ARCHIVES)) if place.exists()), None)


def _is_pickled(path: Path) -> bool:
    """Whether a path is CIFAR's pickled Python version, or a file of it."""
    if path.is_file():
        if is_tar(path):
            return any(_is_in(PICKLED_FOLDERS, name) for name in first_members(path))
        return path.parent.name in PICKLED_FOLDERS and not path.suffix
    folders = [path] if path.name in PICKLED_FOLDERS else [path / name for name in PICKLED_FOLDERS]
    return _place(path) is None and (any(folder.is_dir() for folder in folders) or (path / "data_batch_1").is_file())


def _pickled_line(path: Path) -> str:
    size = 100 if "100" in path.name else 10
    return (
        f"data: {path} holds CIFAR's python version, which is pickled and never read; "
        f"fetch the binary version, cifar-{size}-binary.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html"
    )


def _is_cifar_file(name: str) -> bool:
    return re.fullmatch(r"(data_batch_\d+|test_batch|train|test)\.bin", name) is not None


def _is_in(folders: Sequence[str], name: str) -> bool:
    """Whether a member of a .tar is in one of the folders."""
    return not set(folders).isdisjoint(inside(name).split("/")[:-1])


def _files(place: Path) -> dict[str, BinaryFile]:
    """The files of a folder or .tar by their last names."""
    if place.is_dir():
        return {file.name: BinaryFile(file, file.stat().st_size) for file in place.iterdir() if file.is_file()}
    packing: Literal["none", "gzip"] = "none" if place.name.lower().endswith(".tar") else "gzip"
    try:
        with tarfile.open(place, "r:*") as archive:
            return {
                member.name.rpartition("/")[2]: BinaryFile(
                    place, member.size, member.offset_data, packing, inside(member.name)
                )
                for member in archive
                if member.isfile() and _is_in(FOLDERS, member.name)
            }
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"data: {place} is not a whole .tar file ({error or 'it is cut off'})") from None


def _class_names(file: BinaryFile | None, count: int) -> list[str]:
    names = file.read().decode("utf-8", "replace").split() if file else []
    return names if len(names) == count else [str(number) for number in range(count)]


def _read_files(files: Sequence[BinaryFile], label_bytes: int, classes: int) -> tuple[tuple[Records, ...], np.ndarray]:
    parts, labels = [], []
    size = label_bytes + PIXELS
    for file in files:
        if not file.size or file.size % size:
            raise UserError(
                f"data: {file.path / file.member} has {file.size} bytes, not a whole number of "
                f"CIFAR-{100 if label_bytes == 2 else 10}'s images of {size} bytes; fetch it again"
            )
        content = np.frombuffer(file.read(), np.uint8).reshape(-1, size)
        file_labels = content[:, label_bytes - 1].astype(np.int64)
        if file_labels.max() >= classes:
            raise UserError(
                f"data: {file.path / file.member} has the label {file_labels.max()}, and there are {classes} classes"
            )
        parts.append(
            Records(
                file.path, len(file_labels), (3, SIDE, SIDE), (1, 2, 0), file.start, label_bytes, file.packing,
                file.member,
            )
        )  # fmt: skip
        labels.append(file_labels)
    return tuple(parts), np.concatenate(labels)
