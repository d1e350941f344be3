"""Images in the cells of a table: which columns hold them, and the encoded bytes of one cell.

A cell holds encoded bytes, a path, a struct of `bytes` and `path`, or pixels as nested lists or a tensor.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as types
from PIL import Image

from infogan_ray.data.image_files import MOST_BYTES, Broken, printable

IMAGE_NAMES = ("image", "img", "images", "jpg", "png", "webp")
PATH_NAMES = (
    *IMAGE_NAMES,
    "file",
    "file_name",
    "filename",
    "path",
    "image_path",
    "image_file",
    "file_path",
    "filepath",
)
NEEDED = (
    "an image is encoded bytes, a struct with 'bytes' or 'path', text in a column 'image' or 'path' that names a file "
    "beside the table, or uint8 lists (H, W) or (H, W, 3)"
)
COLUMNS_SHOWN = 10
TYPE_SHOWN = 60  # characters of a column's type in a message


def image_columns(schema: pa.Schema) -> list[str]:
    """The columns of images of the best kind that there is: encoded bytes, else pixels, else paths."""
    columns = list(zip(schema.names, schema.types, strict=True))
    for fits in (_is_encoded, _is_pixels, _is_path):
        if found := [name for name, kind in columns if fits(name, kind)]:
            return found
    return []


def are_paths(schema: pa.Schema, column: str) -> bool:
    """Whether a column only names image files."""
    return _is_path(column, schema.field(column).type)


def describe_columns(schema: pa.Schema) -> str:
    """The columns with their types, for a message."""
    columns = [f"{printable(name)} ({_short(kind)})" for name, kind in zip(schema.names, schema.types, strict=True)]
    more = len(columns) - COLUMNS_SHOWN
    return ", ".join(columns[:COLUMNS_SHOWN]) + (f" and {more:,} more" if more > 0 else "") or "no column"


def content(cell: pa.Scalar, folders: tuple[Path, ...]) -> bytes | Path | Broken:
    """The image of a cell: its encoded bytes, or the path of a file in one of ``folders``."""
    try:
        value: Any = cell.to_numpy() if isinstance(cell, pa.FixedShapeTensorScalar) and cell.is_valid else cell.as_py()
    except UnicodeDecodeError:
        return Broken("has a path that is not UTF-8")
    if isinstance(value, dict):
        path = value.get("path")
        value = path if value.get("bytes") is None else value["bytes"]
    if value is None:
        return Broken("is null in the table")
    if isinstance(value, bytes):
        return value if len(value) <= MOST_BYTES else Broken(f"has more than {MOST_BYTES // 1024**2} MiB")
    return _file(value, folders) if isinstance(value, str) else _from_pixels(value)


def _file(name: str, folders: tuple[Path, ...]) -> Path | Broken:
    """Only files in the folders of the table: a table that came from elsewhere may not choose others."""
    shown = printable(name)[:TYPE_SHOWN]
    places = [(folder, os.path.normpath(folder / name.replace("\\", "/"))) for folder in map(Path.absolute, folders)]
    allowed = [Path(place) for folder, place in places if Path(place).is_relative_to(os.path.normpath(folder))]
    if not allowed:
        return Broken(f"has only the path '{shown}', which is outside the table's folder")
    found = next((place for place in allowed if os.path.isfile(place)), None)
    return found or Broken(f"has only the path '{shown}', and there is no such file beside the table")


def _from_pixels(value: Any) -> bytes | Broken:
    """Nested lists of numbers as a PNG. The channels are the last axis, or the first."""
    try:
        pixels = np.array(value)
    except ValueError:
        return Broken("has rows of unequal length")
    if pixels.dtype.kind not in "iu":
        return Broken("has pixels that are no whole numbers")
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if not pixels.size or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        return Broken(f"has the shape {pixels.shape}; valid are (H, W), (H, W, 3) and (3, H, W)")
    if pixels.min() < 0 or pixels.max() > 255:
        return Broken(f"has pixels from {pixels.min()} to {pixels.max()}; they must be 0 to 255")
    pixels = pixels.astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _is_encoded(name: str, kind: pa.DataType) -> bool:
    if types.is_struct(kind):
        return _child(kind, "bytes", _is_binary)
    return _is_binary(kind)


def _is_path(name: str, kind: pa.DataType) -> bool:
    if types.is_struct(kind):
        return _child(kind, "path", _is_text) and (
            kind.get_field_index("bytes") < 0 or _child(kind, "bytes", types.is_null)
        )
    return name.lower() in PATH_NAMES and _is_text(kind)


def _is_pixels(name: str, kind: pa.DataType) -> bool:
    """Other numbers than uint8 are pixels only in a column with an image's name: they may be boxes or points."""
    depth = 0
    if isinstance(kind, pa.FixedShapeTensorType):
        depth, kind = len(kind.shape), kind.value_type
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        depth, kind = depth + 1, kind.value_type
    return depth in (2, 3) and (types.is_uint8(kind) or (types.is_integer(kind) and name.lower() in IMAGE_NAMES))


def _child(kind: pa.StructType, name: str, fits: Callable[[pa.DataType], bool]) -> bool:
    return kind.get_field_index(name) >= 0 and fits(kind.field(name).type)


def _is_binary(kind: pa.DataType) -> bool:
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _short(kind: pa.DataType) -> str:
    text = str(kind)
    return text if len(text) <= TYPE_SHOWN else f"{text[:TYPE_SHOWN]}..."
