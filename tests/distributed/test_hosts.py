"""Several machines: network namespaces on one wire, each a host of its own to Ray, gloo and S3. Run: pytest -m ray

A machine that loses its power is all its processes killed at once, and a cable that is pulled a link that is down; what
stays is another machine's.
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
from tests.clusters import NETWORK, Head, Host, Node, hosts, make_head, may_make_hosts, short_folder, wait_for_door
from tests.distributed.test_submission import TINY, until
from tests.servers import BUCKET, CREDENTIALS, s3_server

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
    nodes: dict[str, Node]
    """By the host's name: what was started on it last."""
    start: Callable[[Host], Node]
    kill: Callable[[Host], None]
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
        head, token = make_head(f"http://{first.address}:8265", folder, GCS)

        nodes: dict[str, Node] = {}

        def start(host: Host) -> Node:
            disks = [disk, own] if host is machines[0] else [disk]
            words = [f"--address={first.address}:{GCS}", f"--node-ip-address={host.address}", "--num-cpus=1"]
            nodes[host.name] = Node(words, token, folder / f"{host.name}.log", host.prefix(*disks))
            return nodes[host.name]

        def kill(host: Host) -> None:
            nodes[host.name].kill()  # it may have come so lately that it is not on the host yet
            host.kill()

        words = ["--head", "--num-cpus=0", f"--port={GCS}", f"--node-ip-address={first.address}"]
        words += [f"--dashboard-host={first.address}", "--dashboard-port=8265", f"--temp-dir={disk}"]
        nodes[first.name] = Node(words, token, folder / "head.log", first.prefix(disk))
        wait_for_door(head.url, nodes[first.name])
        for machine in machines:
            start(machine)
        endpoint = f"endpoint_override={NETWORK}.1:{s3.port}&scheme=http&region=us-east-1"
        yield Wire(head, machines, nodes, start, kill, f"s3://{BUCKET}/hosts?{endpoint}", own)
        for node in nodes.values():
            node.kill()


