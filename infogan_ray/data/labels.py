"""Labels of images: from a CSV file with the columns file and label, and from values of any type to classes."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.image_files import Files, Say, printable

UNBALANCED = 1.5  # times an even share


def class_names(source: Files, names: Sequence[str], table: str, say: Say) -> list[str]:
    """The label of each name, from the CSV file ``table``.

    ``names``: the readable files of the source. Raises UserError if the CSV file does not match them.
    """
    path = Path(table).expanduser()
    table_labels = _read_table(path)
    matched, unknown = _match(table_labels, source.names)
    if not matched:
        example = f" (for example {_examples(unknown)})" if unknown else ""
        raise UserError(f"labels: none of the files in {path} is in {source.path}{example}")
    if unknown:
        say(f"labels: {len(unknown):,} rows of {path} match no image, for example {_examples(unknown)}")
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


def _read_table(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise UserError(f"labels is {path}, which {'is not a file' if path.exists() else 'does not exist'}")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if "file" not in columns or "label" not in columns:
                raise UserError(
                    f"labels: {path} has the columns {', '.join(map(repr, columns)) or 'none'}; its first line must "
                    "name 'file' and 'label'"
                )
            labels: dict[str, str] = {}
            for row in reader:
                name, label = (row["file"] or "").strip(), (row["label"] or "").strip()
                if not name or not label:
                    raise UserError(f"labels: line {reader.line_num} of {path} has no {'label' if name else 'file'}")
                if labels.setdefault(name, label) != label:
                    raise UserError(
                        f"labels: line {reader.line_num} of {path} gives {printable(name)} the label '{label}', and "
                        f"an earlier one '{labels[name]}'"
                    )
            return labels
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"labels: {path} is not a CSV file in UTF-8 ({error})") from None


def _match(labels: dict[str, str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Labels by the source's names, and the table's names without one. Whole paths are matched before file names."""
    known = set(names)
    last_parts = Counter(name.rpartition("/")[2] for name in names)
    by_last_part = {name.rpartition("/")[2]: name for name in names}
    matched: dict[str, str] = {}
    unknown: list[str] = []
    short: list[tuple[str, str]] = []
    for name, label in labels.items():
        plain = name.replace("\\", "/").removeprefix("./")
        if plain in known:
            matched[plain] = label
        elif last_parts[plain] == 1:
            short.append((by_last_part[plain], label))
        else:
            unknown.append(name)
    for name, label in short:
        matched.setdefault(name, label)
    return matched, unknown


def _examples(names: Sequence[str]) -> str:
    return ", ".join(printable(name) for name in names[:3])
