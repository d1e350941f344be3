"""3D chairs (Aubry et al. 2014), as a folder or as the published tar.

Each of the 1,393 folders has one chair from 62 directions. A folder is one object and not a class, so there are no
classes.
"""

from __future__ import annotations

import re
from pathlib import Path

from infogan_ray.data.formats.collection import EncodedImages, with_labels
from infogan_ray.data.formats.webdataset import first_members, is_tar
from infogan_ray.data.image_files import Say, first_data_file, list_image_files

RENDER = re.compile(r"(.*/)?renders/image_\d+_p\d+_t\d+_r\d+\.png")


def matches(path: Path) -> bool:
    """Whether the first images of a folder or a tar have the names of the rendered chairs."""
    if path.is_dir():
        first = first_data_file(path)
        return first is not None and RENDER.fullmatch(first.as_posix()) is not None
    return is_tar(path) and any(RENDER.fullmatch(name) for name in first_members(path))


def open_images(path: Path, labels: str | None, say: Say) -> EncodedImages:
    """Open all images. Classes only come from a CSV or JSON file. Raises UserError, in one line."""
    return with_labels(EncodedImages(list_image_files(path), "rendered chairs"), labels, say)
