"""Folders of images as classes: the first level at which images lie in more than one folder, for all sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infogan_ray.data.image_files import Say
from infogan_ray.storage.visible_text import printable

MOST_BESIDE = 0.1  # largest share of images beside the class folders that are left out
MOST_NAMED = 3


@dataclass(frozen=True)
class Folders:
    """The first level with more than one folder. ``of``: the folder of each image; None for images beside them."""

    depth: int
    """Number of folders above this level."""
    of: list[str | None]

    @property
    def names(self) -> list[str]:
        return sorted({folder for folder in self.of if folder is not None})

    def of_others(self, names: Sequence[str]) -> list[str | None]:
        """The folder of each of other images at the same level, if it is one of these folders."""
        known = set(self.names)
        parts = [name.split("/")[:-1] for name in names]
        return [part[self.depth] if len(part) > self.depth and part[self.depth] in known else None for part in parts]


def first_folders(names: Sequence[str]) -> Folders | None:
    """The first level at which there is more than one folder. None if there is no such level."""
    parts = [name.split("/")[:-1] for name in names]
    depth = 0
    while folders := {part[depth] for part in parts if len(part) > depth}:
        if len(folders) > 1:
            return Folders(depth, [part[depth] if len(part) > depth else None for part in parts])
        depth += 1
    return None


def class_folders(names: Sequence[str], path: Path, say: Say, shown: Sequence[str] | None = None) -> Folders | None:
    """The folders that are classes. None if there is one folder only, or if many images lie beside the folders.

    One image beside them, or at most a tenth of all, is left out: its folder is None. Calls ``say`` with both.
    ``path``: the source. ``shown``: the names for users, if these differ from ``names``.
    """
    folders = first_folders(names)
    if folders is None:
        return None
    beside = [name for name, folder in zip(shown or names, folders.of, strict=True) if folder is None]
    if len(beside) > max(1, MOST_BESIDE * len(names)):
        say(
            f"data: {len(beside):,} of {len(names):,} images of {path} lie beside the folders "
            f"{some(folders.names)}; so these are not classes"
        )
        return None
    if beside:
        say(left_out(beside, "beside the class folders"))
    return folders


def left_out(names: Sequence[str], where: str) -> str:
    """The message that images are left out. ``where`` they lie."""
    many = "s are" if len(names) > 1 else " is"
    return f"data: {len(names):,} image{many} left out, {where}: {some(names)}"


def some(names: Sequence[str]) -> str:
    """The first few names, and the number of the others."""
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(printable, names[:MOST_NAMED])) + more
