"""The driver's side of a run: waits for Ray Train, passes on what the workers say, stops them, notices a dead head."""

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
from infogan_ray.distributed.train.relay import WAITS
from infogan_ray.training.run_outcome import ENDINGS, LAST_WORDS_S, Listener

POLL_S = 0.3


class Driver:
    """Waits for an attempt, passes on what the workers say, and brings them to a stop on a notice."""

    def __init__(self, board: Any, listen: Listener, patience: float | None = None) -> None:
        """``patience``: seconds to wait after a notice, for a driver that is a guest in a process of Ray's and may not
        end Ray when they have passed; by default it may, after LAST_WORDS_S."""
        self.board, self.listen = board, listen
        self.is_guest, self.patience = patience is not None, LAST_WORDS_S if patience is None else patience
        self.final: dict[str, Any] = {}
        self.head = head_monitor.HeadWatch()
        self._waits = False  # for room, and has said so

    @property
    def step(self) -> int:
        return self.final.get("step", 0)

    @property
    def phase(self) -> str:
        return self.final.get("phase", "")

    def follow(self, trainer: TorchTrainer) -> BaseException | None:
        """The error of an attempt, or None.

        Raises HeadLost, and KeyboardInterrupt if the workers did not write their last checkpoint in time.
        """
        fitting = Fitting(trainer)
        try:
            self._listen_to(fitting)
        except KeyboardInterrupt:
            self.listen({"phase": "stopping", "step": self.step, "say": "stopping; once more to stop at once"})
            self.board.stop.remote()
            try:
                self._listen_to(fitting, seconds=0 if self._waits and not self.is_guest else self.patience)
            finally:
                done = fitting.ended.is_set() or self.is_guest
                if not done and not self.head.lost:  # of a dead head it would wait for the answer
                    ray.shutdown()  # ends this job's workers, and the cluster if it is an embedded one
            if self.phase not in ENDINGS:  # also where a worker has died meanwhile: nothing is started again
                raise
        if self.phase in ENDINGS:
            return fitting.error
        died = isinstance(fitting.error, ray.exceptions.RayError)  # Ray Train's controller, or all of Ray with it
        if (died or self.head.lost) and not self.head.answers():
            raise self.head.error(self.step)
        if fitting.error is None or died or isinstance(fitting.error, ray.train.TrainingFailedError):
            return fitting.error
        raise fitting.error

    def _listen_to(self, fitting: Fitting, seconds: float = float("inf")) -> None:
        deadline, heard = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < deadline and (not self.head.lost or self.head.answers()):
            ended = fitting.ended.wait(POLL_S)
            patience = min(head_monitor.HEAD_SILENT_S, max(deadline - time.monotonic(), POLL_S))
            with contextlib.suppress(ray.exceptions.RayError):  # the head watch knows whether that is the end
                for report in ray.get(self.board.drain.remote(), timeout=patience):
                    self.final.update(report)
                    heard, self._waits = time.monotonic(), False
                    self.listen(report)
            if seconds == float("inf"):
                self._say_who_waits(time.monotonic() - heard, fitting.elastic)
            if ended or (seconds < float("inf") and self.phase == "interrupted" and not self.is_guest):
                return

    def _say_who_waits(self, silent: float, elastic: bool) -> None:
        """For room that others have, until there is some; between two attempts of Ray Train nobody asks for it."""
        if self.is_guest:  # of its job there are other trials
            return
        if self._waits:
            if "CREATED" in (self.head.places or ()):
                self._waits = False
                self.listen({"phase": "starting workers", "step": self.step})
        elif self.head.is_waited_for_room(silent, elastic):
            self._waits = True
            self.listen({"phase": WAITS, "step": self.step})


class Fitting(threading.Thread):
    """``trainer.fit`` in a thread: in the main one Ray Train takes SIGINT over, and ends the process without a word.

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
