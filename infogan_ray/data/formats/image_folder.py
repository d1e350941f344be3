"""Any folder, .zip or .tar of image files, or one image. Several folders of images are classes."""

from __future__ import annotations

from pathlib import Path

from infogan_ray.data.formats.collection import EncodedImages, with_classes
from infogan_ray.data.image_files import TARS, Say, is_listable, list_image_files
from infogan_ray.data.labels import class_names


def matches(path: Path) -> bool:
    """Whether a path is a folder, an archive or an image."""
    return is_listable(path)


def open_images(path: Path, labels: str | None, say: Say) -> EncodedImages:
    """Open all images, with classes from a CSV file or the folders. Raises UserError if there are no images."""
    files = list_image_files(path)
    return with_classes(EncodedImages(files, _kind(path)), class_names(files, files.names, labels, say))


def _kind(path: Path) -> str:
    if path.is_dir():
        return "folder of images"
    endings = (".zip", *TARS)
    return next((f"{ending} of images" for ending in endings if path.name.lower().endswith(ending)), "one image")
