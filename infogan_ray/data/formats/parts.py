"""The parts of a dataset by the usual names of files and folders. All formats with such names have this rule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from infogan_ray.data.image_files import Say

T = TypeVar("T")
TRAIN, VALIDATION, TEST = "training", "validation", "test"
WORDS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "eval", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}


def part_of(name: str) -> str | None:
    """The part that the first word of a name means: Train, test-00000-of-00001.parquet, val2017. None: no part."""
    word = re.match("[a-z]*", name.lower())
    return WORDS.get(word[0]) if word else None


def part_at_end(name: str) -> tuple[str, str | None]:
    """What stands before the last word of a name, and the part that this word means: seg_train, mnist-test."""
    before, word = re.fullmatch("(.*?)([a-z]*)", name.lower(), re.DOTALL).groups()  # type: ignore[union-attr]
    return before, WORDS.get(word)


def parts_of(names: Sequence[str]) -> dict[str, str]:
    """The names that mean a part, each with its part, by their first words.

    If these name fewer than two parts: by the last words, if all names are the same before it (seg_train, seg_test).
    """
    found = {name: part for name in names if (part := part_of(name))}
    if len({*found.values()}) > 1:
        return found
    ends = {name: part_at_end(name) for name in names}
    at_end = {name: part for name, (_, part) in ends.items() if part}
    same_start = len({before for before, _ in ends.values()}) == 1
    return at_end if same_start and len(at_end) == len(names) else found


def part_of_file(path: Path, root: Path) -> str | None:
    """The part of a file by its name and its folders below ``root``."""
    found = {part_of(name) for name in path.relative_to(root).parts}
    return next((part for part in (TEST, VALIDATION, TRAIN) if part in found), None)


def divide(items: Sequence[T], parts: Sequence[str | None], path: Path, say: Say) -> tuple[list[T], list[T]]:
    """The files or folders to train on, and those of the test part, each with its part.

    The test part is test, or without one validation. Anything else is for training. There is no test part if nothing
    would be left for training. Calls ``say`` about a validation part.
    """
    held = next((part for part in (TEST, VALIDATION) if part in parts), None)
    if all(part == held for part in parts):
        return list(items), []
    if held == TEST and VALIDATION in parts:
        say(f"data: {path} has a test part and a validation part; the validation part is for training")
    if held == VALIDATION:
        say(f"data: {path} has no test part; its validation part is used as the test part")
    train = [item for item, part in zip(items, parts, strict=True) if held is None or part != held]
    return train, [item for item, part in zip(items, parts, strict=True) if held is not None and part == held]
