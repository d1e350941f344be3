"""Lists the image files of a folder (with subfolders), a .zip, a .tar or one file. Nothing is unpacked to disk.

Names are relative, use '/' as separator, and are sorted. So a folder and an archive of it give the same files in the
same order, on every machine.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from infogan_ray import UserError
from infogan_ray.data.archives import tar_members, zip_members
from infogan_ray.data.image_kinds import ENDINGS, FIRST_BYTES, FORMATS, begins_like_an_image, junk, reason_to_skip
from infogan_ray.storage.visible_text import printable

TARS = (".tar", ".tar.gz", ".tgz")
MOST_BYTES = 512 * 1024**2  # of one file: a small archive can unpack to gigabytes
TABLES = (".parquet", ".arrow", ".feather")

Say = Callable[[str], None]
"""Shows one line of text to the user."""


class Broken(Exception):
    """The file is not a valid image. The message is the end of a sentence that starts with its name: 'is cut off'."""


class Files(Protocol):
    """A source of encoded images: ``ImageFiles``, or a table or archives with the same interface."""

    @property
    def path(self) -> Path: ...

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def skipped(self) -> Counter[str]: ...

    @property
    def crop(self) -> int | None:
        """Side in pixels of the middle square to cut out of each image. None: the largest that fits."""

    def shown(self, name: str) -> str: ...

    def contents(self, rows: Sequence[int] | None = None) -> Iterator[tuple[int, bytes | Path | Broken]]: ...


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a path: ``names`` in order. ``skipped`` counts all other files by kind."""

    path: Path
    names: tuple[str, ...]
    skipped: Counter[str] = field(default_factory=Counter)
    members: dict[str, Any] = field(default_factory=dict, repr=False)
    """For an archive: the position of each name's bytes in it."""
    crop: int | None = None
    """Side in pixels of the middle square to cut out of each image. None: the largest that fits."""

    def shown(self, name: str) -> str:
        """A file's whole path, as shown to users."""
        return printable(str(self.path if _kind(self.path) == "file" else self.path / name))

    def contents(self, rows: Sequence[int] | None = None) -> Iterator[tuple[int, bytes | Path | Broken]]:
        """Yield each row of ``rows`` (default: all ``names``) with its bytes, in the order that is fastest to read.

        For a folder, the file's path comes instead of bytes, so that a decoding thread can read the file.
        """
        wanted = range(len(self.names)) if rows is None else sorted(rows)
        kind = _kind(self.path)
        if kind == "folder":
            yield from ((row, self.path / self.names[row]) for row in wanted)
        elif kind == "file":
            yield from ((row, self.path) for row in wanted)
        else:
            read = _zip_contents if kind == "zip" else _tar_contents
            yield from read(self.path, [(self.members[self.names[row]], row) for row in wanted])


def list_image_files(path: Path) -> ImageFiles:
    """List the images of a path. Raises UserError, in one line, if there are none or the archive is broken."""
    kind = _kind(path)
    if kind == "folder":
        source = _folder(path)
    elif kind == "file":
        source = ImageFiles(path, (path.name,))
    else:
        members, skipped = (zip_members if kind == "zip" else tar_members)(path)
        counts = Counter(printable(reason) for reason in skipped.elements())
        source = ImageFiles(path, _in_order(list(members)), counts, members)
    if not source.names:
        others = f"; there are only {describe(source.skipped)}" if source.skipped else ""
        raise UserError(f"data: no image in {path} ({', '.join(FORMATS)} are read, in subfolders too){others}")
    return source


def is_listable(path: Path) -> bool:
    """Whether a path is of a kind that ``list_image_files`` reads."""
    if path.is_dir() or path.name.lower().endswith((".zip", *TARS, *ENDINGS)):
        return True
    return reason_to_skip(path.name, partial(_has_image_bytes, path)) is None


