"""SVHN's cropped digits: MATLAB files of level 5, read by SciPy.

SciPy reads an array as a whole. So all images of a file are in memory once (train_32x32.mat 225 MB, extra_32x32.mat
1.6 GB), whichever range is asked for; they are copied out of it a few at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from infogan_ray import UserError
from infogan_ray.data.formats.collection import RawImages, numbered
from infogan_ray.data.formats.records import CHUNK, damaged
from infogan_ray.data.image_files import Say

FILES = ("train_32x32.mat", "extra_32x32.mat", "test_32x32.mat")  # the first that exists is trained on
NUMBERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "single", "double")
T = TypeVar("T")


@dataclass(frozen=True)
class MatImages:
    """The array X of a file, uint8 (H, W, C, N)."""

    path: Path
    count: int
    shape: tuple[int, ...]

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Images ``start`` to ``stop``, uint8 (n, H, W, C), n at most 1024. Raises UserError for a damaged file."""
        stop = self.count if stop is None else stop
        images = _load(self.path, "X")
        for first in range(start, stop, CHUNK):
            part = images[..., first : min(first + CHUNK, stop)]
            yield np.ascontiguousarray(part.transpose(3, 0, 1, 2))


def matches(path: Path) -> bool:
    """Whether a path is a .mat file, or a folder of SVHN's."""
    return path.name.lower().endswith(".mat") if path.is_file() else _train_file(path) is not None


def open_images(path: Path, labels: str | None, say: Say) -> RawImages:
    """X (H, W, 3, N), uint8, and y (N, 1), in which 10 stands for the digit 0.

    ``path`` is the folder, or the file to train on. test_32x32.mat beside it is the test part. Raises UserError.
    """
    file = _train_file(path) if path.is_dir() else path
    assert file is not None
    test = file.with_name(FILES[-1])
    part = None
    if test.is_file() and test != file and file.name in FILES:
        part = _open(test, test, None)
    return _open(path, file, part)


def _train_file(folder: Path) -> Path | None:
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def _open(path: Path, file: Path, test: RawImages | None) -> RawImages:
    arrays = _arrays(file)
    if "X" not in arrays:
        raise UserError(f"data: {file} has no array 'X' as SVHN's have (it has {', '.join(arrays) or 'none'})")
    shape, kind = arrays["X"]
    if len(shape) != 4 or shape[2] not in (1, 3) or kind != "uint8":
        raise UserError(f"data: 'X' in {file} is {kind} {shape}; SVHN's is uint8 (32, 32, 3, N)")
    images = MatImages(file, shape[3], shape[:3])
    if "y" not in arrays:
        return RawImages(path, "SVHN .mat", (images,), test=test)
    digits = _load(file, "y").reshape(-1).astype(np.int64) if arrays["y"][1] in NUMBERS else np.empty(0, np.int64)
    if len(digits) != images.count or not ((digits >= 0) & (digits <= 10)).all():
        raise UserError(
            f"data: 'y' in {file} must be {images.count} numbers from 1 to 10, of which 10 stands for the digit 0"
        )
    labels, names = numbered(digits % 10, [str(digit) for digit in range(10)])
    return RawImages(path, "SVHN .mat", (images,), names, labels, test)


def _arrays(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each array by its name; no array is read."""
    return {name: (tuple(shape), kind) for name, shape, kind in _read(path, lambda io: io.whosmat(path))}


def _load(path: Path, name: str) -> np.ndarray:
    """An array of numbers, as a whole. Nothing else of the file is loaded."""
    return _read(path, lambda io: io.loadmat(path, variable_names=[name])[name])


def _read(path: Path, read: Callable[[Any], T]) -> T:
    """What ``read`` gives of scipy.io. Raises UserError, in one line, for files of other kinds and damaged ones."""
    try:
        import scipy.io
    except ImportError:
        raise UserError(f"data: {path} needs scipy; install it with: pip install 'infogan-ray[mat]'") from None
    try:
        return read(scipy.io)
    except NotImplementedError:
        raise UserError(
            f"data: {path} is a MATLAB 7.3 file (HDF5), which is not read; save it by save(FILE, ..., '-v7')"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make SciPy raise errors of many kinds
        raise damaged(path, error) from None
