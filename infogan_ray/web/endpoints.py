"""The endpoints of the web service for one model: POST /sample, /traverse and /encode, GET /health.

Requests that wait at the same time are computed in one batch. No Ray: ``Gateway(None, Endpoints(...).answer)`` is a
complete service in one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.json_text import to_json
from infogan_ray.web.gateway import HEALTH, Call, Reply, error_reply, unauthorized
from infogan_ray.web.inference import (
    MAX_IMAGES,
    Format,
    SampleQuery,
    TraverseQuery,
    answer,
    encoded,
    read_image,
    read_query,
    traversal_latents,
)

COLUMNS = 8  # of a picture of samples, as in infogan sample
R = TypeVar("R", bound=Sequence[Any])
logger = logging.getLogger(__name__)


class Batches(Generic[R]):
    """Calls ``compute`` for one batch at a time. Requests that arrive during a computation form the next batch.

    A single request does not wait. (Ray Serve's batching waits a fixed time, and moves a request that does not fit to
    the end of the queue.) ``compute`` returns one result per row. A batch has at most ``max_rows`` rows, or is one
    larger request.
    """

    def __init__(self, compute: Callable[[Tensor], R], max_rows: int, executor: Executor) -> None:
        self._compute, self._max_rows, self._executor = compute, max_rows, executor
        self._waiting: deque[tuple[Tensor, asyncio.Future[R]]] = deque()
        self._working: asyncio.Task[None] | None = None

    async def __call__(self, rows: Tensor) -> R:
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, future))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft()]
            size = len(batch[0][0])
            while self._waiting and size + len(self._waiting[0][0]) <= self._max_rows:
                batch.append(self._waiting.popleft())
                size += len(batch[-1][0])
            rows = torch.cat([rows for rows, _ in batch])
            try:
                results = await asyncio.get_running_loop().run_in_executor(self._executor, self._compute, rows)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            start = 0
            for rows, future in batch:
                if not future.done():  # the client may have disconnected
                    future.set_result(results[start : start + len(rows)])  # type: ignore[arg-type]
                start += len(rows)


class Endpoints:
    """The endpoints of one model. ``executor`` runs the model; with one thread, only one batch runs at a time."""

    def __init__(self, model: InfoGAN, token: str | None, executor: Executor) -> None:
        self.model, self.token = model, token
        self._description = describe(model)
        self._generate: Batches[Any] = Batches(model.generate, MAX_IMAGES, executor)
        self._encode = Batches(lambda images: encoded(model, images), MAX_IMAGES, executor)
        self._routes: dict[str, tuple[str, Callable[[Call], Awaitable[Reply]]]] = {
            HEALTH: ("GET", self.health),
            "/sample": ("POST", self.sample),
            "/traverse": ("POST", self.traverse),
            "/encode": ("POST", self.encode),
        }

    async def answer(self, call: Call) -> Reply:
        """The reply to a call. An invalid request gets 400 and a line. A bug of the service gets 500 and is logged."""
        if call.path not in self._routes:
            return error_reply(404, f"{call.path[:100]} does not exist; valid are {', '.join(self._routes)}")
        method, route = self._routes[call.path]
        if call.method != method:
            return error_reply(405, f"{call.path} takes {method}", ("Allow", method))
        if refused := unauthorized(call, self.token):
            return refused
        try:
            return await route(call)
        except UserError as error:
            return error_reply(400, str(error))
        except Exception:
            logger.exception("a request to %s failed", call.path)
            return error_reply(500, "the service failed for this request; see the service's log")

    async def health(self, call: Call) -> Reply:
        """The status, and for callers with the token also the model's description."""
        hide_model = self.token is not None and not call.authorization
        return _json({"status": "ok"} | ({} if hide_model else self._description))

    async def sample(self, call: Call) -> Reply:
        query = read_query(SampleQuery, call.body)
        images = await self._generate(self.model.latents(query.n, query.codes, query.seed))
        return await _picture(images, query.format, min(query.n, COLUMNS))

    async def traverse(self, call: Call) -> Reply:
        """The images of a traversal. The header X-Values has the values of the code, as a JSON list."""
        query = read_query(TraverseQuery, call.body)
        rows, values = traversal_latents(self.model, query)
        return await _picture(await self._generate(rows), query.format, len(rows), ("X-Values", json.dumps(values)))

    async def encode(self, call: Call) -> Reply:
        image = await asyncio.to_thread(read_image, self.model, call.body)  # decoding a large one takes a second
        return _json((await self._encode(image))[0])


async def _picture(images: Tensor, form: Format, columns: int, *headers: tuple[str, str]) -> Reply:
    return Reply(200, *await asyncio.to_thread(answer, images, form, columns), headers)


def _json(value: Any) -> Reply:
    return Reply(200, to_json(value).encode())


def describe(model: InfoGAN) -> dict[str, Any]:
    """The location of a model, the step of its checkpoint, its image size, and its codes with priors and names."""
    step: int | None = None
    if match := re.fullmatch(r"step_(\d+)", model.source.name):
        step = int(match[1])
    else:
        with contextlib.suppress(StorageError, OSError, ValueError, KeyError):
            step = json.loads(model.source.read("config.json"))["step"]
    return {
        "model": str(model.source),
        "step": step,
        "image": {"channels": model.spec.channels, "size": model.spec.image_size},
        "codes": {name: f"{code.kind}={code.text()}" for name, code in model.codes.items()},
        "names": model.names,
    }
