"""Where rank 0 pins its reports and the driver fetches them: a small actor, without a barrier."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

STOP_POLL_S = 0.5


def start_board() -> Any:
    """A board on this machine: it lives as long as the driver does, whichever workers die."""
    # Not softly: Ray would take another machine if this one has no CPUs to give, as heads have not.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    placed: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here}
    return ray.remote(Board).options(**placed).remote()


class Board:
    """Where rank 0 pins its reports and the driver fetches them, and where the driver says that it is time to stop."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.starts = 0
        self.stopping = False

    def enter(self) -> int:
        """Rank 0 starts; how often it has done so before."""
        self.starts += 1
        return self.starts - 1

    def pin(self, report: dict[str, Any]) -> None:
        self.reports.append(report)

    def drain(self) -> list[dict[str, Any]]:
        reports, self.reports = self.reports, []
        return reports

    def stop(self) -> None:
        self.stopping = True

    def is_stopping(self) -> bool:
        return self.stopping


class StopWatch:
    """Asks the board in a thread of its own whether it is time to stop: a step does not wait for the answer."""

    def __init__(self, board: Any) -> None:
        self._board, self._stopping = board, False
        threading.Thread(target=self._look, name="stop-watch", daemon=True).start()

    def __call__(self) -> bool:
        return self._stopping

    def _look(self) -> None:
        while not self._stopping:
            with contextlib.suppress(ray.exceptions.RayError):
                self._stopping = ray.get(self._board.is_stopping.remote(), timeout=10 * STOP_POLL_S)
            time.sleep(STOP_POLL_S)
