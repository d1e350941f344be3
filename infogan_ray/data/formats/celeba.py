"""CelebA as it is published, as torchvision unpacks it and as Kaggle has it: img_align_celeba, and lists of attributes
and parts, which are words between spaces in a .txt and between commas in a .csv.

The pictures are 178 x 218, faces aligned. Of each the middle 148 x 148 is taken before it is resized, as in Real NVP
(Dinh et al. 2016, arXiv:1605.08803, section 4.1); the InfoGAN paper does not say how it cropped.
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
TEST = 2  # of the partition: 0 is for training, 1 for validation, 2 for tests


def _images(path: Path) -> Path | None:
    """The folder or archive of CelebA's images that a path is or holds."""
    if path.name in (IMAGES, f"{IMAGES}.zip"):
        return path
    places = (path / IMAGES, path / "celeba" / IMAGES, path / f"{IMAGES}.zip", path / "celeba" / f"{IMAGES}.zip")
    return next((place for place in places if place.exists()), None)


def matches(path: Path) -> bool:
    """Whether a path is or holds the folder or archive of CelebA's images."""
    return _images(path) is not None


def open_images(path: Path, labels: str | None, say: Say) -> EncodedImages:
    """Images of the training and validation parts, with the test part where there is a partition.

    ``labels``: a CSV file, or 'FILE/list_attr_celeba.txt:Smiling', which makes two classes of one attribute.
    Raises UserError.
    """
    if is_attribute(labels):
        return _open(path, labels, say)
    return with_labels(_open(path, None, say), labels, say)


def _open(path: Path, labels: str | None, say: Say) -> EncodedImages:
    place = _images(path)
    assert place is not None
    source = dataclasses.replace(list_image_files(place), crop=CROP)
    near = [folder / name for folder in (place.parent, place.parent.parent) for name in PARTITIONS]
    partition = next((file for file in near if file.is_file()), None)
    values, classes = (None, None) if labels is None else _attribute(labels)
    kind = "CelebA folder"
    if partition is None:
        say(f"data: no {PARTITIONS[0]} beside {place}; all {len(source.names):,} images are for training")
        return EncodedImages(source, kind, classes, _numbers(source, values, labels))
    parts = _parts(partition)
    unknown = sum(_last(name) not in parts for name in source.names)
    if unknown:
        say(f"data: {unknown:,} images of {place} are not in {partition.name}; they are for training")
    held = tuple(name for name in source.names if parts.get(_last(name)) == TEST)
    kept = tuple(name for name in source.names if parts.get(_last(name)) != TEST)
    if not kept or not held:
        return EncodedImages(source, kind, classes, _numbers(source, values, labels))
    test, train = dataclasses.replace(source, names=held), dataclasses.replace(source, names=kept)
    part = EncodedImages(test, kind, classes, _numbers(test, values, labels))
    return EncodedImages(train, kind, classes, _numbers(train, values, labels), part)


def is_attribute(labels: str | None) -> bool:
    """Whether labels name one of CelebA's attributes, and not a CSV file."""
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
    rows = _rows(path)[1 if path.suffix == ".csv" else 0 :]  # a .csv begins with the columns' names
    wrong = next((row for row in rows if len(row) != 2 or row[1] not in ("0", "1", "2")), None)
    if wrong is not None or not rows:
        shown = " ".join(wrong or ["nothing"])
        raise UserError(f"data: {path} has the line '{shown[:60]}'; CelebA's has a file and 0, 1 or 2 in each")
    return {name: int(part) for name, part in rows}


def _attribute(labels: str) -> tuple[dict[str, int], list[str]]:
    file, _, name = labels.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"labels is {labels}, and {path} does not exist")
    rows = _rows(path)
    if path.suffix == ".csv":  # the files' column has a name too; a .txt begins with their number
        names, rows = (rows[0][1:], rows[1:]) if rows else ([], [])
    else:
        names, rows = (rows[1], rows[2:]) if len(rows) > 1 else ([], [])
    if name not in names:
        raise UserError(f"labels: {path} has no attribute '{name}'; it has {', '.join(names)}")
    place = names.index(name) + 1
    values = {}
    for row in rows:
        if len(row) != len(names) + 1 or row[place] not in ("-1", "1"):
            raise UserError(f"labels: {path} has the line '{' '.join(row)[:60]}'; CelebA's has -1 or 1 for each")
        values[row[0]] = int(row[place] == "1")
    return values, [f"not {name}", name]


def _numbers(source: ImageFiles, values: dict[str, int] | None, labels: str | None) -> np.ndarray | None:
    if values is None:
        return None
    missing = next((name for name in source.names if _last(name) not in values), None)
    if missing is not None:
        raise UserError(f"labels: {labels} has no row for {_last(missing)}")
    return np.array([values[_last(name)] for name in source.names], np.int64)
