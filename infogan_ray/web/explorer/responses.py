"""Responses of the explorer: pictures, the page's files, and errors as one line of JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from importlib import resources
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.models.traversal import png, tile
from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.manifests import BadCheckpoint
from infogan_ray.web.explorer.model_catalog import NotFound

MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
# A report comes from storage and is not trusted. It may run its own script, but has no access to this page.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


def png_response(images: Tensor, columns: int) -> Response:
    return Response(png(tile(images, columns, gap=0)), media_type="image/png")


def data_url(images: Tensor) -> str:
    """A row of images as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png(tile(images, len(images), gap=0))).decode()}"


def static_file(name: str) -> Response:
    """A file of the page. Raises NotFound."""
    found = {entry.name: entry for entry in (resources.files("infogan_ray.web.explorer") / "static").iterdir()}
    if name not in found:
        raise NotFound(f"{name} is not a file of the page")
    return Response(found[name].read_bytes(), media_type=MEDIA_TYPES[name.rpartition(".")[2]])


class JSONResponse(Response):
    """JSON in ASCII, since names of files and classes may be no valid text."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


def error_response(status: int, line: str) -> Response:
    return JSONResponse({"error": line}, status)


def respond(handler: Callable[..., Response], *arguments: Any) -> Response:
    """The handler's response. User errors and storage errors become responses of one line."""
    try:
        return handler(*arguments)
    except NotFound as error:
        return error_response(404, str(error))
    except (BadCheckpoint, StorageError) as error:
        return error_response(502, str(error))
    except UserError as error:
        return error_response(400, str(error))


async def http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, f"{request.url.path}: {error.detail.lower()}")


async def internal_error(request: Request, error: Exception) -> Response:
    return error_response(500, "this is a bug of the explorer; its terminal shows the traceback")
