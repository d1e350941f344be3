"""The web service on Ray Serve: replicas of one model. cluster/kuberay/rayservice.yaml imports ``app``.

The environment of its nodes must contain $INFOGAN_MODEL, $INFOGAN_TOKEN and the variables of
``distributed.serve.proxy``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from infogan_ray import UserError
from infogan_ray.distributed.cluster.connection import connect
from infogan_ray.distributed.serve.proxy import (
    APPLICATION,
    CALLBACK,
    CALLBACK_VARIABLE,
    DEPLOYMENT,
    HEALTH_PERIOD_S,
    HEALTH_PERIOD_VARIABLE,
)
from infogan_ray.training.load_model import load
from infogan_ray.training.run_outcome import last_line
from infogan_ray.web.endpoints import Endpoints
from infogan_ray.web.gateway import MIN_TOKEN_LENGTH, RETRY_AFTER_S, TOKEN, Call, Reply, busy_reply, service_token

MODEL = "INFOGAN_MODEL"


class ServiceFailed(Exception):
    """The service did not start. The message is the reason in one line."""


@serve.deployment(
    name=DEPLOYMENT,
    max_ongoing_requests=64,  # per replica; more requests wait in the proxies
    max_queued_requests=256,  # per proxy; more requests are refused
    backpressure_config={"retry_after_s": RETRY_AFTER_S},
    health_check_period_s=5,
    graceful_shutdown_timeout_s=10,
    logging_config={"enable_access_log": False},  # its lines would contain the method "answer" and not the path
    ray_actor_options={"num_cpus": 1},
)
class Model:
    """A replica. Raises UserError for a missing or invalid model or token; Serve shows this line for the deployment."""

    def __init__(self, open_to_all: bool = False) -> None:
        source, token = os.environ.get(MODEL), service_token()
        if not source:
            raise UserError(f"{MODEL} is not set; set it to a model folder, a run or a checkpoint")
        if token or not open_to_all:
            check_token(token)
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        torch.set_num_threads(max(1, int(cpus)))
        self._endpoints = Endpoints(load(source), token, ThreadPoolExecutor(1))

    async def answer(self, call: Call) -> Reply:
        """Called by the gateway."""
        return await self._endpoints.answer(call)

    async def __call__(self, request: Request) -> Response:
        """Refuse requests that bypass the gateway, which limits their size and repeats them if a replica dies."""
        reply = busy_reply(f"set {CALLBACK_VARIABLE}={CALLBACK} in the environment of Ray's nodes and restart them")
        return Response(reply.body, reply.status, dict(reply.headers), reply.kind)


app = Model.bind()  # type: ignore[attr-defined]


def check_token(token: str | None) -> None:
    """Raises UserError for a token that is missing or too short."""
    if not token or len(token) < MIN_TOKEN_LENGTH:
        raise UserError(
            f"{TOKEN} is {'too short' if token else 'not set'}: anyone who reaches the service could use it; set "
            f"{MIN_TOKEN_LENGTH} characters or more, for example {TOKEN}=$(openssl rand -hex 32)"
        )


@contextlib.contextmanager
def serving(model: str, host: str, port: int, replicas: int, open_to_all: bool) -> Iterator[None]:
    """Run the service on a local Ray cluster during the block. Raises ServiceFailed and UserError."""
    os.environ |= {MODEL: model, CALLBACK_VARIABLE: CALLBACK, HEALTH_PERIOD_VARIABLE: HEALTH_PERIOD_S}
    connect(None)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
        deployment: Any = Model
        serve.run(deployment.options(num_replicas=replicas).bind(open_to_all), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        reason = _failure_reason() or last_line(error)
        _shut_down()
        raise ServiceFailed(reason) from None
    try:
        yield
    finally:
        _shut_down()


def _shut_down() -> None:
    serve.shutdown()
    ray.shutdown()


def _failure_reason() -> str | None:
    """The last line of the trace that Serve stores if no replica starts."""
    application = serve.status().applications.get(APPLICATION)
    if application is None or DEPLOYMENT not in application.deployments:
        return None
    lines = application.deployments[DEPLOYMENT].message.strip().splitlines()
    return re.sub(r"^[\w.]+: ", "", lines[-1]) if lines else None
