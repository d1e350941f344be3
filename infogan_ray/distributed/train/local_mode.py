"""What a run in the caller's own process needs: a stop by signals, and the process as it was before."""

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
    """A worker's ``Reporter`` where driver and worker are one process; reports go straight to the listener."""

    def __init__(self, listen: Listener) -> None:
        self.listen = listen
        self.step = 0
        self.listener_error: BaseException | None = None
        self._stop = self._stop_at_once = self._stop_was_said = False

    def handle_signal(self, number: int, frame: FrameType | None) -> None:
        """Ask for a last checkpoint and the end; a second Ctrl-C ends the run at once.

        torchrun passes a signal on that the terminal has sent to all ranks, and kills them after half a minute.
        """
        if self._stop and number == signal.SIGINT and not torchrun.is_active():
            self._stop_at_once = True
            raise KeyboardInterrupt
        self._stop = True

    def start(self) -> int:
        return 0

    def send(self, report: dict[str, Any]) -> None:
        """A listener that raises is not called again. The run ends with a last checkpoint, and its error is kept."""
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
        # The uploader's thread asks as well, and listeners need not be safe for threads.
        if self._stop and not self._stop_was_said and threading.current_thread() is threading.main_thread():
            self._stop_was_said = True
            once_more = "" if torchrun.is_active() else "; once more to stop at once"
            self.send({"phase": "stopping", "step": self.step, "say": f"stopping{once_more}"})
        return self._stop

    def flush(self) -> None:
        pass


@contextmanager
def restored_torch_settings() -> Iterator[None]:
    """Restore PyTorch's threads, random numbers, precision and device, and end its process group."""
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
        if dist.is_initialized() and not had_group:  # Ray Train leaves it after an error
            dist.destroy_process_group()


@contextmanager
def quiet() -> Iterator[None]:
    """Ray's log lines of a rank that is not to print are dropped."""
    logger = logging.getLogger("ray.train")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
