"""Reads and writes IDX, the format of MNIST: a big-endian header (magic 0x0000_08_ndim, then the sizes) and bytes."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from infogan_ray import UserError

UINT8 = 8


def read_bytes(path: Path) -> bytes:
    """Read a raw or ``.gz`` file, uncompressed. Raises UserError for a broken archive."""
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file ({error}); delete it and fetch it again") from None


def decode(content: bytes, name: str) -> np.ndarray:
    """Decode IDX bytes to a uint8 array of the shape in its header. Raises UserError, which contains ``name``."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UINT8:
        raise UserError(
            f"{name} is not an IDX file of bytes (its first four bytes are {content[:4].hex() or 'missing'})"
        )
    ndim = content[3]
    start = 4 + 4 * ndim
    if len(content) < start:
        raise UserError(f"{name} ends inside its IDX header")
    shape = struct.unpack(f">{ndim}I", content[4:start])
    if len(content) - start != int(np.prod(shape, dtype=np.int64)):
        raise UserError(f"{name} holds {len(content) - start} bytes, which do not match its header {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def encode(array: np.ndarray) -> bytes:
    """Encode a uint8 array as IDX bytes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, UINT8, array.ndim, *array.shape)
    return header + np.ascontiguousarray(array, np.uint8).tobytes()
