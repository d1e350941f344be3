"""Whether the cluster's head is alive, and a job's workers have places, which a driver has to find out by itself."""

from __future__ import annotations

import contextlib
import threading
import time

import ray

from infogan_ray.distributed.cluster.connection import machines_of_the_cluster
from infogan_ray.training.run_outcome import HeadLost

POLL_S = 0.3
HEAD_POLL_S, HEAD_SILENT_S = 2.0, 45.0
SAYS_SO_S = 10.0  # of silence, after which somebody may be waiting for a place on the cluster
NO_GROUP_S = 30.0  # who starts slowly has not asked yet


class HeadWatch:
    """Notices that Ray's head has died, before Ray itself ends this process without a readable word (60 s).

    ``nodes`` is what the machines have that it last knew of. ``places``: Ray's words for the states of this job's
    placement groups, or None where it has not looked, which it does where workers are silent."""

    def __init__(self) -> None:
        self._job, self._looks_for_places = ray.get_runtime_context().get_job_id(), False
        self.places: set[str] | None = None
        self._heard, self._closed = time.monotonic(), False
        self.nodes: list[dict[str, float]] = machines_of_the_cluster()
        threading.Thread(target=self._look, name="head-watch", daemon=True).start()

    @property
    def lost(self) -> bool:
        return time.monotonic() - self._heard > HEAD_SILENT_S

    def answers(self) -> bool:
        """Wait for its next answer; false if it is lost. A process that was suspended asks again before it says so."""
        since = time.monotonic()
        while self._heard < since and (not self.lost or time.monotonic() < since + 3 * HEAD_POLL_S):
            time.sleep(POLL_S)
        return self._heard >= since

    def error(self, step: int = 0) -> HeadLost:
        """Of a run that was at this step."""
        return HeadLost(
            f"Ray's head has not answered for {HEAD_SILENT_S:.0f} s, at step {step:,}; what is stored is whole"
        )

    def is_waited_for_room(self, silent: float, elastic: bool = False) -> bool:
        """Of this job, after so many seconds without a word from its workers: whether others have the room, for which
        Ray waits without one. An elastic run asks for no places before there are enough."""
        self._looks_for_places = silent > SAYS_SO_S
        if self.places is None or not self._looks_for_places:
            return False
        return "CREATED" not in self.places if self.places else elastic and silent > NO_GROUP_S

    def close(self) -> None:
        self._closed = True

    def _look(self) -> None:
        while ray.is_initialized() and not self._closed:
            with contextlib.suppress(Exception):  # whatever it is, the head did not answer
                self.nodes = machines_of_the_cluster()
                self._heard = time.monotonic()
                self.places = self._look_for_places() if self._looks_for_places else None
            time.sleep(HEAD_POLL_S)

    def _look_for_places(self) -> set[str]:
        """A group's id ends with that of its job. A trial's own that only waits for workers holds no CPU. By Ray's
        private name, since the public one would start another Ray where this one has just been shut down."""
        groups = ray._private.state.state.placement_group_table().items()
        mine = [group for id, group in groups if id.endswith(self._job)]
        return {group["state"] for group in mine if group["bundles"].get(0, {}).get("CPU")} - {"REMOVED"}
