"""MATLAB's .mat files of level 5, as far as images need them: named arrays of whole numbers. SVHN's layout.

"MAT-File Format" of The MathWorks describes the bytes: a header of 128, then elements, each a tag (type, size) and its
data, as a rule packed by zlib. An array's numbers come last in its element and with the first axis fastest, so that
SVHN's images, the last axis of X, lie one after the other and are read a few at a time.
"""

from __future__ import annotations

import struct
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infogan_ray import UserError
from infogan_ray.data.formats.collection import Pixels, numbered
from infogan_ray.data.formats.records import DAMAGED, Records, damaged, exactly, open_stream

NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, PACKED = 14, 15
NUMERIC_CLASSES = range(6, 16)  # double, single and the whole numbers; not cells, structures, objects and text
SVHN_FILES = ("train_32x32.mat", "extra_32x32.mat", "test_32x32.mat")  # the first that is there is trained on


@dataclass(frozen=True)
class Array:
    """An array of a file, and where its numbers begin in the stream that it lies in."""

    shape: tuple[int, ...]
    type: str
    packed: bool
    offset: int
    """Of the stream in the file."""
    start: int
    """Of the numbers in the stream."""


def arrays(path: Path) -> dict[str, Array]:
    """The numeric arrays of a file by name. Raises UserError, in one line, for files of other kinds."""
    try:
        return _arrays(path)
    except (*DAMAGED, struct.error) as error:
        raise damaged(path, error) from None


def _arrays(path: Path) -> dict[str, Array]:
    found: dict[str, Array] = {}
    length = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(128)
        if head.startswith(b"MATLAB 7.3") or b"HDF5 schema" in head or head.startswith(b"\x89HDF"):
            raise UserError(
                f"data: {path} is a MATLAB 7.3 file (HDF5), which is not read; save it by save(FILE, ..., '-v7')"
            )
        if len(head) < 128 or head[126:] not in (b"IM", b"MI"):
            raise UserError(f"data: {path} is not a MATLAB file of level 5 (SVHN's cropped digits are)")
        order = "<" if head[126:] == b"IM" else ">"
        at = 128
        while at + 8 <= length:
            file.seek(at)
            kind, size = struct.unpack(order + "2I", file.read(8))
            if kind in (MATRIX, PACKED):
                packed = kind == PACKED
                with closing(open_stream(path, "zlib" if packed else "none", offset=at + 8)) as stream:
                    named = _array(_Elements(stream, order), packed, at + 8)
                if named is not None:
                    found[named[0]] = named[1]
            at += 8 + size
            if kind == MATRIX:
                at += -at % 8  # what is packed is not padded
        if at > length:
            raise EOFError("it is cut off")
    return found


class _Elements:
    """Elements one after the other in a stream, and how far it has been read."""

    def __init__(self, stream: Any, order: str) -> None:
        self.stream, self.order, self.at = stream, order, 0

    def read(self, count: int) -> bytes:
        self.at += count
        return exactly(self.stream, count)

    def tag(self) -> tuple[int, int, bytes | None]:
        """Type, size, and the data where it is so small that it lies in the tag itself."""
        words = self.read(8)
        (first,) = struct.unpack(self.order + "I", words[:4])
        if first >> 16:
            return first & 0xFFFF, first >> 16, words[4 : 4 + (first >> 16)]
        return first, struct.unpack(self.order + "I", words[4:])[0], None

    def data(self) -> bytes:
        """The data of a short element, its padding passed over."""
        _, size, inside = self.tag()
        if inside is not None:
            return inside
        if size > 1 << 16:
            raise EOFError("its header is not one of an array")
        content = self.read(size)
        self.read(-size % 8)
        return content


def _array(elements: _Elements, packed: bool, offset: int) -> tuple[str, Array] | None:
    """An array's name and place. None for what is not numeric."""
    if packed and elements.tag()[0] != MATRIX:
        return None
    (flags,) = struct.unpack(elements.order + "I", elements.data()[:4])
    shape = np.frombuffer(elements.data(), elements.order + "i4")
    name = elements.data().decode("latin-1")
    if (flags & 0xFF) not in NUMERIC_CLASSES or flags & 0x0800:  # complex
        return None
    kind, size, inside = elements.tag()
    if kind not in NUMBERS:
        return None
    start = elements.at if inside is None else elements.at - 4
    form = elements.order + NUMBERS[kind]
    if size != np.prod(shape, dtype=np.int64) * np.dtype(form).itemsize:
        raise EOFError(f"the array '{name}' has {size} bytes, which is not its size")
    return name, Array(tuple(int(side) for side in shape), form, packed, offset, start)


def numbers(path: Path, array: Array) -> np.ndarray:
    """An array's numbers, all of them. Raises UserError for a damaged file."""
    count = int(np.prod(array.shape, dtype=np.int64))
    try:
        with closing(open_stream(path, "zlib" if array.packed else "none", offset=array.offset)) as stream:
            exactly(stream, array.start)
            content = exactly(stream, count * np.dtype(array.type).itemsize)
    except DAMAGED as error:
        raise damaged(path, error) from None
    return np.frombuffer(content, array.type).reshape(array.shape, order="F")


def svhn_file(folder: Path) -> Path | None:
    """The file of SVHN's cropped digits in a folder that is trained on."""
    return next((folder / name for name in SVHN_FILES if (folder / name).is_file()), None)


def open_svhn(path: Path) -> Pixels:
    """SVHN's cropped digits: X (H, W, 3, N), uint8, and y (N, 1), in which 10 stands for the digit 0.

    ``path`` is the folder, or the file to train on. test_32x32.mat beside it is the test part. Raises UserError.
    """
    file = svhn_file(path) if path.is_dir() else path
    assert file is not None
    test = file.with_name(SVHN_FILES[-1])
    part = None
    if test.is_file() and test != file and file.name in SVHN_FILES:
        part = _svhn_part(test, test, None)
    return _svhn_part(path, file, part)


def _svhn_part(path: Path, file: Path, test: Pixels | None) -> Pixels:
    found = arrays(file)
    images, labels = found.get("X"), found.get("y")
    if images is None:
        raise UserError(f"data: {file} has no array 'X' as SVHN's have (it has {', '.join(found) or 'none'})")
    if len(images.shape) != 4 or images.shape[2] not in (1, 3) or images.type[1:] != "u1":
        raise UserError(f"data: 'X' in {file} is {images.type[1:]} {images.shape}; SVHN's is u1 (32, 32, 3, N)")
    height, width, channels, count = images.shape
    records = Records(
        file, count, (channels, width, height), (2, 1, 0), images.start, packing="zlib" if images.packed else "none",
        offset=images.offset,
    )  # fmt: skip
    if labels is None:
        return Pixels(path, "SVHN .mat", (records,), test=test)
    digits = numbers(file, labels).reshape(-1).astype(np.int64)
    if len(digits) != count or not ((digits >= 0) & (digits <= 10)).all():
        raise UserError(f"data: 'y' in {file} must be {count} numbers from 1 to 10, of which 10 stands for the digit 0")
    classes, names = numbered(digits % 10, [str(digit) for digit in range(10)])
    return Pixels(path, "SVHN .mat", (records,), names, classes, test)
