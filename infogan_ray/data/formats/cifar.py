"""CIFAR-10's and CIFAR-100's binary files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infogan_ray import UserError
from infogan_ray.data.formats.collection import RawImages
from infogan_ray.data.formats.records import Records
from infogan_ray.data.image_files import Say

SIDE, PIXELS = 32, 3 * 32 * 32
FOLDERS = ("cifar-10-batches-bin", "cifar-100-binary")
PICKLED_FOLDERS = ("cifar-10-batches-py", "cifar-100-python")


def matches(path: Path) -> bool:
    """Whether a path is one of the binary files or a folder of them, or the version that is pickled."""
    if path.is_file():
        return path.name.lower().endswith(".bin") or _is_pickled(path)
    return _folder(path) is not None or _is_pickled(path)


def _folder(path: Path) -> Path | None:
    """The folder of binary files that a path is or holds."""
    folders = (path, *(path / name for name in FOLDERS))
    return next((folder for folder in folders if any(_is_cifar_file(file.name) for file in folder.glob("*.bin"))), None)


def _is_pickled(path: Path) -> bool:
    """Whether a path is CIFAR's python version, or a file of it."""
    if path.is_file():
        return path.parent.name in PICKLED_FOLDERS and not path.suffix
    folders = [path] if path.name in PICKLED_FOLDERS else [path / name for name in PICKLED_FOLDERS]
    return _folder(path) is None and (any(folder.is_dir() for folder in folders) or (path / "data_batch_1").is_file())


def _pickled_line(path: Path) -> str:
    size = 100 if "100" in path.name else 10
    return (
        f"data: {path} holds CIFAR's python version, which is pickled and never read; "
        f"fetch the binary version, cifar-{size}-binary.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html"
    )


def _is_cifar_file(name: str) -> bool:
    return re.fullmatch(r"(data_batch_\d+|test_batch|train|test)\.bin", name) is not None


def open_images(path: Path, labels_file: str | None, say: Say) -> RawImages:
    """CIFAR-10's or CIFAR-100's binary files: a folder, or one of the files. CIFAR-100's classes are the fine ones."""
    if _is_pickled(path):
        raise UserError(_pickled_line(path.parent if path.is_file() else path))
    folder, only = (path.parent, path) if path.is_file() else (_folder(path), None)
    assert folder is not None
    batches = sorted(folder.glob("data_batch_*.bin"), key=lambda file: (len(file.name), file.name))
    hundred = only.name in ("train.bin", "test.bin") if only else not batches and (folder / "train.bin").is_file()
    lead = 2 if hundred else 1  # CIFAR-100: the coarse label, then the fine one
    test = folder / ("test.bin" if hundred else "test_batch.bin")
    train = [only] if only else [folder / "train.bin"] if hundred else batches or [test]
    kind = f"CIFAR-{100 if hundred else 10} binary"
    if only is None and not hundred and batches and len(batches) < 5:
        say(f"data: {len(batches)} of CIFAR-10's five files data_batch_….bin are in {folder}")
    names = _class_names(folder / ("fine_label_names.txt" if hundred else "batches.meta.txt"), 100 if hundred else 10)
    records, labels = _cifar_parts(train, lead, len(names))
    part = None
    if test.is_file() and test not in train:
        test_records, test_labels = _cifar_parts([test], lead, len(names))
        part = RawImages(test, kind, test_records, names, test_labels)
    return RawImages(path, kind, records, names, labels, part)


def _class_names(path: Path, count: int) -> list[str]:
    names = path.read_text(errors="replace").split() if path.is_file() else []
    return names if len(names) == count else [str(number) for number in range(count)]


def _cifar_parts(files: Sequence[Path], lead: int, classes: int) -> tuple[tuple[Records, ...], np.ndarray]:
    parts, labels = [], []
    size = lead + PIXELS
    for file in files:
        length = file.stat().st_size
        if not length or length % size:
            raise UserError(
                f"data: {file} has {length} bytes, which are no whole number of CIFAR-{100 if lead == 2 else 10}'s "
                f"images of {size} bytes; fetch it again"
            )
        mine = np.memmap(file, np.uint8, "r", shape=(length // size, size))[:, lead - 1].astype(np.int64)
        if mine.max() >= classes:
            raise UserError(f"data: {file} has the label {mine.max()}, and there are {classes} classes")
        parts.append(Records(file, len(mine), (3, SIDE, SIDE), (1, 2, 0), lead=lead))
        labels.append(mine)
    return tuple(parts), np.concatenate(labels)
