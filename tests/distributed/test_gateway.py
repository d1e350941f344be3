"""The service without Ray: answers, refusals, and the gateway's behaviour when replicas die."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infogan_ray.cli.exit_codes import USAGE
from infogan_ray.cli.main import main
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.traversal import tile
from infogan_ray.training.load_model import load
from infogan_ray.web import inference
from infogan_ray.web.endpoints import Batches, Endpoints
from infogan_ray.web.gateway import (
    MAX_BODY,
    MAX_DISCARDED,
    TOKEN,
    Call,
    CallReplica,
    Gateway,
    ReplicaDied,
    ReplicasBusy,
    Reply,
    service_token,
)  # fmt: skip

# Ray Serve gives this warning at import.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
SECRET = "0123456789abcdef"
BEARER = {"authorization": f"Bearer {SECRET}"}


class CountingExecutor(ThreadPoolExecutor):
    """One thread that counts its calls and the rows of each."""

    def __init__(self) -> None:
        super().__init__(1)
        self.rows: list[int] = []

    def submit(self, compute: Callable[..., Any], /, *words: Any, **named: Any) -> Future[Any]:
        self.rows.append(len(words[0]))
        return super().submit(compute, *words, **named)


@pytest.fixture(scope="module")
def model(finished: Path) -> InfoGAN:
    return load(finished)


@pytest.fixture
def gateway(model: InfoGAN) -> Gateway:
    return Gateway(None, Endpoints(model, SECRET, ThreadPoolExecutor(1)).answer, SECRET)


async def send(
    gateway: Gateway, path: str, body: bytes | AsyncIterator[bytes] = b"", method: str = "POST", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send a request through ASGI. An iterator is a body in parts without a content-length."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if isinstance(body, bytes):
            return {"type": "http.request", "body": body, "more_body": False}
        try:
            return {"type": "http.request", "body": await anext(body), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.request", "more_body": False}

    async def keep(message: Any) -> None:
        sent.append(message)

    if isinstance(body, bytes):
        headers = {"content-length": str(len(body))} | headers
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await gateway({"type": "http", "method": method, "path": path, "headers": raw}, receive, keep)
    start, content = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    assert found["content-length"] == str(len(content["body"]))
    return start["status"], found, content["body"]


def request(gateway: Gateway, path: str, body: Any = b"", method: str = "POST", **headers: str) -> tuple[int, Any]:
    """Send a request with the token, unless ``headers`` has another. Returns the status and the JSON or bytes."""
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    status, found, answer = asyncio.run(send(gateway, path, content, method, **(BEARER | headers)))
    return status, json.loads(answer) if found["content-type"] == "application/json" else answer


def picture(size: tuple[int, int] = (20, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 60).save(buffer, "PNG")
    return buffer.getvalue()


# Answers


def test_sample_equals_the_models_sample(gateway: Gateway, model: InfoGAN) -> None:
    wanted = model.sample(12, {"cat0": 2}, seed=5)
    query = {"n": 12, "codes": {"cat0": 2}, "seed": 5}
    status, answer = request(gateway, "/sample", query | {"format": "npy"})
    assert status == 200 and np.array_equal(np.load(io.BytesIO(answer)), wanted.permute(0, 2, 3, 1).numpy())
    status, answer = request(gateway, "/sample", query)
    assert status == 200 and Image.open(io.BytesIO(answer)).convert("RGB").tobytes() == tile(wanted, 8, gap=0).tobytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_each_image_in_its_cell(channels: int) -> None:
    images = torch.randint(0, 256, (11, channels, 16, 16), dtype=torch.uint8)
    shown = Image.open(io.BytesIO(inference.answer(images, "png", 4)[0]))
    assert shown.convert("RGB").tobytes() == tile(images, 4, gap=0).tobytes()


def test_a_traversal_changes_one_code(gateway: Gateway, model: InfoGAN) -> None:
    query = {"code": "uniform0", "columns": 5, "seed": 3, "format": "npy"}
    status, headers, answer = asyncio.run(send(gateway, "/traverse", json.dumps(query).encode(), **BEARER))
    rows, values = inference.traversal_latents(model, inference.TraverseQuery(code="uniform0", columns=5, seed=3))
    assert status == 200 and json.loads(headers["x-values"]) == values
    assert np.array_equal(np.load(io.BytesIO(answer)), model.generate(rows).permute(0, 2, 3, 1).numpy())


def test_encode_returns_the_codes_that_q_predicts(gateway: Gateway, model: InfoGAN) -> None:
    content = picture()
    status, answer = request(gateway, "/encode", content)
    assert status == 200 and answer == inference.encoded(model, inference.read_image(model, content))[0]
    assert set(answer) == set(model.encode(inference.read_image(model, content)))


def test_health_names_the_model_only_with_the_token(gateway: Gateway, model: InfoGAN) -> None:
    status, answer = request(gateway, "/health", method="GET")
    assert status == 200 and answer["model"] == str(model.source) and answer["step"] > 0
    assert answer["codes"] == {"cat0": "cat=3", "uniform0": "uniform=1"} and answer["names"] == {}
    assert asyncio.run(send(gateway, "/health", method="GET"))[2] == b'{"status": "ok"}'


def test_waiting_requests_are_computed_together(model: InfoGAN) -> None:
    executor = CountingExecutor()
    endpoints = Endpoints(model, None, executor)
    image = picture()

    async def many() -> list[Reply]:
        samples = [Call("POST", "/sample", body=b'{"n": 3, "format": "npy", "seed": %d}' % seed) for seed in range(40)]
        return await asyncio.gather(
            *(endpoints.answer(call) for call in [*samples, *[Call("POST", "/encode", "", image)] * 40])
        )

    replies = asyncio.run(many())
    assert sum(executor.rows) == 160 and len(executor.rows) < 20, executor.rows
    for seed, reply in enumerate(replies[:40]):
        alone = model.sample(3, seed=seed).permute(0, 2, 3, 1).numpy().astype(int)
        # Other batch sizes round sums differently: a pixel may differ by one grey level.
        assert np.abs(np.load(io.BytesIO(reply.body)).astype(int) - alone).max() <= 1
    wanted = inference.encoded(model, inference.read_image(model, image))[0]
    for reply in replies[40:]:
        found = json.loads(reply.body)
        assert found.keys() == wanted.keys()
        assert all(found[name] == pytest.approx(value, abs=1e-5) for name, value in wanted.items())


def test_batches_are_bounded_and_in_order() -> None:
    executor = CountingExecutor()
    batches: Batches[torch.Tensor] = Batches(lambda rows: rows * 2, 8, executor)

    async def many() -> list[torch.Tensor]:
        return await asyncio.gather(*(batches(torch.full((size, 1), float(size))) for size in (1, 5, 3, 9, 2, 6, 1)))

    answers = asyncio.run(many())
    assert [answer.tolist() for answer in answers] == [[[2.0 * n]] * n for n in (1, 5, 3, 9, 2, 6, 1)]
    assert executor.rows == [6, 3, 9, 8, 1]


def test_a_failed_batch_fails_only_its_own_requests() -> None:
    def compute(rows: torch.Tensor) -> torch.Tensor:
        if (rows < 0).any():
            raise RuntimeError("no")
        return rows

    batches: Batches[torch.Tensor] = Batches(compute, 1, ThreadPoolExecutor(1))

    async def many() -> list[Any]:
        calls = (batches(torch.tensor([[value]])) for value in (1.0, -1.0, 2.0))
        return await asyncio.gather(*calls, return_exceptions=True)

    first, failed, last = asyncio.run(many())
    assert first.item() == 1 and isinstance(failed, RuntimeError) and last.item() == 2


# Refusals


@pytest.mark.parametrize(
    "path, body, line",
    [
        ("/sample", {"n": 257}, "n is 257: input should be less than or equal to 256"),
        ("/sample", {"codes": {"cat0": 7}}, "cat0 is 7; valid are the categories 0 to 2"),
        ("/sample", {"codes": {"cat9": 7}}, "code 'cat9' does not exist"),
        ("/sample", {"colour": 1}, "colour is not a field; valid are n, codes, seed, format"),
        ("/sample", b"n=3", "the body is not JSON"),
        ("/sample", b"", "the body is not JSON"),
        ("/traverse", {}, "code is missing"),
        ("/encode", b"not a picture", "this is not an image that can be read"),
    ],
)
def test_bad_input_is_400_and_one_line(gateway: Gateway, path: str, body: Any, line: str) -> None:
    status, answer = request(gateway, path, body)
    assert status == 400 and line in answer["error"] and "\n" not in answer["error"]


def test_a_small_file_that_decompresses_to_gigabytes_is_refused(gateway: Gateway) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    status, answer = request(gateway, "/encode", bomb)
    assert status == 400 and "image" in answer["error"]


def test_other_paths_and_methods_are_refused(gateway: Gateway) -> None:
    assert request(gateway, "/samples")[0] == 404
    status, headers, _ = asyncio.run(send(gateway, "/sample", method="GET", **BEARER))
    assert status == 405 and headers["allow"] == "POST"


@pytest.mark.parametrize(
    "given", ["", "Bearer", f"Bearer {SECRET}x", f"Bearer {SECRET[:-1]}", f"Basic {SECRET}", SECRET, "Bearer \xe9"]
)
def test_requests_without_the_token_are_refused(model: InfoGAN, given: str) -> None:
    calls: list[Call] = []

    async def replicas(call: Call) -> Reply:
        calls.append(call)
        return Reply(200, b"")

    status, headers, answer = asyncio.run(send(Gateway(None, replicas, SECRET), "/sample", b"{}", authorization=given))
    assert status == 401 and headers["www-authenticate"] == "Bearer" and "Authorization: Bearer" in str(answer)
    assert not calls
    endpoints = Endpoints(model, SECRET, ThreadPoolExecutor(1))  # a request that bypasses the gateway
    for path in ("/sample", "/encode"):
        assert asyncio.run(endpoints.answer(Call("POST", path, given, b"{}"))).status == 401


def test_a_newline_after_the_token_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, f"{SECRET}\n")
    assert service_token() == SECRET
    monkeypatch.setenv(TOKEN, "\n")
    assert service_token() is None


def test_a_large_body_is_413_and_not_kept_in_memory(gateway: Gateway) -> None:
    sent_bytes = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent_bytes
        while True:
            sent_bytes += 2**20
            yield bytes(2**20)

    assert MAX_BODY == inference.MAX_BYTES
    # The size is allowed, but the body is no image.
    assert asyncio.run(send(gateway, "/encode", bytes(MAX_BODY), **BEARER))[0] == 400
    assert asyncio.run(send(gateway, "/encode", bytes(MAX_BODY + 1), **BEARER))[0] == 413
    for length in ({}, {"content-length": "5"}, {"content-length": str(10**12)}, {"content-length": "-1"}):
        sent_bytes = 0
        status, headers, answer = asyncio.run(send(gateway, "/encode", endless(), **BEARER, **length))
        assert status == 413 and headers["connection"] == "close" and b"8,388,608 bytes" in answer
        assert sent_bytes <= MAX_DISCARDED + 2**20
    sent_bytes = 0
    assert asyncio.run(send(gateway, "/encode", endless()))[0] == 401 and sent_bytes == 0


# Replicas that die


def replicas(*outcomes: Exception | float | Reply) -> tuple[CallReplica, list[Call]]:
    """A replica handle with the outcome of each try: an exception, seconds without an answer, or an answer."""
    left, calls = list(outcomes), list[Call]()

    async def answer(call: Call) -> Reply:
        calls.append(call)
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, float):
            await asyncio.sleep(outcome)
            raise AssertionError("the deadline did not end the wait")
        return outcome

    return answer, calls


def test_a_request_is_sent_to_another_replica_when_its_own_dies() -> None:
    answer, calls = replicas(ReplicaDied(), ReplicaDied(), Reply(200, b"seen"))
    assert asyncio.run(send(Gateway(None, answer), "/sample", b"{}"))[::2] == (200, b"seen")
    assert calls == [Call("POST", "/sample", "", b"{}")] * 3


@pytest.mark.parametrize(
    "outcomes, line",
    [([ReplicaDied()] * 3, "3 replicas have died"), ([ReplicasBusy("many")], "many"), ([60.0], "within 0.2 s")],
)
def test_a_request_without_a_replica_is_503_with_retry_after(outcomes: list[Any], line: str) -> None:
    answer, calls = replicas(*outcomes)
    status, headers, body = asyncio.run(
        send(Gateway(None, answer, deadline_s=0.5 if len(outcomes) > 1 else 0.2), "/sample")
    )
    assert status == 503 and headers["retry-after"] == "1" and line in json.loads(body)["error"]
    assert len(calls) == len(outcomes)


def test_the_proxies_do_not_import_torch() -> None:
    code = "import sys, infogan_ray.distributed.serve.proxy as p; p.middlewares(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# The deployment and the command


def test_a_replica_reports_missing_settings_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from infogan_ray.distributed.serve.service import MODEL, Model

    for model, token, line in [
        ("", SECRET, "INFOGAN_MODEL is not set; set it to a model folder"),
        (str(tmp_path / "no"), "", "INFOGAN_TOKEN is not set: anyone who reaches the service could use it"),
        (str(tmp_path / "no"), "short", "INFOGAN_TOKEN is too short"),
    ]:
        monkeypatch.setenv(MODEL, model)
        monkeypatch.setenv(TOKEN, token)
        with pytest.raises(ValueError, match=line):
            Model.func_or_class()


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--host", "0.0.0.0"], "INFOGAN_TOKEN is not set"),
        (["--replicas", "0"], "replicas is 0; each needs a CPU, so use 1 to"),
        (["--port", "0"], "port is 0; valid are 1 to 65535"),
        (["--host", "no.such.host.invalid"], "INFOGAN_TOKEN is not set"),
        ([], "does not exist"),
    ],
)
def test_serve_refuses_bad_flags_in_one_line(
    flags: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    port_flags = [] if "--port" in flags else ["--port", str(port)]
    assert main(["serve", str(tmp_path / "model"), *flags, *port_flags]) == USAGE
    output = capsys.readouterr().err
    assert line in output and output.count("\n") == 1


def test_serve_refuses_a_used_port_and_a_cluster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "model", "--port", str(taken.getsockname()[1])]) == USAGE
    assert "failed (Address already in use)" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert main(["serve", "model"]) == USAGE
    assert "RAY_ADDRESS is set" in capsys.readouterr().err
