"""Parquet files as Hugging Face's `datasets` writes them: a column of encoded images, perhaps a column of labels.

An image is a struct of `bytes` and `path`, or plain bytes. The schema's metadata has the class names of a ClassLabel
as JSON: under `huggingface`, at info.features.COLUMN.names.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infogan_ray import UserError
from infogan_ray.data.formats.collection import EncodedImages, Joined, numbered, with_labels
from infogan_ray.data.formats.parts import divide, part_of_file
from infogan_ray.data.image_files import MOST_BYTES, TABLE, Broken, Say, first_data_file, list_image_files
from infogan_ray.data.labels import as_classes, to_numbers

IMAGE_NAMES = ("image", "img", "images", "jpg", "png", "webp")
LABEL_NAMES = ("label", "labels", "fine_label", "cls", "class")
BATCH = 64  # images of a row group that are in memory at a time
DAMAGED = (pa.ArrowException, OSError)


class NoImages(UserError):
    """A table without a column of images, for example imagefolder's metadata.parquet."""


@dataclass(frozen=True)
class Table:
    """The images of files with the same columns, in the order of their rows."""

    path: Path
    files: tuple[Path, ...]
    groups: tuple[tuple[int, ...], ...]
    """Rows of each file's row groups."""
    column: str
    skipped: Counter[str] = field(default_factory=Counter)
    crop: int | None = None

    @property
    def names(self) -> Sequence[str]:
        files = [str(file.relative_to(self._folder)) for file in self.files]
        return Joined(files, [sum(sizes) for sizes in self.groups])

    @property
    def _folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def shown(self, name: str) -> str:
        return str(self._folder / name)

    def contents(self, rows: Sequence[int] | None = None) -> Iterator[tuple[int, bytes | Path | Broken]]:
        """Yield rows with their bytes. Only row groups with a wanted row are opened."""
        wanted = np.array(range(len(self.names)) if rows is None else sorted(rows), np.int64)
        start = 0
        for file, sizes in zip(self.files, self.groups, strict=True):
            ends = start + np.array([0, *accumulate(sizes)])
            groups = [g for g in range(len(sizes)) if ((wanted >= ends[g]) & (wanted < ends[g + 1])).any()]
            for group in groups:
                wanted_in_group = wanted[(wanted >= ends[group]) & (wanted < ends[group + 1])]
                yield from self._group(file, group, ends[group], wanted_in_group)
            start = ends[-1]

    def _group(self, file: Path, group: int, start: int, wanted: np.ndarray) -> Iterator[tuple[int, bytes | Broken]]:
        remaining = set(wanted.tolist())
        try:
            with pq.ParquetFile(file) as table:
                row = int(start)
                for batch in table.iter_batches(BATCH, row_groups=[group], columns=[self.column]):
                    column = batch.column(0)
                    column = column.field("bytes") if pa.types.is_struct(column.type) else column
                    for index in range(len(column)):
                        if row + index in remaining:
                            remaining.remove(row + index)
                            yield row + index, _content(column[index])
                    row += len(column)
        except DAMAGED as error:
            for row in sorted(remaining):
                yield row, Broken(f"is damaged in the table ({' '.join(str(error).split())})")


def _content(value: Any) -> bytes | Broken:
    if not value.is_valid:
        return Broken("has no bytes in the table, at most a path")
    content = value.as_py()
    return content if len(content) <= MOST_BYTES else Broken(f"has more than {MOST_BYTES // 1024**2} MiB")


def parquet_files(folder: Path) -> list[Path]:
    """All .parquet files in a folder and its subfolders, sorted, without hidden ones."""
    files = folder.rglob("*.parquet")
    return sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def matches(path: Path) -> bool:
    """Whether a path is a .parquet file or a folder of them.

    False for tables that only describe image files, for example imagefolder's metadata.parquet.
    """
    if path.is_file():
        return path.name.lower().endswith(TABLE)
    first = first_data_file(path)
    return first is not None and first.suffix.lower() == TABLE and not _only_describes_files(path)


def _only_describes_files(folder: Path) -> bool:
    try:
        _table(folder, _parts(folder, lambda line: None)[0])
    except NoImages:
        try:
            list_image_files(folder)
        except UserError:
            return False
        return True
    except UserError:
        pass  # open_images raises the error
    return False


def open_images(path: Path, labels: str | None, say: Say) -> EncodedImages:
    """Open a .parquet file or a folder of them. For the test split see ``parts``.

    Raises NoImages if no column holds images, and UserError, in one line, for files that cannot be read.
    """
    return with_labels(_open(path, say), labels, say)


