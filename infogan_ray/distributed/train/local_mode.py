"""Support for a run in the caller's own process: signals stop it, and PyTorch's settings are restored after it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from infogan_ray.distributed.train import torchrun
from infogan_ray.training.run_outcome import Listener


class LocalReporter:
    """The ``Reporter`` if driver and worker are one process: it calls the listener directly."""

    def __init__(self, listen: Listener) -> None:
        self.listen = listen
        self.step = 0
        self.listener_error: BaseException | None = None
        self._stop = self._stop_at_once = self._stop_was_reported = False

    def handle_signal(self, number: int, frame: FrameType | None) -> None:
        """Request a stop with a last checkpoint; a second Ctrl-C stops the run at once.

        Under torchrun each rank gets Ctrl-C twice, from the terminal and from torchrun, so the second one is ignored.
        torchrun kills the ranks after 30 s.
        """
        if self._stop and number == signal.SIGINT and not torchrun.is_active():
            self._stop_at_once = True
            raise KeyboardInterrupt
        self._stop = True

    def start(self) -> int:
        return 0

    def send(self, report: dict[str, Any]) -> None:
        """After an error of the listener, keep the error, do not call it again, and stop with a last checkpoint."""
        self.step = report.get("step", self.step)
        if self.listener_error is not None:
            return
        try:
            self.listen(report)
        except BaseException as error:
            if self._stop_at_once:
                raise
            self.listener_error, self._stop = error, True

    def stop_requested(self) -> bool:
        # The uploader's thread also calls this, and listeners need not be thread-safe.
        if self._stop and not self._stop_was_reported and threading.current_thread() is threading.main_thread():
            self._stop_was_reported = True
            hint = "" if torchrun.is_active() else "; press Ctrl-C again to stop at once"
            self.send({"phase": "stopping", "step": self.step, "say": f"stopping{hint}"})
        return self._stop

    def flush(self) -> None:
        pass

    def failure(self) -> dict[str, Any] | None:
        return None


@contextmanager
def restored_torch_settings() -> Iterator[None]:
    """After the block, restore PyTorch's threads, random numbers, precision and device, and end its process group."""
    threads, precision = torch.get_num_threads(), torch.backends.cuda.matmul.fp32_precision
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    had_group = dist.is_initialized()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.fp32_precision = precision
        if device is not None:
            torch.cuda.set_device(device)
        if dist.is_initialized() and not had_group:  # Ray Train keeps it after an error
            dist.destroy_process_group()


@contextmanager
def quiet() -> Iterator[None]:
    """Drop Ray Train's log lines in a rank that must not print."""
    logger = logging.getLogger("ray.train")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
