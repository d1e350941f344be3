"""Handles the signals that stop a run: SIGINT (Ctrl-C), SIGTERM (schedulers) and SIGHUP (a closed terminal)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Call ``handler`` for these signals inside the block, and restore the handlers afterwards.

    An ignored signal stays ignored, such as SIGHUP under nohup. Python sets handlers only in the main thread; in
    another thread this does nothing.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
    # None stands for a handler of C code, which Python cannot restore.
    before = {number: old for number, old in before.items() if old not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
