"""Real Ray heads and nodes that require a token, and hosts for them in network namespaces."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.servers import CREDENTIALS, free_ports

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent
STARTS_WITHIN_S = 90
STOPS_WITHIN_S = 30
OBJECT_STORE_BYTES = 100 * 1024**2


class Node:
    """``ray start --block`` and all its descendants."""

    def __init__(self, words: list[str], token: Path, log: Path, prefix: tuple[str, ...] = ()) -> None:
        self.log = log
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*prefix, str(BIN / "ray"), "start", *words, "--block", "--disable-usage-stats",
                 f"--object-store-memory={OBJECT_STORE_BYTES}"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                env={
                    **environment, **CREDENTIALS, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
                    "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
                },
            )  # fmt: skip

    def kill(self) -> None:
        """Kill all its processes at once, as a power failure does."""
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()


def wait_for_api(url: str, node: Node) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=2)
            raise AssertionError(f"{url} answers without a token")
        except urllib.error.HTTPError as error:
            assert error.code == 401
            return
        except OSError:
            if time.monotonic() > deadline or node.process.poll() is not None:
                raise AssertionError(f"no head at {url}: {node.log.read_text()[-2000:]}") from None
        time.sleep(0.5)


@dataclass(frozen=True)
class Head:
    url: str
    token: str
    environment: dict[str, str]
    """The environment of a client."""
    gcs: int
    """The port that drivers connect to."""

    def infogan(self, *words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "infogan_ray", *words], capture_output=True, text=True, timeout=timeout, cwd=ROOT,
            env=self.environment,
        )  # fmt: skip


def make_head(url: str, folder: Path, gcs: int) -> tuple[Head, Path]:
    """The client's view of a head that has not started yet, and the path of its token file."""
    path = folder / "token"
    path.write_text(secrets.token_hex(32))
    path.chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_API_SERVER_ADDRESS": url, "RAY_AUTH_TOKEN_PATH": str(path)}
    return Head(url, path.read_text(), environment, gcs), path


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short path. Ray creates sockets in it, and a socket path is limited to about 100 characters."""
    folder = Path(tempfile.mkdtemp(prefix="ig"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def head_on_loopback(folder: Path) -> Iterator[Head]:
    gcs, dashboard_port, agent, client = free_ports(4)
    head, token = make_head(f"http://127.0.0.1:{dashboard_port}", folder, gcs)
    node = Node(
        ["--head", "--num-cpus=2", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}",
         f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", f"--temp-dir={folder}/ray"],
        token, folder / "head.log",
    )  # fmt: skip
    try:
        wait_for_api(head.url, node)
        yield head
    finally:
        node.kill()


# Hosts ----------------------------------------------------------------------------------------------------------------

NETWORK = "10.213.7"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def can_create_hosts() -> bool:
    if os.geteuid() != 0:
        return False
    name = f"igtry{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "delete", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


class Host:
    """A network namespace with one interface on a bridge. On the network it is a separate machine."""

    def __init__(self, bridge: str, number: int) -> None:
        self.name, self.address = f"{bridge}h{number}", f"{NETWORK}.{number}"
        self._outer = f"{bridge}v{number}"
        ip("netns", "add", self.name)
        ip("link", "add", self._outer, "type", "veth", "peer", "name", "wire0", "netns", self.name)
        ip("link", "set", self._outer, "master", bridge, "up")
        for words in (
            ["addr", "add", f"{self.address}/24", "dev", "wire0"],
            *(["link", "set", n, "up"] for n in ("lo", "wire0")),
        ):
            ip("-n", self.name, *words)

    def prefix(self, *own: Path) -> tuple[str, ...]:
        """Words that run a command on this host. ``own``: folders that only this host sees, as local disks."""
        mounts = " && ".join(f"mount -t tmpfs none {folder}" for folder in own)  # only this command sees these mounts
        return ("ip", "netns", "exec", self.name, "sh", "-c", f'{mounts} && exec "$@"', "sh")

    def link(self, up: bool) -> None:
        ip("link", "set", self._outer, "up" if up else "down")

    @property
    def pids(self) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout
        return [int(pid) for pid in found.split()]

    def runs(self, what: str) -> bool:
        """Whether a process of this host has ``what`` in its command."""
        found = [psutil.Process(pid) for pid in self.pids]
        return any(what in word for process in found for word in process.cmdline())

    def kill(self) -> None:
        """Kill every process of the host. None is left when this returns.

        A killed process exists until the kernel removes it, and may have started another one just before.
        """
        deadline = time.monotonic() + STOPS_WITHIN_S
        while pids := self.pids:
            assert time.monotonic() < deadline, f"{self.name} still has the processes {pids}"
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError, AssertionError):  # the other hosts must be closed, too
            self.kill()
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "delete", self.name)


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Hosts with addresses from NETWORK.2 on; this machine is NETWORK.1 on the same bridge."""
    bridge = f"ig{os.getpid() % 100_000}"
    made: list[Host] = []
    ip("link", "add", bridge, "type", "bridge")
    try:
        ip("addr", "add", f"{NETWORK}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for number in range(count):
            made.append(Host(bridge, number + 2))
        yield made
    finally:
        for host in made:
            host.close()
        ip("link", "delete", bridge)
