"""Steps a second of one run on several hosts, for links of several speeds, with and without ``--optimizer.wire bf16``.

    python -m benchmarks.links                        # as root on Linux; about 15 minutes on two cores
    python -m benchmarks.links --workers 2 --links "100 Mbit/s"

Each worker is on a host of its own: a network namespace. A switch in user space connects the hosts. It delays and drops
whole Ethernet frames, and sends no more bytes a second than the link allows. All hosts share this machine's cores. In
the row "loopback" all ranks are on this host, without a switch: the time of computing.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import multiprocessing
import os
import random
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.figures import publish
from tests.clusters import ip

NETWORK, PORT = "10.213.9", 29511
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # of linux/if_tun.h
MTU, HEADER = 1500, 14
QUEUE_S = 0.05  # a port drops frames that would wait longer
LIMIT_S = 900
BATCH = 128


@dataclass(frozen=True)
class Link:
    """What a frame meets on its way from a host to another one."""

    bytes_per_second: float = float("inf")
    delay: float = 0.0
    """Seconds, in each direction."""
    loss: float = 0.0
    """Share of the frames that are lost."""


LINKS = {
    "loopback": None,
    "200 Mbit/s": Link(25e6),
    "100 Mbit/s": Link(12.5e6),
    "100 Mbit/s, 10 ms": Link(12.5e6, delay=0.01),
    "100 Mbit/s, 0.1% lost": Link(12.5e6, loss=0.001),
    "100 Mbit/s, 1 ms, 1% lost": Link(12.5e6, delay=0.001, loss=0.01),
    "20 Mbit/s": Link(2.5e6),
}


@dataclass
class Links:
    """Train over slow links, and print the steps a second."""

    workers: tuple[int, ...] = (2, 4)
    links: tuple[str, ...] = tuple(LINKS)
    width: int = 16
    steps: int = 60
    json: Path | None = None
    """File for the figures."""


def main() -> int:
    given = tyro.cli(Links)
    figures: dict[str, str] = {}
    for workers in given.workers:
        for name in given.links:
            with hosts(workers, LINKS[name]) as names:
                speeds = [steps_per_second(given, names, wire) for wire in ("fp32", "bf16")]
            row = f"{workers} workers, {name}"
            figures[row] = (
                f"fp32 {speeds[0]:.2f} steps/s, bf16 {speeds[1]:.2f} steps/s: {speeds[1] / speeds[0]:.2f} times"
            )
            print(f"{row}: {figures[row]}", file=sys.stderr)
    publish(figures, given.json)
    return 0


def steps_per_second(given: Links, hosts: list[str], wire: str) -> float:
    """Train with one rank on each host. Returns the speed of the second half. Raises RuntimeError if a rank fails."""
    with tempfile.TemporaryDirectory(prefix="infogan-links-") as folder, contextlib.ExitStack() as stack:
        words = [sys.executable, "-m", "infogan_ray", "train", "--preset", "mnist", "--steps", str(given.steps)]
        words += ["--network.width", str(given.width), "--optimizer.wire", wire, "--threads", "1", "--device", "cpu"]
        words += ["--log-every", str(given.steps // 2), "--storage", folder, "--name", "run"]
        ranks = []
        for rank, host in enumerate(hosts):
            variables = {
                "RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": len(hosts), "LOCAL_WORLD_SIZE": 1,
                "MASTER_ADDR": f"{NETWORK}.2" if host else "127.0.0.1", "MASTER_PORT": PORT,
                "GLOO_SOCKET_IFNAME": "wire0" if host else "lo", "OMP_NUM_THREADS": 1,
            }  # fmt: skip
            log = stack.enter_context(open(f"{folder}/rank{rank}.log", "w+"))
            ranks.append(subprocess.Popen(
                [*(["ip", "netns", "exec", host] if host else []), *words], stdout=log, stderr=log,
                env=os.environ | {name: str(value) for name, value in variables.items()},
            ))  # fmt: skip
        try:
            codes = [rank.wait(LIMIT_S) for rank in ranks]
        finally:
            for process in ranks:
                process.kill()
        if any(codes):
            raise RuntimeError(f"the ranks ended with {codes}:\n{Path(folder, 'rank0.log').read_text()[-2000:]}")
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
        last = [row for row in rows if "images_per_second" in row][-1]
    return float(last["images_per_second"]) / BATCH


@contextlib.contextmanager
def hosts(count: int, link: Link | None) -> Iterator[list[str]]:
    """Network namespaces with the addresses NETWORK.2 and so on, and a switch between them.

    Without a link, the names are empty.
    """
    if link is None:
        yield [""] * count
        return
    names = [f"iglink{os.getpid()}n{number}" for number in range(count)]
    with contextlib.ExitStack() as stack:
        ports = []
        for number, name in enumerate(names):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            ports.append(stack.enter_context(open_port(f"iglt{number}")))
            ip("link", "set", f"iglt{number}", "netns", name, "name", "wire0")
            ip("-n", name, "addr", "add", f"{NETWORK}.{number + 2}/24", "dev", "wire0")
            ip("-n", name, "link", "set", "wire0", "mtu", str(MTU), "up")
            ip("-n", name, "link", "set", "lo", "up")
        switch = multiprocessing.get_context("fork").Process(target=forward, args=(ports, link), daemon=True)
        switch.start()
        stack.callback(switch.kill)
        yield names


@contextlib.contextmanager
def open_port(name: str) -> Iterator[int]:
    """A TAP interface, and the file from which its frames are read."""
    port = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(port, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
        yield port
    finally:
        os.close(port)


def forward(ports: list[int], link: Link) -> None:
    """Be the switch: learn the address behind each port, and send each frame when its link would have carried it."""
    chance = random.Random(0)
    behind: dict[bytes, int] = {}
    free = dict.fromkeys(ports, 0.0)  # when each port has sent what waits for it
    waiting: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select(ports, [], [], timeout)
        for source in readable:
            with contextlib.suppress(BlockingIOError):
                frame = os.read(source, MTU + HEADER + 4)
                target, behind[frame[6:12]] = behind.get(frame[:6]), source
                now = time.monotonic()
                for port in ports if target is None else [target]:
                    if port == source or chance.random() < link.loss or free[port] - now > QUEUE_S:
                        continue
                    free[port] = max(free[port], now) + len(frame) / link.bytes_per_second
                    heapq.heappush(waiting, (free[port] + link.delay, count, port, frame))
                    count += 1
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, port, frame = heapq.heappop(waiting)
            with contextlib.suppress(BlockingIOError, OSError):  # a full queue, or an interface that is not up yet
                os.write(port, frame)


if __name__ == "__main__":
    raise SystemExit(main())
