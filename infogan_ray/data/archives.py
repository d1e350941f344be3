"""Lists the images in a .zip or .tar, with the place of each image's bytes. Nothing is unpacked.

A link in an archive stands for the file that it leads to in the same archive. It never leads out of the archive.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from infogan_ray import UserError
from infogan_ray.data.image_kinds import FIRST_BYTES, begins_like_an_image, junk, reason_to_skip

MOST_LINK_BYTES = 4096  # of a link's target in a .zip: a longer one is no path
T = TypeVar("T")


def zip_members(path: Path) -> tuple[dict[str, zipfile.ZipInfo], Counter[str]]:
    """List the images of a .zip. If a name occurs twice, the later member is used, as in unpacking."""
    members: dict[str, zipfile.ZipInfo] = {}
    files: dict[str, zipfile.ZipInfo] = {}
    links: dict[str, str] = {}
    skipped: Counter[str] = Counter()
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                place = inside(info.filename)
                if info.is_dir() or not place:
                    continue
                if stat.S_ISLNK(info.external_attr >> 16):
                    links[place] = _symlink_target(place, os.fsdecode(_first_of_zip(archive, info, MOST_LINK_BYTES)))
                    continue
                files[place] = info
                if _is_image(place, skipped, partial(_is_image_in_zip, archive, info)):
                    members[place] = info
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise UserError(f"data: {path} is not a whole .zip file ({error})") from None
    _add_links(members, links, files, skipped)
    return members, skipped


def tar_members(path: Path) -> tuple[dict[str, int], Counter[str]]:
    """List the images of a .tar, each with the offset of its bytes in the unpacked archive."""
    members: dict[str, int] = {}
    files: dict[str, int] = {}
    links: dict[str, str] = {}
    skipped: Counter[str] = Counter()
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                place = inside(member.name)
                if member.issym() or member.islnk():
                    links[place] = link_target(member)
                elif member.isfile() and place:
                    files[place] = member.offset_data
                    if _is_image(place, skipped, partial(_is_image_in_tar, archive, member)):
                        members[place] = member.offset_data
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"data: {path} is not a whole .tar file ({reason_of(error) or 'it is cut off'})") from None
    _add_links(members, links, files, skipped)
    return members, skipped


def reason_of(error: Exception) -> str:
    """The first line of an error's message, without Python's objects."""
    first = next(iter(str(error).splitlines()), "")
    return re.sub(r":? *<[^>]* object[^>]*>", "", first).rstrip(": ")


def inside(name: str) -> str:
    """A member's path in its archive, without '.', '..' and root."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def link_target(member: tarfile.TarInfo) -> str:
    """The path in the archive that a link leads to. Empty for a link out of it."""
    if member.islnk():
        return inside(member.linkname)
    return _symlink_target(member.name, member.linkname)


def followed(links: Mapping[str, str], files: Mapping[str, T]) -> Iterator[tuple[str, T | None]]:
    """Yield each link with the file of the archive that it leads to, perhaps over other links. None without one."""
    for link, target in links.items():
        seen = {link}
        while target in links and target not in files and target not in seen:
            seen.add(target)
            target = links[target]
        if link not in files:
            yield link, files.get(target)


def _symlink_target(name: str, target: str) -> str:
    place = posixpath.normpath(posixpath.join(posixpath.dirname(inside(name)), target))
    return "" if place.startswith(("/", "../")) or place == ".." else place


def _is_image(place: str, skipped: Counter[str], has_image_bytes: Callable[[], bool]) -> bool:
    """Whether the member at a place in an archive is an image. ``skipped`` counts the reason if it is not."""
    *folders, last = place.split("/")
    reason = next(filter(None, map(junk, folders)), None) or reason_to_skip(last, has_image_bytes)
    if reason:
        skipped[reason] += 1
    return reason is None


def _add_links(members: dict[str, T], links: Mapping[str, str], files: Mapping[str, T], skipped: Counter[str]) -> None:
    """Add the links that are images."""
    images = set(members.values()) if links else set()
    for link, file in followed(links, files):
        if file is None:
            skipped["links to no file of the archive"] += 1
        elif _is_image(link, skipped, partial(images.__contains__, file)):
            members[link] = file


def _is_image_in_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool:
    return begins_like_an_image(_first_of_zip(archive, info, FIRST_BYTES))


def _first_of_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo, count: int) -> bytes:
    """The first bytes of a member. Empty if it is encrypted or damaged."""
    try:
        with archive.open(info) as file:
            return file.read(count)
    except (RuntimeError, zipfile.BadZipFile, zlib.error, EOFError):
        return b""


def _is_image_in_tar(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    file = archive.extractfile(member)
    return file is not None and begins_like_an_image(file.read(FIRST_BYTES))
