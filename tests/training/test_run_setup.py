"""How a run begins, and continues: with the data that it had. Run: pytest tests/training/test_run_setup.py"""

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


def test_a_run_goes_on_with_the_data_that_it_began_with(npz: Path, tmp_path: Path) -> None:
    config = tiny_config(data=str(npz), storage=str(tmp_path), name="run")
    images = check_data(config, ROOM)
    heard: list[str] = []

    def go_on(found: ImageSet) -> RunConfig:
        heard.clear()
        config_then, _ = prepare_run(resumed, found, ROOM, lambda report: heard.append(report.get("say", "")))
        return config_then

    resumed = config
    go_on(images)
    resumed = config.override({"resume": True}, "the test")
    go_on(images)
    assert not any("not the same" in line for line in heard)

    darker = ImageSet("bars", images.images // 2, images.labels, images.test_images, images.test_labels)
    go_on(darker)
    assert f"the images of {npz} are as many as when run began, but they are not the same" in heard
    fewer = ImageSet("bars", images.images[1:], None, images.test_images, None)
    with pytest.raises(ValueError, match=r"is not what it was when 'run' began \(83 images, and 82 now\): its images"):
        go_on(fewer)
    assert torch.equal(check_data(config, ROOM).images, images.images)
