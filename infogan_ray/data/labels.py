"""Labels of images: from a CSV or JSON file that lists files and labels, and from values of any type to classes.

Such a file only gives labels to images of the source. No file that it names is opened.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.image_files import Files, Say
from infogan_ray.data.progress import counted
from infogan_ray.storage.visible_text import printable

UNBALANCED = 1.5  # times an even share
FILE_COLUMNS = ("file", "filename", "file_name", "image", "path", "filepath", "file_path", "image_path")
LABEL_COLUMNS = ("label", "class", "category", "target")
"""Names of the columns, in any case. Of several, the first in this order is used."""
VALID_COLUMNS = f"one of files ({', '.join(FILE_COLUMNS)}) and one of labels ({', '.join(LABEL_COLUMNS)})"
PART_COLUMNS = ("split", "part", "partition", "subset", "fold")
DELIMITERS = (",", ";", "\t")


def class_names(source: Files, names: Sequence[str], table: str, say: Say) -> list[str]:
    """The label of each name, from the CSV or JSON file ``table``.

    ``names``: the readable files of the source. Raises UserError if ``table`` does not match them.
    """
    path = Path(table).expanduser()
    table_labels = _read_table(path, say)
    matched, unknown = _match(table_labels, source, path)
    if not table_labels:
        raise UserError(f"labels: {path} lists no file; add a row for each image")
    if not matched:
        raise UserError(
            f"labels: none of the {len(table_labels):,} files in {path} is in {source.path}; it names "
            f"'{_examples(unknown[:1])}', and an image there is '{_examples(source.names[:1])}'; name files as there"
        )
    if unknown:
        say(f"labels: {counted(len(unknown), 'row')} of {path} without an image, for example {_examples(unknown)}")
    missing = [name for name in names if name not in matched]
    if missing:
        raise UserError(
            f"labels: {len(missing):,} of {len(names):,} images have no row in {path}, for example "
            f"{_examples(missing)}; add them, or leave --labels out: training needs no labels"
        )
    return [matched[name] for name in names]


def as_classes(values: Sequence[object], what: str, say: Say) -> list[str] | None:
    """The class name of each label. Whole numbers have one name in any form: 3, 3.0 and '3.0' are '3'.

    None, after a message about ``what``, if some labels are NaN, or if all are numbers and some are not whole: these
    are measurements and not classes.
    """
    if missing := sum(value != value for value in values):
        say(f"data: {missing:,} of {len(values):,} of {what} are missing (NaN); no labels are used")
        return None
    names = list(map(str, values))
    numbers = [_float(name) for name in names]
    if not all(number is not None for number in numbers):
        return names
    if other := next((name for name, number in zip(names, numbers, strict=True) if number and number % 1), None):
        say(f"data: {what} are numbers such as {other}, which are not classes; no labels are used")
        return None
    return [
        str(int(number)) if number is not None and not _is_number(name) else name  # a large number is no exact float
        for name, number in zip(names, numbers, strict=True)
    ]


def _float(text: str) -> float | None:
    """The number that a text stands for. None for other texts, and for names such as 007, nan and 1_000."""
    return float(text) if re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[+-]?[0-9]+)?", text, re.IGNORECASE) else None


def to_numbers(labels: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Labels as int64 (N,) 0…K-1, and the K classes in order: sorted as numbers if all are numbers, else as text."""
    classes = set(labels)
    ordered = sorted(classes, key=int) if all(_is_number(name) for name in classes) else sorted(classes)
    number = {name: index for index, name in enumerate(ordered)}
    return torch.tensor([number[label] for label in labels]), ordered


def is_unbalanced(counts: Sequence[int]) -> bool:
    """Whether the largest class has more than 1.5 times an even share. ``counts``: images of each class that has any.

    Up to there the error of one category for everything is close to the one for equal classes: of ten classes 85% and
    90%. MNIST's largest class has 1.1 times an even share, and SVHN's 1.9 times.
    """
    return len(counts) > 1 and max(counts) * len(counts) > UNBALANCED * sum(counts)


def _is_number(text: str) -> bool:
    return text.lstrip("-").isascii() and text.lstrip("-").isdigit() and str(int(text)) == text


def _read_table(path: Path, say: Say) -> dict[str, str]:
    """Labels by file, as the table writes the files."""
    if not path.is_file():
        raise UserError(f"labels is {path}, which {'is not a file' if path.exists() else 'does not exist'}")
    read = {".json": _json_rows, ".jsonl": _json_rows}.get(path.suffix.lower(), _csv_rows)
    labels: dict[str, str] = {}
    try:
        for place, name, label in read(path, path.read_text(encoding="utf-8-sig"), say):
            if not name or not label:
                raise UserError(f"labels: {place} of {path} has no {'label' if name else 'file'}")
            if labels.setdefault(name, label) != label:
                raise UserError(
                    f"labels: {place} of {path} gives {printable(name)} the label '{label}', and "
                    f"an earlier one '{labels[name]}'"
                )
        return labels
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError, OSError) as error:
        what = "CSV" if read is _csv_rows else "JSON"
        raise UserError(f"labels: {path} is not a {what} file in UTF-8 ({error})") from None


