"""``infogan serve`` on its own Ray instance, under load and with killed replicas. Run: pytest -m ray"""

from __future__ import annotations

import asyncio
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.service import Answers, picture, processes_of, send_requests, service
from infogan_ray.training.load_model import load
from infogan_ray.web import inference
from infogan_ray.web.gateway import MAX_BODY
from tests.servers import free_ports

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@dataclass(frozen=True)
class Service:
    url: str
    token: str
    process: subprocess.Popen[str]
    model: Path

    def request(self, path: str, body: bytes | None = None, token: str | None = None) -> tuple[int, bytes]:
        """Send POST if there is a body, otherwise GET."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, body, headers), timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@pytest.fixture(scope="module")
def running(finished: Path) -> Iterator[Service]:
    """A service with two replicas. A test at the end of this module stops it."""
    with service(str(finished), replicas=2) as (url, token, process):
        yield Service(url, token, process, finished)


def test_http_answers_equal_the_models_results(running: Service) -> None:
    model = load(running.model)
    status, content = running.request("/sample", b'{"n": 5, "codes": {"cat0": 1}, "seed": 7, "format": "npy"}')
    wanted = model.sample(5, {"cat0": 1}, seed=7).permute(0, 2, 3, 1).numpy().astype(int)
    assert status == 200  # another number of threads may round a pixel differently
    assert np.abs(np.load(io.BytesIO(content)).astype(int) - wanted).max() <= 1
    status, content = running.request("/encode", picture(0))
    assert status == 200
    assert json.loads(content).keys() == inference.encoded(model, inference.read_image(model, picture(0)))[0].keys()
    status, content = running.request("/health")
    assert status == 200 and json.loads(content)["model"] == str(model.source)
    assert running.request("/traverse", b'{"code": "cat0"}')[0] == 200


def test_bad_requests_over_http_are_refused(running: Service) -> None:
    assert running.request("/sample", b"{}", token="wrong-wrong-wrong")[0] == 401
    assert running.request("/sample", b'{"n": 0}')[0] == 400
    assert running.request("/encode", bytes(MAX_BODY + 1))[0] == 413
    assert running.request("/sample")[0] == 405
    # The health check of Kubernetes.
    assert running.request("/-/healthz", token="wrong-wrong-wrong") == (200, b"success")


@pytest.mark.slow
def test_no_request_fails_while_replicas_are_killed(running: Service) -> None:
    """The clients retry nothing. Each kill hits a replica that holds requests."""
    stop, found = threading.Event(), list[Answers]()

    def clients(kind: str) -> None:
        found.append(asyncio.run(send_requests(running.url, running.token, kind, 8, 3600, stop)))

    threads = [threading.Thread(target=clients, args=(kind,)) for kind in ("sample 64", "encode")]
    for thread in threads:
        thread.start()
    killed: list[int] = []
    try:
        for _ in range(3):
            deadline = time.monotonic() + 60
            while len(replicas := processes_of(running.process, "replica")) < 2 and time.monotonic() < deadline:
                time.sleep(0.2)
            time.sleep(2)
            replicas[0].kill()  # the older replica holds requests
            replicas[0].wait(10)
            killed.append(replicas[0].pid)
        time.sleep(2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(set(killed)) == 3
    assert [dict(answers.failed) for answers in found] == [{}, {}]
    assert all(len(answers.latencies) > 20 for answers in found)


@pytest.mark.slow
def test_requests_above_the_queue_limit_are_refused_at_once(running: Service) -> None:
    """A replica takes 64 requests and the proxy queues 256. All replicas are suspended while requests arrive."""
    deadline = time.monotonic() + 60
    while len(replicas := processes_of(running.process, "replica")) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)  # wait for the replacement of a replica killed above: it must not answer later
    # Serve may still list the three replicas that were killed above, beside the two that live.
    request_count, expected_refusals, answers, stop = 728, 728 - 256 - 5 * 64, Answers(), threading.Event()

    def clients() -> None:
        asyncio.run(
            send_requests(running.url, running.token, "sample 1", request_count, 3600, stop, each=1, answers=answers)
        )

    thread = threading.Thread(target=clients)
    for replica in replicas:
        replica.suspend()
    try:
        thread.start()
        deadline = time.monotonic() + 40  # the proxy itself gives up after 60
        while sum(answers.failed.values()) < expected_refusals and time.monotonic() < deadline:
            time.sleep(0.05)
            for replica in processes_of(running.process, "replica"):  # a replica that started late would answer
                if replica not in replicas:
                    replica.suspend()
                    replicas.append(replica)
    finally:
        for replica in replicas:
            replica.resume()
        thread.join()
    assert all(what.startswith("503") and "too many" in what for what in answers.failed)
    assert sum(answers.failed.values()) >= expected_refusals
    assert len(answers.latencies) == request_count - sum(answers.failed.values()) >= 256
    assert running.request("/health")[0] == 200


@pytest.mark.slow
def test_ctrl_c_stops_the_service_and_leaves_no_process(running: Service) -> None:
    processes = psutil.Process(running.process.pid).children(recursive=True)
    assert any("ServeReplica" in " ".join(process.cmdline()) for process in processes)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(60) == 0
    assert psutil.wait_procs(processes, timeout=10)[1] == []
    with pytest.raises(urllib.error.URLError):
        running.request("/health")


def refused(model: Path, port: int) -> str:
    code = (
        "from infogan_ray.distributed.serve.service import ServiceFailed, serving\n"
        "try:\n"
        f"    with serving({str(model)!r}, '127.0.0.1', {port}, 1, True): pass\n"
        "except ServiceFailed as error: raise SystemExit(str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_named_in_one_line(tmp_path: Path) -> None:
    output = refused(tmp_path / "gone", free_ports(1)[0])
    assert output.startswith(f"model {tmp_path / 'gone'} does not exist"), output


@pytest.mark.slow
def test_a_used_port_is_named_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        output = refused(tmp_path, port := other.getsockname()[1])
    assert "Failed to bind to address" in output and str(port) in output, output
