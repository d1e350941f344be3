"""Which feed a run gets, and the line about it. Run: pytest tests/data/test_feed_policy.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from infogan_ray.cli.main import main
from infogan_ray.data.datasets import DataConfig, load_images
from infogan_ray.data.feeds.feed_policy import MemoryBudget, choose_feed, feed_line, make_feed
from infogan_ray.data.feeds.memory import InMemoryFeed
from infogan_ray.data.feeds.streaming import StreamingFeed
from infogan_ray.data.image_set import ImageSet
from infogan_ray.data.shards.sampling import read_rows
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from tests.conftest import tiny_config, tiny_images
from tests.prepared import ENCODED, RAW, numbered, numbers, write_shards

GB = 10**9


def test_auto_streams_images_larger_than_half_of_the_free_memory() -> None:
    assert choose_feed("auto", 4 * GB, MemoryBudget(10 * GB)) == "memory"
    assert choose_feed("auto", 4 * GB, MemoryBudget(10 * GB, copies=2)) == "stream", "each worker has a copy"
    assert choose_feed("auto", 6 * GB, MemoryBudget(10 * GB)) == "stream"
    assert (
        choose_feed("memory", 60 * GB, MemoryBudget(GB)) == "memory"
        and choose_feed("stream", 1, MemoryBudget(GB)) == "stream"
    )


def test_the_choice_and_its_reason_are_one_line(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", numbered(20), [[20]])
    streamed = load_images(str(tmp_path / "s"), feed="auto", budget=MemoryBudget(100))
    assert streamed.shards == shards and streamed.feed == "stream" and streamed.bytes == 20 * 16
    assert feed_line("auto", streamed, MemoryBudget(100)) == (
        "feed: streaming, 320 bytes of images against 100 bytes of free memory; --feed memory overrides"
    )
    held = load_images(str(tmp_path / "s"), feed="auto", budget=MemoryBudget(10**6, 2))
    assert held.feed == "memory" and numbers(held.images) == list(range(20))
    assert feed_line("auto", held, MemoryBudget(10**6, 2)) == (
        "feed: in memory, 320 bytes of images for each of 2 workers against 1.0 MB of free memory"
    )
    assert "as requested" in feed_line("memory", held, MemoryBudget(10))
    assert isinstance(make_feed(held, 8, 0), InMemoryFeed)
    feed = make_feed(streamed, 8, 0)
    assert isinstance(feed, StreamingFeed)
    feed.close()


def test_images_that_are_not_prepared_are_not_streamed(npz: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"feed is 'stream', .* is not; .*infogan data prepare"):
        load_images(str(npz), feed="stream")
    with pytest.raises(ValueError, match=r"MANIFEST"):
        load_images(f"file://{tmp_path}/nothing", feed="stream")
    with pytest.raises(ValueError, match=r"bars\.npz has .* against 10 bytes of free memory; .*infogan data prepare"):
        load_images(str(npz), feed="auto", budget=MemoryBudget(10))
    messages: list[str] = []
    load_images(str(npz), say=messages.append, feed="auto", budget=MemoryBudget(40_000))
    assert len(messages) == 1 and "which may not be enough" in messages[0]
    messages.clear()
    load_images(str(npz), say=messages.append, feed="memory", budget=MemoryBudget(10))
    assert len(messages) == 1, "requested memory is not refused"
    load_images(str(npz), say=messages.append, feed="auto", budget=MemoryBudget(10**9))
    assert len(messages) == 1


def test_raw_shards_are_streamed_unchanged_and_encoded_shards_need_a_size(tmp_path: Path) -> None:
    images, labels = tiny_images(40)
    write_shards(tmp_path / "raw", images[:, None], [[40]], labels=labels)
    write_shards(tmp_path / "png", images[:, None], [[40]], encoding=ENCODED)
    with pytest.raises(ValueError, match="image_size is 32, and the raw images"):
        load_images(str(tmp_path / "raw"), DataConfig(image_size=32), feed="stream")
    brought = load_images(str(tmp_path / "raw"), DataConfig(image_size=32))
    assert brought.images.shape == (40, 1, 32, 32) and brought.labels is not None
    with pytest.raises(ValueError, match=r"image_size is not set.*--image-size"):
        load_images(str(tmp_path / "png"), feed="stream")
    streamed = load_images(str(tmp_path / "png"), DataConfig(image_size=16, channels=3), feed="stream")
    assert streamed.images.shape == (40, 3, 16, 16) and streamed.labels is None
    assert len(load_images(str(tmp_path / "raw"), feed="stream", sample=0).images) == 0


@pytest.mark.parametrize("encoding", [RAW, ENCODED])
def test_a_sample_is_spread_over_the_split(encoding: str, tmp_path: Path) -> None:
    kinds = np.arange(2000) // 200
    shards = write_shards(tmp_path / "s", numbered(2000), [[20] * 50] * 2, labels=kinds, encoding=encoding)
    images, labels = read_rows(shards, "train", 4, 1, 300)
    found = numbers(images)
    assert labels is not None and len(set(found)) == 300 and labels.tolist() == [n // 200 for n in found]
    assert torch.bincount(labels[:100], minlength=10).min() > 0, "the order is random"
    assert torch.equal(read_rows(shards, "train", 4, 1, 300)[0], images), "always the same"
    assert numbers(read_rows(shards, "train", 4, 1)[0]) == list(range(2000))


def test_the_image_count_comes_from_the_shards_not_the_sample(tmp_path: Path) -> None:
    write_shards(tmp_path / "s", numbered(50), [[25, 25]])
    images = load_images(str(tmp_path / "s"), feed="stream", sample=5)
    assert len(images.images) == 5 and images.count == 50
    config = tiny_config(data="s", batch_size=50)
    assert config.total_steps(images.count) == 6
    with pytest.raises(ValueError, match="batch_size is 64, more than the 50 images"):
        tiny_config(data="s", batch_size=64).total_steps(images.count)


def test_a_resumed_run_keeps_its_feed(image_set: ImageSet, tmp_path: Path) -> None:
    from infogan_ray.training.run_setup import resolve_feed

    saved = tiny_config(feed="stream", storage=str(tmp_path))
    RunDirectory(open_storage(tmp_path / "tiny")).write_config({"run": saved.to_dict()})
    assert resolve_feed(tiny_config(storage=str(tmp_path), resume=True)) == "stream"
    assert resolve_feed(tiny_config(storage=str(tmp_path), resume=True, feed="stream")) == "stream"
    with pytest.raises(ValueError, match=r"feed is 'memory', and tiny has read its images by 'stream'.*leave --feed"):
        resolve_feed(tiny_config(storage=str(tmp_path), resume=True, feed="memory"))
    older = {name: value for name, value in saved.to_dict().items() if name != "feed"}
    RunDirectory(open_storage(tmp_path / "tiny")).write_config({"run": older})
    assert resolve_feed(tiny_config(storage=str(tmp_path), resume=True)) == "memory", "saved by a version with one feed"
    assert resolve_feed(tiny_config(storage=str(tmp_path / "new"), resume=True)) == "auto"


def test_a_dry_run_shows_the_feed(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, _ = tiny_images(96)
    write_shards(tmp_path / "s", images[:, None], [[48, 48]])
    words = ["train", "--steps", "2", "--batch-size", "16", "--storage", str(tmp_path / "runs"), "--dry-run"]
    assert main([*words, "--data", str(tmp_path / "s"), "--feed", "stream"]) == 0
    output = capsys.readouterr().out
    assert "data: 96 images 16x16x1" in output and "feed: streaming, as requested; 24.6 kB of images against" in output
    assert main([*words, "--data", str(npz)]) == 0
    assert "feed: in memory, 20.7 kB of images against" in capsys.readouterr().out
    assert main([*words, "--data", str(npz), "--feed", "stream"]) == 2
    output = capsys.readouterr().err
    assert "infogan data prepare" in output and len(output.strip().splitlines()) == 1
