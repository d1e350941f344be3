"""SVHN's cropped digits: MATLAB level 5 files, read by SciPy.

SciPy reads an array as a whole. So every read loads all images of a file into memory (train_32x32.mat 225 MB,
extra_32x32.mat 1.6 GB), and copies a few at a time.
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

FILES = ("train_32x32.mat", "extra_32x32.mat", "test_32x32.mat")  # the first one that exists has the training images
NUMBERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "single", "double")
T = TypeVar("T")


@dataclass(frozen=True)
class MatImages:
    """The images of a file: its array X, uint8 (H, W, C, N)."""

    path: Path
    count: int
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The file, shown to users."""
        return str(self.path)

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yield images ``start`` to ``stop``, uint8 (n, H, W, C), n <= 1024. Raises UserError for a damaged file."""
        stop = self.count if stop is None else stop
        images = _load(self.path, "X")
        for first in range(start, stop, CHUNK):
            chunk = images[..., first : min(first + CHUNK, stop)]
            yield np.ascontiguousarray(chunk.transpose(3, 0, 1, 2))


def matches(path: Path) -> bool:
    """Whether a path is a .mat file, or a folder of SVHN's files."""
    return path.name.lower().endswith(".mat") if path.is_file() else _train_file(path) is not None


def open_images(path: Path, labels: str | None, say: Say) -> RawImages:
    """Open X, uint8 (H, W, 3, N), and y (N, 1), in which 10 means the digit 0.

    ``path``: the folder, or the file to train on. test_32x32.mat beside it is the test split. Raises UserError.
    """
    file = _train_file(path) if path.is_dir() else path
    assert file is not None
    test = file.with_name(FILES[-1])
    test_split = None
    if test.is_file() and test != file and file.name in FILES:
        test_split = _open(test, test, None)
    return _open(path, file, test_split)


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
        raise UserError(f"data: 'y' in {file} must be {images.count} numbers from 1 to 10; 10 means the digit 0")
    labels, names = numbered(digits % 10, [str(digit) for digit in range(10)])
    return RawImages(path, "SVHN .mat", (images,), names, labels, test)


def _arrays(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each array by name. No array is read."""
    return {name: (tuple(shape), kind) for name, shape, kind in _read(path, lambda io: io.whosmat(path))}


def _load(path: Path, name: str) -> np.ndarray:
    """Read one array of numbers as a whole, and nothing else of the file."""
    return _read(path, lambda io: io.loadmat(path, variable_names=[name])[name])


def _read(path: Path, read: Callable[[Any], T]) -> T:
    """Call ``read`` with scipy.io. Raises UserError, in one line, for damaged files and other formats."""
    try:
        import scipy.io
    except ImportError:
        raise UserError(f"data: {path} needs scipy; install it with: pip install 'infogan-ray[mat]'") from None
    try:
        return read(scipy.io)
    except NotImplementedError:
        raise UserError(
            f"data: {path} is a MATLAB 7.3 file (HDF5), which cannot be read; write it with save(FILE, ..., '-v7')"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # for damaged bytes SciPy raises errors of many types
        raise damaged(path, error) from None
