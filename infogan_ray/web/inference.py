"""HTTP requests to a model, with types and limits, and their responses. The explorer and the service share them."""

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
from infogan_ray.data.conversion import Conversion
from infogan_ray.data.decoding import decode
from infogan_ray.data.image_files import Broken
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.traversal import COLUMNS, png
from infogan_ray.web.gateway import MAX_BODY

LATENTS_PER_SEED = 64
MAX_IMAGES = 256  # in one response
MAX_CODES = 256
MAX_BYTES = MAX_BODY  # of an uploaded image
MAX_PIXELS = 50_000_000  # of an uploaded image: a few kilobytes of PNG can decompress to gigabytes
MAX_SEED = 2**31 - 1

Format = Literal["png", "npy"]
Codes = Annotated[dict[str, FiniteFloat], Field(max_length=MAX_CODES)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Columns = Annotated[int, Field(ge=2, le=64)]
T = TypeVar("T", bound=BaseModel)


class Query(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Point(Query):
    """One latent: row ``index`` of a seed's latents, with fixed ``codes``. z does not depend on ``codes``."""

    codes: Codes = {}
    seed: Seed = 0
    index: Annotated[int, Field(ge=0, lt=LATENTS_PER_SEED)] = 0


class SampleQuery(Query):
    """As ``infogan sample``: n images with fixed ``codes``, for example {"cat0": 3}. Everything else is sampled."""

    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 64
    codes: Codes = {}
    seed: Seed = 0
    format: Format = "png"


class TraverseQuery(Point):
    """One code varies: a discrete code over all its values, a continuous one over ``columns`` values.

    Everything else stays as at the point.
    """

    code: Annotated[str, Field(max_length=100)]
    columns: Columns = COLUMNS
    format: Format = "png"


class WalkQuery(Query):
    """A straight line from one latent to another."""

    start: Point
    end: Point
    columns: Columns = COLUMNS
    format: Format = "png"


def read_query(kind: type[T], body: bytes | str | Mapping[str, Any]) -> T:
    """Parse JSON as a query. Raises UserError with one line: the field, its value, and the reason."""
    try:
        if isinstance(body, Mapping):
            return kind.model_validate(body)
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "json_invalid":
            raise UserError("the body is not JSON") from None
        if first["type"] == "extra_forbidden":
            raise UserError(f"{field} is not a field; valid are {', '.join(kind.model_fields)}") from None
        if first["type"] == "missing":
            raise UserError(f"{field} is missing") from None
        value = repr(first["input"])
        value = value if len(value) <= 60 else f"{value[:57]}..."
        raise UserError(f"{field or 'the body'} is {value}: {first['msg'].lower()}") from None


def latents_at(model: InfoGAN, point: Point) -> Tensor:
    """The latent (1, L) of a point."""
    return model.latents(LATENTS_PER_SEED, point.codes, point.seed)[point.index : point.index + 1]


def traversal_latents(model: InfoGAN, query: TraverseQuery) -> tuple[Tensor, list[float]]:
    """The latents (K, L) of a traversal, and the code's value in each. Raises UserError for an unknown code."""
    name = model.resolve(query.code)
    code = model.spec.latents[name]
    values = code.traversal(query.columns).values
    rows = latents_at(model, query).repeat(len(values), 1)
    rows[:, model.spec.latents.columns(name)] = torch.stack([code.embed(value, name) for value in values])
    return rows, values


def walk_latents(model: InfoGAN, query: WalkQuery) -> Tensor:
    """The latents (columns, L) of a walk. Between two categories, one-hot codes are mixtures, unlike in training."""
    share = torch.linspace(0, 1, query.columns).unsqueeze(1)
    return latents_at(model, query.start) * (1 - share) + latents_at(model, query.end) * share


def values_of(model: InfoGAN, latent: Tensor) -> dict[str, float]:
    """The value of every code in a latent (L,)."""
    latents = model.spec.latents
    return {name: float(code.value_of(latent[latents.columns(name)])) for name, code in latents.items()}


def read_image(model: InfoGAN, content: bytes) -> Tensor:
    """An uploaded image, uint8 (1, C, H, W), converted as the model's training images. Raises UserError for others."""
    if len(content) > MAX_BYTES:
        raise UserError(f"the image has {len(content):,} bytes; at most {MAX_BYTES:,} are allowed")
    try:
        how = Conversion.of(model.fit, model.pixel_range)
        array, _ = decode(content, model.spec.image_size, model.spec.channels, MAX_PIXELS, how=how)
    except Broken as reason:
        raise UserError(f"this is not an image that can be read: it {reason}") from None
    return torch.from_numpy(array).unsqueeze(0)


def encoded(model: InfoGAN, images: Tensor) -> list[dict[str, Any]]:
    """Q's predictions for uint8 images (N, C, H, W): one dictionary per image, by the columns of ``InfoGAN.encode``."""
    columns = {name: values.tolist() for name, values in model.encode(images).items()}
    return [{name: values[row] for name, values in columns.items()} for row in range(len(images))]


def mosaic(images: Tensor, columns: int) -> Image.Image:
    """uint8 images (N, C, H, W) without gaps in rows of ``columns``. Grey images give a grey PNG (7 times faster)."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    cells = torch.full((rows * columns, channels, height, width), 255, dtype=torch.uint8)
    cells[:n] = images
    grid = cells.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return Image.fromarray(grid.reshape(rows * height, columns * width, channels).squeeze(2).numpy())


def answer(images: Tensor, form: Format, columns: int) -> tuple[bytes, str]:
    """Content and media type for images (N, C, H, W): one PNG in rows of ``columns``, or an .npy array (N, H, W, C)."""
    if form == "png":
        return png(mosaic(images, columns)), "image/png"
    buffer = io.BytesIO()
    np.save(buffer, images.permute(0, 2, 3, 1).numpy(), allow_pickle=False)
    return buffer.getvalue(), "application/x-npy"
