"""Real Ray heads and nodes that ask for a token, and hosts of their own for them in network namespaces."""

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
STORE = 100 * 1024**2


class Node:
    """``ray start --block`` and all processes under it."""

    def __init__(self, words: list[str], token: Path, log: Path, prefix: tuple[str, ...] = ()) -> None:
        self.log = log
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*prefix, str(BIN / "ray"), "start", *words, "--block", "--disable-usage-stats",
                 f"--object-store-memory={STORE}"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                env={
                    **environment, **CREDENTIALS, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
                    "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
                },
            )  # fmt: skip

    def kill(self) -> None:
        """All of it at once, as when a machine loses its power."""
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()


def wait_for_door(url: str, node: Node) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=2)
            raise AssertionError(f"{url} opens without a token")
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
    """For a client of it."""
    gcs: int
    """The port by which drivers join."""

    def infogan(self, *words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "infogan_ray", *words], capture_output=True, text=True, timeout=timeout, cwd=ROOT,
            env=self.environment,
        )  # fmt: skip


def make_head(url: str, folder: Path, gcs: int) -> tuple[Head, Path]:
    """A client's view of a head that is yet to be started, and the file with its token."""
    path = folder / "token"
    path.write_text(secrets.token_hex(32))
    path.chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_API_SERVER_ADDRESS": url, "RAY_AUTH_TOKEN_PATH": str(path)}
    return Head(url, path.read_text(), environment, gcs), path


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """Ray puts sockets under its folder, and their paths may have some hundred letters."""
    folder = Path(tempfile.mkdtemp(prefix="ig"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def head_on_loopback(folder: Path) -> Iterator[Head]:
    gcs, door, agent, client = free_ports(4)
    head, token = make_head(f"http://127.0.0.1:{door}", folder, gcs)
    node = Node(
        ["--head", "--num-cpus=2", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={door}",
         f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", f"--temp-dir={folder}/ray"],
        token, folder / "head.log",
    )  # fmt: skip
    try:
        wait_for_door(head.url, node)
        yield head
    finally:
        node.kill()


# Hosts ----------------------------------------------------------------------------------------------------------------

NETWORK = "10.213.7"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def may_make_hosts() -> bool:
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
    """A network namespace with one interface on a bridge: for all that crosses a network, a machine of its own."""

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
        """Before a command that is to run there. ``own``: folders that are disks of this host, and of no other."""
        mounts = " && ".join(f"mount -t tmpfs none {folder}" for folder in own)  # in this command's mounts alone
        return ("ip", "netns", "exec", self.name, "sh", "-c", f'{mounts} && exec "$@"', "sh")

    def link(self, up: bool) -> None:
        ip("link", "set", self._outer, "up" if up else "down")

    @property
    def pids(self) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout
        return [int(pid) for pid in found.split()]

    def runs(self, what: str) -> bool:
        """Whether a command with this in it runs on it."""
        found = [psutil.Process(pid) for pid in self.pids]
        return any(what in word for process in found for word in process.cmdline())

    def kill(self) -> None:
        """Every process on it; there is none left when this returns.

        One that is killed is still there while the kernel takes it apart, and may just have started another.
        """
        deadline = time.monotonic() + STOPS_WITHIN_S
        while pids := self.pids:
            assert time.monotonic() < deadline, f"{self.name} still has the processes {pids}"
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError, AssertionError):  # the others are to be closed, too
            self.kill()
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "delete", self.name)


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Hosts NETWORK.2 and on, and this machine on the same wire as NETWORK.1."""
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