def _csv_rows(path: Path, text: str, say: Say) -> Iterator[tuple[str, str, str]]:
    """Yield the place of each row in the file, its file and its label.

    The delimiter is the one with which the first line names both columns.
    """
    headers: list[list[str]] = []
    for delimiter in DELIMITERS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        header = [name.strip().lower() for name in next(reader, [])]
        headers.append(header)
        if columns := _columns(path, header, say):
            break
    else:
        longest = max(headers, key=len)
        columns_found = ", ".join(map(repr, longest)) or "none"
        raise UserError(f"labels: {path} has the columns {columns_found}; its first line must name {VALID_COLUMNS}")
    for row in reader:
        if any(map(str.strip, row)):
            name, label = (row[at].strip() if at < len(row) else "" for at in map(header.index, columns))
            yield f"line {reader.line_num}", name, label


def _json_rows(path: Path, text: str, say: Say) -> Iterator[tuple[str, str, str]]:
    """As ``_csv_rows``, from objects with these columns: in a list, or one a line as in Hugging Face's metadata.jsonl.

    Pairs of a file and its label are valid too: [[file, label], ...] or {file: label}. Both may be the value of
    "labels", as in StyleGAN's dataset.json.
    """
    lines = path.suffix.lower() == ".jsonl"
    found = [json.loads(line) for line in text.split("\n") if line.strip()] if lines else json.loads(text)
    if isinstance(found, dict):
        found = found.get("labels", found)
    rows = list(found.items()) if isinstance(found, dict) else found
    if not isinstance(rows, list):
        raise UserError(
            f"labels: {path} lists no files; valid are [[file, label], ...], and objects with {VALID_COLUMNS}"
        )
    columns: tuple[str, str] | None = None
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            row = {name.strip().lower(): value for name, value in row.items()}
            columns = columns or _columns(path, row, say)
            row = columns and [row.get(name) for name in columns]
        if not isinstance(row, (list, tuple)) or len(row) != 2:
            raise UserError(
                f"labels: row {number} of {path} is neither [file, label] nor an object with {VALID_COLUMNS}"
            )
        name, label = (str(value).strip() if isinstance(value, (str, int, float)) else "" for value in row)
        yield f"row {number}", name, label


def _columns(path: Path, header: Collection[str], say: Say) -> tuple[str, str] | None:
    """The columns of files and labels. None if one of them is missing."""
    files, labels = ([name for name in names if name in header] for names in (FILE_COLUMNS, LABEL_COLUMNS))
    if not files or not labels:
        return None
    say_part_column(header, path, say)
    for found in (files, labels):
        if len(found) > 1:
            say(f"labels: {path} has the columns {', '.join(found)}; '{found[0]}' is used")
    return files[0], labels[0]


def say_part_column(columns: Collection[str], path: Path, say: Say) -> None:
    """Call ``say`` if a column seems to name the part of each row. No source reads such a column."""
    if found := next((name for name in columns if name.lower() in PART_COLUMNS), None):
        say(f"data: the column '{found}' of {path} is not read; for parts, use folders or files named train and test")


def _match(labels: dict[str, str], source: Files, table: Path) -> tuple[dict[str, str], list[str]]:
    """Labels by the source's names, and the table's names without one.

    A table's name that says where the image is comes before one that only ends alike. Raises UserError if two equally
    sure names of an image have different labels.
    """
    find = _finder(source, table)
    best: dict[str, tuple[int, str]] = {}
    unknown: list[str] = []
    for name in labels:
        image, rank = find(name)
        if image is None:
            unknown.append(name)
            continue
        earlier_rank, earlier = best.get(image, (rank, name))
        if rank == earlier_rank and labels[name] != labels[earlier]:
            raise UserError(
                f"labels: in {table}, {printable(earlier)} with the label '{labels[earlier]}' and {printable(name)} "
                f"with '{labels[name]}' both fit the image {printable(image)}; write their paths from {source.path} on"
            )
        if rank > earlier_rank:
            unknown.append(name)
            continue
        if rank < earlier_rank:
            unknown.append(earlier)
        best[image] = rank, name
    return {image: labels[name] for image, (_, name) in best.items()}, unknown


def _finder(source: Files, table: Path) -> Callable[[str], tuple[str | None, int]]:
    """A function from a table's name to an image of the source, or None, with its rank. 0 is the surest."""
    known = set(source.names)
    last_parts = Counter(name.rpartition("/")[2] for name in known)
    by_last_part = {name.rpartition("/")[2]: name for name in known}
    root = Path(os.path.abspath(source.path)).parts
    starts = ["/".join(root[place:]).replace("//", "/") + "/" for place in range(len(root))]
    folders = [os.path.abspath(folder) for folder in (table.parent, ".")]

    def find(name: str) -> tuple[str | None, int]:
        path = posixpath.normpath(name.replace("\\", "/"))
        if name in known or path in known:  # from the source on
            return (name if name in known else path), 0
        for place in (path, *(posixpath.normpath(posixpath.join(folder, path)) for folder in folders)):
            for start in starts:  # a whole path, or one from a folder above the source on
                if place.startswith(start) and place.removeprefix(start) in known:
                    return place.removeprefix(start), 1
        parts = path.split("/")
        for first in range(1, len(parts)):  # a whole path on another machine
            if (end := "/".join(parts[first:])) in known:
                return end, 2
        if last_parts[path] == 1:
            return by_last_part[path], 2
        return None, 0

    return find


def _examples(names: Sequence[str]) -> str:
    return ", ".join(printable(name) for name in names[:3])
