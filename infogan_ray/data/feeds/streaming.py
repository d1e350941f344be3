"""The streaming feed: reads a prepared dataset while training runs, in memory that does not grow with the dataset.

The batch of step S is a function of (dataset, seed, S) alone. It depends neither on the number of ranks nor on what was
read before. So a resumed run needs no saved position, and the global batch is the same for any world size.

1. Each epoch permutes the row groups, and the rows of each.
2. In this order, without the last N mod B rows, they are divided into LANES. Lane l gives its rows of every batch.
3. Within a lane, a window of consecutive row groups is permuted as a whole.

All lanes' windows together have WINDOW_BYTES, unless single row groups are larger than their part of it. A rank holds
at most two windows of each of its lanes: the current one, and the next one, which a thread reads meanwhile.

A rank reads the lanes that hold rows of its part of the batch. With 1, 2, 4 or 8 ranks no lane is read twice, and no
row group but those on the border of two lanes. With another number, two ranks may share a lane, and both read it. With
more ranks than lanes, the ranks of a lane each read all of it and keep their rows.

Ray Data is not used here. The order of its rows depends on its workers, so it can neither begin at a given step nor
give the same batch to any number of ranks. It would also run processes of its own beside the trainer's.
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
WINDOW_BYTES = 256 * 1024**2  # of decoded images, over all lanes
PATIENCE_S = 120.0  # for storage that is unavailable; training waits meanwhile
ATTEMPT_S = 1.0  # for one attempt to read; between two attempts the reader checks whether it shall stop
LEAVE_S = 10.0  # for the reader to end


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` to ``stop`` of a row group, as the epoch orders them."""

    group: int
    start: int
    stop: int


@dataclass(frozen=True)
class Window:
    """Consecutive pieces of a lane, permuted as one. ``first``: the lane's row at which it begins."""

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
    """LANES, or fewer: each needs a row of every batch, and with fewer row groups all would read the same ones."""
    return min(LANES, batch_size, groups)


def plan(groups: list[int], batch_size: int, lanes: int, window_rows: int, seed: int, epoch: int) -> list[list[Window]]:
    """The windows of each lane in an epoch, from the rows of all row groups in the manifest's order."""
    order = torch.randperm(len(groups), generator=seeded_generator(seed, "shards", epoch)).tolist()
    steps = sum(groups) // batch_size
    ends = [steps * share(batch_size, lane, lanes).stop for lane in range(lanes)]
    cut: list[list[Piece]] = [[] for _ in range(lanes)]
    lane = at = 0
    for group in order:
        start = 0
        while start < groups[group] and lane < lanes:
            stop = min(groups[group], start + ends[lane] - at)
            cut[lane].append(Piece(group, start, stop))
            at, start = at + stop - start, stop
            lane += at == ends[lane]
    return [_windows(pieces, epoch, lane, window_rows) for lane, pieces in enumerate(cut)]


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
        weakref.finalize(self, self._reader.stop)  # if the feed was never closed
        mine = share(batch_size, rank, world_size)
        self.lanes: list[Lane] = []
        for number in range(self._lane_count):
            whole = share(batch_size, number, self._lane_count)
            rows = range(max(mine.start, whole.start) - whole.start, min(mine.stop, whole.stop) - whole.start)
            if rows:
                self.lanes.append(Lane(number, whole.stop - whole.start, rows, self._windows_of, self._reader.ask))

    def batch(self, step: int) -> Tensor:
        """This rank's uint8 images (B / world size, C, H, W) of a step.

        Waits for rows that are not read yet. Raises StorageError for broken shards and for storage that stays
        unavailable.
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


Held = tuple[Tensor, Tensor]
"""A window's images (n, C, S, S), and its permutation (n,)."""


