"""The worker's process as its driver sees it: a job goes in, reports come out, a line each. Imports nothing heavy.

It can be started before there is a job for it: its imports, of which torch is most, then run beside the driver's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STOP = "stop"
# Of these arguments each needs no worker, or may need Ray.
OTHERWISE = ("-h", "--help", "--dry-run", "--workers", "--ray")
# -P: a file beside the user that is called like a module of ours, or of Python's, is not imported. From the start an
# interrupt from the keyboard, which goes to all processes of a terminal, is the driver's to pass on.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path.append(sys.argv[1])
from infogan_ray.solo.reports import Reports
told = Reports(int(sys.argv[2]))
from infogan_ray.solo.worker import main
main(told)
"""
PACKAGES = Path(__file__).parents[2]

_warmed: WorkerProcess | None = None


class WorkerProcess:
    """A worker that waits for its job. It ends by itself when it is done, told to stop, or left by its driver."""

    def __init__(self) -> None:
        self._reports, out = os.pipe()
        try:
            self._process = subprocess.Popen(  # what it prints before it has a job, and so a log, goes to stderr
                [sys.executable, "-P", "-c", PROGRAM, str(PACKAGES), str(out)],
                stdin=subprocess.PIPE, stdout=2, pass_fds=(out,),
            )  # fmt: skip
        finally:
            os.close(out)
        os.set_blocking(self._reports, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._reports, selectors.EVENT_READ)
        self._rest, self.silent = b"", 0.0
        self.ended = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, job: dict[str, Any]) -> None:
        """Give it its job."""
        self._send(json.dumps(job))

    def stop(self) -> None:
        """Ask for a last checkpoint and the end."""
        self._send(STOP)

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, which its reports will show
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def reports(self, seconds: float) -> list[dict[str, Any]]:
        """What it has reported, waited for so long; ``ended`` is true when there will be no more.

        ``silent`` is for how many seconds of waiting it has given no sign of life. A driver that was suspended itself
        has not waited meanwhile.
        """
        began = time.monotonic()
        if not self._selector.select(seconds):
            self.silent += min(time.monotonic() - began, 2 * seconds)
            return []
        self.silent = 0.0
        try:
            read = os.read(self._reports, 1 << 20)
        except BlockingIOError:
            return []
        self.ended = not read
        *lines, self._rest = (self._rest + read).split(b"\n")
        return [json.loads(line) for line in lines if line]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def cause(self) -> str:
        """What ended it, in a line; waits for the end."""
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            why = " (the kernel does so where memory runs out)" if name == "SIGKILL" else ""
            return f"the worker was ended by {name}{why}"
        return f"the worker ended with exit code {code}"

    def close(self) -> None:
        """Wait for its end, which is near, and let go of it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._selector.close()
        os.close(self._reports)


def warm_for(arguments: list[str]) -> None:
    """Start a worker's process now if the arguments of ``infogan train`` look as if there will be a job for it."""
    global _warmed
    if not os.environ.get("RAY_ADDRESS") and not any(word.startswith(OTHERWISE) for word in arguments):
        _warmed = WorkerProcess()


def take() -> WorkerProcess:
    """The warmed process, or a new one."""
    global _warmed
    taken, _warmed = _warmed, None
    return taken or WorkerProcess()


def discard() -> None:
    """End the warmed process, for which there is no job."""
    if _warmed is not None:
        taken = take()
        taken.kill()
        taken.close()
