"""The gateway checks a request's token, limits its body, and repeats it on another replica if a replica dies.

It runs in Ray Serve's HTTP proxy. Serve repeats a request only until a replica accepts it. If that replica then dies,
the client gets an error 500 without a reason. A reply depends on its request alone, so the gateway can send the request
again. No torch and no Ray: every proxy loads this module.
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

from infogan_ray.storage.visible_text import to_utf8

TOKEN = "INFOGAN_TOKEN"
MIN_TOKEN_LENGTH = 16
HEALTH = "/health"
MAX_BODY = 8 * 1024**2
"""Bytes. A larger body is rejected; up to MAX_DISCARDED of its bytes are read and discarded."""
MAX_DISCARDED = 4 * MAX_BODY
ATTEMPTS = 3  # a request that kills replicas must not kill them all
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


class ReplicaDied(Exception):
    """The replica died while it processed the request."""


class ReplicasBusy(Exception):
    """No replica accepts the request."""


CallReplica = Callable[[Call], Awaitable[Reply]]


def service_token() -> str | None:
    """$INFOGAN_TOKEN without surrounding white space. A Kubernetes Secret from a file often ends with a newline."""
    return os.environ.get(TOKEN, "").strip() or None


def error_reply(status: int, line: str, *headers: tuple[str, str]) -> Reply:
    return Reply(status, json.dumps({"error": line}).encode(), headers=headers)


def busy_reply(line: str) -> Reply:
    return error_reply(503, line, ("Retry-After", str(RETRY_AFTER_S)))


def unauthorized(call: Call, token: str | None) -> Reply | None:
    """The reply 401 for a call without the service's token, or None if the call is allowed. HEALTH needs no token."""
    if token is None or (call.path == HEALTH and not call.authorization):
        return None
    kind, _, given = call.authorization.partition(" ")
    if kind.lower() == "bearer" and compare_digest(to_utf8(given.strip()), to_utf8(token)):
        return None
    problem = "this is not the service's token" if given else "a token is needed"
    return error_reply(401, f"{problem}; send the header 'Authorization: Bearer TOKEN'", ("WWW-Authenticate", "Bearer"))


class Gateway:
    """ASGI middleware. ``call_replica`` returns the reply to a call, or raises ReplicaDied or ReplicasBusy.

    ``app`` gets the requests for the proxy's own paths, /-/….
    """

    def __init__(
        self, app: ASGIApp | None, call_replica: CallReplica, token: str | None = None, deadline_s: float = DEADLINE_S
    ) -> None:
        self.app, self.call_replica, self.token, self.deadline_s = app, call_replica, token, deadline_s

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
                reply = error_reply(
                    413, f"the body is too large; at most {MAX_BODY:,} bytes are allowed", ("Connection", "close")
                )
            else:
                reply = await self.answer(call._replace(body=body))
        pairs = [("content-type", reply.kind), ("content-length", str(len(reply.body))), *reply.headers]
        raw = [(name.lower().encode(), value.encode()) for name, value in pairs]
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        await send({"type": "http.response.body", "body": reply.body})

    async def answer(self, call: Call) -> Reply:
        """The reply of the first replica that survives the call. 503 with a reason if none does."""
        try:
            async with asyncio.timeout(self.deadline_s):
                for attempt in range(ATTEMPTS):
                    try:
                        return await self.call_replica(call)
                    except ReplicaDied:
                        await asyncio.sleep(PAUSE_S * attempt)
        except ReplicasBusy as error:
            return busy_reply(f"{error}; try again")
        except TimeoutError:
            return busy_reply(f"no replica has answered within {self.deadline_s:g} s; try again")
        return busy_reply(f"{ATTEMPTS} replicas have died during this request; try again")


async def read_body(headers: Headers, receive: Receive) -> bytes | None:
    """The body, or None if it has more than MAX_BODY bytes. At most MAX_BODY bytes are kept in memory.

    The rest is read and discarded, up to MAX_DISCARDED: most clients send the whole body before they read the reply.
    """
    parts: list[bytes] | None = []
    size, announced = 0, headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > MAX_BODY:
        parts = None
    while True:
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY:
            parts = None
        if parts is not None:
            parts.append(part)
        if not message.get("more_body", False) or size > MAX_DISCARDED:
            return None if parts is None else b"".join(parts)
