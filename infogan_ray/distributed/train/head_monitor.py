"""Whether the cluster's head is alive, and whether a job's workers have places. Ray does not tell a driver."""

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
QUIET_S = 10.0  # without a report, after which the workers' places are looked at
SLOW_START_S = 30.0  # a job that starts slowly has not asked for places yet
WAITING_FOR_ROOM = "waiting for room on the cluster"  # the phase of a run whose room others have


class HeadMonitor:
    """Notices that Ray's head has died, before Ray itself ends this process without a readable message (60 s).

    ``nodes``: what the machines had at the last answer. ``places``: the states of this job's placement groups in Ray's
    words. It is None where they were not looked at, which is done only while workers are quiet.
    """

    def __init__(self) -> None:
        self._job, self._looks_for_places = ray.get_runtime_context().get_job_id(), False
        self.places: set[str] | None = None
        self._heard, self._closed = time.monotonic(), False
        self.nodes: list[dict[str, float]] = machines_of_the_cluster()
        threading.Thread(target=self._poll, name="head-monitor", daemon=True).start()

    @property
    def lost(self) -> bool:
        return time.monotonic() - self._heard > HEAD_SILENT_S

    def answers(self) -> bool:
        """Wait for the next answer; false if the head is lost. A process that was suspended asks again first."""
        since = time.monotonic()
        while self._heard < since and (not self.lost or time.monotonic() < since + 3 * HEAD_POLL_S):
            time.sleep(POLL_S)
        return self._heard >= since

    def error(self, step: int = 0) -> HeadLost:
        """The error of a run that was at this step."""
        return HeadLost(
            f"Ray's head has not answered for {HEAD_SILENT_S:.0f} s, at step {step:,}; what is stored is whole"
        )

    def is_waited_for_room(self, silent: float, elastic: bool = False) -> bool:
        """Whether others have this job's room, after so many seconds without a report from its workers.

        Ray waits for room without a message. An elastic run asks for no places before there are enough.
        """
        self._looks_for_places = silent > QUIET_S
        if self.places is None or not self._looks_for_places:
            return False
        return "CREATED" not in self.places if self.places else elastic and silent > SLOW_START_S

    def close(self) -> None:
        self._closed = True

    def _poll(self) -> None:
        while ray.is_initialized() and not self._closed:
            with contextlib.suppress(Exception):  # any error means that the head did not answer
                self.nodes = machines_of_the_cluster()
                self._heard = time.monotonic()
                self.places = self._states_of_places() if self._looks_for_places else None
            time.sleep(HEAD_POLL_S)

    def _states_of_places(self) -> set[str]:
        """A group's id ends with that of its job. A trial that waits for its workers has a group without CPUs."""
        mine = [group for id, group in placement_group_table().items() if id.endswith(self._job)]
        return {group["state"] for group in mine if group["bundles"].get(0, {}).get("CPU")} - {"REMOVED"}


def places() -> set[str]:
    """The ids of all placement groups that have not been removed; none without a Ray."""
    table = placement_group_table() if ray.is_initialized() else {}
    return {id for id, group in table.items() if group["state"] != "REMOVED"}


def free_places(ids: set[str]) -> None:
    """Remove placement groups. A controller that was killed cannot, and its successor would wait for the room."""
    for id in ids:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(id))))
