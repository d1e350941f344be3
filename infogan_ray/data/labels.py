"""Labels of images in files: from a CSV file with the columns file and label, else from the class folders."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.image_files import Files, Say, class_of, printable


def class_names(source: Files, names: Sequence[str], table: str | None, say: Say) -> list[str] | None:
    """The class of each name: from a CSV file if one is given, else from the folders, else None.

    ``names`` are those of the source that could be read. Raises UserError if the CSV does not fit them.
    """
    if table is None:
        return class_of(names)
    path = Path(table).expanduser()
    given = _read_table(path)
    found, unknown = _match(given, source.names)
    if not found:
        example = f" (for example {_some(unknown)})" if unknown else ""
        raise UserError(f"labels: none of the files that {path} names is in {source.path}{example}")
    if unknown:
        say(f"labels: {len(unknown):,} rows of {path} name no image that is there, for example {_some(unknown)}")
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"labels: {len(missing):,} of {len(names):,} images have no row in {path}, for example {_some(missing)}; "
            "add them, or leave --labels out: training needs none"
        )
    return [found[name] for name in names]


def to_numbers(labels: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Labels as int64 (N,) 0…K-1 and the K classes in order: as numbers if all are, else as text."""
    kinds = set(labels)
    ordered = sorted(kinds, key=int) if all(_is_number(kind) for kind in kinds) else sorted(kinds)
    number = {kind: place for place, kind in enumerate(ordered)}
    return torch.tensor([number[label] for label in labels]), ordered


def _is_number(text: str) -> bool:
    return text.lstrip("-").isascii() and text.lstrip("-").isdigit() and str(int(text)) == text


def _read_table(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise UserError(f"labels is {path}, which {'is no file' if path.exists() else 'does not exist'}")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if "file" not in columns or "label" not in columns:
                raise UserError(
                    f"labels: {path} has the columns {', '.join(map(repr, columns)) or 'none'}; its first line must "
                    "name 'file' and 'label'"
                )
            given: dict[str, str] = {}
            for row in reader:
                name, label = (row["file"] or "").strip(), (row["label"] or "").strip()
                if not name or not label:
                    raise UserError(f"labels: line {reader.line_num} of {path} has no {'label' if name else 'file'}")
                if given.setdefault(name, label) != label:
                    raise UserError(
                        f"labels: line {reader.line_num} of {path} gives {printable(name)} the label '{label}', and "
                        f"an earlier one '{given[name]}'"
                    )
            return given
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"labels: {path} is not a CSV file in UTF-8 ({error})") from None


def _match(given: dict[str, str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Labels by the source's names, and the table's names that fit none: a path counts first, then its last part."""
    there = set(names)
    last_parts = Counter(name.rpartition("/")[2] for name in names)
    by_last_part = {name.rpartition("/")[2]: name for name in names}
    found: dict[str, str] = {}
    unknown: list[str] = []
    short: list[tuple[str, str]] = []
    for name, label in given.items():
        plain = name.replace("\\", "/").removeprefix("./")
        if plain in there:
            found[plain] = label
        elif last_parts[plain] == 1:
            short.append((by_last_part[plain], label))
        else:
            unknown.append(name)
    for name, label in short:
        found.setdefault(name, label)
    return found, unknown


def _some(names: Sequence[str]) -> str:
    return ", ".join(printable(name) for name in names[:3])
