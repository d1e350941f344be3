"""IDX files in the layout of MNIST: images and labels."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path

import numpy as np

from infogan_ray import UserError
from infogan_ray.data import idx
from infogan_ray.data.formats.collection import RawImages, numbered
from infogan_ray.data.formats.records import DAMAGED, Records, damaged
from infogan_ray.data.image_files import Say

IDX_NAME = re.compile(r"(?P<part>.*)(?P<dash>[-.])images(?P<dot>[-.])idx3-ubyte(?P<gz>\.gz)?", re.DOTALL)


def idx_files(folder: Path) -> list[Path]:
    """The IDX files of images in a folder. Files of the test split come last."""
    files = [path for path in sorted(folder.iterdir()) if IDX_NAME.fullmatch(path.name) and path.is_file()]
    return sorted(files, key=_is_test)


def matches(path: Path) -> bool:
    """Whether a path is an IDX file of images, a folder of them, or torchvision's folder, which contains raw/."""
    return IDX_NAME.fullmatch(path.name) is not None if path.is_file() else _folder(path) is not None


def open_images(path: Path, labels_file: str | None, say: Say) -> RawImages:
    """Open images with the labels beside them. t10k-… or test-… is the test split of train-….

    ``path``: the folder, or the file of the training images. Raises UserError, in one line.
    """
    if path.is_dir():
        path = _folder(path) or path
        files = idx_files(path)
        train = [file for file in files if not _is_test(file)] or files
        if len({file.name.removesuffix(".gz") for file in train}) > 1:
            raise UserError(
                f"data: {path} holds more than one set of images ({', '.join(file.name for file in train)}); "
                "name the file to train on"
            )
        images = train[0]
    else:
        images = path
    test = None if _is_test(images) else next(filter(_is_test, idx_files(images.parent)), None)
    records, labels = _idx_part(images)
    if test is None:
        numbers, classes = (None, None) if labels is None else numbered(labels)
        return RawImages(path, "IDX files", (records,), classes, numbers)
    test_records, test_labels = _idx_part(test)
    if labels is None or test_labels is None:
        return RawImages(path, "IDX files", (records,), test=RawImages(test, "IDX files", (test_records,)))
    numbers, classes = numbered(np.concatenate([labels, test_labels]))
    test_split = RawImages(test, "IDX files", (test_records,), classes, numbers[len(labels) :])
    return RawImages(path, "IDX files", (records,), classes, numbers[: len(labels)], test_split)


def _folder(path: Path) -> Path | None:
    return next((folder for folder in (path, path / "raw") if folder.is_dir() and idx_files(folder)), None)


def _is_test(path: Path) -> bool:
    match = IDX_NAME.fullmatch(path.name)
    return match is not None and match["part"] in ("t10k", "test")


def _idx_part(path: Path) -> tuple[Records, np.ndarray | None]:
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            head = file.read(16)
    except DAMAGED as error:
        raise damaged(path, error) from None
    if len(head) < 16 or head[:4] != b"\0\0\x08\x03":
        raise UserError(f"data: {path} is not an IDX file of images (it starts with {head[:4].hex() or 'nothing'})")
    count, height, width = struct.unpack(">3I", head[4:])
    if not packed and path.stat().st_size != 16 + count * height * width:
        raise UserError(f"data: {path} has {path.stat().st_size} bytes, not 16 + {count} x {height} x {width}")
    records = Records(path, count, (height, width), (0, 1), 16, packing="gzip" if packed else "none")
    beside = _labels_of(path)
    if beside is None:
        return records, None
    try:
        labels = idx.decode(idx.read_bytes(beside), str(beside))
    except OSError as error:
        raise damaged(beside, error) from None
    except UserError as error:
        raise UserError(f"data: {error}") from None
    if labels.shape != (count,):
        raise UserError(f"data: {beside} has {len(labels)} labels for the {count} images of {path.name}")
    return records, labels


def _labels_of(images: Path) -> Path | None:
    match = IDX_NAME.fullmatch(images.name)
    if match is None:
        return None
    name = f"{match['part']}{match['dash']}labels{match['dot']}idx1-ubyte"
    return next((file for file in (images.with_name(name), images.with_name(f"{name}.gz")) if file.is_file()), None)
