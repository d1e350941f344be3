"""Checks and writes a command's output files on this machine."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from infogan_ray import UserError
from infogan_ray.storage.file_system import open_storage

PICTURES = (".png", ".jpg", ".webp")


def output_path(text: str, valid: tuple[str, ...]) -> Path:
    """Check an output path. Raises UserError for an invalid ending or a missing folder."""
    path = Path(text).expanduser()
    if path.suffix.lower() not in valid:
        raise UserError(f"output is '{text}'; valid endings are {', '.join(valid)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"output is '{text}', but the folder {path.absolute().parent} does not exist")
    return path


def write_output(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write the output of ``fill`` to a file. After an error an existing file is unchanged. Raises StorageError."""
    content = io.BytesIO()
    fill(content)
    open_storage(str(path.absolute().parent)).with_retry_timeout(0).write(path.name, content.getvalue())


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture in the format of the path's ending. Raises StorageError."""
    format_name = Image.registered_extensions()[path.suffix.lower()]
    write_output(path, lambda file: picture.save(file, format_name))
