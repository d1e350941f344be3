"""Requests to a model over a network, typed and bounded, and their answers. The explorer and the service share them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.decoding import decode
from infogan_ray.data.image_files import Broken
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.latents import Bernoulli, Categorical
from infogan_ray.models.traversal import COLUMNS, code_columns, png, walk
from infogan_ray.web.gateway import MOST_BODY

DRAWN = 64
"""Latents that one seed generates; a point is one of them."""
MOST_IMAGES = 256  # in one answer
MOST_CODES = 256
MOST_BYTES = MOST_BODY  # of an uploaded image
MOST_PIXELS = 50_000_000  # of an uploaded image: a few kilobytes of PNG can unpack to gigabytes
LARGEST_SEED = 2**31 - 1

Format = Literal["png", "npy"]
Codes = Annotated[dict[str, FiniteFloat], Field(max_length=MOST_CODES)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Columns = Annotated[int, Field(ge=2, le=64)]
T = TypeVar("T", bound=BaseModel)


class Query(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Point(Query):
    """One latent: row ``index`` of a seed's DRAWN latents, with ``codes`` fixed. z does not depend on ``codes``."""

    codes: Codes = {}
    seed: Seed = 0
    index: Annotated[int, Field(ge=0, lt=DRAWN)] = 0


class SampleQuery(Query):
    """As ``infogan sample``: n images with ``codes`` fixed, e.g. {"cat0": 3}, and all else sampled."""

    n: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = 64
    codes: Codes = {}
    seed: Seed = 0
    format: Format = "png"


class TraverseQuery(Point):
    """One code takes each of its values, a continuous one ``columns`` of them. All else stays as at the point."""

    code: Annotated[str, Field(max_length=100)]
    columns: Columns = COLUMNS
    format: Format = "png"


class WalkQuery(Query):
    """From one latent to another in a straight line."""

    start: Point
    end: Point
    columns: Columns = COLUMNS
    format: Format = "png"


def read_query(kind: type[T], body: bytes | str | Mapping[str, Any]) -> T:
    """JSON to a query. Raises UserError, in one line: the field, its value, what is valid."""
    try:
        if isinstance(body, Mapping):
            return kind.model_validate(body)
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "json_invalid":
            raise UserError("the body is not JSON") from None
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where} is not a field; valid are {', '.join(kind.model_fields)}") from None
        if first["type"] == "missing":
            raise UserError(f"{where} is missing") from None
        value = repr(first["input"])
        value = value if len(value) <= 60 else f"{value[:57]}..."
        raise UserError(f"{where or 'the body'} is {value}: {first['msg'].lower()}") from None


def latents_at(model: InfoGAN, point: Point) -> Tensor:
    """(1, L)."""
    return model.latents(DRAWN, point.codes, point.seed)[point.index : point.index + 1]


def traversal_latents(model: InfoGAN, query: TraverseQuery) -> tuple[Tensor, list[float]]:
    """(K, L), and the value of the code in each. Raises UserError for a code that does not exist."""
    name = model.resolve(query.code)
    code = model.spec.latents[name]
    if isinstance(code, (Categorical, Bernoulli)):
        values = [float(value) for value in range(code.k if isinstance(code, Categorical) else 2)]
    else:
        values = [float(value) for value in walk(code, query.columns)[0]]
    rows = latents_at(model, query).repeat(len(values), 1)
    columns = code_columns(model.spec.latents, rows, name)
    columns.copy_(torch.eye(len(values)) if isinstance(code, Categorical) else torch.tensor(values).unsqueeze(1))
    return rows, values


def walk_latents(model: InfoGAN, query: WalkQuery) -> Tensor:
    """(columns, L). Between two categories, one-hot codes are mixtures, which training never saw."""
    share = torch.linspace(0, 1, query.columns).unsqueeze(1)
    return latents_at(model, query.start) * (1 - share) + latents_at(model, query.end) * share


def values_of(model: InfoGAN, latent: Tensor) -> dict[str, float]:
    """The value of every code in a latent (L,)."""
    found: dict[str, float] = {}
    for name, code in model.codes.items():
        part = code_columns(model.spec.latents, latent, name)
        found[name] = float(part.argmax() if isinstance(code, Categorical) else part[0])
    return found


def read_image(model: InfoGAN, content: bytes) -> Tensor:
    """An uploaded picture as the model reads it, (1, C, H, W) uint8. Raises UserError if it is not an image."""
    if len(content) > MOST_BYTES:
        raise UserError(f"the image has {len(content):,} bytes; at most {MOST_BYTES:,} are read")
    try:
        array, _ = decode(content, model.spec.image_size, model.spec.channels, MOST_PIXELS)
    except Broken as reason:
        raise UserError(f"this is not an image that can be read: it {reason}") from None
    return torch.from_numpy(array).unsqueeze(0)


def encoded(model: InfoGAN, images: Tensor) -> list[dict[str, Any]]:
    """What Q says of images (N, C, H, W) uint8, a dictionary for each, as ``InfoGAN.encode`` names it."""
    columns = {name: values.tolist() for name, values in model.encode(images).items()}
    return [{name: values[row] for name, values in columns.items()} for row in range(len(images))]


def mosaic(images: Tensor, columns: int) -> Image.Image:
    """uint8 (N, C, H, W), edge to edge in rows of ``columns``. Grey images give a grey PNG: seven times as fast."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    cells = torch.full((rows * columns, channels, height, width), 255, dtype=torch.uint8)
    cells[:n] = images
    grid = cells.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return Image.fromarray(grid.reshape(rows * height, columns * width, channels).squeeze(2).numpy())


def answer(images: Tensor, form: Format, columns: int) -> tuple[bytes, str]:
    """Bytes and media type of images (N, C, H, W): one PNG in rows of ``columns``, or an .npy array (N, H, W, C)."""
    if form == "png":
        return png(mosaic(images, columns)), "image/png"
    buffer = io.BytesIO()
    np.save(buffer, images.permute(0, 2, 3, 1).numpy(), allow_pickle=False)
    return buffer.getvalue(), "application/x-npy"
