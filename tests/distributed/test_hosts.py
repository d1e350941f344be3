"""Several machines: network namespaces on one bridge, each a separate host for Ray, gloo and S3. Run: pytest -m ray

A power failure is all processes of a host killed at once. An unplugged cable is a link that is down.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infogan_ray.storage import checkpoints
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from tests.clusters import NETWORK, Head, Host, Node, can_create_hosts, hosts, make_head, short_folder, wait_for_api
from tests.distributed.test_submission import TINY, until
from tests.servers import BUCKET, CREDENTIALS, s3_server

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not can_create_hosts(), reason="network namespaces need root, Linux and iproute2"),
]

EVERY = 100
GCS = 6379


@dataclass
class Cluster:
    """A head without CPUs and two machines with one CPU each. Only the first machine sees the folder ``own``."""

    head: Head
    machines: list[Host]
    nodes: dict[str, Node]
    """The last node started on each host, by the host's name."""
    start: Callable[..., Node]
    kill: Callable[[Host], None]
    storage: str
    own: Path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    own = tmp_path_factory.mktemp("own")
    with (
        short_folder() as folder, hosts(3) as (first, *machines),
        s3_server(folder / "s3", f"{NETWORK}.1") as s3, pytest.MonkeyPatch.context() as patch,
    ):  # fmt: skip
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        disk = folder / "ray"  # Ray's files. Each machine needs its own disk, because it deletes old files there
        disk.mkdir()
        head, token = make_head(f"http://{first.address}:8265", folder, GCS)

        nodes: dict[str, Node] = {}

        def start(host: Host, cpus: int = 1) -> Node:
            disks = [disk, own] if host is machines[0] else [disk]
            words = [f"--address={first.address}:{GCS}", f"--node-ip-address={host.address}", f"--num-cpus={cpus}"]
            nodes[host.name] = Node(words, token, folder / f"{host.name}.log", host.prefix(*disks))
            return nodes[host.name]

        def kill(host: Host) -> None:
            nodes[host.name].kill()  # a new node may not be on the host yet
            host.kill()

        words = ["--head", "--num-cpus=0", f"--port={GCS}", f"--node-ip-address={first.address}"]
        words += [f"--dashboard-host={first.address}", "--dashboard-port=8265", f"--temp-dir={disk}"]
        nodes[first.name] = Node(words, token, folder / "head.log", first.prefix(disk))
        wait_for_api(head.url, nodes[first.name])
        for machine in machines:
            start(machine)
        endpoint = f"endpoint_override={NETWORK}.1:{s3.port}&scheme=http&region=us-east-1"
        yield Cluster(head, machines, nodes, start, kill, f"s3://{BUCKET}/hosts?{endpoint}", own)
        for node in nodes.values():
            node.kill()


