"""Latent grids, shared by reports, evaluation and the explorer: what one code does while all else stands still."""

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

COLUMNS = 9  # an odd count that is 1 modulo 4 puts columns at -1, 0 and 1 of the prior
GAP = 2  # pixels between images
BACKGROUND, INK, FAINT, ACCENT = "#ffffff", "#222222", "#888888", "#1565c0"


@dataclass(frozen=True)
class Traversal:
    """A grid of images (R, K, C, H, W) uint8 with a name for each row and column.

    ``inside`` is the range of columns that lies in the prior, for continuous codes; None for others.
    """

    title: str
    images: Tensor
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    inside: tuple[int, int] | None = None


def reaches_outside(code: Prior) -> bool:
    """Whether the picture of a code has columns past the prior."""
    values, inside = code.traversal(COLUMNS)
    return inside is not None and inside != (0, len(values) - 1)


@torch.inference_mode()
def traverse(
    spec: LatentSpec, generator: Generator, name: str, seed: int = 0, columns: int = COLUMNS,
    names: Mapping[str, str] | None = None,
) -> Traversal:  # fmt: skip
    """The grid of one code. Raises UserError, naming the codes, if it does not exist.

    ``names``: what people call codes, by code; the picture has those that its font has letters for.

    A discrete code has one row per value and other noise in each column. A continuous code moves along the columns,
    with one row per category of the first categorical code (or ten rows of other noise where there is none).
    """
    drawable = {own: called for own, called in (names or {}).items() if can_be_drawn(called)}
    code, called = spec[name], {**{own: own for own in spec.names}, **drawable}
    draw = seeded_generator(seed, "traverse")
    first = next((own for own, _ in spec.one_hot_items()), None)
    values, inside = code.traversal(columns)
    settings = torch.stack([code.embed(value, name) for value in values])
    if inside is None:
        base = spec.sample(columns, draw)
        grid = base.repeat(len(values), 1, 1)
        grid[..., spec.columns(name)] = settings.unsqueeze(1)
        rows, labels = tuple(f"{called[name]}={value:g}" for value in values), tuple("" for _ in range(columns))
    else:
        count = spec[first].dim if first else 10
        # The same noise in every row where rows are categories, so that rows differ by category alone.
        base = spec.sample(1, draw).repeat(count, 1) if first else spec.sample(count, draw)
        if first:
            base[:, spec.columns(first)] = torch.eye(count)
        grid = base.unsqueeze(1).repeat(1, columns, 1)
        grid[..., spec.columns(name)] = settings
        rows = tuple(f"{called[first]}={row}" if first else f"noise {row}" for row in range(count))
        labels = tuple(f"{value:.3g}" for value in values)
    device = next(generator.parameters()).device
    images = to_bytes(generator(grid.flatten(0, 1).to(device))).cpu()
    title = f"{called[name]} ({name})" if called[name] != name else name
    return Traversal(title, images.unflatten(0, grid.shape[:2]), rows, labels, inside)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=14)


def can_be_drawn(text: str) -> bool:
    """Whether the font, which comes with Pillow and knows few letters beyond English ones, has all that it takes."""
    font = _font()
    box = bytes(font.getmask("\U0010ffff"))  # which stands for every letter that it lacks
    return all(bytes(font.getmask(letter)) != box for letter in text)


def tile(images: Tensor, columns: int, scale: int = 1, gap: int = GAP) -> Image.Image:
    """uint8 (N, C, H, W) in rows of ``columns``, without labels, ``gap`` pixels apart."""
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    return _paste([list(row) for row in rows], scale, left=0, top=0, gap=gap)


def draw(traversal: Traversal) -> Image.Image:
    """The labelled picture of a traversal; the part inside the prior is marked above the columns."""
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
