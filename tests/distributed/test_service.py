"""The service as people start it, ``infogan serve``, on a Ray of its own, under load, with kills. Run: pytest -m ray"""

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

from benchmarks.service import Answers, ask, picture, service, victims
from infogan_ray.training.load_model import load
from infogan_ray.web import inference
from infogan_ray.web.gateway import MOST_BODY
from tests.servers import free_ports

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@dataclass(frozen=True)
class Service:
    url: str
    token: str
    process: subprocess.Popen[str]
    model: Path

    def ask(self, path: str, body: bytes | None = None, token: str | None = None) -> tuple[int, bytes]:
        """POST where there is a body, else GET."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, body, headers), timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@pytest.fixture(scope="module")
def running(finished: Path) -> Iterator[Service]:
    """Two replicas. The last test of this module ends it."""
    with service(str(finished), replicas=2) as (url, token, process):
        yield Service(url, token, process, finished)


def test_the_answers_over_http_are_the_models(running: Service) -> None:
    model = load(running.model)
    status, content = running.ask("/sample", b'{"n": 5, "codes": {"cat0": 1}, "seed": 7, "format": "npy"}')
    wanted = model.sample(5, {"cat0": 1}, seed=7).permute(0, 2, 3, 1).numpy().astype(int)
    assert status == 200  # another number of threads may round a pixel otherwise
    assert np.abs(np.load(io.BytesIO(content)).astype(int) - wanted).max() <= 1
    status, content = running.ask("/encode", picture(0))
    assert status == 200
    assert json.loads(content).keys() == inference.encoded(model, inference.read_image(model, picture(0)))[0].keys()
    status, content = running.ask("/health")
    assert status == 200 and json.loads(content)["model"] == str(model.source)
    assert running.ask("/traverse", b'{"code": "cat0"}')[0] == 200


def test_refusals_over_http(running: Service) -> None:
    assert running.ask("/sample", b"{}", token="wrong-wrong-wrong")[0] == 401
    assert running.ask("/sample", b'{"n": 0}')[0] == 400
    assert running.ask("/encode", bytes(MOST_BODY + 1))[0] == 413
    assert running.ask("/sample")[0] == 405
    assert running.ask("/-/healthz", token="wrong-wrong-wrong") == (200, b"success")  # what Kubernetes asks


@pytest.mark.slow
def test_no_request_fails_while_replicas_are_killed(running: Service) -> None:
    """Clients that try nothing again; each kill hits a replica that holds requests."""
    stop, found = threading.Event(), list[Answers]()

    def clients(kind: str) -> None:
        found.append(asyncio.run(ask(running.url, running.token, kind, 8, 3600, stop)))

    threads = [threading.Thread(target=clients, args=(kind,)) for kind in ("sample 64", "encode")]
    for thread in threads:
        thread.start()
    killed: list[int] = []
    try:
        for _ in range(3):
            deadline = time.monotonic() + 60
            while len(replicas := victims(running.process, "replica")) < 2 and time.monotonic() < deadline:
                time.sleep(0.2)
            time.sleep(2)
            replicas[0].kill()  # the older: it has requests
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
def test_more_than_can_wait_is_refused_at_once(running: Service) -> None:
    """A replica takes 64 requests, the proxy lets 256 wait. All replicas stand still while all come."""
    deadline = time.monotonic() + 60
    while len(replicas := victims(running.process, "replica")) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)  # one that was killed above is being replaced: it must not answer meanwhile
    # Serve may still know the three that were killed above, beside the two that live.
    asked, least, answers, stop = 728, 728 - 256 - 5 * 64, Answers(), threading.Event()

    def clients() -> None:
        asyncio.run(ask(running.url, running.token, "sample 1", asked, 3600, stop, each=1, answers=answers))

    thread = threading.Thread(target=clients)
    for replica in replicas:
        replica.suspend()
    try:
        thread.start()
        deadline = time.monotonic() + 40  # the proxy itself gives up after 60
        while sum(answers.failed.values()) < least and time.monotonic() < deadline:
            time.sleep(0.05)
            for replica in victims(running.process, "replica"):  # one that came late would answer
                if replica not in replicas:
                    replica.suspend()
                    replicas.append(replica)
    finally:
        for replica in replicas:
            replica.resume()
        thread.join()
    assert all(what.startswith("503") and "too many" in what for what in answers.failed)
    assert sum(answers.failed.values()) >= least
    assert len(answers.latencies) == asked - sum(answers.failed.values()) >= 256
    assert running.ask("/health")[0] == 200


@pytest.mark.slow
def test_ctrl_c_ends_it_and_leaves_nothing(running: Service) -> None:
    processes = psutil.Process(running.process.pid).children(recursive=True)
    assert any("ServeReplica" in " ".join(process.cmdline()) for process in processes)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(60) == 0
    assert psutil.wait_procs(processes, timeout=10)[1] == []
    with pytest.raises(urllib.error.URLError):
        running.ask("/health")


def refused(model: Path, port: int) -> str:
    code = (
        "from infogan_ray.distributed.serve.service import serving\n"
        "try:\n"
        f"    with serving({str(model)!r}, '127.0.0.1', {port}, 1, True): pass\n"
        "except RuntimeError as error: raise SystemExit(repr(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_model_that_no_replica_can_load_is_named_in_one_line(tmp_path: Path) -> None:
    said = refused(tmp_path / "gone", free_ports(1)[0])
    assert said.startswith(f"RuntimeError('model {tmp_path / 'gone'} does not exist"), said


@pytest.mark.slow
def test_a_port_that_somebody_has_is_named_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        said = refused(tmp_path, port := other.getsockname()[1])
    assert "Failed to bind to address" in said and str(port) in said and "\\n" not in said, said
