"""What stands before the service in Ray Serve's HTTP proxy: token, bound on bodies, and another try.

Serve sends a request again only until a replica has taken it. One that dies later takes its requests along, and their
clients would get a bare 500. The proxy outlives replicas, and an answer depends on its request alone; so the front
keeps each request until it is answered, and asks another replica if need be. No torch: every proxy loads this.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from secrets import compare_digest
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

# The names by which Serve knows us.
CALLBACK, HERE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "infogan_ray.distributed.serve.proxy.middlewares"
HEALTH_PERIOD = "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"
HEALTH_PERIOD_S = "1"  # three in a row, and a dead proxy is replaced; by default that takes half a minute
APPLICATION, DEPLOYMENT = "infogan", "Model"
TOKEN = "INFOGAN_TOKEN"
LEAST_TOKEN = 16
HEALTH = "/health"
MOST_BODY = 8 * 1024**2
MOST_DISCARDED = 4 * MOST_BODY
ATTEMPTS = 3  # a request that itself kills replicas must not kill them all
PAUSE_S = 0.1
DEADLINE_S = 60.0
RETRY_AFTER_S = 1


class Call(NamedTuple):
    """A request that has been read."""

    method: str
    path: str
    authorization: str = ""
    body: bytes = b""


class Reply(NamedTuple):
    status: int
    body: bytes
    kind: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Died(Exception):
    """The replica that had the request is no more."""


class Busy(Exception):
    """No replica takes the request."""


Ask = Callable[[Call], Awaitable[Reply]]


def token_set() -> str | None:
    """The token of the environment. A Secret made of a file often ends in a new line."""
    return os.environ.get(TOKEN, "").strip() or None


def refusal(status: int, line: str, *headers: tuple[str, str]) -> Reply:
    return Reply(status, json.dumps({"error": line}).encode(), headers=headers)


def busy(line: str) -> Reply:
    return refusal(503, line, ("Retry-After", str(RETRY_AFTER_S)))


def unauthorized(call: Call, token: str | None) -> Reply | None:
    """The 401 for a call without the service's token. That a service lives, everybody may ask."""
    if token is None or (call.path == HEALTH and not call.authorization):
        return None
    kind, _, given = call.authorization.partition(" ")
    if kind.lower() == "bearer" and compare_digest(given.strip().encode(), token.encode()):
        return None
    what = "the token is not this service's" if given else "a token is wanted"
    return refusal(401, f"{what}; send the header 'Authorization: Bearer TOKEN'", ("WWW-Authenticate", "Bearer"))


class Front:
    """ASGI. ``ask`` answers a call, or raises Died or Busy; ``app`` gets the proxy's own paths (/-/healthz)."""

    def __init__(self, app: ASGIApp | None, ask: Ask, token: str | None = None, deadline_s: float = DEADLINE_S) -> None:
        self.app, self.ask, self.token, self.deadline_s = app, ask, token, deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await send({"type": "websocket.close"})
        if self.app is not None and scope["path"].startswith("/-/"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        call = Call(scope["method"], scope["path"], headers.get("authorization", ""))
        reply = unauthorized(call, self.token)
        if reply is None:
            body = await read_body(headers, receive)
            if body is None:
                reply = refusal(
                    413, f"the body is too large; at most {MOST_BODY:,} bytes are read", ("Connection", "close")
                )
            else:
                reply = await self.answer(call._replace(body=body))
        pairs = [("content-type", reply.kind), ("content-length", str(len(reply.body))), *reply.headers]
        raw = [(name.lower().encode(), value.encode()) for name, value in pairs]
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        await send({"type": "http.response.body", "body": reply.body})

    async def answer(self, call: Call) -> Reply:
        """Of the first replica that lives to give one; 503 with a reason if there is none."""
        try:
            async with asyncio.timeout(self.deadline_s):
                for attempt in range(ATTEMPTS):
                    try:
                        return await self.ask(call)
                    except Died:
                        await asyncio.sleep(PAUSE_S * attempt)
        except Busy as error:
            return busy(f"{error}; try again")
        except TimeoutError:
            return busy(f"no replica has answered within {self.deadline_s:g} s; try again")
        return busy(f"{ATTEMPTS} replicas have died over this request; try again")


async def read_body(headers: Headers, receive: Receive) -> bytes | None:
    """None for a body of more than MOST_BODY bytes: no more than those are ever held.

    The rest is read and dropped up to a bound, since most clients read no answer before they have sent all.
    """
    parts: list[bytes] | None = []
    size, announced = 0, headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > MOST_BODY:
        parts = None
    while True:
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size > MOST_BODY:
            parts = None
        if parts is not None:
            parts.append(part)
        if not message.get("more_body", False) or size > MOST_DISCARDED:
            return None if parts is None else b"".join(parts)
