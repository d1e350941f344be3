"""Images as plain arrays in an .npz file, which may be the file of dSprites."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from infogan_ray import UserError
from infogan_ray.data.formats.collection import RawImages, class_indices, numbered
from infogan_ray.data.formats.records import DAMAGED, Member, Records
from infogan_ray.data.image_files import Say

CHANNELS = (1, 3)
DSPRITES_SHAPES = ["square", "ellipse", "heart"]  # column 1 of latents_classes, in the order of its README


def matches(path: Path) -> bool:
    """Whether a path is an .npz file."""
    return path.is_file() and path.name.lower().endswith(".npz")


def open_images(path: Path, labels_file: str | None, say: Say) -> RawImages:
    """Open 'images', uint8 (N, H, W[, C]), and perhaps 'labels' (N,); or dSprites' 'imgs' and 'latents_classes'.

    Raises UserError, in one line, for anything else. Pickled members, which dSprites has, are never read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            sprites = "images" not in names and {"imgs", "latents_classes"} <= set(names)
            if "images" not in names and not sprites:
                raise UserError(f"data: {path} has no array 'images' (it has {', '.join(names) or 'none'})")
            images = "imgs" if sprites else "images"
            labels = file["latents_classes"] if sprites else file["labels"] if "labels" in names else None
        shape, fortran, dtype, start = _header(path, f"{images}.npy")
    except UserError:
        raise
    except (ValueError, *DAMAGED) as error:
        if "allow_pickle" in str(error):
            raise UserError(f"data: {path} holds pickled objects, which are never read; save plain arrays") from None
        raise UserError(f"data: {path} is not a whole .npz file ({error})") from None
    if dtype.hasobject:
        raise UserError(f"data: {path} holds pickled objects, which are never read; save plain arrays")
    if dtype != np.uint8 or len(shape) not in (3, 4):
        hint = "; convert numbers from 0 to 1 by (255 * x).round().astype('uint8')" if dtype.kind == "f" else ""
        raise UserError(f"data: '{images}' in {path} is {dtype} {shape}; it must be uint8 (N, H, W[, C]){hint}")
    if len(shape) == 4 and shape[1] in CHANNELS and shape[3] not in CHANNELS:
        raise UserError(
            f"data: '{images}' in {path} is {shape}, which looks like (N, C, H, W); it must be (N, H, W, C): save "
            "images.transpose(0, 2, 3, 1)"
        )
    if sprites and labels is not None:
        if labels.ndim != 2 or labels.shape[1] < 2:
            raise UserError(f"data: 'latents_classes' in {path} is {labels.shape}; that of dSprites has six columns")
        labels = labels[:, 1]
    if labels is not None and (labels.shape != shape[:1] or labels.dtype.kind not in "iufbU"):
        raise UserError(
            f"data: 'labels' in {path} is {labels.dtype} {labels.shape}; it must be integers ({shape[0]},) or text"
        )
    records = Records(
        path, shape[0], shape[1:], tuple(range(len(shape) - 1)), start, packing="whole" if fortran else "zip",
        member=f"{images}.npy", factor=255 if sprites else 1,
    )  # fmt: skip
    found = None if labels is None else class_indices(labels, f"the labels in {path}", say)
    if labels is None or found is None:
        return RawImages(path, ".npz file", (records,), announced=False)
    are_shapes = sprites and labels.size and labels.min() >= 0 and labels.max() < len(DSPRITES_SHAPES)
    numbers, classes = numbered(labels, DSPRITES_SHAPES) if are_shapes else found
    kind = "dSprites .npz" if sprites else ".npz file"
    return RawImages(path, kind, (records,), classes, numbers, announced=sprites)


def _header(path: Path, member: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, Fortran order, type and offset of the data of a .npy member."""
    stream = Member(path, member)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        return shape, fortran, dtype, stream.tell()
    finally:
        stream.close()
