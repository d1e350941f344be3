"""A thread that passes a run's figures on to one tracker, so that training never waits for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

LIMIT_BYTES, ROW_BYTES = 64 << 20, 1000  # what may wait for a tracker, and the estimated size of a row
PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0
SHORT_PATIENCE_S = 3.0  # for what waits when a run is interrupted, and for a tracker that fails


class Tracker(Protocol):
    """Lives in the thread of its channel. Whatever it raises is said once; what it was given is given again."""

    def row(self, step: int, values: Mapping[str, float], moment: float) -> None: ...

    def picture(self, step: int, tag: str, png: bytes, moment: float) -> None: ...

    def flush(self, due: bool) -> None: ...

    def end(self, state: str, step: int, values: Mapping[str, float]) -> None: ...


Action = Callable[[Tracker], None]


class Channel:
    """The way to one tracker: a queue with a bound, and a thread that makes the tracker and passes everything on."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name, self._make = name, make
        self._queue: deque[tuple[Action, int, bool]] = deque()
        self._bytes, self._dropped, self._due, self._closing = 0, False, False, False
        self._trouble, self._reported = "", False
        self._count, self._done = 0, 0  # of what was put, and of what was passed on and written
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"to {name}", daemon=True)
        self._thread.start()

    def put(self, action: Action, size: int, due: bool = False, keep: bool = True) -> None:
        """``size`` in bytes, about. What does not fit is left out; what fails is tried again later if ``keep``."""
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
        """Wait until what was put is written; in vain no longer than so many seconds."""
        with self._changed:
            count = self._count
            self._changed.wait_for(lambda: self._done >= count or self._trouble, seconds)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def wait(self, deadline: float) -> None:
        """Until all is passed on, or the deadline; for one that is in trouble no longer than SHORT_PATIENCE_S."""
        short = min(deadline, time.monotonic() + SHORT_PATIENCE_S)
        while self._thread.is_alive() and time.monotonic() < (short if self._trouble else deadline):
            self._thread.join(0.1)
        if (self._thread.is_alive() or self._queue) and not self._trouble:
            self._trouble = "it does not answer"

    def pop_status(self) -> str:
        trouble = self._trouble or ("it does not keep up" if self._dropped else "")
        if self._reported or not trouble:
            return ""
        self._reported = True
        return f"{self.name}: {trouble}; the run continues, and what is shown there may lack something"

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
                    self._pass_on(tracker)
                    tracker.flush(due or last)
                except BaseException:
                    self._due = self._due or due
                    raise
                pause = PAUSE_S
                with self._changed:
                    self._done = count
                    self._changed.notify_all()
            except Exception as error:  # whatever another's program does: it must not end the run
                self._note(error)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            if last:
                return
            self._rest(pause)

    def _rest(self, seconds: float) -> None:
        """A pause, so that what comes row by row is passed on in few pieces; what is due ends it if all is well."""
        well = seconds == PAUSE_S
        with self._changed:
            self._changed.wait_for(lambda: self._closing or (well and self._due), seconds)

    def _pass_on(self, tracker: Tracker) -> None:
        while self._queue:
            action, size, keep = self._queue[0]
            try:
                action(tracker)
            except Exception as error:
                if keep:
                    raise
                self._note(error)  # a picture: rows must not wait for it
            with self._changed:
                self._queue.popleft()
                self._bytes -= size

    def _note(self, error: Exception) -> None:
        self._trouble = self._trouble or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
