"""The driver of a worker group: runs Ray Train, forwards reports, stops the workers, and detects a dead Ray head."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchTrainer

from infogan_ray.distributed.cluster.ray_thread import RayThread
from infogan_ray.distributed.train import head_monitor
from infogan_ray.distributed.train.head_monitor import WAITING_FOR_ROOM
from infogan_ray.training.run_outcome import FINAL_PHASES, SHUTDOWN_GRACE_S, Listener

POLL_S = 0.3


class Driver:
    """Runs an attempt, forwards the workers' reports to a listener, and stops the workers on a signal."""

    def __init__(self, mailbox: Any, listen: Listener, grace_s: float | None = None) -> None:
        """``grace_s``: seconds to wait for the workers after a signal, for a driver inside a trial of a search.

        With None, the driver waits SHUTDOWN_GRACE_S.
        """
        self.mailbox, self.listen = mailbox, listen
        self.in_trial, self.grace_s = grace_s is not None, SHUTDOWN_GRACE_S if grace_s is None else grace_s
        self.final: dict[str, Any] = {}
        self.head = head_monitor.HeadMonitor()
        self._waits_for_room = False  # True once this has been reported

    @property
    def step(self) -> int:
        return self.final.get("step", 0)

    @property
    def has_ended(self) -> bool:
        return self.final.get("phase") in FINAL_PHASES

    def run_attempt(self, trainer: TorchTrainer) -> BaseException | None:
        """Run an attempt to its end; returns its error, or None.

        Raises HeadLost, and KeyboardInterrupt if the workers did not write a last checkpoint in time.
        """
        fit = RayThread(trainer.fit, "ray-train")
        elastic = not isinstance(trainer.scaling_config.num_workers, int)
        try:
            self._forward_reports(fit, elastic)
        except KeyboardInterrupt:
            self.listen({"phase": "stopping", "step": self.step, "say": "stopping; press Ctrl-C again to stop at once"})
            self.mailbox.stop.remote()
            waits = self._waits_for_room and not self.in_trial  # no worker would answer
            self._forward_reports(fit, elastic, seconds=0 if waits else self.grace_s)
            if not self.has_ended:  # also if a worker died meanwhile: it is not restarted
                raise
        if self.has_ended:
            return fit.error
        died = isinstance(fit.error, ray.exceptions.RayError)  # Ray Train's controller or all of Ray
        if (died or self.head.lost) and not self.head.answers():
            raise self.head.error(self.step)
        if fit.error is None or died or isinstance(fit.error, ray.train.TrainingFailedError):
            return fit.error
        raise fit.error

    def _forward_reports(self, fit: RayThread, elastic: bool, seconds: float = float("inf")) -> None:
        deadline, last_report = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < deadline and (not self.head.lost or self.head.answers()):
            ended = fit.ended.wait(POLL_S)
            timeout = min(head_monitor.HEAD_SILENT_S, max(deadline - time.monotonic(), POLL_S))
            with contextlib.suppress(ray.exceptions.RayError):  # the head monitor decides whether the head is dead
                for report in ray.get(self.mailbox.pop_reports.remote(), timeout=timeout):
                    self.final.update(report)
                    last_report, self._waits_for_room = time.monotonic(), False
                    self.listen(report)
            if seconds == float("inf"):
                self._report_waiting(time.monotonic() - last_report, elastic)
            if ended:
                return

    def _report_waiting(self, silent: float, elastic: bool) -> None:
        """Report when the workers start to wait for room, and when they get it. ``silent``: seconds without a report.

        Between two attempts Ray Train requests no resources, so the state stays until a placement group is created.
        """
        if self.in_trial:  # placement groups of other trials have the same job id
            return
        if self._waits_for_room:
            if "CREATED" in (self.head.group_states or ()):
                self._waits_for_room = False
                self.listen({"phase": "starting workers", "step": self.step})
        elif self.head.waits_for_room(silent, elastic):
            self._waits_for_room = True
            self.listen({"phase": WAITING_FOR_ROOM, "step": self.step})
