"""CelebA in the layouts of its authors, of torchvision and of Kaggle: img_align_celeba, and lists of attributes and
splits. A .txt list separates words with spaces, a .csv list with commas.

The images are 178 x 218, with aligned faces. The middle 148 x 148 is cut out and resized, as in Real NVP (Dinh et al.
2016, arXiv:1605.08803, section 4.1). The InfoGAN paper does not describe its crop.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from infogan_ray import UserError
from infogan_ray.data.formats.collection import EncodedImages, with_labels
from infogan_ray.data.image_files import ImageFiles, Say, list_image_files

CROP = 148
IMAGES = "img_align_celeba"
PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
ATTRIBUTES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
TEST = 2  # in the partition: 0 is training, 1 validation, 2 test


def _images(path: Path) -> Path | None:
    """The folder or archive of CelebA's images at a path or in it."""
    if path.name in (IMAGES, f"{IMAGES}.zip"):
        return path
    candidates = (path / IMAGES, path / "celeba" / IMAGES, path / f"{IMAGES}.zip", path / "celeba" / f"{IMAGES}.zip")
    return next((candidate for candidate in candidates if candidate.exists()), None)


def matches(path: Path) -> bool:
    """Whether a path is the folder or archive of CelebA's images, or contains it."""
    return _images(path) is not None


def open_images(path: Path, labels: str | None, say: Say) -> EncodedImages:
    """Open the training and validation images, with the test split if there is a partition file.

    ``labels``: a CSV or JSON file, or 'FILE/list_attr_celeba.txt:Smiling', which makes two classes from one attribute.
    Raises UserError.
    """
    if is_attribute(labels):
        return _open(path, labels, say)
    return with_labels(_open(path, None, say), labels, say)


def _open(path: Path, labels: str | None, say: Say) -> EncodedImages:
    images = _images(path)
    assert images is not None
    source = dataclasses.replace(list_image_files(images), crop=CROP)
    candidates = [folder / name for folder in (images.parent, images.parent.parent) for name in PARTITIONS]
    partition = next((file for file in candidates if file.is_file()), None)
    values, classes = (None, None) if labels is None else _attribute(labels)
    kind = "CelebA folder"
    if partition is None:
        say(f"data: no {PARTITIONS[0]} beside {images}; all {len(source.names):,} images are for training")
        return EncodedImages(source, kind, classes, _numbers(source, values, labels))
    parts = _parts(partition)
    unknown = sum(_last(name) not in parts for name in source.names)
    if unknown:
        say(f"data: {unknown:,} images of {images} are not in {partition.name}; they are for training")
    held = tuple(name for name in source.names if parts.get(_last(name)) == TEST)
    kept = tuple(name for name in source.names if parts.get(_last(name)) != TEST)
    if not kept or not held:
        return EncodedImages(source, kind, classes, _numbers(source, values, labels))
    test, train = dataclasses.replace(source, names=held), dataclasses.replace(source, names=kept)
    test_split = EncodedImages(test, kind, classes, _numbers(test, values, labels))
    return EncodedImages(train, kind, classes, _numbers(train, values, labels), test_split)


def is_attribute(labels: str | None) -> bool:
    """Whether ``labels`` names an attribute of CelebA and not a CSV or JSON file."""
    return labels is not None and Path(labels.rpartition(":")[0]).name in ATTRIBUTES


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _rows(path: Path) -> list[list[str]]:
    divider = "," if path.suffix == ".csv" else None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data: {path} cannot be read ({error})") from None
    return [[word.strip() for word in line.split(divider)] for line in lines if line.strip()]


def _parts(path: Path) -> dict[str, int]:
    rows = _rows(path)[1 if path.suffix == ".csv" else 0 :]  # a .csv starts with the column names
    wrong = next((row for row in rows if len(row) != 2 or row[1] not in ("0", "1", "2")), None)
    if wrong is not None or not rows:
        shown = " ".join(wrong or ["nothing"])
        raise UserError(f"data: {path} has the line '{shown[:60]}'; each line of CelebA's has a file and 0, 1 or 2")
    return {name: int(part) for name, part in rows}


def _attribute(labels: str) -> tuple[dict[str, int], list[str]]:
    file, _, name = labels.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"labels is {labels}, and {path} does not exist")
    rows = _rows(path)
    if path.suffix == ".csv":  # the first column also has a name; a .txt starts with the number of files
        names, rows = (rows[0][1:], rows[1:]) if rows else ([], [])
    else:
        names, rows = (rows[1], rows[2:]) if len(rows) > 1 else ([], [])
    if name not in names:
        raise UserError(f"labels: {path} has no attribute '{name}'; it has {', '.join(names)}")
    column = names.index(name) + 1
    values = {}
    for row in rows:
        if len(row) != len(names) + 1 or row[column] not in ("-1", "1"):
            raise UserError(f"labels: {path} has the line '{' '.join(row)[:60]}'; CelebA's has -1 or 1 for each")
        values[row[0]] = int(row[column] == "1")
    return values, [f"not {name}", name]


def _numbers(source: ImageFiles, values: dict[str, int] | None, labels: str | None) -> np.ndarray | None:
    if values is None:
        return None
    missing = next((name for name in source.names if _last(name) not in values), None)
    if missing is not None:
        raise UserError(f"labels: {labels} has no row for {_last(missing)}")
    return np.array([values[_last(name)] for name in source.names], np.int64)
