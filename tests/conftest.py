"""Shared by all test modules: a tiny model and images that need no download."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import infogan_ray.distributed  # noqa: F401  # before any test imports ray, so that Ray is on loopback alone
from infogan_ray.data.image_set import ImageSet
from infogan_ray.training.config import RunConfig
from tests.servers import CREDENTIALS, SECRET, Proxy, RecordingProxy, S3Server, s3_server

# Parallel tests (pytest -n) use one thread each: with more, waiting threads take cores from working ones.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
# Ray Train detects a frozen worker after this many seconds; outside tests after a minute.
ENVIRONMENT_OF_TESTS = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "10"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kuberay-schemas", help="folder with KubeRay's schemas, which the manifests are checked against")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test that uses the S3 server, so that ``-m 'not s3 and not ray'`` starts no server."""
    for item in items:
        if isinstance(item, pytest.Function) and "s3" in item.fixturenames:
            item.add_marker("s3")


def tiny_images(count: int = 96, size: int = 16, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Bright bars at one of three heights: uint8 (N, H, W). A label is the index of a height."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    images = rng.integers(0, 40, (count, size, size), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * label + 2 : 4 * label + 5] += 180
    return images, labels


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    images, labels = tiny_images()
    path = tmp_path / "bars.npz"
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture
def image_set() -> ImageSet:
    return make_image_set()


def make_image_set() -> ImageSet:
    images, labels = tiny_images()
    tensor = torch.from_numpy(images).unsqueeze(1)
    return ImageSet("bars", tensor, torch.from_numpy(labels), tensor[:30], torch.from_numpy(labels[:30]))


def tiny_config(**changes: object) -> RunConfig:
    base = RunConfig(
        codes="noise=4 cat=3 uniform=1", steps=6, batch_size=16, checkpoint_every=3, log_every=2, device="cpu",
        precision="fp32", name="tiny", threads=1,
    )  # fmt: skip
    network = dataclasses.replace(base.network, width=8)
    evaluation = dataclasses.replace(base.evaluation, samples=200)
    return dataclasses.replace(base, network=network, evaluation=evaluation, **changes)  # type: ignore[arg-type]


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own in memory, with mount options such as size=4m. Skips the test where it cannot mount."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this process may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def write_keys(file: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a key to a file of credentials, which then replaces those of the environment."""
    file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One real S3 server for all tests that need it; its credentials are in the environment."""
    os.environ.update(CREDENTIALS)
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[Proxy]:
    """A proxy in front of the S3 server; a test selects how it fails."""
    proxy = Proxy(s3.port)
    yield proxy
    proxy.close()


@pytest.fixture
def recording_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingProxy]:
    """A proxy for all schemes in the environment, with a password."""
    proxy = RecordingProxy()
    with proxy.serve():
        for scheme in ("http", "https", "all"):
            monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)
            monkeypatch.setenv(f"{scheme}_proxy", f"http://me:password@127.0.0.1:{proxy.port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "")  # so that what a test sets is undone
            monkeypatch.delenv(name)
        yield proxy
        urllib.request.install_opener(None)  # urlopen's own opener keeps the proxies of its first call


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One embedded local Ray for all tests that need it. Its workers have the S3 server's credentials."""
    import ray

    from infogan_ray.distributed.cluster import connection

    os.environ.update(CREDENTIALS | connection.ENVIRONMENT | ENVIRONMENT_OF_TESTS)
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run, created once. Tests copy it and do not change it."""
    from tests.training.test_step import run_alone

    path = tmp_path_factory.mktemp("finished") / "tiny"
    run_alone(tiny_config(), make_image_set(), path)
    return path
