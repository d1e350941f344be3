"""The page and what it asks for. Everything is computed here; the browser only shows it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Annotated, Any

import torch
from pydantic import Field
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from infogan_ray import UserError, __version__
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.traversal import png, tile
from infogan_ray.storage.checkpoints import BadCheckpoint
from infogan_ray.storage.file_system import StorageError
from infogan_ray.training.publish import name_codes
from infogan_ray.web.explorer.auth import Guard
from infogan_ray.web.explorer.library import Library
from infogan_ray.web.explorer.model_catalog import NotThere, Shelf
from infogan_ray.web.inference import (
    DRAWN,
    MOST_BYTES,
    Codes,
    Columns,
    Point,
    Query,
    Seed,
    TraverseQuery,
    WalkQuery,
    encoded,
    latents_at,
    read_image,
    read_query,
    traversal_latents,
    values_of,
    walk_latents,
)

AGAIN = 8  # images that are made of what Q says of a real one, each with noise of its own
TO_PICK = 32
MEDIA = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
# A report is written by us but out of what lies on storage: it may run its own script, and is no part of this page.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)

Id = Annotated[str, Field(max_length=500)]


class Which(Query):
    """A model: its id, and the checkpoint's name if it is a run."""

    id: Id = ""
    checkpoint: Id = ""


class GridQuery(Which):
    codes: Codes = Field(default_factory=dict)
    seed: Seed = 0


class StripsQuery(Which):
    at: Point = Point()
    columns: Columns = 9


class WalkOfQuery(Which):
    walk: WalkQuery


class PickQuery(Which):
    """What is made of one of the real images."""

    index: Annotated[int, Field(ge=0)]
    seed: Seed = 0


class NamesQuery(Query):
    id: Id = ""
    names: Annotated[dict[str, str], Field(max_length=256)]


class Explorer:
    """The routes over a shelf of models. Work is done in threads, and stays off the loop that answers."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf, self.cards = shelf, Library(shelf)
        # Models compute in one thread: torch would start its helpers anew for every other.
        self._model_thread = ThreadPoolExecutor(1)

    def routes(self) -> list[Route]:
        asked: dict[str, Callable[[Request, bytes], Response]] = {
            "/api/grid": self.grid, "/api/strips": self.strips, "/api/walk": self.walk, "/api/encode": self.encode,
            "/api/pick": self.pick, "/api/names": self.names,
        }  # fmt: skip
        read: dict[str, Callable[[Request], Response]] = {
            "/": lambda request: static("index.html"),
            "/static/{name}": lambda request: static(request.path_params["name"]),
            "/api/root": self.root, "/api/library": self.library, "/api/model": self.model,
            "/api/picture": self.picture, "/api/real": self.real, "/report": self.report,
        }  # fmt: skip
        return [
            *(Route(path, self._answering_to(do), methods=["POST"]) for path, do in asked.items()),
            *(Route(path, self._answering(do), methods=["GET"]) for path, do in read.items()),
        ]

    @staticmethod
    def _answering(do: Callable[[Request], Response]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(safely, do, request)

        return endpoint

    def _answering_to(self, do: Callable[[Request, bytes], Response]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            body = bytearray()
            async for part in request.stream():
                body += part
                if len(body) > MOST_BYTES:
                    return refusal(413, f"this is too large; at most {MOST_BYTES:,} bytes are read")
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._model_thread, safely, do, request, bytes(body))

        return endpoint

    # What there is --------------------------------------------------------------------------------------------------

    def root(self, request: Request) -> Response:
        shelf = self.shelf
        return JSONResponse({"kind": shelf.kind, "title": shelf.root.name or str(shelf.root), "version": __version__})

    def library(self, request: Request) -> Response:
        return JSONResponse(self.cards.rows(request.query_params.get("id", "")))

    def model(self, request: Request) -> Response:
        return JSONResponse(self.shelf.about(request.query_params.get("id", "")))

    def picture(self, request: Request) -> Response:
        asked = request.query_params
        step = whole_number(asked, "step") if "step" in asked else None
        content = self.shelf.picture(asked.get("id", ""), step, asked.get("code"))
        return Response(content, media_type="image/png")

    def report(self, request: Request) -> Response:
        content = self.shelf.report(request.query_params.get("id", ""))
        return Response(content, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    # What a model does ----------------------------------------------------------------------------------------------

    def grid(self, request: Request, body: bytes) -> Response:
        """64 images, as ``infogan sample -n 64`` draws them, in one picture of 8 x 8."""
        query = read_query(GridQuery, body)
        model = self.shelf.open(query.id, query.checkpoint)
        return picture_of(model.generate(model.latents(DRAWN, known(model, query.codes), query.seed)), columns=8)

    def strips(self, request: Request, body: bytes) -> Response:
        """For each code: the images along it, their values, and the code's own value at the point."""
        query = read_query(StripsQuery, body)
        model = self.shelf.open(query.id, query.checkpoint)
        point = query.at.model_copy(update={"codes": known(model, query.at.codes)})
        here = latents_at(model, point)
        parts, values = [here], {}
        for name in model.codes:
            asked = TraverseQuery(**dict(point), code=name, columns=query.columns)
            rows, values[name] = traversal_latents(model, asked)
            parts.append(rows)
        images = model.generate(torch.cat(parts)).split([len(part) for part in parts])
        strips = [
            {"code": name, "values": values[name], "picture": in_line(strip)}
            for name, strip in zip(model.codes, images[1:], strict=True)
        ]
        return JSONResponse({"at": values_of(model, here[0]), "picture": in_line(images[0]), "strips": strips})

    def walk(self, request: Request, body: bytes) -> Response:
        query = read_query(WalkOfQuery, body)
        model = self.shelf.open(query.id, query.checkpoint)
        return picture_of(model.generate(walk_latents(model, query.walk)), columns=query.walk.columns)

    def encode(self, request: Request, body: bytes) -> Response:
        """What Q says of an uploaded image, and images made of that."""
        asked = request.query_params
        which = read_query(Which, {"id": asked.get("id", ""), "checkpoint": asked.get("checkpoint", "")})
        model = self.shelf.open(which.id, which.checkpoint)
        return JSONResponse(understood(model, read_image(model, body), whole_number(asked, "seed")))

    def pick(self, request: Request, body: bytes) -> Response:
        query = read_query(PickQuery, body)
        model = self.shelf.open(query.id, query.checkpoint)
        real = self.shelf.real_images(query.id, model)
        if query.index >= len(real.images):
            raise UserError(f"index is {query.index}; there are {len(real.images):,} images")
        said = understood(model, real.images[query.index : query.index + 1], query.seed)
        return JSONResponse({**said, "label": None if real.labels is None else int(real.labels[query.index])})

    def real(self, request: Request) -> Response:
        """Some real images to pick from, in one row."""
        asked = request.query_params
        which = read_query(Which, {"id": asked.get("id", ""), "checkpoint": asked.get("checkpoint", "")})
        model = self.shelf.open(which.id, which.checkpoint)
        real = self.shelf.real_images(which.id, model)
        chosen = real.choose(TO_PICK, whole_number(asked, "seed"))
        labels = None if real.labels is None else real.labels[chosen].tolist()
        return JSONResponse({"indices": chosen, "labels": labels, "picture": in_line(real.images[chosen])})

    def names(self, request: Request, body: bytes) -> Response:
        """Names for codes, kept with the model."""
        query = read_query(NamesQuery, body)
        folder = self.shelf.folder(query.id)
        names = name_codes(folder, query.names)
        self.shelf.renamed(query.id, names)
        return JSONResponse({"names": names})


