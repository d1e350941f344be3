"""Recognises the format of a path, and opens the path as a collection.

A format is one module of this package with two functions:

    matches(path) -> bool                         whether a file or folder has this format, by names and first bytes
    open_images(path, labels, say) -> Collection  its images; raises UserError, in one line, if they cannot be read

To add a format, write the module and add it to FORMATS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from infogan_ray import UserError
from infogan_ray.data.formats import (
    celeba,
    chairs,
    cifar,
    idx,
    image_folder,
    npz,
    parquet,
    pickled,
    svhn,
    webdataset,
)
from infogan_ray.data.formats.collection import EncodedImages, RawImages
from infogan_ray.data.image_files import Say
from infogan_ray.data.shards.dataset import MANIFEST


class Format(Protocol):
    """The functions of each module in FORMATS."""

    def matches(self, path: Path, /) -> bool: ...

    def open_images(self, path: Path, labels: str | None, say: Say, /) -> EncodedImages | RawImages: ...


# In order of reliability: the first format that matches opens the path.
FORMATS: tuple[Format, ...] = (
    pickled, celeba, svhn, cifar, idx, npz, chairs, parquet, webdataset, image_folder,
)  # fmt: skip
VALID = (
    "a folder, .zip or .tar of images, an .npz, .parquet, .arrow, IDX or SVHN .mat file, CIFAR's .bin files, "
    "a CelebA folder or WebDataset tars"
)


def open_collection(path: Path, labels: str | None = None, say: Say = print) -> EncodedImages | RawImages:
    """Open the images of a path. ``labels``: a CSV or JSON file for images in files, or an attribute of CelebA.

    Raises UserError, in one line, if they cannot be read.
    """
    if not path.exists():
        raise UserError(f"data is '{path}', which does not exist")
    if (path / MANIFEST).is_file():
        raise UserError(
            f"data is {path}, which infogan data prepare has written; train, evaluate and infogan data verify read it; "
            "here, give the original images"
        )
    found = next((format for format in FORMATS if format.matches(path)), None)
    if found is None:
        raise UserError(f"data is {path}, a file that cannot be read; valid are {VALID}")
    collection = found.open_images(path, labels, say)
    if not collection.count:
        raise UserError(f"data: there is no image in {path}")
    if labels is not None and isinstance(collection, RawImages):
        raise UserError(f"labels is {labels}, which is for folders and archives of images, not for {path}")
    return collection
