"""The streaming feed: reads a prepared dataset during training. Its memory does not grow with the dataset.

The batch of step S depends only on (dataset, seed, S), not on the number of ranks or on earlier reads. So a resumed run
needs no saved position, and the global batch is the same for any world size.

1. Each epoch permutes the row groups, and the rows of each row group.
2. In this order, without the last N mod B rows, the rows are divided into LANES lanes. Each lane has its rows of every
   batch.
3. Within a lane, each window of consecutive row groups is permuted as a whole.

The windows of all lanes together have WINDOW_BYTES, unless single row groups are larger. A rank holds at most two
windows of each of its lanes: the current one and the next one, which a thread reads in advance.

A rank reads the lanes with rows of its part of the batch. With 1, 2, 4 or 8 ranks, no lane is read twice, and only row
groups on the border of two lanes are. With another number, two ranks may share a lane, and both read it. With more
ranks than lanes, each rank of a lane reads the whole lane and keeps its own rows.

Ray Data is not used here. The order of its rows depends on its workers. So it cannot start at a given step, and cannot
give the same batch to any number of ranks. It would also start more processes beside the trainer's.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.feeds.memory import share
from infogan_ray.data.shards.dataset import ShardSet, read_group
from infogan_ray.models.rng import seeded_generator
from infogan_ray.storage.file_system import StorageError

LANES = 8
WINDOW_BYTES = 256 * 1024**2  # of decoded images, in all lanes together
RETRY_TIMEOUT_S = 120.0  # how long reads are retried while storage is unavailable; training waits
ATTEMPT_S = 1.0  # limit of one attempt to read; between attempts the reader checks whether it must stop
STOP_TIMEOUT_S = 10.0  # how long to wait for the reader to stop


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` to ``stop`` of a row group, in the order of the epoch."""

    group: int
    start: int
    stop: int


@dataclass(frozen=True)
class Window:
    """Consecutive pieces of a lane, permuted as a whole. ``first``: its first row, counted in the lane."""

    epoch: int
    lane: int
    number: int
    first: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        return sum(piece.stop - piece.start for piece in self.pieces)

    @property
    def end(self) -> int:
        return self.first + self.rows


def count_lanes(groups: int, batch_size: int) -> int:
    """The number of lanes: LANES, but at most one per row of a batch and one per row group."""
    return min(LANES, batch_size, groups)


def plan(groups: list[int], batch_size: int, lanes: int, window_rows: int, seed: int, epoch: int) -> list[list[Window]]:
    """The windows of each lane in an epoch. ``groups``: the rows of each row group, in the order of the manifest."""
    order = torch.randperm(len(groups), generator=seeded_generator(seed, "shards", epoch)).tolist()
    steps = sum(groups) // batch_size
    ends = [steps * share(batch_size, lane, lanes).stop for lane in range(lanes)]
    pieces: list[list[Piece]] = [[] for _ in range(lanes)]
    lane = position = 0
    for group in order:
        start = 0
        while start < groups[group] and lane < lanes:
            stop = min(groups[group], start + ends[lane] - position)
            pieces[lane].append(Piece(group, start, stop))
            position, start = position + stop - start, stop
            lane += position == ends[lane]
    return [_windows(of_lane, epoch, lane, window_rows) for lane, of_lane in enumerate(pieces)]


def _windows(pieces: list[Piece], epoch: int, lane: int, window_rows: int) -> list[Window]:
    windows: list[Window] = []
    taken: list[Piece] = []
    first = row = 0
    for piece in pieces:
        rows = piece.stop - piece.start
        if taken and row + rows - first > window_rows:
            windows.append(Window(epoch, lane, len(windows), first, tuple(taken)))
            taken, first = [], row
        taken.append(piece)
        row += rows
    return [*windows, Window(epoch, lane, len(windows), first, tuple(taken))]


