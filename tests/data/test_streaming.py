"""The streaming feed over real shards: what it deals, holds, and how it fails.

Run: pytest tests/data/test_streaming.py
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infogan_ray.data.datasets import load_images
from infogan_ray.data.feeds import streaming
from infogan_ray.data.feeds.streaming import StreamingFeed, plan
from infogan_ray.data.shards.dataset import ShardSet
from infogan_ray.storage import checkpoints
from infogan_ray.storage.file_system import StorageError, open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.worker import run_worker
from tests.conftest import tiny_config, tiny_images
from tests.prepared import ENCODED, RAW, numbered, numbers, write_shards
from tests.training.test_step import run_alone

PIXELS = 16  # bytes of a numbered image
LAYOUTS: dict[str, tuple[list[list[int]], str, int]] = {
    # rows of the row groups of each shard, encoding, rows of all windows together
    "many small windows": ([[7, 7, 7, 3], [9] * 6, [5, 1], [8] * 5], RAW, 80),
    "windows of everything": ([[7, 7, 7, 3], [9] * 6, [5, 1], [8] * 5], RAW, 10_000),
    "fewer groups than lanes": ([[40], [30, 21]], RAW, 24),
    "one group": ([[101]], RAW, 16),
    "encoded": ([[20, 20], [20, 5]], ENCODED, 32),
    "one more than batches": ([[16] * 7, [1]], RAW, 64),
}


@pytest.fixture
def opened() -> Iterator[Callable[..., StreamingFeed]]:
    feeds: list[StreamingFeed] = []

    def open_feed(shards: ShardSet, batch_size: int, rows: int = 10_000, **more: Any) -> StreamingFeed:
        feed = StreamingFeed(shards, 4, 1, batch_size, more.pop("seed", 3), window_bytes=rows * PIXELS, **more)
        feeds.append(feed)
        return feed

    yield open_feed
    for feed in feeds:
        feed.close()
    assert not [t for t in threading.enumerate() if t.name == "infogan-feed"], "each reader has ended"


def written(layout: str, folder: Path) -> tuple[ShardSet, int, int]:
    groups, encoding, rows = LAYOUTS[layout]
    count = sum(map(sum, groups))
    return write_shards(folder / "shards", numbered(count), groups, encoding=encoding), count, rows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_row_comes_once_an_epoch_and_the_ranks_deal_one_batch(
    layout: str, tmp_path: Path, opened: Callable[..., StreamingFeed]
) -> None:
    shards, count, rows = written(layout, tmp_path)
    whole = opened(shards, 16, rows)
    steps = whole.steps_per_epoch
    assert steps == count // 16
    batches = [whole.batch(step) for step in range(3 * steps)]
    assert all(batch.shape == (16, 1, 4, 4) and batch.dtype == torch.uint8 for batch in batches)
    epochs = [numbers(torch.cat(batches[e * steps : (e + 1) * steps])) for e in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == steps * 16 and set(epoch) <= set(range(count)), "a row came twice, or from nowhere"
    assert epochs[0] != epochs[1] != epochs[2]
    if count % 16:
        left_out = {frozenset(range(count)) - frozenset(epoch) for epoch in epochs}
        assert len(left_out) > 1, "what an epoch left out comes in the next"
    for world in (2, 3, 16):
        ranks = [opened(shards, 16, rows, rank=rank, world_size=world) for rank in range(world)]
        for step in range(0, 2 * steps, 1 if world < 4 else steps):
            assert torch.equal(torch.cat([rank.batch(step) for rank in ranks]), batches[step])
        for rank in ranks:
            rank.close()


@pytest.mark.parametrize("layout", ["many small windows", "one group"])
def test_any_step_can_be_read_first(layout: str, tmp_path: Path, opened: Callable[..., StreamingFeed]) -> None:
    shards, _, rows = written(layout, tmp_path)
    feed = opened(shards, 16, rows)
    in_order = [feed.batch(step) for step in range(3 * feed.steps_per_epoch)]
    for step in (feed.steps_per_epoch, 2 * feed.steps_per_epoch + 1, 1):
        assert torch.equal(opened(shards, 16, rows).batch(step), in_order[step])
    for step in (5, 2, 3, 0):
        assert torch.equal(feed.batch(step), in_order[step]), "back and forth in one feed"
    assert not torch.equal(opened(shards, 16, rows, seed=4).batch(0), in_order[0])


def test_two_and_four_ranks_read_different_row_groups(
    tmp_path: Path, opened: Callable[..., StreamingFeed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for a row group that lies across the border of two lanes."""
    shards = write_shards(tmp_path / "shards", numbered(1600), [[20] * 20] * 4)
    seen: set[tuple[str, int]] = set()
    real = streaming.read_group

    def noted(shards: ShardSet, shard: Any, number: int, *size: int) -> Any:
        seen.add((shard.file, number))
        return real(shards, shard, number, *size)

    monkeypatch.setattr(streaming, "read_group", noted)
    for world in (1, 2, 4):
        read = []
        for rank in range(world):
            seen.clear()
            feed = opened(shards, 16, 100, rank=rank, world_size=world)
            for step in range(feed.steps_per_epoch - 3):  # the last ones have a window of the next epoch read
                feed.batch(step)
            feed.close()
            read.append(set(seen))
        assert len(set.union(*read)) > 60 and sum(map(len, read)) - len(set.union(*read)) < world * 8


