"""Refuses pickled files: unpickling a file runs code that its author put into it."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from infogan_ray import UserError
from infogan_ray.data.image_files import Say

ENDINGS = (".pth", ".pt", ".pkl", ".pickle")


def matches(path: Path) -> bool:
    """Whether a file has the name of a pickled file."""
    return path.is_file() and path.name.lower().endswith(ENDINGS)


def open_images(path: Path, labels: str | None, say: Say) -> NoReturn:
    """Always raises UserError."""
    raise UserError(
        f"data: {path} is pickled, which is never read; save its images as uint8 (N, H, W[, C]) by "
        "np.savez('images.npz', images=...)"
    )
