"""A run starts, and continues only with the same data. Run: pytest tests/training/test_run_setup.py"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from infogan_ray.data.feeds.feed_policy import MemoryBudget
from infogan_ray.data.image_set import ImageSet
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_setup import check_data, prepare_run
from tests.conftest import tiny_config

ROOM = MemoryBudget(2**34)


def test_a_run_continues_only_with_the_same_data(npz: Path, tmp_path: Path) -> None:
    config = tiny_config(data=str(npz), storage=str(tmp_path), name="run")
    images = check_data(config, ROOM)
    messages: list[str] = []

    def prepare(found: ImageSet) -> RunConfig:
        messages.clear()
        prepared, _ = prepare_run(resumed, found, ROOM, lambda report: messages.append(report.get("say", "")))
        return prepared

    resumed = config
    prepare(images)
    resumed = config.override({"resume": True}, "the test")
    prepare(images)
    assert not any("have changed" in line for line in messages)

    darker = ImageSet("bars", images.images // 2, images.labels, images.test_images, images.test_labels)
    prepare(darker)
    assert f"the images of {npz} have changed since run began; their number is the same" in messages
    fewer = ImageSet("bars", images.images[1:], None, images.test_images, None)
    with pytest.raises(ValueError, match=r"has changed since 'run' began \(83 images, and 82 now\): its images"):
        prepare(fewer)
    assert torch.equal(check_data(config, ROOM).images, images.images)


def wide_arrays(path: Path, most: int) -> str:
    np.save(path, np.linspace(0, most, 40 * 16 * 16).reshape(40, 16, 16).astype(np.uint16))
    return str(path)


def setup(config: RunConfig) -> tuple[RunConfig, ImageSet, list[str]]:
    messages: list[str] = []
    images = check_data(config, ROOM, messages.append)
    prepared, _ = prepare_run(config, images, ROOM, lambda report: messages.append(report.get("say", "")))
    return prepared, images, messages


def test_the_pixel_range_that_was_found_is_recorded_and_kept(tmp_path: Path) -> None:
    data = wide_arrays(tmp_path / "a.npy", 4000)
    config = tiny_config(data=data, storage=str(tmp_path / "runs"), name="run")
    prepared, first, _ = setup(config)
    assert prepared.pixel_range == "0:4095" and prepared.fit == "crop"
    resumed = config.override({"resume": True}, "the test")
    wide_arrays(tmp_path / "a.npy", 5000)
    again, images, messages = setup(resumed)
    assert again.pixel_range == "0:4095" and images.images.max() == 255 and images.images[39].min() == 255
    assert any("pixel_range is 0:4095, as run began" in line for line in messages)
    wide_arrays(tmp_path / "a.npy", 4000)
    assert torch.equal(setup(resumed)[1].images, first.images)
    for changes, message in (
        ({"pixel_range": "0:255"}, "pixel_range is '0:255', and run has read its images with '0:4095'"),
        ({"fit": "pad"}, "fit is 'pad', and run has read its images with 'crop'; leave --fit out"),
    ):
        with pytest.raises(ValueError, match=message):
            check_data(resumed.override(changes, "the test"), ROOM)


def test_a_run_of_an_earlier_version_still_squeezes_its_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.random.default_rng(0).integers(0, 256, (40, 16, 24), dtype=np.uint8))
    config = tiny_config(data=str(tmp_path / "a.npz"), image_size=16, storage=str(tmp_path / "runs"), name="run")
    _, squeezed, _ = setup(config.override({"fit": "squeeze"}, "the test"))
    file = tmp_path / "runs" / "run" / "config.json"
    saved = json.loads(file.read_text())
    del saved["run"]["fit"], saved["run"]["pixel_range"]
    file.write_text(json.dumps(saved))
    prepared, images, messages = setup(config.override({"resume": True}, "the test"))
    assert prepared.fit == "squeeze" and torch.equal(images.images, squeezed.images)
    assert "data: fit is squeeze, as run began" in messages
    assert not any("have changed" in line for line in messages)
