"""Files that a command writes on this machine: which endings are valid, and writing them whole or not at all."""

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
    """Raises UserError for another ending, and for a folder that does not exist."""
    path = Path(text).expanduser()
    if path.suffix.lower() not in valid:
        raise UserError(f"output is '{text}'; valid endings are {', '.join(valid)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"output is '{text}', and the folder {path.absolute().parent} does not exist")
    return path


def write_output(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write what ``fill`` writes, whole. If that fails, an existing file stays as it was. Raises StorageError."""
    content = io.BytesIO()
    fill(content)
    open_storage(str(path.absolute().parent)).with_retry_timeout(0).write(path.name, content.getvalue())


def write_picture(path: Path, picture: Image.Image) -> None:
    """In the format of the path's ending. Raises StorageError."""
    format_name = Image.registered_extensions()[path.suffix.lower()]
    write_output(path, lambda file: picture.save(file, format_name))
