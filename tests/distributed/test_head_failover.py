"""A head with Redis dies, and another one starts in its place. Run: pytest -m slow tests/distributed

Redis stores the cluster's state: its nodes, actors and jobs. Hosts are network namespaces, as in ``test_hosts.py``. It
needs root, iproute2 and Debian's redis-server.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from tests.clusters import NETWORK, Head, Host, Node, can_create_hosts, hosts, make_head, short_folder, wait_for_api
from tests.distributed.test_hosts import GCS, alive
from tests.distributed.test_submission import TINY, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (can_create_hosts() and shutil.which("redis-server")), reason="needs root, iproute2 and redis-server"
    ),
]
REDIS = 6390


@dataclass
class Cluster:
    head: Head
    machines: list[Host]
    lose_head: Callable[[], None]
    start_head: Callable[[], None]


@contextlib.contextmanager
def redis(folder: Path, password: str) -> Iterator[None]:
    words = ["redis-server", "--port", str(REDIS), "--bind", f"{NETWORK}.1", "--save", "", "--dir", str(folder)]
    with subprocess.Popen([*words, "--requirepass", password], stdout=subprocess.DEVNULL) as process:
        yield
        process.terminate()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    password = secrets.token_hex(16)
    with short_folder() as folder, hosts(3) as (first, *machines), redis(folder, password):
        disk = folder / "ray"
        disk.mkdir()
        head, token = make_head(f"http://{first.address}:8265", folder, GCS)
        with_redis = ("env", f"RAY_REDIS_ADDRESS={NETWORK}.1:{REDIS}")
        words = [
            "--head", "--num-cpus=0", f"--port={GCS}", f"--node-ip-address={first.address}", f"--temp-dir={disk}",
            f"--dashboard-host={first.address}", "--dashboard-port=8265", f"--redis-password={password}",
        ]  # fmt: skip
        nodes: dict[str, Node] = {}

        def start_head() -> None:
            nodes[first.name] = Node(words, token, folder / "head.log", (*first.prefix(disk), *with_redis))
            wait_for_api(head.url, nodes[first.name])

        def lose_head() -> None:
            nodes[first.name].kill()
            first.kill()

        start_head()
        for machine in machines:
            own = [f"--address={first.address}:{GCS}", f"--node-ip-address={machine.address}", "--num-cpus=1"]
            nodes[machine.name] = Node(own, token, folder / f"{machine.name}.log", machine.prefix(disk))
        until(lambda: len(alive(head)) == 3)
        yield Cluster(head, machines, lose_head, start_head)
        for node in nodes.values():
            node.kill()


def test_another_head_has_the_nodes_and_jobs_and_the_run_continues(cluster: Cluster, npz: Path, tmp_path: Path) -> None:
    """The driver of a job runs on the head and ends with it, and Ray ends the driver's workers."""
    run = RunDirectory(open_storage(tmp_path) / "first")
    words = [
        "train", "--data", str(npz), *TINY, "--name", "first", "--storage", str(tmp_path), "--steps", "100000",
        "--checkpoint-every", "50", "--workers", "2", "--wait", "60", "--start-or-resume",
    ]  # fmt: skip
    first = cluster.head.infogan("submit", "--", *words).stdout.strip()
    until(lambda: run.exists and run.get_status().get("stored", 0) >= 100)
    cluster.lose_head()
    cluster.start_head()
    until(lambda: len(alive(cluster.head)) == 3, 60)
    until(lambda: not any(machine.runs("RayTrainWorker") for machine in cluster.machines), 60)
    reached = run.get_status()["stored"]

    second = cluster.head.infogan("submit", "--", *words).stdout.strip()
    until(lambda: run.get_status()["stored"] >= reached + 50)
    assert f"resumed from step {reached:,}" in cluster.head.infogan("jobs", "logs", second).stdout
    listed = json.loads(cluster.head.infogan("jobs", "--json").stdout)["jobs"]
    assert {job["id"]: job["state"] for job in listed} == {second: "running", first: "failed"}
    assert cluster.head.infogan("jobs", "stop", second).returncode == 0
