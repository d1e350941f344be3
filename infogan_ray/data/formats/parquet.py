"""Parquet and Arrow files as Hugging Face's `datasets` writes them: a column of images, perhaps a column of labels.

The schema's metadata has the class names of a ClassLabel as JSON: under `huggingface`, at info.features.COLUMN.names.
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

from infogan_ray import UserError
from infogan_ray.data.formats.collection import EncodedImages, Joined, numbered, with_labels
from infogan_ray.data.formats.parts import divide, part_of_file
from infogan_ray.data.formats.table_files import (
    ARROW,
    export_command,
    header,
    is_parquet,
    one_line,
    read_column,
    read_groups,
    table_files,
)
from infogan_ray.data.formats.table_images import (
    IMAGE_NAMES,
    NEEDED,
    PATH_NAMES,
    are_paths,
    content,
    describe_columns,
    image_columns,
)
from infogan_ray.data.image_files import TABLES, Broken, Say, first_data_file, list_image_files
from infogan_ray.data.labels import as_classes, say_part_column, to_numbers

LABEL_NAMES = ("label", "labels", "fine_label", "cls", "class")


class NoImages(UserError):
    """A table without a column of images, for example imagefolder's metadata.parquet."""


@dataclass(frozen=True)
class Table:
    """The images of files with the same columns, in the order of their rows."""

    path: Path
    files: tuple[Path, ...]
    groups: tuple[tuple[int, ...], ...]
    """Rows of each file's groups."""
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
        """Yield rows with their bytes or files. Only groups with a wanted row are opened."""
        wanted = np.array(range(len(self.names)) if rows is None else sorted(rows), np.int64)
        start = 0
        for file, sizes in zip(self.files, self.groups, strict=True):
            ends = start + np.array([0, *accumulate(sizes)])
            of_group = {
                group: set(wanted[(wanted >= ends[group]) & (wanted < ends[group + 1])].tolist())
                for group in range(len(sizes))
            }
            yield from self._file(file, {group: some for group, some in of_group.items() if some}, ends)
            start = ends[-1]

    def _file(
        self, file: Path, wanted: dict[int, set[int]], starts: np.ndarray
    ) -> Iterator[tuple[int, bytes | Path | Broken]]:
        """``wanted``: the rows of each group. ``starts``: the first row of each group."""
        following = {group: int(starts[group]) for group in wanted}
        for group, cells in read_groups(file, list(wanted), self.column):
            rows = wanted[group]
            if isinstance(cells, Exception):
                yield from ((row, Broken(f"is damaged in the table ({one_line(cells)})")) for row in sorted(rows))
                continue
            for row, cell in enumerate(cells, start=following[group]):
                if row in rows:
                    rows.remove(row)
                    yield row, content(cell, (file.parent, self._folder))
            following[group] += len(cells)


def matches(path: Path) -> bool:
    """Whether a path is a .parquet or Arrow file, or a folder of them.

    False for tables that only describe image files, for example imagefolder's metadata.parquet.
    """
    if path.is_file():
        return path.name.lower().endswith(TABLES)
    first = first_data_file(path)
    return first is not None and first.name.lower().endswith(TABLES) and not _only_describes_files(path)


def _only_describes_files(folder: Path) -> bool:
    """Whether the tables of a folder have no images, or only their paths, and the images are files in the folder."""
    try:
        table, schema = _table(folder, _parts(folder, lambda line: None)[0])
        if not are_paths(schema, table.column):
            return False
    except NoImages:
        pass
    except UserError:
        return False  # open_images raises the error
    try:
        list_image_files(folder)
    except UserError:
        return False
    return True


def open_images(path: Path, labels: str | None, say: Say) -> EncodedImages:
    """Open a .parquet or Arrow file or a folder of them. For the test split see ``parts``.

    Raises NoImages if no column holds images, and UserError, in one line, for files that cannot be read.
    """
    return with_labels(_open(path, say), labels, say)


def _parts(path: Path, say: Say) -> tuple[list[Path], list[Path]]:
    """The files of the training split and of the test split."""
    if path.is_file():
        return [path], []
    files = table_files(path)
    if not files:
        raise NoImages(
            f"data: {path} has {ARROW} files without the state.json of save_to_disk; give one file, or "
            f"{export_command(path)}"
        )
    return divide(files, [part_of_file(file, path) for file in files], path, say)


def _open(path: Path, say: Say) -> EncodedImages:
    train, test = _parts(path, say)
    kind = "Parquet" if is_parquet(train[0]) else "Arrow"
    table, schema = _table(path, train, say)
    tables = [table, *([_table(path, test)[0]] if test else [])]
    found = _labels(tables, schema, path, say)
    if found is None:
        return EncodedImages(table, kind, test=EncodedImages(tables[1], kind) if test else None)
    numbers, classes = found
    count = len(table.names)
    test_split = EncodedImages(tables[1], kind, classes, numbers[count:]) if test else None
    return EncodedImages(table, kind, classes, numbers[:count], test_split)


def _table(path: Path, files: list[Path], say: Say = lambda line: None) -> tuple[Table, pa.Schema]:
    groups = []
    first: pa.Schema | None = None
    column = ""
    for file in files:
        schema, sizes = header(file)
        if first is None:
            first, column = schema, _image_column(schema, file, say)
        elif column not in schema.names or schema.field(column).type != first.field(column).type:
            raise UserError(f"data: {file} has no column '{column}' of the same type as {files[0]}")
        groups.append(sizes)
    assert first is not None
    return Table(path, tuple(files), tuple(groups), column), first


def _image_column(schema: pa.Schema, file: Path, say: Say) -> str:
    columns = image_columns(schema)
    if not columns:
        raise NoImages(f"data: {file} has no column of images; it has {describe_columns(schema)}; {NEEDED}")
    if len(columns) == 1:
        return columns[0]
    named = next((name for name in (*IMAGE_NAMES, *PATH_NAMES) if name in columns), None)
    if named is None:
        raise UserError(f"data: {file} has the image columns {', '.join(columns)}; keep one, or name one 'image'")
    say(f"data: {file} has the image columns {', '.join(columns)}; '{named}' is used")
    return named


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
    others = (*first, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_floating, pa.types.is_boolean)
    return 1 if any(fits(kind) for fits in others) else 2


def _labels(
    tables: Sequence[Table], schema: pa.Schema, path: Path, say: Say
) -> tuple[np.ndarray, list[str]] | None:  # fmt: skip
    """Class indices of all rows of the tables, and class names. None without labels, after a message about why."""
    say_part_column(schema.names, path, say)
    column = _label_column(schema)
    if column is None:
        return None
    kind = schema.field(column).type
    if _usability(kind) == 2:
        say(f"data: the column '{column}' of {path} is {kind}, which holds no classes; no labels are used")
        return None
    values = [value for table in tables for file in table.files for value in read_column(file, column)]
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
