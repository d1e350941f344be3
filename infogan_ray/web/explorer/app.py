"""The explorer as an ASGI application. All computations run here, and the browser shows the results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import torch
from pydantic import Field
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from torch import Tensor

from infogan_ray import UserError, __version__
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.storage.visible_text import printable
from infogan_ray.training.publish import name_codes
from infogan_ray.web.explorer.auth import AuthMiddleware
from infogan_ray.web.explorer.library import Library
from infogan_ray.web.explorer.model_catalog import ModelCatalog
from infogan_ray.web.explorer.responses import (
    REPORT_POLICY,
    JSONResponse,
    data_url,
    error_response,
    http_error,
    internal_error,
    png_response,
    respond,
    static_file,
)
from infogan_ray.web.inference import (
    LATENTS_PER_SEED,
    MAX_BYTES,
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

RECONSTRUCTIONS = 8  # images generated from the codes of one real image, each with its own noise
REAL_IMAGES = 32  # that the page offers together

Id = Annotated[str, Field(max_length=500)]


class ModelQuery(Query):
    """A model by its id. ``checkpoint``: the name of a checkpoint if the id is a run."""

    id: Id = ""
    checkpoint: Id = ""


class GridQuery(ModelQuery):
    codes: Codes = Field(default_factory=dict)
    seed: Seed = 0


class StripsQuery(ModelQuery):
    at: Point = Point()
    columns: Columns = 9


class ModelWalkQuery(ModelQuery):
    walk: WalkQuery


class PickQuery(ModelQuery):
    """A real image by its index."""

    index: Annotated[int, Field(ge=0)]
    seed: Seed = 0


class NamesQuery(Query):
    id: Id = ""
    names: Annotated[dict[str, str], Field(max_length=256)]


class Explorer:
    """The endpoints. They run in threads, so that they do not block the event loop."""

    def __init__(self, catalog: ModelCatalog) -> None:
        self.catalog, self.cards = catalog, Library(catalog)
        # Models run in one thread, because torch starts new helper threads for each thread that uses it.
        self._model_thread = ThreadPoolExecutor(1)

    def routes(self) -> list[Route]:
        post: dict[str, Callable[[Request, bytes], Response]] = {
            "/api/grid": self.grid, "/api/strips": self.strips, "/api/walk": self.walk, "/api/encode": self.encode,
            "/api/pick": self.pick, "/api/names": self.names,
        }  # fmt: skip
        get: dict[str, Callable[[Request], Response]] = {
            "/": lambda request: static_file("index.html"),
            "/static/{name}": lambda request: static_file(request.path_params["name"]),
            "/api/root": self.root, "/api/library": self.library, "/api/model": self.model,
            "/api/picture": self.picture, "/api/real": self.real, "/report": self.report,
        }  # fmt: skip
        return [
            *(Route(path, self._post_endpoint(handler), methods=["POST"]) for path, handler in post.items()),
            *(Route(path, self._get_endpoint(handler), methods=["GET"]) for path, handler in get.items()),
        ]

    @staticmethod
    def _get_endpoint(handler: Callable[[Request], Response]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(respond, handler, request)

        return endpoint

    def _post_endpoint(self, handler: Callable[[Request, bytes], Response]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            body = bytearray()
            async for part in request.stream():
                body += part
                if len(body) > MAX_BYTES:
                    return error_response(413, f"the body is too large; at most {MAX_BYTES:,} bytes are allowed")
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._model_thread, respond, handler, request, bytes(body))

        return endpoint

    # Models and their files -------------------------------------------------------------------------------------------

    def root(self, request: Request) -> Response:
        catalog = self.catalog
        title = printable(catalog.root.name or str(catalog.root))
        return JSONResponse({"kind": catalog.kind, "title": title, "version": __version__})

    def library(self, request: Request) -> Response:
        return JSONResponse(self.cards.rows(request.query_params.get("id", "")))

    def model(self, request: Request) -> Response:
        return JSONResponse(self.catalog.describe(request.query_params.get("id", "")))

    def picture(self, request: Request) -> Response:
        parameters = request.query_params
        step = int_parameter(parameters, "step") if "step" in parameters else None
        content = self.catalog.picture(parameters.get("id", ""), step, parameters.get("code"))
        return Response(content, media_type="image/png")

    def report(self, request: Request) -> Response:
        content = self.catalog.report(request.query_params.get("id", ""))
        return Response(content, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    # Generated images and codes ---------------------------------------------------------------------------------------

    def grid(self, request: Request, body: bytes) -> Response:
        """The images of ``infogan sample -n 64`` in one picture of 8 x 8."""
        query = read_query(GridQuery, body)
        model = self.catalog.open(query.id, query.checkpoint)
        latents = model.latents(LATENTS_PER_SEED, existing_codes(model, query.codes), query.seed)
        return png_response(model.generate(latents), columns=8)

    def strips(self, request: Request, body: bytes) -> Response:
        """For each code: images in which only this code varies, the code's values, and its value at the point."""
        query = read_query(StripsQuery, body)
        model = self.catalog.open(query.id, query.checkpoint)
        point = query.at.model_copy(update={"codes": existing_codes(model, query.at.codes)})
        base = latents_at(model, point)
        parts, values = [base], {}
        for name in model.codes:
            traversal = TraverseQuery(**dict(point), code=name, columns=query.columns)
            rows, values[name] = traversal_latents(model, traversal)
            parts.append(rows)
        images = model.generate(torch.cat(parts)).split([len(part) for part in parts])
        strips = [
            {"code": name, "values": values[name], "picture": data_url(strip)}
            for name, strip in zip(model.codes, images[1:], strict=True)
        ]
        return JSONResponse({"at": values_of(model, base[0]), "picture": data_url(images[0]), "strips": strips})

    def walk(self, request: Request, body: bytes) -> Response:
        query = read_query(ModelWalkQuery, body)
        model = self.catalog.open(query.id, query.checkpoint)
        return png_response(model.generate(walk_latents(model, query.walk)), columns=query.walk.columns)

    def encode(self, request: Request, body: bytes) -> Response:
        """Q's codes of an uploaded image, and images generated from them."""
        parameters = request.query_params
        query = read_query(ModelQuery, {"id": parameters.get("id", ""), "checkpoint": parameters.get("checkpoint", "")})
        model = self.catalog.open(query.id, query.checkpoint)
        return JSONResponse(read_and_reconstruct(model, read_image(model, body), int_parameter(parameters, "seed")))

    def pick(self, request: Request, body: bytes) -> Response:
        query = read_query(PickQuery, body)
        model = self.catalog.open(query.id, query.checkpoint)
        real = self.catalog.real_images(query.id, model)
        if query.index >= len(real.images):
            raise UserError(f"index is {query.index}; there are {len(real.images):,} images")
        result = read_and_reconstruct(model, real.images[query.index : query.index + 1], query.seed)
        return JSONResponse({**result, "label": None if real.labels is None else int(real.labels[query.index])})

    def real(self, request: Request) -> Response:
        """Some real images to choose from, in one row."""
        parameters = request.query_params
        query = read_query(ModelQuery, {"id": parameters.get("id", ""), "checkpoint": parameters.get("checkpoint", "")})
        model = self.catalog.open(query.id, query.checkpoint)
        real = self.catalog.real_images(query.id, model)
        chosen = real.sample(REAL_IMAGES, int_parameter(parameters, "seed"))
        labels = None if real.labels is None else real.labels[chosen].tolist()
        return JSONResponse({"indices": chosen, "labels": labels, "picture": data_url(real.images[chosen])})

    def names(self, request: Request, body: bytes) -> Response:
        """Set the names of codes and store them with the model."""
        query = read_query(NamesQuery, body)
        folder = self.catalog.folder(query.id)
        names = name_codes(folder, query.names)
        self.catalog.set_names(query.id, names)
        return JSONResponse({"names": names})