def make_app(shelf: Shelf, token: str | None = None) -> Starlette:
    """The whole page as an ASGI application; with a token nobody uses it without."""
    return Starlette(
        routes=Explorer(shelf).routes(),
        middleware=[Middleware(Guard, token=token)],
        exception_handlers={HTTPException: _not_found, 500: _broken},
    )


def whole_number(asked: Mapping[str, str], name: str) -> int:
    """Of a query; 0 where it is left out. Raises UserError."""
    word = asked.get(name, "0")
    if not (word.isascii() and word.isdecimal() and len(word) < 10):
        raise UserError(f"{name} is '{word[:40]}'; it must be a whole number below 1,000,000,000")
    return int(word)


def known(model: InfoGAN, codes: dict[str, float]) -> dict[str, float]:
    """Those codes that the model has: another model beside the first may have others."""
    return {name: value for name, value in codes.items() if name in model.codes}


def understood(model: InfoGAN, image: Tensor, seed: int) -> dict[str, Any]:
    """What Q says of one image (1, C, H, W), and what G makes of it: the codes are Q's, the noise is new."""
    [reading] = encoded(model, image)
    codes = {name: float(reading[name]) for name in model.codes}
    rounded = {n: model.codes[n].nearest(v) for n, v in codes.items()}
    latents = model.latents(AGAIN, rounded, seed)
    again = model.generate(latents)
    rows = {name: [row._asdict() for row in code.summary(name, reading)] for name, code in model.codes.items()}
    return {"reading": reading, "rows": rows, "codes": rounded, "picture": in_line(image), "again": in_line(again)}


def picture_of(images: Tensor, columns: int) -> Response:
    return Response(png(tile(images, columns, gap=0)), media_type="image/png")


def in_line(images: Tensor) -> str:
    """A row of images as an address of its own."""
    return f"data:image/png;base64,{base64.b64encode(png(tile(images, len(images), gap=0))).decode()}"


def static(name: str) -> Response:
    """A file of the page. Raises NotThere."""
    found = {entry.name: entry for entry in (resources.files("infogan_ray.web.explorer") / "static").iterdir()}
    if name not in found:
        raise NotThere(f"{name} is not a part of the page")
    return Response(found[name].read_bytes(), media_type=MEDIA[name.rpartition(".")[2]])


def refusal(status: int, line: str) -> Response:
    return JSONResponse({"error": line}, status)


def safely(do: Callable[..., Response], *arguments: Any) -> Response:
    """The answer, or a refusal in one line for what the asker or storage has done wrong."""
    try:
        return do(*arguments)
    except NotThere as error:
        return refusal(404, str(error))
    except (BadCheckpoint, StorageError) as error:
        return refusal(502, str(error))
    except ValueError as error:
        return refusal(400, str(error))


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, f"{request.url.path}: {error.detail.lower()}")


async def _broken(request: Request, error: Exception) -> Response:
    return refusal(500, "this is a bug of the explorer; its terminal shows where")
