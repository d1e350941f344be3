"""Whether the cluster's head is alive, and a job's workers have places, which a driver has to find out by itself."""

from __future__ import annotations

import contextlib
import threading
import time

import ray
from ray.util.placement_group import placement_group_table

from infogan_ray.distributed.joining import machines_of_the_cluster
from infogan_ray.endings import HeadLost

POLL_S = 0.3
HEAD_POLL_S, HEAD_SILENT_S = 2.0, 45.0


class HeadWatch:
    """Notices that Ray's head has died, before Ray itself ends this process without a readable word (60 s).

    ``nodes`` is what the machines have that it last knew of. With ``looks_for_places`` set it also finds out what has
    become of the places that this job has asked for: ``places``, Ray's words for the state of each."""

    def __init__(self) -> None:
        self.looks_for_places, self.places = False, set[str]()
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

    def close(self) -> None:
        self._closed = True

    def _look(self) -> None:
        while ray.is_initialized() and not self._closed:
            with contextlib.suppress(Exception):  # whatever it is, the head did not answer
                self.nodes = machines_of_the_cluster()
                self._heard = time.monotonic()
                self.places = _places() if self.looks_for_places else set()
            time.sleep(HEAD_POLL_S)


def _places() -> set[str]:
    """The states of this job's placement groups; an id ends with that of the job."""
    job = ray.get_runtime_context().get_job_id()
    return {group["state"] for id, group in placement_group_table().items() if id.endswith(job)} - {"REMOVED"}
