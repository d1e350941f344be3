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
    """Whether a path is a binary file or a folder of them, or the pickled version."""
    if path.is_file():
        return path.name.lower().endswith(".bin") or _is_pickled(path)
    return _folder(path) is not None or _is_pickled(path)


def _folder(path: Path) -> Path | None:
    """The folder of binary files at a path or in it."""
    folders = (path, *(path / name for name in FOLDERS))
    return next((folder for folder in folders if any(_is_cifar_file(file.name) for file in folder.glob("*.bin"))), None)


def _is_pickled(path: Path) -> bool:
    """Whether a path is CIFAR's pickled Python version, or a file of it."""
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
    """Open CIFAR-10's or CIFAR-100's binary files: a folder, or one file. CIFAR-100 has its fine classes."""
    if _is_pickled(path):
        raise UserError(_pickled_line(path.parent if path.is_file() else path))
    folder, single_file = (path.parent, path) if path.is_file() else (_folder(path), None)
    assert folder is not None
    batches = sorted(folder.glob("data_batch_*.bin"), key=lambda file: (len(file.name), file.name))
    is_cifar100 = not batches and (folder / "train.bin").is_file()
    if single_file:
        is_cifar100 = single_file.name in ("train.bin", "test.bin")
    label_bytes = 2 if is_cifar100 else 1  # CIFAR-100: the coarse label, then the fine one
    test = folder / ("test.bin" if is_cifar100 else "test_batch.bin")
    train = [single_file] if single_file else [folder / "train.bin"] if is_cifar100 else batches or [test]
    kind = f"CIFAR-{100 if is_cifar100 else 10} binary"
    if single_file is None and not is_cifar100 and batches and len(batches) < 5:
        say(f"data: {len(batches)} of CIFAR-10's five files data_batch_….bin are in {folder}")
    names = _class_names(
        folder / ("fine_label_names.txt" if is_cifar100 else "batches.meta.txt"), 100 if is_cifar100 else 10
    )
    records, labels = _read_files(train, label_bytes, len(names))
    test_split = None
    if test.is_file() and test not in train:
        test_records, test_labels = _read_files([test], label_bytes, len(names))
        test_split = RawImages(test, kind, test_records, names, test_labels)
    return RawImages(path, kind, records, names, labels, test_split)


def _class_names(path: Path, count: int) -> list[str]:
    names = path.read_text(errors="replace").split() if path.is_file() else []
    return names if len(names) == count else [str(number) for number in range(count)]


def _read_files(files: Sequence[Path], label_bytes: int, classes: int) -> tuple[tuple[Records, ...], np.ndarray]:
    parts, labels = [], []
    size = label_bytes + PIXELS
    for file in files:
        length = file.stat().st_size
        if not length or length % size:
            raise UserError(
                f"data: {file} has {length} bytes, not a whole number of CIFAR-{100 if label_bytes == 2 else 10}'s "
                f"images of {size} bytes; fetch it again"
            )
        file_labels = np.memmap(file, np.uint8, "r", shape=(length // size, size))[:, label_bytes - 1].astype(np.int64)
        if file_labels.max() >= classes:
            raise UserError(f"data: {file} has the label {file_labels.max()}, and there are {classes} classes")
        parts.append(Records(file, len(file_labels), (3, SIDE, SIDE), (1, 2, 0), lead=label_bytes))
        labels.append(file_labels)
    return tuple(parts), np.concatenate(labels)
