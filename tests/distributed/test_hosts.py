"""Several machines: network namespaces on one wire, each a host of its own to Ray, gloo and S3. Run: make test-ray

A machine that loses its power is all its processes killed at once; what stays is another machine's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infogan_ray import checkpoints
from infogan_ray.runs import RunDirectory
from infogan_ray.storage import open_storage

from ..clusters import NETWORK, Head, Host, Node, hosts, make_head, may_make_hosts, short_folder, wait_for_door
from ..servers import BUCKET, CREDENTIALS, s3_server
from .test_submission import TINY, until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not may_make_hosts(), reason="network namespaces need root, Linux and iproute2"),
]

EVERY = 100
GCS = 6379


@dataclass
class Wire:
    """A head without CPUs and two machines with one each; ``own`` is a folder that the first of them has alone."""

    head: Head
    machines: list[Host]
    start: Callable[[Host], Node]
    storage: str
    own: Path


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    own = tmp_path_factory.mktemp("own")
    with (
        short_folder() as folder, hosts(3) as (first, *machines),
        s3_server(folder / "s3", f"{NETWORK}.1") as s3, pytest.MonkeyPatch.context() as patch,
    ):  # fmt: skip
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        disk = folder / "ray"  # Ray's files: each machine sweeps its own, and would sweep another's away
        disk.mkdir()
        head, token = make_head(f"http://{first.address}:8265", folder)

        def start(host: Host) -> Node:
            disks = [disk, own] if host is machines[0] else [disk]
            words = [f"--address={first.address}:{GCS}", f"--node-ip-address={host.address}", "--num-cpus=1"]
            return Node(words, token, folder / f"{host.name}.log", host.prefix(*disks))

        words = ["--head", "--num-cpus=0", f"--port={GCS}", f"--node-ip-address={first.address}"]
        words += [f"--dashboard-host={first.address}", "--dashboard-port=8265", f"--temp-dir={disk}"]
        node = Node(words, token, folder / "head.log", first.prefix(disk))
        wait_for_door(head.url, node)
        nodes = [node, *map(start, machines)]
        endpoint = f"endpoint_override={NETWORK}.1:{s3.port}&scheme=http&region=us-east-1"
        yield Wire(head, machines, start, f"s3://{BUCKET}/hosts?{endpoint}", own)
        for node in nodes:
            node.kill()


def submit(wire: Wire, npz: Path, name: str, *words: str, storage: str | None = None) -> list[str]:
    return ["train", "--data", str(npz), *TINY, "--name", name, "--storage", storage or wire.storage, *words]


def test_a_folder_that_one_machine_has_alone_is_refused_before_training(wire: Wire, npz: Path) -> None:
    """And one that all see is taken: here, all machines have the same disk but for that folder."""
    words = submit(wire, npz, "apart", "--steps", "6", "--wait", "60", "--workers", "2", storage=str(wire.own))
    answer = wire.head.infogan("submit", "--follow", "--", *words)
    assert answer.returncode == 2, answer.stdout
    said = (
        f"storage is '{wire.own}', and 1 of the 2 other machine(s) ({wire.machines[0].address}) does not see it; give"
    )
    assert said in answer.stdout and not list(wire.own.iterdir())
    words = submit(wire, wire.own / "none.npz", "apart", "--steps", "6", storage=str(wire.own))
    assert wire.head.infogan("submit", "--follow", "--", *words).returncode == 2


def test_a_run_over_two_machines_outlives_one_of_them(wire: Wire, npz: Path) -> None:
    run = RunDirectory(open_storage(wire.storage) / "outlives")
    steps = 1500
    words = submit(
        wire, npz, "outlives", "--steps", str(steps), "--checkpoint-every", str(EVERY), "--keep", "100",
        "--workers", "1:2", "--wait", "60",
    )  # fmt: skip
    submitted = wire.head.infogan("submit", "--", *words)
    assert submitted.returncode == 0, submitted.stderr
    id = submitted.stdout.strip()
    until(lambda: run.get_status().get("stored", 0) >= 2 * EVERY)
    reached = run.get_status()["step"]
    wire.machines[1].kill()
    ended = wire.head.infogan("jobs", "logs", id, "--follow", timeout=400)
    assert ended.returncode == 0, ended.stdout
    status = run.get_status()
    assert status["state"] == "finished" and status["restarts"] >= 1
    assert checkpoints.choose(run.checkpoints, "last", "step").step == steps
    rows = list(run.read_metrics())
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows}), "every step once, in order"
    [resumed] = [line for line in ended.stdout.splitlines() if "resumed from step" in line]
    went_on_at = int(resumed.partition("resumed from step")[2].split()[0].strip(",.:;").replace(",", ""))
    assert reached - EVERY <= went_on_at, resumed
    assert "world size 1, before 2" in resumed


def test_a_machine_that_comes_later_is_waited_for(wire: Wire, npz: Path) -> None:
    """One of the two is gone, and two workers have room only when it is back."""
    wire.machines[1].kill()
    words = submit(wire, npz, "later", "--steps", "6", "--workers", "2", "--placement", "strict_spread")
    until(lambda: "more than the 1 CPUs there are" in wire.head.infogan("submit", "--follow", "--", *words).stdout)
    submitted = wire.head.infogan("submit", "--", *words, "--wait", "120")
    id = submitted.stdout.strip()
    until(lambda: "waiting for the cluster to grow" in wire.head.infogan("jobs", "logs", id).stdout)
    time.sleep(1)
    node = wire.start(wire.machines[1])
    try:
        ended = wire.head.infogan("jobs", "logs", id, "--follow")
        assert ended.returncode == 0, ended.stdout
    finally:
        node.kill()