def alive(head: Head) -> set[str]:
    """The addresses of the nodes that the head lists as alive."""
    request = urllib.request.Request(f"{head.url}/api/v0/nodes", headers={"Authorization": f"Bearer {head.token}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        nodes = json.load(answer)["data"]["result"]["result"]
    return {node["node_ip"] for node in nodes if node["state"] == "ALIVE"}


@pytest.fixture
def second(cluster: Cluster) -> Iterator[Host]:
    """The second machine. It is restarted if an earlier test killed it."""
    machine = cluster.machines[1]
    if not machine.pids:
        # Otherwise the old node would be taken for the new one.
        until(lambda: machine.address not in alive(cluster.head))
        cluster.start(machine)
    node = cluster.nodes[machine.name]

    def joined() -> bool:
        assert node.process.poll() is None, f"Ray ended on {machine.address}: {node.log.read_text()[-2000:]}"
        return machine.address in alive(cluster.head)

    until(joined)  # otherwise a run of 1 to 2 workers may start without it
    yield machine
    machine.link(up=True)
    cluster.kill(machine)


def submit(cluster: Cluster, npz: Path, name: str, *words: str, storage: str | None = None) -> list[str]:
    return ["train", "--data", str(npz), *TINY, "--name", name, "--storage", storage or cluster.storage, *words]


@pytest.mark.slow
def test_a_folder_that_only_one_machine_sees_is_refused_before_training(cluster: Cluster, npz: Path) -> None:
    """A folder that all machines see is accepted. Here only that folder is not shared."""
    words = submit(cluster, npz, "apart", "--steps", "6", "--wait", "60", "--workers", "2", storage=str(cluster.own))
    answer = cluster.head.infogan("submit", "--follow", "--", *words)
    assert answer.returncode == 2, answer.stdout
    without = cluster.machines[0].address
    message = f"storage is '{cluster.own}', but 1 of the 2 other machines ({without}) does not see it; give"
    assert message in answer.stdout and not list(cluster.own.iterdir())
    words = submit(cluster, cluster.own / "none.npz", "apart", "--steps", "6", storage=str(cluster.own))
    assert cluster.head.infogan("submit", "--follow", "--", *words).returncode == 2


def wait_for_checkpoint(cluster: Cluster, id: str, run: RunDirectory, step: int) -> None:
    """Wait for a checkpoint of this step or a later one."""
    try:
        until(lambda: run.get_status().get("stored", 0) >= step)
    except AssertionError:
        status, log = run.get_status(), cluster.head.infogan("jobs", "logs", id).stdout
        raise AssertionError(f"no checkpoint of step {step}: {status}\n{log}") from None


def lose(cluster: Cluster, machine: Host, how: str) -> None:
    if how == "killed":
        cluster.kill(machine)
    else:
        machine.link(up=False)


def wait_for_finish(cluster: Cluster, id: str, run: RunDirectory, steps: int) -> str:
    """Follow a job that lost a machine until it ends, and check its result. Returns its output."""
    ended = cluster.head.infogan("jobs", "logs", id, "--follow", timeout=400)
    assert ended.returncode == 0, ended.stdout
    status = run.get_status()
    assert status["state"] == "finished" and status["restarts"] >= 1
    assert checkpoints.choose(run.checkpoints, "last", "step", lower_is_better=False).step == steps
    rows = [row["step"] for row in run.read_metrics()]
    assert rows == sorted(set(rows)), "every step once, in order"
    return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_a_run_on_two_machines_continues_after_one_is_lost(cluster: Cluster, second: Host, npz: Path, how: str) -> None:
    name = how.replace(" ", "-")
    run = RunDirectory(open_storage(cluster.storage) / name)
    steps = 1500
    words = submit(
        cluster, npz, name, "--steps", str(steps), "--checkpoint-every", str(EVERY), "--keep", "100",
        "--workers", "1:2", "--wait", "60",
    )  # fmt: skip
    submitted = cluster.head.infogan("submit", "--", *words)
    assert submitted.returncode == 0, submitted.stderr
    id = submitted.stdout.strip()
    wait_for_checkpoint(cluster, id, run, 2 * EVERY)
    reached = run.get_status()["step"]
    lose(cluster, second, how)
    output = wait_for_finish(cluster, id, run, steps)
    [resumed] = [line for line in output.splitlines() if "resumed from step" in line]
    resumed_at = int(resumed.partition("resumed from step")[2].split()[0].strip(",.:;").replace(",", ""))
    assert reached - EVERY <= resumed_at, resumed
    assert "world size 1, before 2" in resumed


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_one_worker_continues_on_another_machine(cluster: Cluster, second: Host, npz: Path, how: str) -> None:
    """A group of one worker, on either machine."""
    name = f"one-{how.replace(' ', '-')}"
    run = RunDirectory(open_storage(cluster.storage) / name)
    steps = 1500
    words = submit(cluster, npz, name, "--steps", str(steps), "--checkpoint-every", str(EVERY), "--keep", "100")
    id = cluster.head.infogan("submit", "--", *words).stdout.strip()
    wait_for_checkpoint(cluster, id, run, 2 * EVERY)
    [machine] = [host for host in cluster.machines if host.runs("RayTrainWorker")]
    try:
        lose(cluster, machine, how)
        wait_for_finish(cluster, id, run, steps)
        assert run.get_status()["restarts"] == 1
    finally:
        machine.link(up=True)
        cluster.kill(machine)
        if machine is not second:
            until(lambda: machine.address not in alive(cluster.head))
            cluster.start(machine)
            until(lambda: machine.address in alive(cluster.head))


@pytest.mark.slow
def test_a_machine_that_died_just_before_blocks_no_job(cluster: Cluster, second: Host, npz: Path) -> None:
    """Ray lists it as alive for some seconds. It can neither check the storage nor run the worker."""
    cluster.kill(second)
    words = submit(cluster, npz, "beside-a-dead-one", "--steps", "6")
    ended = cluster.head.infogan("submit", "--follow", "--", *words)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.slow
def test_a_run_waits_for_a_machine_that_joins_later(cluster: Cluster, second: Host, npz: Path) -> None:
    """One of two machines is gone. Two workers have room only after it returns."""
    cluster.kill(second)
    words = submit(cluster, npz, "later", "--steps", "6", "--workers", "2", "--placement", "strict_spread")
    until(lambda: "more than the 1 available CPUs" in cluster.head.infogan("submit", "--follow", "--", *words).stdout)
    submitted = cluster.head.infogan("submit", "--", *words, "--wait", "120")
    id = submitted.stdout.strip()
    until(lambda: "waiting for the cluster to grow" in cluster.head.infogan("jobs", "logs", id).stdout)
    time.sleep(1)
    cluster.start(second)
    ended = cluster.head.infogan("jobs", "logs", id, "--follow")
    assert ended.returncode == 0, ended.stdout


@pytest.mark.slow
def test_an_elastic_run_follows_machines_that_come_and_go(cluster: Cluster, second: Host, npz: Path) -> None:
    """One machine with a CPU stays. Another with three CPUs comes twice and goes twice."""
    cluster.kill(second)
    until(lambda: second.address not in alive(cluster.head))
    run = RunDirectory(open_storage(cluster.storage) / "elastic")
    words = submit(
        cluster, npz, "elastic", "--steps", "100000", "--batch-size", "12", "--checkpoint-every", "50",
        "--workers", "1:4", "--wait", "60", "--resize-every", "5",
    )  # fmt: skip
    id = cluster.head.infogan("submit", "--", *words).stdout.strip()

    def changes() -> list[str]:
        lines = cluster.head.infogan("jobs", "logs", id).stdout.splitlines()
        return [line.partition("world size ")[2] for line in lines if "resumed from step" in line]

    expected = []
    wait_for_checkpoint(cluster, id, run, 50)
    for change in ("4, before 1", "1, before 4", "4, before 1", "1, before 4"):
        if change.startswith("4"):
            cluster.start(second, 3)
        else:
            cluster.kill(second)
        expected.append(change)
        until(lambda: changes() == expected, 240)
        wait_for_checkpoint(cluster, id, run, run.get_status()["stored"] + 50)
    assert cluster.head.infogan("jobs", "stop", id).returncode == 0
    rows = [row["step"] for row in run.read_metrics()]
    assert rows == sorted(set(rows)), "every step once, in order"
