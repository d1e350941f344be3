"""infogan data prepare under Ray Data: killed, continued, and its shards streamed. Run: pytest -m ray"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 coloured photos in class folders; two are broken. They are large, so that a task takes some time."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0)
    for number in range(400):
        (folder / f"kind{number % 4}").mkdir(exist_ok=True)
        pixels = noise.integers(0, 256, (64, 48, 3), np.uint8)
        file = folder / f"kind{number % 4}" / f"{number:04d}.png"
        Image.fromarray(pixels).resize((640, 480)).save(file, compress_level=1)
    for number in (17, 200):
        (folder / f"kind{number % 4}" / f"{number:04d}.png").write_bytes(b"no picture")
    return folder


def command(photos: Path, dest: Path) -> list[str]:
    words = ["data", "prepare", str(photos), str(dest), "--image-size", "28", "--channels", "1", "--workers", "2"]
    return [sys.executable, "-m", "infogan_ray", *words, "--rows-per-shard", "10", "--rows-per-group", "8", "--json"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_a_killed_preparation_continues_to_equal_shards_and_they_are_streamed(photos: Path, tmp_path: Path) -> None:
    reference = subprocess.run(command(photos, tmp_path / "reference"), capture_output=True, text=True, timeout=120)
    assert reference.returncode == 0, reference.stderr
    assert "ray" not in reference.stderr.lower() and len(reference.stdout.splitlines()) == 1
    report = json.loads(reference.stdout)
    assert report["images"]["train"] + report["images"]["test"] == 398
    assert report["classes"] == 4 and report["broken"] == 2

    records = tmp_path / "killed" / ".progress"
    process = subprocess.Popen(
        command(photos, tmp_path / "killed"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    descendants: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 120
        while len(list(records.glob("0*.json"))) < 5 and process.poll() is None and time.monotonic() < deadline:
            descendants = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.02)
    finally:
        process.kill()
        for child in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.communicate()
    psutil.wait_procs(descendants, timeout=10)
    assert not (tmp_path / "killed" / "MANIFEST.json").exists()  # otherwise it finished before the kill
    before = len(list(records.glob("0*.json")))
    again = subprocess.run(command(photos, tmp_path / "killed"), capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert before >= 5 and 0 < json.loads(again.stdout)["made_now"] <= 400 - 10 * (before - 1)
    assert files(tmp_path / "killed") == files(tmp_path / "reference")

    train = [sys.executable, "-m", "infogan_ray", "train", "--data", str(tmp_path / "reference"), "--feed", "stream"]
    train += ["--workers", "2", "--steps", "6", "--batch-size", "32", "--network.width", "8", "--device", "cpu"]
    train += ["--checkpoint-every", "3", "--evaluation.samples", "200", "--codes", "noise=4 cat=4 uniform=1"]
    train += ["--threads", "1", "--storage", str(tmp_path), "--name", "streamed", "--json"]
    streamed = subprocess.run(train, capture_output=True, text=True, timeout=180)
    assert streamed.returncode == 0, streamed.stderr
    assert json.loads(streamed.stdout)["state"] == "finished" and "feed: streaming" in streamed.stderr

    prepared_again = subprocess.run(
        [*command(photos, tmp_path / "reference"), "--seed", "1", "--overwrite"], capture_output=True, timeout=120
    )
    assert prepared_again.returncode == 0
    resumed = subprocess.run([*train, "--resume", "--steps", "9"], capture_output=True, text=True, timeout=180)
    assert resumed.returncode == 2 and "prepared again since 'streamed' began" in resumed.stderr


@pytest.mark.slow
def test_too_many_broken_images_publish_nothing(photos: Path, tmp_path: Path) -> None:
    words = [*command(photos, tmp_path / "dest"), "--max-bad", "0.001"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("infogan: data: ") and "nothing was published" in last and "--max-bad" in last
    assert not (tmp_path / "dest" / "MANIFEST.json").exists()