def alive(head: Head) -> set[str]:
    """The addresses of the nodes that the head takes for alive."""
    request = urllib.request.Request(f"{head.url}/api/v0/nodes", headers={"Authorization": f"Bearer {head.token}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        nodes = json.load(answer)["data"]["result"]["result"]
    return {node["node_ip"] for node in nodes if node["state"] == "ALIVE"}


@pytest.fixture
def second(wire: Wire) -> Iterator[Host]:
    """The second machine, whatever became of it before."""
    machine = wire.machines[1]
    if not machine.pids:
        until(lambda: machine.address not in alive(wire.head))  # else it would be taken for the one that comes
        wire.start(machine)
    node = wire.nodes[machine.name]

    def joined() -> bool:
        assert node.process.poll() is None, f"Ray ended on {machine.address}: {node.log.read_text()[-2000:]}"
        return machine.address in alive(wire.head)

    until(joined)  # else a run of 1 to 2 workers may begin without it
    yield machine
    machine.link(up=True)
    wire.kill(machine)


def submit(wire: Wire, npz: Path, name: str, *words: str, storage: str | None = None) -> list[str]:
    return ["train", "--data", str(npz), *TINY, "--name", name, "--storage", storage or wire.storage, *words]


@pytest.mark.slow
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


def has_stored(wire: Wire, id: str, run: RunDirectory, step: int) -> None:
    """Wait for a checkpoint of this step or a later one."""
    try:
        until(lambda: run.get_status().get("stored", 0) >= step)
    except AssertionError:
        status, log = run.get_status(), wire.head.infogan("jobs", "logs", id).stdout
        raise AssertionError(f"no checkpoint of step {step}: {status}\n{log}") from None


def lose(wire: Wire, machine: Host, how: str) -> None:
    if how == "killed":
        wire.kill(machine)
    else:
        machine.link(up=False)


def finished(wire: Wire, id: str, run: RunDirectory, steps: int) -> str:
    """Follow a job that has lost a machine to its end, which is whole; what it has said."""
    ended = wire.head.infogan("jobs", "logs", id, "--follow", timeout=400)
    assert ended.returncode == 0, ended.stdout
    status = run.get_status()
    assert status["state"] == "finished" and status["restarts"] >= 1
    assert checkpoints.choose(run.checkpoints, "last", "step", lower_is_better=False).step == steps
    rows = [row["step"] for row in run.read_metrics()]
    assert rows == sorted(set(rows)), "every step once, in order"
    return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_a_run_over_two_machines_outlives_one_of_them(wire: Wire, second: Host, npz: Path, how: str) -> None:
    name = how.replace(" ", "-")
    run = RunDirectory(open_storage(wire.storage) / name)
    steps = 1500
    words = submit(
        wire, npz, name, "--steps", str(steps), "--checkpoint-every", str(EVERY), "--keep", "100",
        "--workers", "1:2", "--wait", "60",
    )  # fmt: skip
    submitted = wire.head.infogan("submit", "--", *words)
    assert submitted.returncode == 0, submitted.stderr
    id = submitted.stdout.strip()
    has_stored(wire, id, run, 2 * EVERY)
    reached = run.get_status()["step"]
    lose(wire, second, how)
    said = finished(wire, id, run, steps)
    [resumed] = [line for line in said.splitlines() if "resumed from step" in line]
    went_on_at = int(resumed.partition("resumed from step")[2].split()[0].strip(",.:;").replace(",", ""))
    assert reached - EVERY <= went_on_at, resumed
    assert "world size 1, before 2" in resumed


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_one_worker_goes_on_on_another_machine(wire: Wire, second: Host, npz: Path, how: str) -> None:
    """A worker group of one, whichever machine Ray gave it."""
    name = f"one-{how.replace(' ', '-')}"
    run = RunDirectory(open_storage(wire.storage) / name)
    steps = 1500
    words = submit(wire, npz, name, "--steps", str(steps), "--checkpoint-every", str(EVERY), "--keep", "100")
    id = wire.head.infogan("submit", "--", *words).stdout.strip()
    has_stored(wire, id, run, 2 * EVERY)
    [place] = [machine for machine in wire.machines if machine.runs("RayTrainWorker")]
    try:
        lose(wire, place, how)
        finished(wire, id, run, steps)
        assert run.get_status()["restarts"] == 1
    finally:
        place.link(up=True)
        wire.kill(place)
        if place is not second:
            until(lambda: place.address not in alive(wire.head))
            wire.start(place)
            until(lambda: place.address in alive(wire.head))


@pytest.mark.slow
def test_a_machine_that_died_just_before_refuses_no_job(wire: Wire, second: Host, npz: Path) -> None:
    """Ray counts it for some seconds more, and it can neither be asked what it sees nor given the worker."""
    wire.kill(second)
    words = submit(wire, npz, "beside-a-dead-one", "--steps", "6")
    ended = wire.head.infogan("submit", "--follow", "--", *words)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.slow
def test_a_machine_that_comes_later_is_waited_for(wire: Wire, second: Host, npz: Path) -> None:
    """One of the two is gone, and two workers have room only when it is back."""
    wire.kill(second)
    words = submit(wire, npz, "later", "--steps", "6", "--workers", "2", "--placement", "strict_spread")
    until(lambda: "more than the 1 CPUs there are" in wire.head.infogan("submit", "--follow", "--", *words).stdout)
    submitted = wire.head.infogan("submit", "--", *words, "--wait", "120")
    id = submitted.stdout.strip()
    until(lambda: "waiting for the cluster to grow" in wire.head.infogan("jobs", "logs", id).stdout)
    time.sleep(1)
    wire.start(second)
    ended = wire.head.infogan("jobs", "logs", id, "--follow")
    assert ended.returncode == 0, ended.stdout
