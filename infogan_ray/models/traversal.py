"""Traversals: grids of images in which one code varies and everything else is constant."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import Generator
from infogan_ray.models.priors.base import Prior
from infogan_ray.models.rng import seeded_generator
from infogan_ray.models.value_range import to_bytes

COLUMNS = 9  # 4 n + 1 columns include -1, 0 and 1 in units of the prior's scale
GAP = 2  # pixels between images
BACKGROUND, INK, FAINT, ACCENT = "#ffffff", "#222222", "#888888", "#1565c0"


@dataclass(frozen=True)
class Traversal:
    """A grid of images (R, K, C, H, W) uint8 with a label for each row and column.

    ``inside``: the first and last column inside the prior, for continuous codes. None for discrete codes.
    """

    title: str
    images: Tensor
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    inside: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return f"Traversal({self.title}, {len(self.rows)} rows of {len(self.columns)} images)"

    def _repr_png_(self) -> bytes:
        """The labelled picture, for notebooks."""
        return png(draw(self))


def reaches_outside(code: Prior) -> bool:
    """Whether the traversal of a code has columns outside the prior."""
    values, inside = code.traversal(COLUMNS)
    return inside is not None and inside != (0, len(values) - 1)


@torch.inference_mode()
def traverse(
    spec: LatentSpec, generator: Generator, name: str, seed: int = 0, columns: int = COLUMNS,
    names: Mapping[str, str] | None = None,
) -> Traversal:  # fmt: skip
    """The traversal grid of one code. Raises UserError, with the valid codes, for an unknown one.

    A discrete code has one row per value, and each column has other noise. A continuous code varies along the columns.
    Then each row is a category of the first categorical code. Without a categorical code, each of ten rows has other
    noise.

    ``names``: users' names of codes, by code. A name is shown only if the font has all its letters.
    """
    printable = {code_name: text for code_name, text in (names or {}).items() if can_be_printed(text)}
    code, titles = spec[name], {**{code_name: code_name for code_name in spec.names}, **printable}
    random = seeded_generator(seed, "traverse")
    first = next((code_name for code_name, _ in spec.one_hot_items()), None)
    values, inside = code.traversal(columns)
    settings = torch.stack([code.embed(value, name) for value in values])
    if inside is None:
        base = spec.sample(columns, random)
        grid = base.repeat(len(values), 1, 1)
        grid[..., spec.columns(name)] = settings.unsqueeze(1)
        rows, labels = tuple(f"{titles[name]}={value:g}" for value in values), tuple("" for _ in range(columns))
    else:
        count = spec[first].dim if first else 10
        # If rows are categories, all have the same noise, so that they differ only by category.
        base = spec.sample(1, random).repeat(count, 1) if first else spec.sample(count, random)
        if first:
            base[:, spec.columns(first)] = torch.eye(count)
        grid = base.unsqueeze(1).repeat(1, columns, 1)
        grid[..., spec.columns(name)] = settings
        rows = tuple(f"{titles[first]}={row}" if first else f"noise {row}" for row in range(count))
        labels = tuple(f"{value:.3g}" for value in values)
    device = next(generator.parameters()).device
    images = to_bytes(generator(grid.flatten(0, 1).to(device))).cpu()
    title = f"{titles[name]} ({name})" if titles[name] != name else name
    return Traversal(title, images.unflatten(0, grid.shape[:2]), rows, labels, inside)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=14)


def can_be_printed(text: str) -> bool:
    """Whether the font has all letters of the text. Pillow's default font has few letters beyond English ones."""
    font = _font()
    box = bytes(font.getmask("\U0010ffff"))  # the font's symbol for every missing letter
    return all(bytes(font.getmask(letter)) != box for letter in text)


def tile(images: Tensor, columns: int, scale: int = 1, gap: int = GAP) -> Image.Image:
    """A picture of uint8 images (N, C, H, W) in rows of ``columns``, without labels, ``gap`` pixels apart."""
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    return _paste([list(row) for row in rows], scale, left=0, top=0, gap=gap)


def draw(traversal: Traversal) -> Image.Image:
    """The labelled picture of a traversal. A line above the columns marks the part inside the prior."""
    size = traversal.images.shape[-1]
    scale = max(1, round(56 / size))
    cell = size * scale + GAP
    font = _font()
    left = 12 + max(int(font.getlength(row)) for row in traversal.rows)
    top = 50 if traversal.inside else 28
    picture = _paste([list(row) for row in traversal.images], scale, left, top)
    pen = ImageDraw.Draw(picture)
    pen.text((6, 4), traversal.title + (": along each row" if traversal.inside else ": one value per row"), INK, font)
    for row, label in enumerate(traversal.rows):
        pen.text((6, top + row * cell + cell // 2 - 9), label, INK, font)
    if traversal.inside:
        first, last = traversal.inside
        for column, label in enumerate(traversal.columns):
            colour = ACCENT if first <= column <= last else FAINT
            middle = left + column * cell + (cell - font.getlength(label)) / 2
            pen.text((middle, 26), label, colour, font)
        pen.line((left + first * cell, 46, left + (last + 1) * cell - 3, 46), ACCENT, 3)
        note = "blue: inside the prior"
        pen.text((picture.width - font.getlength(note) - 6, 4), note, ACCENT, font)
    return picture


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _paste(rows: Sequence[Sequence[Tensor]], scale: int, left: int, top: int, gap: int = GAP) -> Image.Image:
    channels, size = rows[0][0].shape[0], rows[0][0].shape[-1]
    cell = size * scale + gap
    picture = Image.new("RGB", (left + cell * len(rows[0]), top + cell * len(rows)), BACKGROUND)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            array = image[0].numpy() if channels == 1 else image.permute(1, 2, 0).numpy()
            small = Image.fromarray(np.ascontiguousarray(array))
            picture.paste(
                small.resize((size * scale, size * scale), Image.Resampling.NEAREST), (left + c * cell, top + r * cell)
            )
    return picture