def _parts(path: Path, say: Say) -> tuple[list[Path], list[Path]]:
    """The files of the training split and of the test split."""
    if path.is_file():
        return [path], []
    files = parquet_files(path)
    return divide(files, [part_of_file(file, path) for file in files], path, say)


def _open(path: Path, say: Say) -> EncodedImages:
    train, test = _parts(path, say)
    table, schema = _table(path, train)
    tables = [table, *([_table(path, test)[0]] if test else [])]
    found = _labels(tables, schema, path, say)
    if found is None:
        return EncodedImages(table, "Parquet", test=EncodedImages(tables[1], "Parquet") if test else None)
    numbers, classes = found
    count = len(table.names)
    test_split = EncodedImages(tables[1], "Parquet", classes, numbers[count:]) if test else None
    return EncodedImages(table, "Parquet", classes, numbers[:count], test_split)


def _table(path: Path, files: list[Path]) -> tuple[Table, pa.Schema]:
    groups = []
    first: pa.Schema | None = None
    column = ""
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                metadata, schema = table.metadata, table.schema_arrow
        except DAMAGED as error:
            raise UserError(f"data: {file} is not a whole .parquet file ({' '.join(str(error).split())})") from None
        if first is None:
            first, column = schema, _image_column(schema, file)
        elif column not in schema.names or schema.field(column).type != first.field(column).type:
            raise UserError(f"data: {file} has no column '{column}' of the same type as {files[0]}")
        groups.append(tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))
    assert first is not None
    return Table(path, tuple(files), tuple(groups), column), first


def _image_column(schema: pa.Schema, file: Path) -> str:
    columns = [name for name in schema.names if _holds_images(schema.field(name).type)]
    for name in (*IMAGE_NAMES, *(columns if len(columns) == 1 else [])):
        if name in columns:
            return name
    if columns:
        raise UserError(f"data: {file} has the image columns {', '.join(columns)}; keep one, or name one 'image'")
    raise NoImages(
        f"data: {file} has no column of images, a struct with 'bytes' or plain bytes (it has {', '.join(schema.names)})"
    )


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_images(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The description of the columns by `datasets`; empty without one."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _names(schema: pa.Schema, column: str) -> list[str] | None:
    feature = _features(schema).get(column)
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return [str(name) for name in names] if isinstance(names, list) and names else None


def _label_column(schema: pa.Schema) -> str | None:
    """The column of labels: one with a usual name, else one that names its classes. Usable types come first."""
    named = [name for name in schema.names if _names(schema, name) is not None]
    columns = [name for name in (*LABEL_NAMES, *named) if name in schema.names]
    return min(columns, key=lambda name: _usability(schema.field(name).type), default=None)


def _usability(kind: pa.DataType) -> int:
    """0 for integers and text, 1 for other types that can hold classes, 2 for all others."""
    first = (pa.types.is_integer, pa.types.is_string)
    if any(fits(kind) for fits in first):
        return 0
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    others = (*first, pa.types.is_large_string, pa.types.is_floating, pa.types.is_boolean)
    return 1 if any(fits(kind) for fits in others) else 2


def _labels(
    tables: Sequence[Table], schema: pa.Schema, path: Path, say: Say
) -> tuple[np.ndarray, list[str]] | None:  # fmt: skip
    """Class indices of all rows of the tables, and class names. None without labels, after a message about why."""
    column = _label_column(schema)
    if column is None:
        return None
    kind = schema.field(column).type
    if _usability(kind) == 2:
        say(f"data: the column '{column}' of {path} is {kind}, which holds no classes; no labels are used")
        return None
    values = [value for table in tables for value in _values(table, column)]
    if any(value is None or value == -1 or value != value for value in values):  # `datasets` writes -1 for no label
        say(f"data: some rows of {path} have no label; no labels are used")
        return None
    if any(isinstance(value, (str, bool)) for value in values):
        numbers, classes = to_numbers([str(value) for value in values])
        return numbers.numpy(), classes
    if any(isinstance(value, float) for value in values) and not as_classes(
        values, f"the labels in the column '{column}' of {path}", say
    ):
        return None
    labels, names = np.array(values, np.int64), _names(schema, column)
    if names is not None and labels.size and not (labels.min() >= 0 and labels.max() < len(names)):
        raise UserError(f"data: a label of {path} is {labels.max()}, and its schema names {len(names)} classes")
    return numbered(labels, names)


def _values(table: Table, column: str) -> list[Any]:
    values: list[Any] = []
    for file in table.files:
        try:
            values += pq.read_table(file, columns=[column]).column(0).to_pylist()
        except DAMAGED as error:
            raise UserError(
                f"data: {file} has no readable column '{column}' ({' '.join(str(error).split())})"
            ) from None
    return values
