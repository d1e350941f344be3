"""The streaming feed over real shards: its batches, its memory, and how it fails.

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
    # rows per row group of each shard, encoding, rows of all windows together
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
def test_each_row_comes_once_an_epoch_and_ranks_share_one_global_batch(
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
        assert len(set(epoch)) == steps * 16 and set(epoch) <= set(range(count)), "a row is repeated or unknown"
    assert epochs[0] != epochs[1] != epochs[2]
    if count % 16:
        left_out = {frozenset(range(count)) - frozenset(epoch) for epoch in epochs}
        assert len(left_out) > 1, "the next epoch leaves out other rows"
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
        assert torch.equal(feed.batch(step), in_order[step]), "steps in any order from the same feed"
    assert not torch.equal(opened(shards, 16, rows, seed=4).batch(0), in_order[0])


def test_two_and_four_ranks_read_different_row_groups(
    tmp_path: Path, opened: Callable[..., StreamingFeed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except for a row group that spans two lanes."""
    shards = write_shards(tmp_path / "shards", numbered(1600), [[20] * 20] * 4)
    seen: set[tuple[str, int]] = set()
    real = streaming.read_group

    def recording_read(shards: ShardSet, shard: Any, number: int, *size: int) -> Any:
        seen.add((shard.file, number))
        return real(shards, shard, number, *size)

    monkeypatch.setattr(streaming, "read_group", recording_read)
    for world in (1, 2, 4):
        read = []
        for rank in range(world):
            seen.clear()
            feed = opened(shards, 16, 100, rank=rank, world_size=world)
            for step in range(feed.steps_per_epoch - 3):  # the last steps read ahead into the next epoch
                feed.batch(step)
            feed.close()
            read.append(set(seen))
        assert len(set.union(*read)) > 60 and sum(map(len, read)) - len(set.union(*read)) < world * 8


def test_a_sorted_dataset_is_mixed(tmp_path: Path, opened: Callable[..., StreamingFeed]) -> None:
    """Rows are sorted by class, and each row group has one class. A batch mixes all classes in the windows."""
    count = 6000
    shards = write_shards(tmp_path / "shards", numbered(count), [[100] * 20] * 3)

    def kinds(feed: StreamingFeed) -> list[np.ndarray]:
        return [np.bincount(np.array(numbers(feed.batch(s))) // 600, minlength=10) for s in range(feed.steps_per_epoch)]

    # 16 of 60 row groups at a time: random order would give 8.2 kinds on average.
    several = kinds(opened(shards, 60, 1600))
    assert np.mean([(batch > 0).sum() for batch in several]) > 7.5
    assert np.mean([batch.max() for batch in several]) < 20
    everything = np.stack(kinds(opened(shards, 60)))
    # A multinomial of 60 rows over 10 classes has a variance of 5.4; sampling from 8 lanes is close to it.
    assert everything.var(0).mean() < 8 and np.mean((everything > 0).sum(1)) > 9.5


def test_at_most_two_windows_per_lane_are_in_memory(
    tmp_path: Path, opened: Callable[..., StreamingFeed], monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: list[weakref.ref[torch.Tensor]] = []
    real = streaming._Reader._read

    def tracked_read(reader: Any, window: Any) -> Any:
        images, order = real(reader, window)
        windows.append(weakref.ref(images))
        return images, order

    def alive() -> int:
        """Rows of all windows in memory."""
        return sum(len(images) for window in list(windows) if (images := window()) is not None)

    monkeypatch.setattr(streaming._Reader, "_read", tracked_read)
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


def test_the_next_window_is_read_ahead(
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

    def fail_if_read(*_: Any) -> Any:
        raise AssertionError("read again")

    monkeypatch.setattr(streaming, "read_group", fail_if_read)
    for step in range(1, 15):  # two windows of 20 rows are ten steps each; both are already read
        feed.batch(step)


def test_the_batch_that_needs_a_broken_shard_fails_with_one_line(
    tmp_path: Path, opened: Callable[..., StreamingFeed]
) -> None:
    shards = write_shards(tmp_path / "shards", numbered(320), [[20] * 8, [20] * 8])
    path = tmp_path / "shards" / "train-00001.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    feed = opened(shards, 16, 160)
    for _ in range(2):  # the next batch fails, too
        with pytest.raises(StorageError, match=r"train-00001\.parquet.*(corrupt|cannot be read)") as error:
            for step in range(feed.steps_per_epoch):
                feed.batch(step)
        assert "\n" not in str(error.value) and not error.value.transient
    path.unlink()
    with pytest.raises(StorageError, match=r"train-00001\.parquet is missing"):
        opened(shards, 16, 160).batch(2)


def test_a_feed_waits_for_an_outage_to_end_and_close_does_not_wait(
    tmp_path: Path, opened: Callable[..., StreamingFeed], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(tmp_path / "shards", numbered(64), [[8] * 8])
    real, failures = streaming.read_group, [0]

    def unavailable_at_first(*given: Any) -> Any:
        failures[0] += 1
        if failures[0] < 4:
            raise StorageError("bucket is unavailable", transient=True)
        return real(*given)

    monkeypatch.setattr(streaming, "read_group", unavailable_at_first)
    assert len(set(numbers(opened(shards, 16).batch(0)))) == 16 and failures[0] > 4

    started = threading.Event()

    def always_unavailable(*_: Any) -> Any:
        started.set()
        time.sleep(0.01)
        raise StorageError("bucket is unavailable", transient=True)

    monkeypatch.setattr(streaming, "read_group", always_unavailable)
    feed = opened(shards, 16)
    waiting = threading.Thread(target=_swallow, args=(feed,))
    waiting.start()
    assert started.wait(10)
    feed.close()
    waiting.join(10)
    assert not waiting.is_alive(), "a thread that waits for a batch ends"
    monkeypatch.setattr(streaming, "RETRY_TIMEOUT_S", 0.05)
    with pytest.raises(StorageError, match="bucket is unavailable"):
        opened(shards, 16).batch(0)


def _swallow(feed: StreamingFeed) -> None:
    with contextlib.suppress(BaseException):
        feed.batch(0)


def test_an_unclosed_feed_leaves_no_thread(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", numbered(64), [[8] * 8])
    feed = StreamingFeed(shards, 4, 1, 16, 0)
    feed.batch(0)
    reader = feed._reader._thread
    del feed
    gc.collect()
    reader.join(10)
    assert not reader.is_alive()


def test_each_epoch_has_a_different_order_of_row_groups() -> None:
    firsts = {plan([10] * 40, 10, 4, 40, seed=1, epoch=epoch)[0][0].pieces[0].group for epoch in range(8)}
    assert len(firsts) > 3


def test_a_plan_covers_each_lane_by_whole_windows() -> None:
    lanes = plan([30, 5, 5, 5, 12, 40, 3], 10, 4, 12, seed=1, epoch=0)
    assert [lane[-1].end for lane in lanes] == [20, 30, 20, 30]  # shares of ten batches: 2, 3, 2, 3
    for lane in lanes:
        assert lane[0].first == 0 and all(b.first == a.end for a, b in pairwise(lane))
        assert all(window.rows <= 12 or len(window.pieces) == 1 for window in lane)


def bars(folder: Path) -> Path:
    images, labels = tiny_images(100)
    write_shards(folder, images[:, None], [[20, 10], [30], [40]], labels=labels, test=20)
    return folder


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Six steps an epoch: the run is killed in step 2 of an epoch and continues in step 5."""
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
    assert not [t for t in threading.enumerate() if t.name == "infogan-feed"], "the reader ends with the run"
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
