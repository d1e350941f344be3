"""The metrics log of a running run: ``metrics.jsonl``."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from infogan_ray.storage.errors import StorageError
from infogan_ray.storage.json_text import to_json
from infogan_ray.storage.run_directory import RunDirectory


class MetricsLog:
    """Collects lines in memory; ``flush`` writes them to storage.

    An object store cannot append, so each flush writes the whole file there. Flush rarely.
    """

    def __init__(self, run: RunDirectory, step: int) -> None:
        """Keep the file's lines up to ``step``. Later lines are from lost work and are removed: steps increase."""
        self._folder, self._name = run.folder, run.METRICS
        self._lines = [to_json(row) + "\n" for row in run.read_metrics() if row.get("step", 0) <= step]
        self._lock, self._flush_lock = threading.Lock(), threading.Lock()
        if self._lines or self._folder.is_file(self._name):
            self._folder.write(self._name, "".join(self._lines).encode())
        self._flushed, self._must_rewrite = len(self._lines), False

    def add(self, row: dict[str, Any]) -> None:
        with self._lock:
            self._lines.append(to_json(row) + "\n")

    def flush(self, retry_timeout_s: float) -> None:
        """Write the new lines. After a StorageError no line is lost: the next call writes them."""
        folder = self._folder.with_retry_timeout(retry_timeout_s)
        with self._flush_lock:
            with self._lock:
                count = len(self._lines)
            if count == self._flushed:
                return
            if folder.is_local and not self._must_rewrite:
                self._must_rewrite = True  # unless the append succeeds: a failed one may leave part of a line
                with contextlib.suppress(StorageError):
                    folder.append(self._name, self._text(self._flushed, count))
                    self._must_rewrite = False
            if self._must_rewrite or not folder.is_local:
                folder.write(self._name, self._text(0, count))
            self._flushed, self._must_rewrite = count, False

    def _text(self, start: int, stop: int) -> bytes:
        return "".join(self._lines[start:stop]).encode()
