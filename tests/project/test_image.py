"""The image is built and used. As root: INFOGAN_BUILD_IMAGE=1 pytest -m slow tests/project/test_image.py

`make image` reads its variables from the environment (cluster/build-image.sh). INFOGAN_IMAGE=NAME tests an image that
buildah has already, instead of building one. It needs buildah, runc and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from tests.clusters import ROOT, hosts, short_folder
from tests.containers import Container, Image, mounted

BUILT = "localhost/infogan-ray:tested"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        os.environ.get("INFOGAN_BUILD_IMAGE") != "1" and "INFOGAN_IMAGE" not in os.environ,
        reason="INFOGAN_BUILD_IMAGE=1 builds the image",
    ),
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("buildah", "runc", "ip"))),
        reason="containers need root, buildah, runc and iproute2",
    ),
]
STARTS_WITHIN_S, STOPS_WITHIN_S = 120, 10


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    name = os.environ.get("INFOGAN_IMAGE", BUILT)
    if "INFOGAN_IMAGE" not in os.environ:
        subprocess.run(["make", "image", f"TAG={BUILT}"], cwd=ROOT, check=True)
    with mounted(name) as found:
        yield found


@pytest.fixture
def folder(image: Image, npz: Path) -> Iterator[Path]:
    """A folder that the image's user can write to, with images in it."""
    with short_folder() as folder:
        shutil.copy(npz, folder / "bars.npz")
        folder.chmod(0o755)
        os.chown(folder, *image.user)
        yield folder


@pytest.fixture
def start(image: Image) -> Iterator[Callable[..., Container]]:
    with contextlib.ExitStack() as stack:

        def started(*given: object, **named: object) -> Container:
            container = Container(image, *given, **named)  # type: ignore[arg-type]
            stack.callback(container.close)
            return container

        yield started


def train(folder: Path, *more: str) -> list[str]:
    words = ["infogan", "train", "--data", str(folder / "bars.npz"), "--codes", "noise=4 cat=3", "--batch-size", "16"]
    words += ["--network.width", "8", "--evaluation.samples", "200", "--threads", "1", "--device", "cpu"]
    return [*words, "--storage", str(folder / "runs"), "--name", "run", *more]


def wait_for(text: str, container: Container) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while text not in container.log.read_text():
        assert time.monotonic() < deadline and container.process.poll() is None, container.log.read_text()
        time.sleep(0.2)


def test_a_run_of_the_images_user_writes_to_its_storage_alone(folder: Path, start: Callable[..., Container]) -> None:
    container = start(folder, train(folder, "--steps", "4"))
    assert container.process.wait(timeout=200) == 0, container.log.read_text()
    run = RunDirectory(open_storage(folder / "runs") / "run")
    assert run.get_status()["state"] == "finished"
    assert (folder / "runs" / "run" / "report.html").stat().st_uid == os.stat(folder).st_uid != 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_stops_a_container_with_a_checkpoint(
    workers: str, folder: Path, start: Callable[..., Container]
) -> None:
    container = start(folder, train(folder, "--steps", "100000", "--workers", workers))
    wait_for("nats", container)
    container.kill("TERM")
    assert container.process.wait(timeout=STOPS_WITHIN_S) == 130, container.log.read_text()
    status = RunDirectory(open_storage(folder / "runs") / "run").get_status()
    assert status["state"] == "interrupted" and status["stored"] == status["step"] > 0


def test_nodes_in_two_containers_find_each_other_with_the_token(folder: Path, start: Callable[..., Container]) -> None:
    token = {"RAY_AUTH_TOKEN": "a" * 64}
    node = ["ray", "start", "--block", "--disable-usage-stats", "--num-cpus=1", "--object-store-memory=100000000"]
    with hosts(3) as (first, second, third):
        address = f"{first.address}:6379"
        join = [*node, f"--address={address}"]
        head = start(
            folder, [*node, "--head", "--port=6379", f"--node-ip-address={first.address}"], first.name, token
        )  # fmt: skip
        wait_for("Ray runtime started", head)
        worker = start(folder, [*join, f"--node-ip-address={second.address}"], second.name, token)
        wait_for("Ray runtime started", worker)
        stranger = start(
            folder, [*join, f"--node-ip-address={third.address}"], third.name, {"RAY_AUTH_TOKEN": "b" * 64}
        )
        words = train(folder, "--steps", "8", "--workers", "2", "--placement", "strict_spread")
        done = head.run("env", f"RAY_ADDRESS={address}", *words)
        assert done.returncode == 0, done.stderr
        assert RunDirectory(open_storage(folder / "runs") / "run").get_status()["state"] == "finished"
        assert stranger.process.wait(timeout=STARTS_WITHIN_S) != 0, "a node without the token does not join"
        assert worker.process.poll() is None and head.process.poll() is None