def make_app(catalog: ModelCatalog, token: str | None = None) -> Starlette:
    """The ASGI application. If there is a token, every request needs it."""
    return Starlette(
        routes=Explorer(catalog).routes(),
        middleware=[Middleware(AuthMiddleware, token=token)],
        exception_handlers={HTTPException: http_error, 500: internal_error},
    )


def int_parameter(parameters: Mapping[str, str], name: str) -> int:
    """An integer from a URL's query, 0 if it is missing. Raises UserError for other text."""
    word = parameters.get(name, "0")
    if not (word.isascii() and word.isdecimal() and len(word) < 10):
        raise UserError(f"{name} is '{word[:40]}'; it must be a whole number below 1,000,000,000")
    return int(word)


def existing_codes(model: InfoGAN, codes: dict[str, float]) -> dict[str, float]:
    """The codes that this model has. Two models in a comparison can have different codes."""
    return {name: value for name, value in codes.items() if name in model.codes}


def read_and_reconstruct(model: InfoGAN, image: Tensor, seed: int) -> dict[str, Any]:
    """Q's codes of one image (1, C, H, W), and images that G generates from these codes with other noise."""
    [reading] = encoded(model, image)
    codes = {name: float(reading[name]) for name in model.codes}
    rounded = {n: model.codes[n].nearest(v) for n, v in codes.items()}
    latents = model.latents(RECONSTRUCTIONS, rounded, seed)
    reconstructions = model.generate(latents)
    return {
        "reading": reading,
        "rows": {name: [row._asdict() for row in code.summary(name, reading)] for name, code in model.codes.items()},
        "codes": rounded,
        "picture": data_url(image),
        "reconstructions": data_url(reconstructions),
    }