class Lane:
    """A rank's rows of one lane: of the ``width`` that the lane gives to each batch, those in ``mine``."""

    def __init__(
        self, number: int, width: int, mine: range, windows: Callable[[int, int], list[Window]],
        ask: Callable[[Window], Future[Held]],
    ) -> None:  # fmt: skip
        self.number, self.width, self.mine = number, width, mine
        self.held: dict[tuple[int, int], Future[Held]] = {}
        """By epoch and number: two windows at most, the current one and the next."""
        self._windows, self._ask = windows, ask

    def seek(self, epoch: int, position: int) -> None:
        """Request the window in which a step begins."""
        row = position * self.width + self.mine.start
        windows = self._windows(epoch, self.number)
        self._hold(windows[bisect_right(windows, row, key=lambda window: window.first) - 1])

    def take(self, epoch: int, position: int) -> Tensor:
        """The rows of a step, after ``seek``. Requests the next window as soon as the one before is released."""
        row, stop = (position * self.width + end for end in (self.mine.start, self.mine.stop))
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

    def _hold(self, window: Window, *more: Window) -> None:
        """Keep this window and the next one, if they are held, and release all others. Request what is missing."""
        after = self._after(window)
        kept = {(w.epoch, w.number) for w in (window, after)}
        for key in self.held.keys() - kept:
            self.held.pop(key).cancel()
        for wanted in (window, *more):
            if (wanted.epoch, wanted.number) not in self.held:
                self.held[wanted.epoch, wanted.number] = self._ask(wanted)

    def _wait(self, window: Window) -> Held:
        try:
            return self.held[window.epoch, window.number].result()
        except BaseException:
            del self.held[window.epoch, window.number]  # a later request reads it again
            raise


class _Reader:
    """Reads windows in a thread of its own, in the order in which they are requested."""

    def __init__(self, shards: ShardSet, image_size: int, channels: int, seed: int) -> None:
        self.stopping = threading.Event()
        self._size, self._channels, self._seed = image_size, channels, seed
        self._groups = shards.groups
        self._shards = replace(shards, folder=shards.folder.with_retry_timeout(ATTEMPT_S))
        self._asked: queue.SimpleQueue[tuple[Window, Future[Held]] | None] = queue.SimpleQueue()
        # A daemon: a read that hangs must not keep Python from ending.
        self._thread = threading.Thread(target=self._work, name="infogan-feed", daemon=True)
        self._thread.start()

    def ask(self, window: Window) -> Future[Held]:
        future: Future[Held] = Future()
        self._asked.put((window, future))
        if self.stopping.is_set():
            future.cancel()  # the thread may have ended
        return future

    def stop(self) -> None:
        self.stopping.set()
        self._asked.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(LEAVE_S)

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            window, future = asked
            if self.stopping.is_set():
                future.cancel()
            elif future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._read(window))
                except BaseException as error:  # passed to whoever waits for the window
                    future.set_exception(error)
            del asked, window, future  # else the thread would hold the last window while it waits

    def _read(self, window: Window) -> Held:
        images = np.empty((window.rows, self._channels, self._size, self._size), np.uint8)
        at = 0
        for piece in window.pieces:
            shard, number = self._groups[piece.group]
            draw = seeded_generator(self._seed, f"rows/{piece.group}", window.epoch)
            rows = torch.randperm(shard.groups[number], generator=draw)[piece.start : piece.stop].numpy()
            images[at : at + len(rows)] = self._patiently(piece.group)[rows]
            at += len(rows)
        draw = seeded_generator(self._seed, f"window/{window.lane}/{window.number}", window.epoch)
        return torch.from_numpy(images), torch.randperm(window.rows, generator=draw)

    def _patiently(self, group: int) -> np.ndarray:
        shard, number = self._groups[group]
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return read_group(self._shards, shard, number, self._size, self._channels)[0]
            except StorageError as error:
                if self.stopping.is_set() or not error.transient or time.monotonic() > deadline:
                    raise
            except UserError as error:  # the bytes differ from those that were written; reading again does not help
                raise StorageError(str(error), transient=False) from None
