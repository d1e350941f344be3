"""Load test of the service: requests per second, latency, and failed requests when replicas are killed.

    infogan train --preset mnist --steps 200 --name s
    python -m benchmarks.service runs/s/model                          # about two minutes
    python -m benchmarks.service runs/s/model --kill 10 --json kill.json

The service is ``infogan serve`` with a token on loopback. The clients run in another process on the same machine, with
keep-alive connections (aiohttp). Each client sends its next request when it has the answer, with another seed or image.
Clients do not retry: every answer other than 200 counts as failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import os
import random
import secrets
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import tyro

from infogan_ray.web.inference import MAX_IMAGES
from tests.servers import free_ports

STARTS_WITHIN_S = 180
WARM_S = 2.0


@dataclass
class Load:
    """Send requests to a service as fast as it answers."""

    model: tyro.conf.Positional[str]
    clients: tuple[int, ...] = (1, 8, 64)
    seconds: float = 10.0
    """Seconds per line of the table."""
    replicas: int = 1
    """Number of replicas; at least two with --kill."""
    kill: int = 0
    """SIGKILL this many processes of the service, one after another, during the load. Prints no table of speeds."""
    victim: Literal["replica", "proxy", "controller"] = "replica"
    """The process to kill: a replica with the model, Serve's HTTP proxy, or Serve's controller."""
    seed: int = 0
    json: Path | None = None
    """File for the figures."""


@dataclass
class Answers:
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> int:
    given = tyro.cli(Load)
    if given.kill:
        given.replicas = max(given.replicas, 2)
    with service(given.model, given.replicas) as (url, token, process):
        figures = kills(given, url, token, process) if given.kill else speeds(given, url, token)
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1))
    return 0


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def service(model: str, replicas: int) -> Iterator[tuple[str, str, subprocess.Popen[str]]]:
    """Run ``infogan serve`` and yield when it answers. SIGINT stops it, as Ctrl-C does."""
    (port,), token = free_ports(1), secrets.token_hex(16)
    words = ["serve", model, "--port", str(port), "--replicas", str(replicas)]
    process = subprocess.Popen(
        [sys.executable, "-m", "infogan_ray", *words], stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"INFOGAN_TOKEN": token},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        if not first:
            raise SystemExit(f"the service has not started (exit code {process.wait()})")
        yield f"http://127.0.0.1:{port}", token, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)


# ----------------------------------------------------------------------------------------------------- the clients


def requests_of(kind: str) -> Iterator[tuple[str, bytes]]:
    """Path and body of different requests, without end."""
    for number in range(10**9):
        if kind == "encode":
            yield "/encode", picture(number % 64)
        else:
            n = int(kind.removeprefix("sample "))
            yield "/sample", json.dumps({"n": n, "seed": number}).encode()


_pictures: dict[int, bytes] = {}


def picture(number: int) -> bytes:
    """A grey PNG of 28 x 28 pixels."""
    if number not in _pictures:
        from PIL import Image

        buffer = io.BytesIO()
        pixels = random.Random(number).randbytes(28 * 28)
        Image.frombytes("L", (28, 28), pixels).save(buffer, "PNG")
        _pictures[number] = buffer.getvalue()
    return _pictures[number]


async def send_requests(
    url: str, token: str, kind: str, clients: int, seconds: float, stop: threading.Event, each: int | None = None,
    answers: Answers | None = None,
) -> Answers:  # fmt: skip
    """Send requests until ``seconds`` have passed, ``stop`` is set, or each client has sent ``each``.

    It waits for open requests.
    """
    import aiohttp

    answers, source = answers or Answers(), requests_of(kind)
    started = time.perf_counter()

    async def client(http: aiohttp.ClientSession) -> None:
        for _ in itertools.count() if each is None else range(each):
            if time.perf_counter() >= started + seconds or stop.is_set():
                return
            path, body = next(source)
            start = time.perf_counter()
            try:
                async with http.post(url + path, data=body) as response:
                    content = await response.read()
                    if response.status != 200 or not content:
                        answers.failed[f"{response.status} {content[:100]!r}"] += 1
                        continue
            except (aiohttp.ClientError, TimeoutError) as error:
                answers.failed[f"{type(error).__name__} {error}"] += 1
                await asyncio.sleep(0.05)
                continue
            answers.latencies.append(time.perf_counter() - start)

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=clients), timeout=aiohttp.ClientTimeout(total=120),
        headers={"Authorization": f"Bearer {token}"},
    ) as http:  # fmt: skip
        await asyncio.gather(*(client(http) for _ in range(clients)))
    answers.seconds = time.perf_counter() - started
    return answers


def load(url: str, token: str, kind: str, clients: int, seconds: float) -> Answers:
    return asyncio.run(send_requests(url, token, kind, clients, seconds, threading.Event()))


# ------------------------------------------------------------------------------------------------------- the tables


def speeds(given: Load, url: str, token: str) -> list[dict[str, Any]]:
    figures: list[dict[str, Any]] = []
    print("| request | clients | requests/s | images/s | median ms | p99 ms | failed |\n|---|---|---|---|---|---|---|")
    for kind in ("sample 1", "sample 64", "encode"):
        load(url, token, kind, max(given.clients), WARM_S)
        for clients in given.clients:
            answers = load(url, token, kind, clients, given.seconds)
            images = int(kind.removeprefix("sample ")) if kind != "encode" else 1
            figures.append(
                {
                    "request": kind, "clients": clients, "per_second": answers.per_second,
                    "median_ms": answers.percentile_ms(0.5), "p99_ms": answers.percentile_ms(0.99),
                    "failed": answers.failed,
                }
            )  # fmt: skip
            print(
                f"| `/{kind.replace(' ', '`, n=') if ' ' in kind else kind + '`'} | {clients} "
                f"| {answers.per_second:.0f} | {answers.per_second * images:.0f} | {answers.percentile_ms(0.5):.1f} "
                f"| {answers.percentile_ms(0.99):.1f} | {sum(answers.failed.values())} |",
                flush=True,
            )
    single, batch = alone(given.model)
    together, singly = (asyncio.run(batched(given.model, max_rows)) for max_rows in (MAX_IMAGES, 1))
    figures.append({"request": "model alone", "per_second": [single, batch]})
    figures.append({"request": "64 at once in one process", "batched": together, "one by one": singly})
    print(f"\nThe model alone, without HTTP and Ray, one thread: {single:.0f} calls/s of n=1, {batch:.1f} of n=64.")
    print(f"64 requests of n=1 at once, without HTTP and Ray: {together:.0f}/s batched, {singly:.0f}/s one by one.")
    return figures


def alone(model: str) -> tuple[float, float]:
    """Calls per second of a bare loop in this process (latents, images, PNG), for one image and for 64."""
    import torch

    from infogan_ray.training.load_model import load as open_model
    from infogan_ray.web.inference import answer

    torch.set_num_threads(1)
    network = open_model(model)
    found = []
    for n in (1, 64):
        count, end = 0, time.perf_counter() + 3
        while time.perf_counter() < end:
            answer(network.sample(n, seed=count), "png", min(n, 8))
            count += 1
        found.append(count / 3)
    return found[0], found[1]


async def batched(model: str, max_rows: int) -> float:
    """Images per second with 64 concurrent requests of one image and at most ``max_rows`` rows in a batch."""
    import torch

    from infogan_ray.training.load_model import load as open_model
    from infogan_ray.web.endpoints import Batches

    torch.set_num_threads(1)
    network, count, end = open_model(model), 0, time.perf_counter() + 3
    generate: Batches[torch.Tensor] = Batches(network.generate, max_rows, ThreadPoolExecutor(1))

    async def client() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await generate(network.latents(1, seed=count))
            count += 1

    await asyncio.gather(*(client() for _ in range(64)))
    return count / 3


TITLES = {"replica": "ServeReplica:infogan:Model", "proxy": "ProxyActor", "controller": "ServeController"}


def processes_of(process: subprocess.Popen[str], what: str) -> list[psutil.Process]:
    """The live processes of one kind of a service, the oldest first. Ray sets their titles."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE and any(TITLES[what] in word for word in child.cmdline()):
                found.append(child)
    return sorted(found, key=psutil.Process.create_time)


