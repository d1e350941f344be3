"""The test part of labelled images that have none of their own. Run: pytest tests/data/test_hold_out.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infogan_ray.data.datasets import DataConfig, load_images
from infogan_ray.data.hold_out import EVERY_SEVENTH, NONE, STRATIFIED, held_out
from infogan_ray.data.preparation.shard_plan import plan_shards
from infogan_ray.data.preparation.shard_source import open_source


def rows(count: int) -> list[str]:
    return [f"photos/{row}" for row in range(count)]


def by_label(labels: list[int]) -> list[int]:
    """How many images of each label are held out."""
    held = held_out(STRATIFIED, rows(len(labels)), np.array(labels))
    return np.bincount(np.array(labels)[held], minlength=max(labels) + 1).tolist()


def test_a_seventh_of_each_class_is_held_out_in_any_order() -> None:
    assert by_label([expression for _ in range(20) for expression in range(7)]) == [3] * 7
    assert by_label([0] * 120 + [1] * 3 + [2]) == [17, 1, 0], "the only image of a class is trained on"
    assert by_label([0] * 70 + [1] * 7) == [10, 1]
    assert by_label([0, 1] * 6) == [0, 0], "too few images"


def test_only_names_decide_and_not_their_order_or_folder() -> None:
    labels = np.arange(140) % 3
    held = held_out(STRATIFIED, rows(140), labels)
    chosen = {name for name, is_held in zip(rows(140), held, strict=True) if is_held}
    order = np.random.default_rng(0).permutation(140)
    names = [rows(140)[row] for row in order]
    again = held_out(STRATIFIED, names, labels[order])
    assert {name for name, is_held in zip(names, again, strict=True) if is_held} == chosen
    moved = held_out(STRATIFIED, [f"elsewhere/{name}" for name in rows(140)], labels)
    assert moved.tolist() == held.tolist()
    assert np.flatnonzero(held)[:6].tolist() == [3, 11, 19, 20, 23, 26], "the same in all versions: runs continue"
    assert np.unique(np.flatnonzero(held) % 7).size == 7, "not the images at a fixed distance"


def test_the_rule_of_earlier_versions_and_no_rule() -> None:
    labels = np.zeros(23, np.int64)
    assert np.flatnonzero(held_out(EVERY_SEVENTH, rows(23), labels)).tolist() == [6, 13, 20]
    assert not held_out(NONE, rows(23), labels).any()
    assert not held_out(STRATIFIED, rows(23), None).any(), "nothing is measured without labels"
    with pytest.raises(ValueError, match="hold_out is 'half'; valid are stratified, every_seventh, none"):
        DataConfig(hold_out="half")


def test_prepared_data_and_data_in_memory_hold_out_the_same_images(tmp_path: Path) -> None:
    for number in range(42):
        folder = tmp_path / "photos" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), number).save(folder / f"{number:02}.png")
    config = DataConfig(image_size=16, channels=1)
    found = load_images(str(tmp_path / "photos"), config, lambda line: None)
    assert found.test_images is not None and found.test_labels is not None
    assert found.test_labels.bincount().tolist() == [2, 2, 2] and len(found.images) == 36
    plan = plan_shards(open_source(str(tmp_path / "photos"), config, lambda line: None), "raw", 16, 1)
    (part,) = plan.parts
    held = [int(Path(name).stem) for row, name in enumerate(part.source.names) if part.split_of(row) == "test"]
    assert held == found.test_images[:, 0, 0, 0].tolist()
    assert (plan.count("train"), plan.count("test"), plan.request["hold_out"]) == (36, 6, STRATIFIED)
    everything = DataConfig(image_size=16, channels=1, hold_out=NONE)
    whole = load_images(str(tmp_path / "photos"), everything, lambda line: None)
    assert whole.test_images is None and torch.equal(whole.images[:, 0, 0, 0].sort()[0], torch.arange(42).byte())
