"""The explorer's benchmark reaches its server directly. Run: pytest tests/project/test_explorer_benchmark.py"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

pytest.importorskip("playwright")
from benchmarks import explorer


class Model(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"size": 28}' if self.path == "/api/model" else b"")


def test_a_server_on_loopback_is_reached_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), Model) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        assert explorer.model_of(f"http://127.0.0.1:{server.server_port}/") == {"size": 28}
        thread.join()