def test_a_sorted_dataset_is_mixed(tmp_path: Path, opened: Callable[..., StreamingFeed]) -> None:
    """Ten classes one after the other, in row groups of one class each: as many as there are in the windows."""
    count = 6000
    shards = write_shards(tmp_path / "shards", numbered(count), [[100] * 20] * 3)

    def kinds(feed: StreamingFeed) -> list[np.ndarray]:
        return [np.bincount(np.array(numbers(feed.batch(s))) // 600, minlength=10) for s in range(feed.steps_per_epoch)]

    several = kinds(opened(shards, 60, 1600))  # 16 of 60 row groups at a time: 8.2 kinds in the mean by chance
    assert np.mean([(batch > 0).sum() for batch in several]) > 7.5
    assert np.mean([batch.max() for batch in several]) < 20
    everything = np.stack(kinds(opened(shards, 60)))
    # Multinomial of 60 among 10 has a variance of 5.4; that of draws from 8 lanes of 7 or 8 groups each is near it.
    assert everything.var(0).mean() < 8 and np.mean((everything > 0).sum(1)) > 9.5


def test_no_more_than_two_windows_per_lane_are_held_whatever_the_size(
    tmp_path: Path, opened: Callable[..., StreamingFeed], monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: list[weakref.ref[torch.Tensor]] = []
    real = streaming._Reader._read

    def watched(reader: Any, window: Any) -> Any:
        images, order = real(reader, window)
        windows.append(weakref.ref(images))
        return images, order

    def alive() -> int:
        """Rows of all windows that are still in memory."""
        return sum(len(images) for window in list(windows) if (images := window()) is not None)

    monkeypatch.setattr(streaming._Reader, "_read", watched)
    peaks = []
    for times in (1, 4):
        shards = write_shards(tmp_path / str(times), numbered(800 * times), [[10] * 20] * 4 * times)
        feed = opened(shards, 16, 160)
        held = []
        for step in range(2 * feed.steps_per_epoch):
            feed.batch(step)
            held.append(alive())
            assert all(len(lane.held) <= 2 for lane in feed.lanes)
        feed.close()
        gc.collect()
        assert not alive(), "a closed feed holds nothing"
        peaks.append(max(held))
    assert 0 < peaks[0] <= 320 and 0 < peaks[1] <= 320


def test_the_next_window_is_read_before_it_is_asked_for(
    tmp_path: Path, opened: Callable[..., StreamingFeed], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(tmp_path / "shards", numbered(1600), [[10] * 40] * 4)
    feed = opened(shards, 16, 160)
    feed.batch(0)
    deadline = time.monotonic() + 20
    while not all(future.done() for lane in feed.lanes for future in lane.held.values()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [len(lane.held) for lane in feed.lanes] == [2] * 8

    def gone(*_: Any) -> Any:
        raise AssertionError("read again")

    monkeypatch.setattr(streaming, "read_group", gone)
    for step in range(1, 15):  # two windows of 20 rows are ten steps each: all but what comes after them is there
        feed.batch(step)


def test_a_broken_shard_is_said_in_one_line_by_the_batch_that_needs_it(
    tmp_path: Path, opened: Callable[..., StreamingFeed]
) -> None:
    shards = write_shards(tmp_path / "shards", numbered(320), [[20] * 8, [20] * 8])
    path = tmp_path / "shards" / "train-00001.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    feed = opened(shards, 16, 160)
    for _ in range(2):  # and again by the next one
        with pytest.raises(StorageError, match=r"train-00001\.parquet.*(corrupt|cannot be read)") as said:
            for step in range(feed.steps_per_epoch):
                feed.batch(step)
        assert "\n" not in str(said.value) and not said.value.transient
    path.unlink()
    with pytest.raises(StorageError, match=r"train-00001\.parquet is missing"):
        opened(shards, 16, 160).batch(2)


def test_an_outage_is_waited_for_and_close_does_not_wait(
    tmp_path: Path, opened: Callable[..., StreamingFeed], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(tmp_path / "shards", numbered(64), [[8] * 8])
    real, failures = streaming.read_group, [0]

    def away(*given: Any) -> Any:
        failures[0] += 1
        if failures[0] < 4:
            raise StorageError("bucket is away", transient=True)
        return real(*given)

    monkeypatch.setattr(streaming, "read_group", away)
    assert len(set(numbers(opened(shards, 16).batch(0)))) == 16 and failures[0] > 4

    begun = threading.Event()

    def for_ever(*_: Any) -> Any:
        begun.set()
        time.sleep(0.01)
        raise StorageError("bucket is away", transient=True)

    monkeypatch.setattr(streaming, "read_group", for_ever)
    feed = opened(shards, 16)
    waiting = threading.Thread(target=_swallow, args=(feed,))
    waiting.start()
    assert begun.wait(10)
    feed.close()
    waiting.join(10)
    assert not waiting.is_alive(), "whoever waited for a batch continues"
    monkeypatch.setattr(streaming, "PATIENCE_S", 0.05)
    with pytest.raises(StorageError, match="bucket is away"):
        opened(shards, 16).batch(0)


def _swallow(feed: StreamingFeed) -> None:
    with contextlib.suppress(BaseException):
        feed.batch(0)


def test_a_feed_that_nobody_closes_leaves_no_thread(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", numbered(64), [[8] * 8])
    feed = StreamingFeed(shards, 4, 1, 16, 0)
    feed.batch(0)
    reader = feed._reader._thread
    del feed
    gc.collect()
    reader.join(10)
    assert not reader.is_alive()


def test_each_epoch_has_another_order_of_row_groups() -> None:
    firsts = {plan([10] * 40, 10, 4, 40, seed=1, epoch=epoch)[0][0].pieces[0].group for epoch in range(8)}
    assert len(firsts) > 3


def test_a_plan_covers_each_lane_by_whole_windows() -> None:
    lanes = plan([30, 5, 5, 5, 12, 40, 3], 10, 4, 12, seed=1, epoch=0)
    assert [lane[-1].end for lane in lanes] == [20, 30, 20, 30]  # shares 2, 3, 2, 3 of ten batches
    for lane in lanes:
        assert lane[0].first == 0 and all(b.first == a.end for a, b in pairwise(lane))
        assert all(window.rows <= 12 or len(window.pieces) == 1 for window in lane)


def bars(folder: Path) -> Path:
    images, labels = tiny_images(100)
    write_shards(folder, images[:, None], [[20, 10], [30], [40]], labels=labels, test=20)
    return folder


def test_a_killed_run_that_is_resumed_equals_an_undisturbed_one(tmp_path: Path) -> None:
    """Six steps an epoch, so that the run is killed in the second step of one and continues in the last but one."""
    path = bars(tmp_path / "shards")
    config = tiny_config(data=str(path), feed="stream", steps=8, checkpoint_every=4, log_every=1)
    config = config.override({"augment": {"flip": True, "shift": 0.1}}, "test")
    images = load_images(str(path), config.data_config, feed="stream")
    assert images.count == 100 and images.test_images is not None and len(images.test_images) == 20
    whole, reports = run_alone(config, images, tmp_path / "whole")
    assert reports[-1].metrics["clustering_error"] >= 0 and reports[-1].metrics["swd"] > 0, "the sample is evaluated"

    killed = RunDirectory(open_storage(tmp_path / "killed"))
    killed.write_config(whole.read_config())
    steps = run_worker(config, images, killed, device=torch.device("cpu"))
    for report in steps:
        if report.metrics.get("step") == 7:
            break
    steps.close()
    assert not [t for t in threading.enumerate() if t.name == "infogan-feed"], "the reader has gone with the run"
    last = checkpoints.last_valid(killed.checkpoints, print)
    assert last is not None and last.step == 4
    run_alone(config, images, tmp_path / "killed")
    wanted, found = (checkpoints.open_checkpoint(run.checkpoints / "step_00000008") for run in (whole, killed))
    for mine, theirs in (
        (wanted.model_tensors(), found.model_tensors()), (wanted.training_tensors(), found.training_tensors()),
    ):  # fmt: skip
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_broken_shard_ends_a_run_in_one_line(tmp_path: Path) -> None:
    from infogan_ray.training.checkpoint_uploader import StorageFailed

    path = bars(tmp_path / "shards")
    images = load_images(str(path), feed="stream")
    (path / "train-00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(StorageFailed, match=r"train-00002\.parquet.*(corrupt|cannot be read|smaller)"):
        run_alone(tiny_config(data=str(path)), images, tmp_path / "run")
