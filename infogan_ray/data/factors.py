"""Images with known factors, on which disentanglement is measured.

Shapes: N images, F factors. A class is the number of a factor's value, 0 to size - 1.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.shapes import Shapes, check_classes

DSPRITES = ("color", "shape", "scale", "orientation", "x", "y")  # columns, named only in a pickle
UNORDERED = ("color", "shape")
IMAGES, CLASSES = "imgs", "latents_classes"
CHUNK = 4096  # images that are read at once


class FactorSet(Protocol):
    """One image for each combination of factor values. Factor i has ``sizes[i]`` values."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def sizes(self) -> tuple[int, ...]: ...

    @property
    def ordered(self) -> tuple[bool, ...]:
        """For each factor: whether its classes are a quantity (position, scale) or only categories (shape)."""

    def images(self, classes: Tensor) -> Tensor:
        """Images uint8 (N, C, H, W) for classes (N, F) int64."""


class DSprites:
    """The file of dSprites, dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz: 737,280 images.

    Memory holds one bit per pixel (378 MB instead of 3 GB). Factors with one value, such as colour, are left out.
    Sizes come from ``latents_classes``. The file also has them in ``metadata``, a pickle that is never read.
    Raises UserError, in one line, for another layout, for pixels other than 0 and 1, and for missing or repeated
    combinations.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        try:
            with zipfile.ZipFile(self.path) as file:
                members = [name.removesuffix(".npy") for name in file.namelist()]
                for name in (IMAGES, CLASSES):
                    if name not in members:
                        raise UserError(
                            f"{self.path} has no array '{name}' (it has {', '.join(members) or 'none'}); give the .npz "
                            "file of dSprites, or 'shapes', which are generated"
                        )
                with file.open(f"{CLASSES}.npy") as member:
                    classes = self._read_classes(member)
                with file.open(f"{IMAGES}.npy") as member:
                    self._pixels, self._shape = self._read_images(member, len(classes))
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{self.path} is not a whole .npz file ({error})") from None
        sizes = tuple(int(size) for size in classes.max(0) + 1)
        keep = [factor for factor, size in enumerate(sizes) if size > 1]
        self.names = tuple(DSPRITES[factor] for factor in keep)
        self.sizes = tuple(sizes[factor] for factor in keep)
        self.ordered = tuple(name not in UNORDERED for name in self.names)
        self._row = np.full(len(classes), -1)
        if math.prod(self.sizes) == len(classes):
            self._row[self._index(classes[:, keep])] = np.arange(len(classes))
        if (self._row < 0).any():
            raise UserError(
                f"{self.path}: {CLASSES} has {len(classes):,} rows; all {math.prod(sizes):,} combinations of "
                f"{' x '.join(map(str, sizes))} values are needed, each once"
            )

    def images(self, classes: Tensor) -> Tensor:
        """Images uint8 (N, 1, H, W) of 0 and 255. Raises UserError for classes outside the grid."""
        check_classes(classes, self.names, self.sizes)
        rows = self._row[self._index(classes.numpy())]
        pixels = np.unpackbits(self._pixels[rows], axis=1, count=math.prod(self._shape))
        return torch.from_numpy(pixels * np.uint8(255)).view(-1, 1, *self._shape)

    def _index(self, classes: np.ndarray) -> np.ndarray:
        """The index (N,) of classes (N, F) in the grid, in which the last factor changes fastest."""
        return np.ravel_multi_index(tuple(classes.T), self.sizes) if self.sizes else np.zeros(len(classes), int)

    def _read_classes(self, member: IO[bytes]) -> np.ndarray:
        shape, dtype = self._header(member, CLASSES)
        if len(shape) != 2 or shape[0] < 1 or shape[1] != len(DSPRITES) or not np.issubdtype(dtype, np.integer):
            raise UserError(f"{self.path}: {CLASSES} is {dtype} {shape}; dSprites has integers (N, {len(DSPRITES)})")
        count = math.prod(shape)
        classes = np.frombuffer(_exactly(member, count * dtype.itemsize), dtype).reshape(shape).astype(np.int64)
        if classes.min() < 0:
            raise UserError(f"{self.path}: {CLASSES} has {classes.min()} in it; classes start at 0")
        return classes

    def _read_images(self, member: IO[bytes], count: int) -> tuple[np.ndarray, tuple[int, int]]:
        """The images as packed bits (N, H * W / 8), and their size (H, W)."""
        shape, dtype = self._header(member, IMAGES)
        if len(shape) != 3 or shape[0] != count or dtype != np.uint8:
            raise UserError(f"{self.path}: {IMAGES} is {dtype} {shape}; dSprites has uint8 ({count}, H, W)")
        pixels = shape[1] * shape[2]
        packed = np.empty((count, -(-pixels // 8)), np.uint8)
        for start in range(0, count, CHUNK):
            rows = min(CHUNK, count - start)
            part = np.frombuffer(_exactly(member, rows * pixels), np.uint8).reshape(rows, pixels)
            if part.max() > 1:
                raise UserError(f"{self.path}: {IMAGES} has pixels of {part.max()}; dSprites' are 0 and 1")
            packed[start : start + rows] = np.packbits(part, axis=1)
        return packed, (shape[1], shape[2])

    def _header(self, member: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of an array, before it is read. Raises UserError for arrays that need unpickling."""
        try:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(member)
        except ValueError as error:
            raise UserError(f"{self.path}: '{name}' is not an array ({error})") from None
        if dtype.hasobject:
            raise UserError(f"{self.path}: '{name}' holds pickled objects, which are never read; save plain arrays")
        if fortran and len(shape) > 1:
            raise UserError(f"{self.path}: '{name}' is stored column by column; save it in C order")
        return shape, dtype


def open_factors(name: str) -> FactorSet:
    """Open ``shapes`` or the .npz file of dSprites. Raises UserError for anything else."""
    if name == "shapes":
        return Shapes()
    path = Path(name).expanduser()
    if path.suffix != ".npz" or not path.is_file():
        problem = "is not an .npz file" if path.exists() else "does not exist"
        raise UserError(f"disentanglement is '{name}', which {problem}; valid are shapes and the .npz file of dSprites")
    return DSprites(path)


def _exactly(member: IO[bytes], count: int) -> bytes:
    content = member.read(count)
    if len(content) != count:
        raise EOFError(f"{count - len(content)} bytes are missing")
    return content
