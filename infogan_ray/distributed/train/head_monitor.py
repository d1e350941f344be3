"""Checks that the cluster's head is alive and that a job's workers have resources. Ray does not report either."""

from __future__ import annotations

import contextlib
import threading
import time

import ray
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from infogan_ray.distributed.cluster.connection import machines_of_the_cluster
from infogan_ray.training.run_outcome import HeadLost

POLL_S = 0.3
HEAD_POLL_S, HEAD_SILENT_S = 2.0, 45.0
QUIET_S = 10.0  # after this time without a report, the placement groups are checked
SLOW_START_S = 30.0  # a job that starts slowly has not requested resources yet
WAITING_FOR_ROOM = "waiting for room on the cluster"  # phase of a run while other jobs use the resources


class HeadMonitor:
    """Detects a dead Ray head. After 60 s Ray itself would end this process without a readable message.

    ``nodes``: the machines' resources at the last answer. ``group_states``: Ray's states of this job's placement
    groups. They are checked only while the workers send no reports, and are None otherwise.
    """

    def __init__(self) -> None:
        self._job, self._checks_groups = ray.get_runtime_context().get_job_id(), False
        self.group_states: set[str] | None = None
        self._last_answer, self._closed = time.monotonic(), threading.Event()
        self.nodes: list[dict[str, float]] = machines_of_the_cluster()
        self._thread = threading.Thread(target=self._poll, name="head-monitor", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        return time.monotonic() - self._last_answer > HEAD_SILENT_S

    def answers(self) -> bool:
        """Wait for an answer; False if the head is lost. A process that was suspended sends a new request first."""
        since = time.monotonic()
        while self._last_answer < since and (not self.lost or time.monotonic() < since + 3 * HEAD_POLL_S):
            time.sleep(POLL_S)
        return self._last_answer >= since

    def error(self, step: int = 0) -> HeadLost:
        """The error of a run that was at this step."""
        return HeadLost(
            f"Ray's head has not answered for {HEAD_SILENT_S:.0f} s, at step {step:,}; stored checkpoints are complete"
        )

    def waits_for_room(self, silent: float, elastic: bool = False) -> bool:
        """Whether the workers wait for resources. ``silent``: seconds without a report from them.

        Ray waits without a message. An elastic run requests nothing until enough resources are free.
        """
        self._checks_groups = silent > QUIET_S
        if self.group_states is None or not self._checks_groups:
            return False
        return "CREATED" not in self.group_states if self.group_states else elastic and silent > SLOW_START_S

    def close(self) -> None:
        """Stop the checks. A call to Ray in another thread would crash this process if Ray is shut down meanwhile."""
        self._closed.set()
        self._thread.join(HEAD_POLL_S)  # a dead head does not answer

    def _poll(self) -> None:
        while ray.is_initialized() and not self._closed.is_set():
            with contextlib.suppress(Exception):  # any error means that the head did not answer
                self.nodes = machines_of_the_cluster()
                self._last_answer = time.monotonic()
                self.group_states = self._states_of_groups() if self._checks_groups else None
            self._closed.wait(HEAD_POLL_S)

    def _states_of_groups(self) -> set[str]:
        """A placement group's id ends with its job's id. The group of a waiting trial has no CPUs and is ignored."""
        mine = [group for id, group in placement_group_table().items() if id.endswith(self._job)]
        return {group["state"] for group in mine if group["bundles"].get(0, {}).get("CPU")} - {"REMOVED"}


def placement_groups() -> set[str]:
    """The ids of all placement groups that have not been removed; empty if Ray does not run."""
    table = placement_group_table() if ray.is_initialized() else {}
    return {id for id, group in table.items() if group["state"] != "REMOVED"}


def remove_placement_groups(ids: set[str]) -> None:
    """Remove the groups of a killed controller. Otherwise the next controller would wait for their resources."""
    for id in ids:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(id))))
