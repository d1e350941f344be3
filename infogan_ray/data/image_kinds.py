"""Which files are images: by the ending of their names, and without an ending by their first bytes.

Folders, archives and single files have the same rule.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from PIL import Image, features  # comes with torchvision

# Pillow decodes these formats by itself. For PostScript, for example, it would start an external program.
# Each begins with bytes of its own; TGA does not, so that Pillow would read other files as TGA.
FORMATS = tuple(
    name
    for name, feature in {
        "PNG": None, "JPEG": None, "WEBP": "webp", "TIFF": None, "GIF": None, "BMP": None, "PPM": None,
        "JPEG2000": "jpg_2000", "AVIF": "avif", "QOI": None,
    }.items()
    if feature is None or features.check(feature)
)  # fmt: skip
"""Pillow's names of the formats that are read. Some builds of Pillow lack WebP, JPEG 2000 or AVIF."""
ENDINGS = tuple(
    ending for ending, form in Image.registered_extensions().items() if form in FORMATS or form == "MPO"
)  # an .mpo file is a JPEG with further images
OTHER_PICTURES = (
    ".heic", ".heif", ".hif", ".jxl", ".avif", ".webp", ".jp2", ".svg", ".eps", ".psd", ".tga", ".ico", ".pcx", ".exr",
    ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".dcm",
)  # fmt: skip
"""Endings of pictures that are not read, unless ``ENDINGS`` has them."""
LABEL_LISTS = tuple(
    f"{name}{ending}" for name in ("labels", "metadata", "dataset") for ending in (".csv", ".tsv", ".json", ".jsonl")
)
"""Usual names of files that list the labels of images."""
SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # hidden files and __MACOSX are skipped as well
FIRST_BYTES = 64
"""So many bytes of a file are enough for ``begins_like_an_image``."""

_STARTS = (
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"qoif",
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51",
)  # fmt: skip


def reason_to_skip(name: str, has_image_bytes: Callable[[], bool]) -> str | None:
    """Why a file with this name, without folders, is not read. None if it is an image.

    ``has_image_bytes`` looks at its content. It is called only if the name has no ending, or a number as ending.
    """
    if reason := junk(name):
        return reason
    ending = os.path.splitext(name)[1].lower()
    if ending in ENDINGS or (not _is_type(ending) and has_image_bytes()):
        return None
    if name.lower() in LABEL_LISTS:
        return f"{name} (--labels FILE reads a list of labels)"
    if ending in OTHER_PICTURES:
        return f"{ending} files (convert these pictures to PNG or JPEG)"
    return f"{ending} files" if ending else "files without an ending"


def junk(name: str) -> str | None:
    """Why a file or folder with this name is skipped, whatever it holds. None if it is not."""
    if name.startswith(".") or name == "__MACOSX":
        return "hidden"
    return "left by the system" if name.lower() in SYSTEM_FILES else None


def begins_like_an_image(first: bytes) -> bool:
    """Whether a file's first 64 bytes are those of a format that can be read."""
    if first.startswith(b"RIFF"):
        return first[8:12] == b"WEBP"
    if first.startswith(b"BM"):  # text can begin with these letters: the size of the second header must fit as well
        return first[14:18] in [size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124)]
    if first[:1] == b"P":
        return first[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6", b"F", b"f") and first[2:3] in (b"\n", b"\r", b" ")
    if first[4:8] == b"ftyp":
        return b"avif" in first[8:] or b"avis" in first[8:]
    return first.startswith(_STARTS)


def _is_type(ending: str) -> bool:
    """Whether an ending names a type. 'photo.jpg.1' and 'scan.2024' have none."""
    return bool(ending) and not ending[1:].isdigit()
