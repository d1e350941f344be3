"""Images as plain arrays in an .npz or .npy file. An .npz may be the file of dSprites.

An array has the images (N, H, W) or (N, H, W, C) as numbers of any type. C is 1 (grey), 2 (grey and alpha), 3 (RGB) or
4 (RGBA). The arrays of an .npz are known by their names.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infogan_ray import UserError
from infogan_ray.data.archives import reason_of
from infogan_ray.data.formats.collection import RawImages, class_indices, numbered
from infogan_ray.data.formats.records import DAMAGED, Records, open_stream
from infogan_ray.data.image_files import Say

CHANNELS = (1, 2, 3, 4)
DSPRITES_SHAPES = ["square", "ellipse", "heart"]  # column 1 of latents_classes, in the order of its README
ENDINGS = (".npz", ".npy")
PICKLED = "holds pickled objects, which are never read; save plain arrays"


@dataclass(frozen=True)
class Layout:
    """Names of the arrays in an .npz: images, and perhaps labels and a test part. The first name that exists counts."""

    images: str
    labels: tuple[str, ...] = ()
    test_images: str = ""
    test_labels: tuple[str, ...] = ()
    maybe_labels: bool = False
    """The labels are used only if there is one for each image: their name does not say what they are."""


LAYOUTS = (
    Layout("images", ("labels", "label")),
    Layout("x_train", ("y_train",), "x_test", ("y_test",)),  # Keras
    Layout("train_images", ("train_labels",), "test_images", ("test_labels",)),  # MedMNIST
    Layout("data", ("target", "targets", "labels", "label", "y"), maybe_labels=True),
    Layout("x", ("y",), maybe_labels=True),
    Layout("arr_0", ("arr_1",), maybe_labels=True),  # np.savez without names
)
"""In the order in which they are looked for. Names in capital letters are the same."""


def matches(path: Path) -> bool:
    """Whether a path is an .npz or .npy file."""
    return path.is_file() and path.name.lower().endswith(ENDINGS)


def open_images(path: Path, labels_file: str | None, say: Say) -> RawImages:
    """Open the arrays of an .npz or .npy file. Only labels are read.

    Raises UserError, in one line, for anything else. Pickled members, which dSprites has, are never read.
    """
    if path.name.lower().endswith(".npy"):
        return RawImages(path, ".npy file", (_records(path, "", "the array"),), announced=False)
    try:
        with np.load(path, allow_pickle=False) as file:
            return _open(path, file, say)
    except UserError:
        raise
    except (ValueError, *DAMAGED) as error:
        if "allow_pickle" in str(error):
            what = PICKLED if zipfile.is_zipfile(path) else "is no .npz file, which is a zip archive of arrays"
            raise UserError(f"data: {path} {what}") from None
        raise UserError(f"data: {path} is not a whole .npz file ({reason_of(error)})") from None


def _open(path: Path, file: Any, say: Say) -> RawImages:
    names = {name.lower(): name for name in file.files}
    if "images" not in names and {"imgs", "latents_classes"} <= set(names):
        return _dsprites(path, file["latents_classes"], say)
    layout = next((layout for layout in LAYOUTS if layout.images in names), None)
    if layout is None:
        known = ", ".join(layout.images for layout in LAYOUTS)
        raise UserError(
            f"data: {path} has no array 'images' (it has {', '.join(file.files) or 'none'}); the names that are read "
            f"are {known}"
        )
    parts: list[tuple[Records, np.ndarray | None]] = []
    used: dict[str, bool] = {}  # names of arrays, and whether these are labels
    for images, candidates in ((layout.images, layout.labels), (layout.test_images, layout.test_labels)):
        if images not in names:
            continue
        records = _records(path, f"{names[images]}.npy", f"'{names[images]}'")
        labels = next((names[name] for name in candidates if name in names), None)
        values = None if labels is None else _labels(file[labels], records.count)
        if labels is not None and values is None and not layout.maybe_labels:
            wrong = file[labels]
            raise UserError(
                f"data: '{labels}' in {path} is {wrong.dtype} {wrong.shape}; it must be integers ({records.count},) or "
                f"({records.count}, 1), texts, or one-hot rows"
            )
        parts.append((records, values))
        used |= {names[images]: False, **({labels: True} if labels is not None and values is not None else {})}
    found = _classes(path, parts, say)
    if found is None:
        used = {name: is_labels for name, is_labels in used.items() if not is_labels}
    unused = [name for name in file.files if name not in used]
    if unused or layout != LAYOUTS[0]:
        left = f"; not used: {', '.join(unused)}" if unused else ""
        say(f"data: {path}: {', '.join(used)}{left}")
    return _collection(path, parts, found)


def _classes(
    path: Path, parts: Sequence[tuple[Records, np.ndarray | None]], say: Say
) -> tuple[np.ndarray, list[str]] | None:
    """The class indices of all parts and the names of their common classes. None if a part has no labels."""
    labels = [values for _, values in parts if values is not None]
    return class_indices(np.concatenate(labels), f"the labels in {path}", say) if len(labels) == len(parts) else None


def _collection(
    path: Path, parts: Sequence[tuple[Records, np.ndarray | None]], found: tuple[np.ndarray, list[str]] | None
) -> RawImages:
    """The images of the training part and, if there is one, the test part, with the classes that were ``found``."""
    (train, _), *others = parts
    numbers, classes = found or (None, None)
    test = None
    if others:
        test_numbers = None if numbers is None else numbers[train.count :]
        test = RawImages(path, ".npz file", (others[0][0],), classes, test_numbers, announced=False)
    train_numbers = None if numbers is None else numbers[: train.count]
    return RawImages(path, ".npz file", (train,), classes, train_numbers, test, announced=False)


def _dsprites(path: Path, labels: np.ndarray, say: Say) -> RawImages:
    records = _records(path, "imgs.npy", "'imgs'", factor=255)
    if labels.ndim != 2 or labels.shape[1] < 2 or labels.dtype.kind not in "iuf":
        raise UserError(f"data: 'latents_classes' in {path} is {labels.shape}; that of dSprites has six columns")
    labels = labels[:, 1]
    if len(labels) != records.count:
        raise UserError(f"data: 'latents_classes' in {path} has {len(labels)} rows for {records.count} images")
    found = class_indices(labels, f"the labels in {path}", say)
    if found is None:
        return RawImages(path, "dSprites .npz", (records,))
    are_shapes = labels.size and labels.min() >= 0 and labels.max() < len(DSPRITES_SHAPES)
    numbers, classes = numbered(labels, DSPRITES_SHAPES) if are_shapes else found
    return RawImages(path, "dSprites .npz", (records,), classes, numbers)


def _labels(labels: np.ndarray, count: int) -> np.ndarray | None:
    """Labels (N,) as numbers, truth or texts. None if there is not one for each image, or for other types."""
    if labels.shape[:1] != (count,):
        return None
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "biuf":
        is_one_hot = bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all())
        return labels.argmax(1) if is_one_hot else None
    if labels.size != count:
        return None
    labels = labels.reshape(-1)
    if labels.dtype.kind == "S":
        return np.array([label.decode("utf-8", "replace") for label in labels.tolist()], np.str_)
    return labels if labels.dtype.kind in "biufU" else None


def _records(path: Path, member: str, name: str, factor: int = 1) -> Records:
    """The images of a .npy file, or of an .npz's member. Raises UserError, in one line, for other arrays."""
    try:
        shape, fortran, dtype, start = _header(path, member)
    except (ValueError, *DAMAGED) as error:
        raise UserError(f"data: {path} is not a whole {'.npz' if member else '.npy'} file ({error})") from None
    if dtype.hasobject:
        raise UserError(f"data: {path} {PICKLED}")
    found = f"data: {name} in {path} is {dtype} {shape}"
    if dtype.kind not in "buif" or len(shape) not in (3, 4):
        raise UserError(f"{found}; it must be numbers (N, H, W) or (N, H, W, C)")
    if factor != 1 and dtype != np.uint8:
        raise UserError(f"{found}; that of dSprites is uint8")
    if len(shape) == 4 and shape[1] in CHANNELS and shape[3] not in CHANNELS:
        raise UserError(
            f"{found}, which looks like (N, C, H, W); it must be (N, H, W, C): save images.transpose(0, 2, 3, 1)"
        )
    if len(shape) == 4 and shape[3] not in CHANNELS:
        raise UserError(f"{found}, with {shape[3]} channels; valid are 1 (grey), 2 (grey, alpha), 3 (RGB), 4 (RGBA)")
    if len(shape) == 3 and shape[2] in (3, 4) and shape[1] != shape[2]:
        raise UserError(f"{found}, which looks like one image (H, W, C); it must be several, (N, H, W, C)")
    if 0 in shape[1:]:
        raise UserError(f"{found}, so its images have no pixels")
    packing: Any = "whole" if fortran else "zip" if member else "none"
    return Records(
        path, shape[0], shape[1:], tuple(range(len(shape) - 1)), start, packing=packing, member=member,
        dtype=dtype.str, factor=factor,
    )  # fmt: skip


def _header(path: Path, member: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, Fortran order, type and offset of the data of a .npy file, or of an .npz's member."""
    with closing(open_stream(path, "zip" if member else "none", member)) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        return shape, fortran, dtype, stream.tell()
