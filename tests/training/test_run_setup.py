"""A run starts, and continues only with the same data. Run: pytest tests/training/test_run_setup.py"""

from __future__ import annotations

from pathlib import Path

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