def first_data_file(folder: Path) -> Path | None:
    """The first image, table or tar in a folder or its subfolders. Its kind shows the layout of the others."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        fits = [
            name for name in names if name.lower().endswith((*ENDINGS, *TARS, *TABLES)) and not name.startswith(".")
        ]
        if fits:
            images = [name for name in fits if name.lower().endswith(ENDINGS)]
            return Path(parent) / min(images or fits)
    return None


def read_file(path: Path) -> bytes:
    """Read a file. Raises Broken if it cannot be read or is too large."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                raise _too_large()
            return file.read()
    except FileNotFoundError:
        raise Broken("is a broken link" if path.is_symlink() else "does not exist any more") from None
    except PermissionError:
        raise Broken("cannot be read (you have no permission)") from None
    except OSError as error:
        raise Broken(f"cannot be read ({error.strerror or error})") from None


def describe(counts: Counter[str]) -> str:
    """Counts as text, the largest first: '12 .txt files, 1 hidden'."""
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items(), key=lambda item: (-item[1], item)))


def _kind(path: Path) -> str:
    lower = path.name.lower()
    if path.is_dir():
        return "folder"
    return "zip" if lower.endswith(".zip") else "tar" if lower.endswith(TARS) else "file"


def _in_order(names: list[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: name.split("/")))


def _too_large() -> Broken:
    return Broken(f"has more than {MOST_BYTES // 1024**2} MiB")


def _has_image_bytes(path: str | os.PathLike[str]) -> bool:
    if not os.path.isfile(path):  # reading a pipe would wait for its writer
        return False
    try:
        with open(path, "rb") as file:
            return begins_like_an_image(file.read(FIRST_BYTES))
    except OSError:
        return False


def _folder(root: Path) -> ImageFiles:
    """List every folder once: by its real path if that is below the root, else by the first link to it."""
    names: list[str] = []
    skipped: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    parents = {_identity(parent) for parent in root.resolve().parents}
    links: list[str] = []

    def walk(start: str) -> None:
        waiting = [start]
        while waiting:
            relative = waiting.pop()
            folder = root / relative
            try:
                identity = _identity(folder)
                if identity in seen or identity in parents:
                    skipped["links to a folder that is read already"] += 1
                    continue
                seen.add(identity)
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                skipped["folders that may not be read"] += 1
                continue
            for entry in entries:
                name = f"{relative}/{entry.name}" if relative else entry.name
                if reason := junk(entry.name):
                    skipped[reason] += 1
                elif os.path.isdir(entry):  # not entry.is_dir(), which raises for a link to itself
                    (links if entry.is_symlink() else waiting).append(name)
                elif reason := reason_to_skip(entry.name, partial(_has_image_bytes, entry)):
                    skipped[printable(reason)] += 1
                elif os.path.isfile(entry) or not os.path.exists(entry):
                    names.append(name)  # a broken link counts as a broken image
                else:
                    skipped["pipes and devices"] += 1

    walk("")
    while links:
        walk(links.pop(0))
    return ImageFiles(root, _in_order(names), skipped)


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _zip_contents(path: Path, rows: list[tuple[zipfile.ZipInfo, int]]) -> Iterator[tuple[int, bytes | Broken]]:
    with zipfile.ZipFile(path) as archive:
        for info, row in sorted(rows, key=lambda item: item[0].header_offset):
            try:
                if info.file_size > MOST_BYTES:
                    raise _too_large()
                yield row, archive.read(info)  # reads at most the declared size, and checks the checksum
            except Broken as reason:
                yield row, reason
            except RuntimeError:
                yield row, Broken("is encrypted, or compressed in an unknown way")
            except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
                yield row, Broken(f"is damaged in the archive ({error})")


def _tar_contents(path: Path, rows: list[tuple[int, int]]) -> Iterator[tuple[int, bytes | Broken]]:
    """Read members in the archive's order: a compressed archive can only be read forwards."""
    wanted: dict[int, list[int]] = {}
    for offset, row in rows:  # several for a file with links to it
        wanted.setdefault(offset, []).append(row)
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            found = wanted.pop(member.offset_data, None) if member.isfile() else None
            if found is None:
                continue
            file = archive.extractfile(member) if member.size <= MOST_BYTES else None
            content = _too_large() if file is None else file.read()
            yield from ((row, content) for row in found)
            if not wanted:
                return
