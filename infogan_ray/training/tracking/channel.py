"""Sends a run's data to one tracker in a thread, so that training never waits for the tracker."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

LIMIT_BYTES, ROW_BYTES = 64 << 20, 1000  # the queue's size limit, and the estimated size of a row
PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0  # between two deliveries; after errors up to the longest
SHORT_TIMEOUT_S = 3.0  # for queued data if a run is interrupted or the tracker fails


class Tracker(Protocol):
    """Runs in the thread of its channel. The channel reports the first error, and tries failed calls again."""

    def row(self, step: int, values: Mapping[str, float], moment: float) -> None: ...

    def picture(self, step: int, tag: str, png: bytes, moment: float) -> None: ...

    def flush(self, due: bool) -> None: ...

    def end(self, state: str, step: int, values: Mapping[str, float]) -> None: ...


Action = Callable[[Tracker], None]


class Channel:
    """A bounded queue, and a thread that creates one tracker and sends the queued actions to it."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name, self._make = name, make
        self._queue: deque[tuple[Action, int, bool]] = deque()
        self._bytes, self._dropped, self._due, self._closing = 0, False, False, False
        self._error, self._reported = "", False
        self._count, self._done = 0, 0  # numbers of queued actions so far, and of completed ones
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"to {name}", daemon=True)
        self._thread.start()

    def put(self, action: Action, size: int, due: bool = False, keep: bool = True) -> None:
        """Queue an action of about ``size`` bytes. A full queue drops it. If ``keep``, a failed action is tried again.

        ``due``: send and flush soon, without waiting for the pause.
        """
        with self._changed:
            if self._bytes + size > LIMIT_BYTES:
                self._dropped = True
                return
            self._queue.append((action, size, keep))
            self._bytes += size
            self._count += 1
            self._due = self._due or due
            self._changed.notify_all()

    def settle(self, seconds: float) -> None:
        """Wait until all queued actions are complete, for at most ``seconds`` and not after an error."""
        with self._changed:
            count = self._count
            self._changed.wait_for(lambda: self._done >= count or self._error, seconds)

    def close(self) -> None:
        """Tell the thread to send the queue and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def wait(self, deadline: float) -> None:
        """Wait for the thread's end until the deadline; after an error at most SHORT_TIMEOUT_S."""
        short = min(deadline, time.monotonic() + SHORT_TIMEOUT_S)
        while self._thread.is_alive() and time.monotonic() < (short if self._error else deadline):
            self._thread.join(0.1)
        if (self._thread.is_alive() or self._queue) and not self._error:
            self._error = "it does not answer"

    def pop_status(self) -> str:
        """A message about the first error or about dropped data, once; else an empty string."""
        problem = self._error or ("it is too slow" if self._dropped else "")
        if self._reported or not problem:
            return ""
        self._reported = True
        return f"{self.name}: {problem}; the run continues, and some data may be missing there"

    def _work(self) -> None:
        tracker, pause = None, PAUSE_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._due or self._closing)
                last = self._closing
            try:
                tracker = tracker or self._make()
                with self._changed:
                    count, due, self._due = self._count, self._due, False
                try:
                    self._send_queue(tracker)
                    tracker.flush(due or last)
                except BaseException:
                    self._due = self._due or due
                    raise
                pause = PAUSE_S
                with self._changed:
                    self._done = count
                    self._changed.notify_all()
            except Exception as error:  # no error of a tracker may end the run
                self._record_error(error)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            if last:
                return
            self._pause(pause)

    def _pause(self, seconds: float) -> None:
        """Wait, so that rows are sent in groups. A due action ends the pause, except after an error."""
        no_error = seconds == PAUSE_S
        with self._changed:
            self._changed.wait_for(lambda: self._closing or (no_error and self._due), seconds)

    def _send_queue(self, tracker: Tracker) -> None:
        while self._queue:
            action, size, keep = self._queue[0]
            try:
                action(tracker)
            except Exception as error:
                if keep:
                    raise
                self._record_error(error)  # drop the action, so that the next ones do not wait for it
            with self._changed:
                self._queue.popleft()
                self._bytes -= size

    def _record_error(self, error: Exception) -> None:
        self._error = self._error or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