def kills(given: Load, url: str, token: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    """Kill processes during requests of all three kinds. The next kill waits until the last process is replaced."""
    random.seed(given.seed)
    stop, clients = threading.Event(), max(given.clients)
    results: list[Answers] = []
    kinds = ("sample 1", "sample 64", "encode")
    threads = [
        threading.Thread(
            target=lambda kind=kind: results.append(
                asyncio.run(send_requests(url, token, kind, clients // 3 + 1, 3600, stop))
            )
        )
        for kind in kinds
    ]
    for thread in threads:
        thread.start()
    killed, recovery_s = 0, []
    try:
        time.sleep(WARM_S)
        for _ in range(given.kill):
            deadline = time.monotonic() + STARTS_WITHIN_S
            before = time.monotonic()
            wanted = given.replicas if given.victim == "replica" else 1
            while len(processes_of(process, given.victim)) < wanted and time.monotonic() < deadline:
                time.sleep(0.1)
            recovery_s.append(time.monotonic() - before)
            time.sleep(random.uniform(1, 4))  # a new replica must take requests before the next kill
            victim = random.choice(processes_of(process, given.victim))
            victim.kill()
            victim.wait(10)
            killed += 1
            say(f"killed {given.victim} {victim.pid}, {killed} of {given.kill}")
        time.sleep(5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    latencies = [value for answers in results for value in answers.latencies]
    failed = sum((answers.failed for answers in results), Counter())
    figures = {
        "clients": (clients // 3 + 1) * 3,
        "replicas": given.replicas,
        f"SIGKILLs, each of a {given.victim}": killed,
        "requests answered": len(latencies),
        "requests failed": sum(failed.values()),
        "seconds until the process was replaced, median": f"{statistics.median(recovery_s[1:] or [0]):.1f}",
        "longest request": f"{max(latencies):.1f} s",
    }
    print("| what | figure |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value} |")
    for what, count in failed.most_common(5):
        say(f"failed {count} times: {what}")
    return figures | {"failures": failed}


if __name__ == "__main__":
    sys.exit(main())
