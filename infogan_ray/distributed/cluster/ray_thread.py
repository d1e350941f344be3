"""Runs a call to Ray that lasts as long as the work, such as ``fit``, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class RayThread(threading.Thread):
    """Runs ``call``; then ``ended`` is set, and ``result`` or ``error`` has the outcome.

    In the main thread, Ray would handle SIGINT and end the process without a message. The thread is a daemon thread: if
    Ray's head dies, the call does not return.
    """

    def __init__(self, call: Callable[[], Any], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.ended = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None
        self._call = call
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error
        finally:
            self.ended.set()


def waits_for_ray() -> bool:
    """Whether a call has not returned. Then ``ray.shutdown``, also that of a normal exit, can crash this process.

    Ray frees its memory although the call still reads it.
    """
    return any(isinstance(thread, RayThread) and not thread.ended.is_set() for thread in threading.enumerate())
