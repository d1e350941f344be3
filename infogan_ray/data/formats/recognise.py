"""The registered formats: which of them lies at a path, opened as a collection.

A format is one module of this package with two functions:

    matches(path) -> bool                         whether a file or folder is of this format, by names and first bytes
    open_images(path, labels, say) -> Collection  its images; raises UserError, in one line, for what cannot be read

To add one, write the module, and add its name to FORMATS.
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
    """What each module of FORMATS has."""

    def matches(self, path: Path, /) -> bool: ...

    def open_images(self, path: Path, labels: str | None, say: Say, /) -> EncodedImages | RawImages: ...


# The surest first: the first that matches opens the path.
FORMATS: tuple[Format, ...] = (
    pickled, celeba, svhn, cifar, idx, npz, chairs, parquet, webdataset, image_folder,
)  # fmt: skip
VALID = (
    "a folder, .zip or .tar of images, an .npz, .parquet, IDX or SVHN .mat file, CIFAR's .bin files, "
    "a CelebA folder or WebDataset tars"
)


def open_collection(path: Path, labels: str | None = None, say: Say = print) -> EncodedImages | RawImages:
    """The images of a path. ``labels``: a CSV file for images in files, or one of CelebA's attributes.

    Raises UserError, in one line, for what cannot be read.
    """
    if not path.exists():
        raise UserError(f"data is '{path}', which does not exist")
    if (path / MANIFEST).is_file():
        raise UserError(
            f"data is {path}, which infogan data prepare has written: train and evaluate take it, and infogan data "
            "verify; here give the images that it was made of"
        )
    found = next((each for each in FORMATS if each.matches(path)), None)
    if found is None:
        raise UserError(f"data is {path}, a file that cannot be read; valid are {VALID}")
    collection = found.open_images(path, labels, say)
    if not collection.count:
        raise UserError(f"data: there is no image in {path}")
    if labels is not None and isinstance(collection, RawImages):
        raise UserError(f"labels is {labels}, which is for folders and archives of images, not for {path}")
    return collection
