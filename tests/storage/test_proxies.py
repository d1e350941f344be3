"""Addresses that get a secret, with a real proxy in the environment that records what it receives."""

from __future__ import annotations

import os
import urllib.request
from http.server import BaseHTTPRequestHandler

import pytest
import requests

from infogan_ray.storage import proxies
from infogan_ray.storage.proxies import Route, bypass, is_loopback, settle_route
from infogan_ray.storage.uri import parse_uri
from tests.servers import RecordingProxy, http_server

CLUSTER = "cluster.invalid"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"right")

    def log_message(self, *args: object) -> None:
        pass


def test_loopback_is_reached_directly_by_every_library(recording_proxy: RecordingProxy) -> None:
    with http_server(Answer) as url:
        assert urllib.request.urlopen(url).read() != b"right", "the proxy is in use"
        for local in (url, url.replace("127.0.0.1", "localhost")):
            assert settle_route(local) == Route()
            before = len(recording_proxy.requests)
            with urllib.request.urlopen(local) as answer:
                assert answer.read() == b"right"
            assert requests.get(local).content == b"right"
            assert len(recording_proxy.requests) == before


def test_plain_http_is_reached_directly_and_https_through_the_proxy(recording_proxy: RecordingProxy) -> None:
    shown = f"127.0.0.1:{recording_proxy.port}"
    route = settle_route(f"http://{CLUSTER}:8265")
    assert route == Route(remark=f"{CLUSTER} is reached directly: over http the proxy {shown} would read the token")
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://{CLUSTER}:8265")
    route = settle_route("https://secure.invalid")
    assert route.proxy.endswith(f"@{shown}") and "password" not in route.remark
    remark = f"secure.invalid is reached through the proxy {shown}; NO_PROXY=secure.invalid reaches it directly"
    assert route.remark == remark
    assert settle_route("sqlite:///file.db") == settle_route("") == Route()
    assert recording_proxy.requests == []


@pytest.mark.parametrize("value", [CLUSTER, ".invalid", "10.0.0.0/8,other,invalid", "*"])
@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_no_proxy_is_honoured(
    variable: str, value: str, recording_proxy: RecordingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert settle_route(f"https://{CLUSTER}") == Route()
    assert bool(settle_route("https://10.1.2.3").proxy) == ("10." not in value and value != "*")


def test_a_bypass_keeps_what_no_proxy_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "corp.example, 10.0.0.0/8")
    monkeypatch.setenv("no_proxy", "")
    bypass("::1", "127.0.0.1")
    bypass("127.0.0.1")
    expected = "corp.example,10.0.0.0/8,::1,[::1],127.0.0.1"
    assert [os.environ[name] for name in proxies.NO_PROXY] == [expected, expected]
    monkeypatch.setenv("no_proxy", "*")
    bypass("::1")
    assert os.environ["no_proxy"] == "*"


def test_a_plain_http_endpoint_of_google_storage_gets_no_proxy(recording_proxy: RecordingProxy) -> None:
    with http_server(Answer) as url:
        filesystem = parse_uri(
            f"gs://bucket/x?scheme=http&anonymous=true&endpoint_override={url[7:]}"
        ).connection.filesystem
        with pytest.raises((OSError, ValueError)):  # the answer is no JSON
            filesystem.get_file_info("bucket/x")
    assert recording_proxy.requests == []


def test_loopback_is_known_by_address_and_name() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("198.51.100.1", CLUSTER, "x" * 80)))
