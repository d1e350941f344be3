"""The driver of a worker group: waits for Ray Train, passes reports on, stops the workers, notices a dead head."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchTrainer

from infogan_ray.distributed.train import head_monitor
from infogan_ray.distributed.train.head_monitor import WAITING_FOR_ROOM
from infogan_ray.training.run_outcome import FINAL_PHASES, SHUTDOWN_GRACE_S, Listener

POLL_S = 0.3


class Driver:
    """Waits for an attempt, passes on what the workers report, and stops them on a notice."""

    def __init__(self, mailbox: Any, listen: Listener, patience: float | None = None) -> None:
        """``patience``: seconds to wait for the workers after a notice, for a driver inside a process of Ray's, which
        must not shut Ray down. Other drivers wait SHUTDOWN_GRACE_S and then shut Ray down."""
        self.mailbox, self.listen = mailbox, listen
        self.is_guest, self.patience = patience is not None, SHUTDOWN_GRACE_S if patience is None else patience
        self.final: dict[str, Any] = {}
        self.head = head_monitor.HeadMonitor()
        self._waits_for_room = False  # and has said so

    @property
    def step(self) -> int:
        return self.final.get("step", 0)

    @property
    def has_ended(self) -> bool:
        return self.final.get("phase") in FINAL_PHASES

    def follow(self, trainer: TorchTrainer) -> BaseException | None:
        """Run an attempt to its end; returns its error, or None.

        Raises HeadLost, and KeyboardInterrupt if the workers did not write their last checkpoint in time.
        """
        fit = FitThread(trainer)
        try:
            self._pass_reports_on(fit)
        except KeyboardInterrupt:
            self.listen({"phase": "stopping", "step": self.step, "say": "stopping; once more to stop at once"})
            self.mailbox.stop.remote()
            try:
                self._pass_reports_on(fit, seconds=0 if self._waits_for_room and not self.is_guest else self.patience)
            finally:
                done = fit.ended.is_set() or self.is_guest
                if not done and not self.head.lost:  # with a dead head, a shutdown would wait for an answer
                    ray.shutdown()  # ends this job's workers, and the cluster if it is an embedded one
            if not self.has_ended:  # also where a worker has died meanwhile: nothing is started again
                raise
        if self.has_ended:
            return fit.error
        died = isinstance(fit.error, ray.exceptions.RayError)  # Ray Train's controller, or all of Ray with it
        if (died or self.head.lost) and not self.head.answers():
            raise self.head.error(self.step)
        if fit.error is None or died or isinstance(fit.error, ray.train.TrainingFailedError):
            return fit.error
        raise fit.error

    def _pass_reports_on(self, fit: FitThread, seconds: float = float("inf")) -> None:
        deadline, last_report = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < deadline and (not self.head.lost or self.head.answers()):
            ended = fit.ended.wait(POLL_S)
            timeout = min(head_monitor.HEAD_SILENT_S, max(deadline - time.monotonic(), POLL_S))
            with contextlib.suppress(ray.exceptions.RayError):  # the head monitor knows whether that is the end
                for report in ray.get(self.mailbox.pop_reports.remote(), timeout=timeout):
                    self.final.update(report)
                    last_report, self._waits_for_room = time.monotonic(), False
                    self.listen(report)
            if seconds == float("inf"):
                self._say_whether_room_is_waited_for(time.monotonic() - last_report, fit.elastic)
            interrupted = self.final.get("phase") == "interrupted"
            if ended or (seconds < float("inf") and interrupted and not self.is_guest):
                return

    def _say_whether_room_is_waited_for(self, silent: float, elastic: bool) -> None:
        """Between two attempts of Ray Train nobody asks for room, so the answer holds until there is some."""
        if self.is_guest:  # the job has other trials as well
            return
        if self._waits_for_room:
            if "CREATED" in (self.head.places or ()):
                self._waits_for_room = False
                self.listen({"phase": "starting workers", "step": self.step})
        elif self.head.is_waited_for_room(silent, elastic):
            self._waits_for_room = True
            self.listen({"phase": WAITING_FOR_ROOM, "step": self.step})


class FitThread(threading.Thread):
    """``trainer.fit`` in a thread: in the main one Ray Train handles SIGINT, and ends the process without a message.

    A daemon: if Ray's head dies it never returns.
    """

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="ray-train", daemon=True)
        self.trainer, self.ended = trainer, threading.Event()
        self.elastic = not isinstance(trainer.scaling_config.num_workers, int)
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.trainer.fit()
        except BaseException as error:
            self.error = error
        finally:
            self.ended.set()
