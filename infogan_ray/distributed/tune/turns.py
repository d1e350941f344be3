"""Several trainings in one process, a thread each: one computes at a time, in the order in which they ask.

Where they compute on a GPU, a turn is as long as it takes to launch a step; the GPU has the steps of several at once,
on streams of their own. What waits for storage or for a verdict has no turn, and keeps nobody from one.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator


class Turns:
    """A lock that is handed on in the order of asking: with others in the line, nobody has it twice in a row."""

    def __init__(self) -> None:
        self._line = deque[threading.Lock]()
        """A gate for each thread that has asked; the first is that of the one whose turn it is."""
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for one, and have it inside."""
        gate = threading.Lock()
        gate.acquire()
        with self._lock:
            self._line.append(gate)
            is_free = len(self._line) == 1
        if not is_free:
            gate.acquire()  # until the one before opens it
        try:
            yield
        finally:
            with self._lock:
                self._line.popleft()
                if self._line:
                    self._line[0].release()
