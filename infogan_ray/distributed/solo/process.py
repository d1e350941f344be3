"""The worker's process as its driver sees it: a job goes in, reports come out, a line each. Imports nothing heavy.

It can be started before there is a job for it: its imports, of which torch is most, then run beside the driver's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from infogan_ray.training.heap import with_huge_pages

STOP = "stop"
# It finds what its driver does, in the same places. An interrupt from the keyboard and the end of a terminal go to all
# processes that belong to it: from the start they are the driver's to pass on.
PROGRAM = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
sys.path[:] = json.loads(sys.argv[1])
from infogan_ray.distributed.solo.reports import Reports
told = Reports(int(sys.argv[2]))
try:
    from infogan_ray.distributed.solo.worker import main
    main(told)
except BaseException as error:
    told.fail(error)
    raise
finally:
    told.close()
"""
END_S = 10.0  # for a process that has said its last word to end

_warmed: WorkerProcess | None = None


class WorkerProcess:
    """A worker that waits for its job. It ends by itself when it is done, told to stop, or left by its driver."""

    def __init__(self) -> None:
        # Above 2, which a driver without standard streams may have free, and the worker needs for its own.
        pipe = os.pipe()
        self._reports, out = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) for end in pipe)
        for end in pipe:
            os.close(end)
        places = json.dumps([place or os.getcwd() for place in sys.path])
        try:
            self._process = subprocess.Popen(  # what it prints before it has a job, and so a log, goes to stderr
                [sys.executable, "-P", "-c", PROGRAM, places, str(out)],
                stdin=subprocess.PIPE, stdout=2, pass_fds=(out,), env=with_huge_pages(os.environ),
            )  # fmt: skip
        except BaseException:
            os.close(self._reports)
            raise
        finally:
            os.close(out)
        os.set_blocking(self._reports, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._reports, selectors.EVENT_READ)
        self._rest, self._unread = b"", deque[bytes]()
        self.silent, self.ended = 0.0, False

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

    def reports(self, seconds: float) -> Iterator[dict[str, Any]]:
        """What it has reported, waited for so long; ``ended`` is true when there will be no more.

        ``silent`` is for how many seconds of waiting it has given no sign of life. A driver that was suspended itself
        has not waited meanwhile. What is left unread, by an interrupt, is there the next time.
        """
        if not self._unread:
            self._read(seconds)
        while self._unread:
            yield json.loads(self._unread.popleft())

    def _read(self, seconds: float) -> None:
        began = time.monotonic()
        if not self._selector.select(seconds):
            self.silent += min(time.monotonic() - began, 2 * seconds)
            return
        self.silent = 0.0
        with contextlib.suppress(BlockingIOError):
            read = os.read(self._reports, 1 << 20)
            self.ended = not read
            *lines, self._rest = (self._rest + read).split(b"\n")
            self._unread.extend(line for line in lines if line)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _wait(self) -> int:
        """For its end; it has closed its pipe, or is to be ended anyway."""
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def cause(self) -> str:
        """What ended it, in a line; waits for the end."""
        code = self._wait()
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
        self._wait()
        self._selector.close()
        os.close(self._reports)


def warm(arguments: list[str]) -> None:
    """Start a worker's process now, for whoever calls ``take`` or ``discard``; these need not be known."""
    global _warmed
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
