"""Access control of the page. Without a token, only this machine has access. With a token, every client needs it."""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from secrets import compare_digest
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infogan_ray.storage.visible_text import to_utf8

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "infogan-explorer"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class AuthMiddleware:
    """ASGI middleware that checks every request and adds security headers to every response.

    Without a token, the host of a request must be this machine. This prevents DNS rebinding, in which another site's
    name resolves to this address. With a token, a link with ``?token=`` sets a cookie in the browser.
    """

    def __init__(self, app: ASGIApp, token: str | None = None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        rejection = self._reject(scope)
        await (rejection or self.app)(scope, receive, _with_headers(send))

    def _reject(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self.token is None:
            if _host_name(headers.get("host", "")) not in LOOPBACK:
                return PlainTextResponse("this page is available only as 127.0.0.1 or localhost\n", 403)
        elif not self._has_token(headers):
            return self._exchange_token(scope)
        origin = headers.get("origin")
        if scope["method"] != "GET" and origin and urlsplit(origin).netloc != headers.get("host"):
            return PlainTextResponse("this request is allowed only from the page itself\n", 403)
        return None

    def _has_token(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self._matches(given.strip())
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and self._matches(cookie.value)

    def _exchange_token(self, scope: Scope) -> Response:
        query = parse_qsl(scope["query_string"].decode("latin-1"))
        given = dict(query).get("token")
        if given is None or not self._matches(given) or scope["method"] != "GET":
            message = "a token is needed: open the link that 'infogan explore' has printed\n"
            return PlainTextResponse(message, 401, {"WWW-Authenticate": "Bearer"})
        other_parameters = urlencode([pair for pair in query if pair[0] != "token"])
        response = RedirectResponse(scope["path"] + (f"?{other_parameters}" if other_parameters else ""), 303)
        response.set_cookie(COOKIE, given, httponly=True, samesite="strict")
        return response

    def _matches(self, given: str) -> bool:
        assert self.token is not None
        return compare_digest(to_utf8(given), to_utf8(self.token))


def _host_name(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return with_headers
