"""Reads consecutive images of one size from a file, perhaps compressed: any range, a few images at a time.

IDX, CIFAR's binary files, .npy files and .npy members of an .npz are read here. They differ in the bytes before the
images, in the compression, in the type of the numbers and in the order of an image's axes.
"""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from infogan_ray import UserError

CHUNK = 1024  # images that are read at once
CHUNK_BYTES = 1 << 26  # bytes that are read at once, unless a single image has more
PIECE = 1 << 20  # bytes that are read at once to skip bytes
DAMAGED = (zlib.error, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, OSError, RuntimeError, NotImplementedError)


class StoredImages(Protocol):
    """Images of one size in one file. It can be pickled and hashed."""

    @property
    def path(self) -> Path: ...

    @property
    def name(self) -> str:
        """The file, shown to users. In a .tar: the archive and the member."""

    @property
    def count(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W) or (H, W, C)."""

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yield images ``start`` to ``stop``, (n, H, W[, C]), in chunks. Raises UserError for a damaged file.

        Their type is that of the file: uint8, or wider numbers.
        """


@dataclass(frozen=True)
class Records:
    """``count`` images. Each has ``lead`` bytes that are not pixels, then its pixels in the order ``stored``."""

    path: Path
    count: int
    stored: tuple[int, ...]
    """Sizes of an image's axes in the file; the slowest axis comes first."""
    axes: tuple[int, ...]
    """Positions of height, width and (if there are any) channels in ``stored``."""
    start: int = 0
    """Bytes before the first image, in the uncompressed file."""
    lead: int = 0
    packing: Literal["none", "gzip", "zip", "whole"] = "none"
    """``whole``: a .npy or .npz whose images are not consecutive, so every read loads the whole array."""
    member: str = ""
    """For a zip: the member with the images. For a .tar, whose bytes are read from ``start``: the member's name."""
    dtype: str = "|u1"
    """The type of the numbers in NumPy's notation."""
    factor: int = 1
    """Values are multiplied by it: 255 if they are 0 and 1."""

    @property
    def name(self) -> str:
        """The file, shown to users. In a .tar: the archive and the member."""
        return str(self.path if self.packing in ("zip", "whole") else self.path / self.member)

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W) or (H, W, C)."""
        return tuple(self.stored[axis] for axis in self.axes)

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yield images ``start`` to ``stop``, (n, H, W[, C]), n <= 1024. Raises UserError for a damaged file."""
        stop = self.count if stop is None else stop
        size = self.lead + math.prod(self.stored) * np.dtype(self.dtype).itemsize
        step = min(CHUNK, max(1, CHUNK_BYTES // size))
        order = (0, *(axis + 1 for axis in self.axes))
        try:
            if self.packing == "whole":
                whole = self._whole()
                for first in range(start, stop, step):
                    yield self._scaled(np.array(whole[first : min(first + step, stop)], order="C"))
                return
            with closing(open_stream(self.path, self.packing, self.member)) as stream:
                skip(stream, self.start + start * size)
                for first in range(start, stop, step):
                    rows = min(step, stop - first)
                    content = exactly(stream, rows * size)
                    table = np.frombuffer(content, np.uint8).reshape(rows, size)[:, self.lead :]
                    table = np.ascontiguousarray(table).view(self.dtype)
                    images = np.array(table.reshape(rows, *self.stored).transpose(order), order="C")
                    yield self._scaled(images)
                if stop == self.count:
                    stream.read(1)  # reads to the end, so that checksums are checked
        except DAMAGED as error:
            raise damaged(self.path, error) from None

    def _whole(self) -> np.ndarray:
        if not self.member:
            return np.load(self.path, allow_pickle=False)
        with np.load(self.path, allow_pickle=False) as file:
            return file[self.member.removesuffix(".npy")]

    def _scaled(self, images: np.ndarray) -> np.ndarray:
        if self.factor == 1:
            return images
        if (maximum := int(images.max(initial=0))) * self.factor > 255:
            raise UserError(f"data: {self.path} has pixels of {maximum}; dSprites' are 0 and 1")
        return images * np.uint8(self.factor)


def damaged(path: Path, error: BaseException) -> UserError:
    """The error for a file that is incomplete, damaged or not readable, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"data: {path} cannot be read ({error.strerror})")
    reason = " ".join(str(error).split()) or "it is cut off"
    return UserError(f"data: {path} is not a whole file ({reason}); fetch it again")


def open_stream(path: Path, packing: str = "none", member: str = "") -> Any:
    """Open a file, a gzip file or a zip's member. The caller reads it from the start and closes it."""
    if packing == "gzip":
        return gzip.open(path)
    if packing == "zip":
        return Member(path, member)
    return open(path, "rb")


def skip(stream: Any, count: int) -> None:
    """Skip bytes: seek if the stream can, else read them."""
    if stream.seekable():
        stream.seek(count, 1)
        return
    while count:
        content = stream.read(min(count, PIECE))
        if not content:
            raise EOFError("it is cut off")
        count -= len(content)


def exactly(stream: Any, count: int) -> bytes:
    """Read exactly ``count`` bytes. Raises EOFError if there are fewer."""
    parts = []
    while count:
        content = stream.read(count)
        if not content:
            raise EOFError("it is cut off")
        parts.append(content)
        count -= len(content)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class Member:
    """An open member of a zip. It keeps its archive open until it is closed."""

    def __init__(self, path: Path, name: str) -> None:
        self.archive = zipfile.ZipFile(path)
        try:
            self.file = self.archive.open(name)
        except BaseException:
            self.archive.close()
            raise

    def read(self, count: int = -1) -> bytes:
        return self.file.read(count)

    def seekable(self) -> bool:
        return self.file.seekable()

    def seek(self, count: int, whence: int = 0) -> int:
        return self.file.seek(count, whence)

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        self.file.close()
        self.archive.close()