class StreamingFeed:
    """Gives each rank its rows of ``batch_size`` images per step, from the training split of a prepared dataset."""

    def __init__(
        self, shards: ShardSet, image_size: int, channels: int, batch_size: int, seed: int, rank: int = 0,
        world_size: int = 1, window_bytes: int = WINDOW_BYTES,
    ) -> None:  # fmt: skip
        count = shards.count()
        assert world_size <= batch_size <= count
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = count // batch_size
        self._groups = [shard.groups[number] for shard, number in shards.groups]
        self._lane_count = count_lanes(len(self._groups), batch_size)
        self._window_rows = max(1, window_bytes // self._lane_count // (channels * image_size**2))
        self._plans: dict[int, list[list[Window]]] = {}
        self._reader = _Reader(shards, image_size, channels, seed)
        weakref.finalize(self, self._reader.stop)  # if the feed is never closed
        own_rows = share(batch_size, rank, world_size)
        self.lanes: list[Lane] = []
        for number in range(self._lane_count):
            whole = share(batch_size, number, self._lane_count)
            start, stop = max(own_rows.start, whole.start), min(own_rows.stop, whole.stop)
            rows = range(start - whole.start, stop - whole.start)
            if rows:
                self.lanes.append(Lane(number, whole.stop - whole.start, rows, self._windows_of, self._reader.request))

    def batch(self, step: int) -> Tensor:
        """This rank's uint8 images (B / world size, C, H, W) of a step.

        Waits until the rows are read. Raises StorageError for broken shards, and if storage remains unavailable.
        """
        assert not self._reader.stopping.is_set(), "the feed is closed"
        epoch, position = divmod(step, self.steps_per_epoch)
        for lane in self.lanes:  # this step's windows are requested before those of later steps
            lane.seek(epoch, position)
        return torch.cat([lane.take(epoch, position) for lane in self.lanes])

    def close(self) -> None:
        """Stop the reader. It may be called more than once."""
        self._reader.stop()
        for lane in self.lanes:
            lane.held.clear()

    def _windows_of(self, epoch: int, lane: int) -> list[Window]:
        if epoch not in self._plans:
            self._plans = {known: plan for known, plan in self._plans.items() if abs(known - epoch) == 1}
            self._plans[epoch] = plan(
                self._groups, self.batch_size, self._lane_count, self._window_rows, self.seed, epoch
            )
        return self._plans[epoch][lane]


LoadedWindow = tuple[Tensor, Tensor]
"""A window's images (n, C, S, S), and its permutation (n,)."""


class Lane:
    """A rank's rows of one lane. The lane has ``width`` rows of each batch; this rank uses those in ``own_rows``."""

    def __init__(
        self, number: int, width: int, own_rows: range, windows: Callable[[int, int], list[Window]],
        request: Callable[[Window], Future[LoadedWindow]],
    ) -> None:  # fmt: skip
        self.number, self.width, self.own_rows = number, width, own_rows
        self.held: dict[tuple[int, int], Future[LoadedWindow]] = {}
        """By epoch and number: at most two windows, the current one and the next one."""
        self._windows, self._request = windows, request

    def seek(self, epoch: int, position: int) -> None:
        """Request the window with a step's first row."""
        row = position * self.width + self.own_rows.start
        windows = self._windows(epoch, self.number)
        self._hold(windows[bisect_right(windows, row, key=lambda window: window.first) - 1])

    def take(self, epoch: int, position: int) -> Tensor:
        """The rows of a step, after ``seek``. Also requests the next window."""
        row, stop = (position * self.width + end for end in (self.own_rows.start, self.own_rows.stop))
        windows = self._windows(epoch, self.number)
        number = bisect_right(windows, row, key=lambda window: window.first) - 1
        parts = []
        while row < stop:
            window = windows[number]
            self._hold(window)
            images, order = self._wait(window)
            end = min(stop, window.end)
            parts.append(images[order[row - window.first : end - window.first]])
            del images, order
            row, number = end, number + (end == window.end)
        current = windows[number] if number < len(windows) else self._windows(epoch + 1, self.number)[0]
        self._hold(current, self._after(current))
        return torch.cat(parts)

    def _after(self, window: Window) -> Window:
        windows = self._windows(window.epoch, self.number)
        if window.number + 1 < len(windows):
            return windows[window.number + 1]
        return self._windows(window.epoch + 1, self.number)[0]

    def _hold(self, window: Window, *others: Window) -> None:
        """Keep this window and the next one, if they are held, and release all others. Request missing windows."""
        after = self._after(window)
        kept = {(w.epoch, w.number) for w in (window, after)}
        for key in self.held.keys() - kept:
            self.held.pop(key).cancel()
        for wanted in (window, *others):
            if (wanted.epoch, wanted.number) not in self.held:
                self.held[wanted.epoch, wanted.number] = self._request(wanted)

    def _wait(self, window: Window) -> LoadedWindow:
        try:
            return self.held[window.epoch, window.number].result()
        except BaseException:
            del self.held[window.epoch, window.number]  # a later request reads it again
            raise


class _Reader:
    """Reads windows in a separate thread, in the order of the requests."""

    def __init__(self, shards: ShardSet, image_size: int, channels: int, seed: int) -> None:
        self.stopping = threading.Event()
        self._size, self._channels, self._seed = image_size, channels, seed
        self._groups = shards.groups
        self._shards = replace(shards, folder=shards.folder.with_retry_timeout(ATTEMPT_S))
        self._requests: queue.SimpleQueue[tuple[Window, Future[LoadedWindow]] | None] = queue.SimpleQueue()
        # A daemon thread: a read that hangs must not prevent Python's exit.
        self._thread = threading.Thread(target=self._work, name="infogan-feed", daemon=True)
        self._thread.start()

    def request(self, window: Window) -> Future[LoadedWindow]:
        future: Future[LoadedWindow] = Future()
        self._requests.put((window, future))
        if self.stopping.is_set():
            future.cancel()  # the thread may have stopped
        return future

    def stop(self) -> None:
        self.stopping.set()
        self._requests.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(STOP_TIMEOUT_S)

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            window, future = request
            if self.stopping.is_set():
                future.cancel()
            elif future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._read(window))
                except BaseException as error:  # raised in the thread that waits for the window
                    future.set_exception(error)
            del request, window, future  # else the waiting thread would keep the last window in memory

    def _read(self, window: Window) -> LoadedWindow:
        images = np.empty((window.rows, self._channels, self._size, self._size), np.uint8)
        position = 0
        for piece in window.pieces:
            shard, number = self._groups[piece.group]
            generator = seeded_generator(self._seed, f"rows/{piece.group}", window.epoch)
            rows = torch.randperm(shard.groups[number], generator=generator)[piece.start : piece.stop].numpy()
            images[position : position + len(rows)] = self._read_with_retries(piece.group)[rows]
            position += len(rows)
        generator = seeded_generator(self._seed, f"window/{window.lane}/{window.number}", window.epoch)
        return torch.from_numpy(images), torch.randperm(window.rows, generator=generator)

    def _read_with_retries(self, group: int) -> np.ndarray:
        shard, number = self._groups[group]
        deadline = time.monotonic() + RETRY_TIMEOUT_S
        while True:
            try:
                return read_group(self._shards, shard, number, self._size, self._channels)[0]
            except StorageError as error:
                if self.stopping.is_set() or not error.transient or time.monotonic() > deadline:
                    raise
            except UserError as error:  # damaged data: reading again does not help
                raise StorageError(str(error), transient=False) from None
