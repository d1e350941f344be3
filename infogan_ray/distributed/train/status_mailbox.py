"""A Ray actor between rank 0 and the driver. Rank 0 sends reports, and the driver requests a stop.

Training does not wait for the actor. ``ray.train.report`` makes all ranks wait, so not every report uses it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

STOP_POLL_S = 0.5


def start_mailbox() -> Any:
    """Start a mailbox on this machine. It lives as long as the driver, even if workers die."""
    # With soft=True, Ray would use another machine if this one offers no CPUs, as most heads do not.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    placed: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here}
    return ray.remote(StatusMailbox).options(**placed).remote()


class StatusMailbox:
    """Stores rank 0's reports until the driver reads them, and the driver's request to stop."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.starts = 0
        self.stopping = False
        self.failed: dict[str, Any] | None = None

    def start(self) -> int:
        """Called when rank 0 starts. Returns the number of earlier starts."""
        self.starts += 1
        return self.starts - 1

    def put(self, report: dict[str, Any]) -> None:
        self.reports.append(report)
        if report.get("phase") == "failed":
            self.failed = report

    def failure(self) -> dict[str, Any] | None:
        return self.failed

    def pop_reports(self) -> list[dict[str, Any]]:
        reports, self.reports = self.reports, []
        return reports

    def stop(self) -> None:
        self.stopping = True

    def is_stopping(self) -> bool:
        return self.stopping


class MailboxReporter:
    """The ``Reporter`` of a worker group: it uses a mailbox."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._stopping = False
        self._last_put: Any = None

    def start(self) -> int:
        threading.Thread(target=self._watch_for_stop, name="stop-watch", daemon=True).start()
        return int(ray.get(self._mailbox.start.remote()))

    def send(self, report: dict[str, Any]) -> None:
        self._last_put = self._mailbox.put.remote(report)

    def stop_requested(self) -> bool:
        return self._stopping

    def flush(self) -> None:
        ray.get(self._last_put)

    def failure(self) -> dict[str, Any] | None:
        failed: dict[str, Any] | None = ray.get(self._mailbox.failure.remote())
        return failed

    def _watch_for_stop(self) -> None:
        """Runs in a separate thread, so that no step waits for the answer."""
        while not self._stopping:
            with contextlib.suppress(ray.exceptions.RayError):
                self._stopping = ray.get(self._mailbox.is_stopping.remote(), timeout=10 * STOP_POLL_S)
            time.sleep(STOP_POLL_S)
