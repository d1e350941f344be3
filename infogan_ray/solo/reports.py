"""The worker's way to its driver: reports, and signs of life as long as its process runs, while it imports, too."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from typing import Any

HEARTBEAT_S = 2.0


class Reports:
    """A pipe that takes a line of JSON for each report, and an empty one as a sign of life."""

    def __init__(self, descriptor: int) -> None:
        self._out, self._lock = os.fdopen(descriptor, "wb"), threading.Lock()
        threading.Thread(target=self._live, name="heartbeat", daemon=True).start()

    def write(self, report: dict[str, Any]) -> None:
        self._send(json.dumps(report).encode())

    def _send(self, line: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):  # that the driver is gone is seen elsewhere
            self._out.write(line + b"\n")
            self._out.flush()

    def _live(self) -> None:
        never = threading.Event()
        while not never.wait(HEARTBEAT_S):
            self._send(b"")
