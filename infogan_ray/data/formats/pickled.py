"""Pickled files, which are refused: to unpickle a file is to run whatever program its author put into it."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from infogan_ray import UserError
from infogan_ray.data.image_files import Say

ENDINGS = (".pth", ".pt", ".pkl", ".pickle")


def matches(path: Path) -> bool:
    """Whether a file's name says that it is pickled."""
    return path.is_file() and path.name.lower().endswith(ENDINGS)


def open_images(path: Path, labels: str | None, say: Say) -> NoReturn:
    """Raises UserError, always."""
    raise UserError(
        f"data: {path} is pickled, which is never read; save its images as uint8 (N, H, W[, C]) by "
        "np.savez('images.npz', images=...)"
    )
