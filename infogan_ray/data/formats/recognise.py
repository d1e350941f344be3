"""The layouts in which image data is published: recognised by what lies at a path, and opened as a collection."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path

from infogan_ray import UserError
from infogan_ray.data.formats.arrays import (
    CIFAR_PICKLES,
    IDX_NAME,
    cifar_folder,
    cifar_is_pickled,
    idx_files,
    open_cifar,
    open_idx,
    open_npz,
)
from infogan_ray.data.formats.celeba import celeba_images, is_attribute, open_celeba
from infogan_ray.data.formats.collection import Collection, Encoded, Item, Pixels, Say
from infogan_ray.data.formats.image_files import ENDINGS, TARS, is_source, open_source
from infogan_ray.data.formats.matlab import SVHN_FILES, open_svhn, svhn_file
from infogan_ray.data.formats.parquet import NoImages, open_tables
from infogan_ray.data.formats.webdataset import first_members, is_tar, looks_like_webdataset, open_webdataset
from infogan_ray.data.image_loader import classes, to_numbers
from infogan_ray.data.shards.dataset import MANIFEST

__all__ = ["Collection", "Encoded", "Item", "Pixels", "open_collection", "recognise"]

VALID = (
    "a folder, .zip or .tar of images, an .npz, .parquet, IDX or SVHN .mat file, CIFAR's .bin files, "
    "a CelebA folder or WebDataset tars"
)
PICKLES = (".pth", ".pt", ".pkl", ".pickle")
# Of Aubry et al. 2014: a folder for each of 1,393 chairs, which are things and not classes of things.
RENDER = re.compile(r"(.*/)?renders/image_\d+_p\d+_t\d+_r\d+\.png")


def open_collection(path: Path, labels: str | None = None, say: Say = print) -> Collection:
    """Whatever lies at a path. ``labels``: a CSV file for images in files, or one of CelebA's attributes.

    Raises UserError, in one line, for what cannot be read.
    """
    if not path.exists():
        raise UserError(f"data is '{path}', which does not exist")
    found = recognise(path, labels, say)
    if found is None:
        files = plain(path)
        found = _by_name(files, classes(files.files, files.files.names, labels, say))
    return found


def plain(path: Path) -> Encoded:
    """The images of a folder, archive or file, without classes. Raises UserError where there are none."""
    if not is_source(path):
        raise UserError(f"data is {path}, a file that cannot be read; valid are {VALID}")
    source = open_source(path)
    return Encoded(source, "rendered chairs" if RENDER.fullmatch(source.names[0]) else _kind(path))


def recognise(path: Path, labels: str | None = None, say: Say = print) -> Encoded | Pixels | None:
    """A path that holds one of the published layouts; None for plain images in a folder or archive, and all else.

    Raises UserError, in one line, for a layout that is recognised and cannot be read.
    """
    opened = (_folder if path.is_dir() else _file)(path, labels, say)
    if opened is None:
        return None
    found = opened()
    if found is not None and not found.count:
        raise UserError(f"data: there is no image in {path}")
    if labels is not None and isinstance(found, Pixels):
        raise UserError(f"labels is {labels}, which is for folders and archives of images, not for {path}")
    if labels is not None and isinstance(found, Encoded) and not is_attribute(labels):
        return _labelled(found, labels, say)
    return found


def _folder(path: Path, labels: str | None, say: Say) -> Callable[[], Encoded | Pixels | None] | None:
    """A folder is asked by its names alone, the surest first. Raises UserError for one that we have written."""
    if (path / MANIFEST).is_file():
        raise UserError(
            f"data is {path}, which infogan data prepare has written: train and evaluate take it, and infogan data "
            "verify; here give the images that it was made of"
        )
    if celeba_images(path) is not None:
        return lambda: open_celeba(path, labels if is_attribute(labels) else None, say)
    if svhn_file(path) is not None:
        return lambda: open_svhn(path)
    if cifar_folder(path) is not None:
        return lambda: open_cifar(path, say)
    if idx_files(path):
        return lambda: open_idx(path)
    if (path / "raw").is_dir() and idx_files(path / "raw"):  # torchvision's MNIST/raw
        return lambda: open_idx(path / "raw")
    first = _first_of_a_known_kind(path)
    if first is not None and RENDER.fullmatch(first.as_posix()):
        return lambda: plain(path)
    if first is not None and first.suffix.lower() == ".parquet":
        return lambda: _tables(path, say)
    if first is not None and is_tar(first) and looks_like_webdataset(first):
        return lambda: open_webdataset(path, say)
    return None


def _file(path: Path, labels: str | None, say: Say) -> Callable[[], Encoded | Pixels] | None:
    lower = path.name.lower()
    if lower.endswith(PICKLES):
        raise UserError(
            f"data: {path} is pickled, which is never read; save its images as uint8 (N, H, W[, C]) by "
            "np.savez('images.npz', images=...)"
        )
    if path.parent.name in CIFAR_PICKLES and not path.suffix:
        raise UserError(cifar_is_pickled(path.parent))
    if celeba_images(path) is not None:
        return lambda: open_celeba(path, labels if is_attribute(labels) else None, say)
    if lower.endswith(".npz"):
        return lambda: open_npz(path)
    if lower.endswith(".mat") or path.name in SVHN_FILES:
        return lambda: open_svhn(path)
    if lower.endswith(".bin"):
        return lambda: open_cifar(path, say)
    if IDX_NAME.fullmatch(path.name):
        return lambda: open_idx(path)
    if lower.endswith(".parquet"):
        return lambda: open_tables(path, say)
    if is_tar(path) and any(RENDER.fullmatch(name) for name in first_members(path)):
        return lambda: plain(path)
    if is_tar(path) and looks_like_webdataset(path):
        return lambda: open_webdataset(path, say)
    return None


def _kind(path: Path) -> str:
    if path.is_dir():
        return "folder of images"
    endings = (".zip", *TARS)
    return next((f"{ending} of images" for ending in endings if path.name.lower().endswith(ending)), "one image")


def _first_of_a_known_kind(folder: Path) -> Path | None:
    """The first image, table or tar in a folder and those below it: it tells what the others are."""
    known = (*ENDINGS, *TARS, ".parquet")
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        fits = [name for name in names if name.lower().endswith(known) and not name.startswith(".")]
        if fits:
            images = [name for name in fits if name.lower().endswith(ENDINGS)]
            return Path(place) / min(images or fits)
    return None


def _tables(path: Path, say: Say) -> Encoded | None:
    """None for tables that only tell of images which lie in files, as imagefolder's metadata.parquet does."""
    try:
        return open_tables(path, say)
    except NoImages:
        try:
            open_source(path)
        except ValueError:
            pass
        else:
            return None
        raise


def _labelled(found: Encoded, table: str, say: Say) -> Encoded:
    """With the labels of a CSV file, which names the images of all parts."""
    if found.test is None:
        return _by_name(found, classes(found.files, found.files.names, table, say))
    test = found.test
    assert isinstance(test, Encoded)
    both = [classes(part.files, part.files.names, table, lambda line: None) or [] for part in (found, test)]
    numbers, kinds = to_numbers([*both[0], *both[1]])
    test = dataclasses.replace(test, classes=kinds, labels=numbers[len(both[0]) :].numpy())
    return dataclasses.replace(found, classes=kinds, labels=numbers[: len(both[0])].numpy(), test=test)


def _by_name(found: Encoded, names: list[str] | None) -> Encoded:
    """With a class for each image, by name."""
    if names is None:
        return found
    numbers, kinds = to_numbers(names)
    return dataclasses.replace(found, classes=kinds, labels=numbers.numpy())
