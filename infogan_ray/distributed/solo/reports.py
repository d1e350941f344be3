"""The worker's way to its driver: reports, and signs of life as long as its process runs, while it imports, too."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import deque
from typing import Any

HEARTBEAT_S = 2.0
MOST = 10_000  # that wait for a driver which does not read, as one that is suspended; the oldest are given up


class Reports:
    """A pipe that takes a line of JSON for each report, and an empty one as a sign of life.

    Written by a thread of its own: training does not wait for the driver.
    """

    def __init__(self, descriptor: int) -> None:
        self._out = os.fdopen(descriptor, "wb")
        self._waiting: deque[bytes] = deque(maxlen=MOST)
        self._changed, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="reports", daemon=True)
        self._thread.start()

    def write(self, report: dict[str, Any]) -> None:
        line = json.dumps(report).encode()
        with self._changed:
            self._waiting.append(line)
            self._changed.notify()

    def fail(self, error: BaseException) -> None:
        """Report what ended this worker, in a line."""
        self.write({"error": " ".join(f"{type(error).__name__}: {error}".split())})

    def close(self) -> None:
        """Wait until all is written. Where nobody reads any more, ``worker.Stop`` ends the process."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        with contextlib.suppress(OSError):  # that the driver is gone is seen elsewhere
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._closing, HEARTBEAT_S)
                    lines = [*self._waiting]
                    self._waiting.clear()
                    if not lines and self._closing:
                        return
                self._out.write(b"".join(line + b"\n" for line in lines) or b"\n")
                self._out.flush()
