"""Folders of images as classes: the first level at which images lie in more than one folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST_BESIDE = 0.1  # largest share of images beside the class folders that are left out


@dataclass(frozen=True)
class Folders:
    """The first level with more than one folder. ``of``: the folder of each image; None for images beside them."""

    depth: int
    """Number of folders above this level."""
    of: list[str | None]

    @property
    def names(self) -> list[str]:
        return sorted({folder for folder in self.of if folder is not None})

    @property
    def beside(self) -> int:
        """Number of images beside the folders."""
        return sum(folder is None for folder in self.of)

    @property
    def are_classes(self) -> bool:
        """Whether few images lie beside the folders: one, or at most a tenth of all."""
        return self.beside <= max(1, MOST_BESIDE * len(self.of))


def first_folders(names: Sequence[str]) -> Folders | None:
    """The first level at which there is more than one folder. None if there is no such level."""
    parts = [name.split("/")[:-1] for name in names]
    depth = 0
    while folders := {part[depth] for part in parts if len(part) > depth}:
        if len(folders) > 1:
            return Folders(depth, [part[depth] if len(part) > depth else None for part in parts])
        depth += 1
    return None


def class_of(names: Sequence[str]) -> list[str] | None:
    """The class folder of each image. None if there are no classes: one folder only, or images beside the folders."""
    found = first_folders(names)
    return None if found is None or found.beside else [str(folder) for folder in found.of]
