"""A worker's process on a machine of a cluster that has room for it, and the small actor there that it reports through.

Imports no torch: a command may ask for the machine before it knows what is to be done there.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import ray
import ray.exceptions

from infogan_ray.distributed.cluster.connection import connect, machines_of_the_cluster
from infogan_ray.distributed.solo.process import WorkerProcess

ANSWERS_S = 1.0  # a relay's answer may take so much longer than the time it was given to wait
ENDS_S, LETS_GO_S = 2.0, 15.0
SAYS_SO_S = 10.0  # after so long without a place on the cluster
WAITS = "waiting for room on the cluster"  # the phase of a run whose room others have
WITH_A_CAUSE = (
    ray.exceptions.OutOfMemoryError, ray.exceptions.RuntimeEnvSetupError, ray.exceptions.ActorUnschedulableError,
)  # fmt: skip
MOST_LETTERS = 400
GONE = "the worker's machine is gone, or Ray's process on it"

_warmed: RemoteWorker | None = None


class Relay:
    """An actor on the worker's machine. It holds what the worker takes there, and is all of Ray that the worker has."""

    def __init__(self) -> None:
        if gpus := ray.get_runtime_context().get_accelerator_ids().get("GPU"):
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)  # also where Ray is told to leave it alone
        self._worker = WorkerProcess()
        self._number, self._kept = 0, list[dict[str, Any]]()

    def begin(self, job: dict[str, Any]) -> None:
        self._worker.begin(job)

    def stop(self) -> None:
        self._worker.stop()

    def address(self) -> str:
        """Of its machine."""
        return ray.util.get_node_ip_address()

    def reports(self, seconds: float, seen: int) -> tuple[int, list[dict[str, Any]], float, bool]:
        """The number of this answer; what the worker has reported, waited for so long; for how long it has been silent;
        whether it has ended.

        ``seen``: the last answer that was read. What is in a later one is told again: a notice may have come between
        the question and the answer."""
        if seen == self._number:
            self._kept.clear()
        if not self._kept:
            self._kept.extend(self._worker.reports(seconds))
        self._number += 1
        return self._number, list(self._kept), self._worker.silent, self._worker.ended

    def cause(self) -> str:
        return self._worker.cause()

    def kill(self) -> None:
        self._worker.kill()

    def close(self) -> None:
        self._worker.close()


class RemoteWorker:
    """``WorkerProcess`` on whichever machine of the cluster has room for it."""

    head: Any
    """A HeadWatch; set before its reports are read, as is ``listen``."""
    listen: Callable[[dict[str, Any]], None]
    address = ""
    """Of its machine, once it has one."""

    def __init__(self, takes: Mapping[str, float]) -> None:
        self.takes = takes
        options = {"num_cpus": takes["CPU"], "num_gpus": takes.get("GPU", 0)}
        self._relay: Any = ray.remote(Relay).options(**options).remote()
        self._asked: Any = None
        self._seen = 0
        self._unread, self._gone = deque[dict[str, Any]](), ""
        self._placed = self._said = False
        self.silent, self.ended = 0.0, False

    def begin(self, job: dict[str, Any]) -> None:
        """Give it its job."""
        self._began = time.monotonic()
        self._relay.begin.remote(job)
        self._address = self._relay.address.remote()

    def stop(self) -> None:
        """Ask for a last checkpoint and the end; of one that has no machine yet, for the end alone."""
        if self._placed:
            self._relay.stop.remote()
        else:
            self.kill()

    def reports(self, seconds: float) -> Iterator[dict[str, Any]]:
        """As those of ``WorkerProcess``. Raises HeadLost."""
        if not self._unread:
            self._read(seconds)
        while self._unread:
            yield self._unread.popleft()

    def _read(self, seconds: float) -> None:
        began = time.monotonic()
        if self._asked is None:
            self._asked = self._relay.reports.remote(seconds, self._seen)
        ready, _ = ray.wait([self._asked], timeout=seconds + ANSWERS_S)
        if self.head.lost and not self.head.answers():
            raise self.head.error()
        if not ready:
            if self._placed:  # its machine does not answer: Ray may find that it is gone
                self.silent += min(time.monotonic() - began, 2 * (seconds + ANSWERS_S))
            elif time.monotonic() > self._began + SAYS_SO_S:
                self._wait_for_room()
            return
        try:
            number, told, self.silent, self.ended = ray.get(self._asked)
        except ray.exceptions.RayError as error:
            if not self.head.answers():  # else another worker would be asked of nobody
                raise self.head.error() from None
            self._gone, self.ended = _in_a_line(error), True
        else:
            if not self._placed:
                with contextlib.suppress(ray.exceptions.RayError):
                    self.address = ray.get(self._address, timeout=ANSWERS_S)  # it came before what was told
            self._placed = True
            if number > self._seen:
                self._unread.extend(told)
            self._seen = number
        self._asked = None  # last: a notice in between has it read again

    def _wait_for_room(self) -> None:
        """Others may have it; machines that would be large enough may have died since it was asked for."""
        if not self._said:
            self._said = True
            self.listen({"phase": WAITS})
        if not any(all(node.get(what, 0) >= amount for what, amount in self.takes.items()) for node in self.head.nodes):
            self.kill()
            amounts = " and ".join(f"{amount:g} {what}" for what, amount in self.takes.items())
            self._gone = f"no machine of the cluster has {amounts} any more"

    def kill(self) -> None:
        """At once."""
        with contextlib.suppress(ray.exceptions.RayError):
            if self._placed and not self._gone:  # by its own hand: what Ray ends may leave behind what it has started
                with contextlib.suppress(ray.exceptions.GetTimeoutError):
                    ray.get(self._relay.kill.remote(), timeout=ENDS_S)
            ray.kill(self._relay)
        self._gone, self.ended = self._gone or GONE, True

    def cause(self) -> str:
        """What ended it, in a line."""
        if self._gone:
            return self._gone
        try:
            cause: str = ray.get(self._relay.cause.remote(), timeout=LETS_GO_S)
        except ray.exceptions.RayError as error:
            return _in_a_line(error)
        return cause

    def close(self) -> None:
        """Wait for its end, which is near, and give its machine back."""
        if self.head.lost:  # nobody answers, and whoever asks waits
            return
        with contextlib.suppress(ray.exceptions.RayError):
            if self._placed and not self._gone:
                ray.get(self._relay.close.remote(), timeout=LETS_GO_S)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self._relay)


def _in_a_line(error: BaseException) -> str:
    """The line of an actor's trace that names an error of ours; else what Ray has to say or, where it says at length
    that it is gone, that."""
    if isinstance(error, WITH_A_CAUSE):
        return " ".join(str(error).split())[:MOST_LETTERS]
    lines = [line.strip() for line in str(error).splitlines()]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return named[-1] if named else GONE


def warm(arguments: list[str]) -> None:
    """Join the cluster and ask for a worker there, of the size that these arguments of ``infogan train`` most likely
    mean; ``take`` looks again. Raises UserError where no cluster answers."""
    global _warmed
    connect(None)
    takes = _guess(arguments, machines_of_the_cluster())
    _warmed = RemoteWorker(takes) if takes else None


def _guess(arguments: list[str], nodes: list[dict[str, float]]) -> dict[str, float]:
    """What one worker would take by default (``resources.fit``): the largest machine's CPUs, or those beside the only
    GPU. Empty where nothing is likely."""
    words = dict(pairwise(arguments))
    on_cpu = words.get("--device") == "cpu" or not any(node.get("GPU") for node in nodes)
    places = nodes if on_cpu else [node for node in nodes if node.get("GPU")]
    threads = int(max((node.get("CPU", 0) for node in places), default=0))
    asked = words.get("--threads", "")
    threads = min(int(asked), threads) if asked.isdecimal() else threads
    if not threads or (not on_cpu and sum(node["GPU"] for node in places) != 1):
        return {}
    return {"CPU": threads} | ({} if on_cpu else {"GPU": 1.0})


def take(takes: Mapping[str, float], head: Any, listen: Callable[[dict[str, Any]], None]) -> RemoteWorker:
    """The worker that was asked for before, if it is of this size, or a new one. ``head``: a HeadWatch."""
    global _warmed
    if _warmed is not None and _warmed.takes != takes:
        discard()
    taken, _warmed = _warmed or RemoteWorker(takes), None
    taken.head, taken.listen = head, listen
    return taken


def discard() -> None:
    """Give back what was asked for and not taken."""
    global _warmed
    if _warmed is not None:
        _warmed.kill()
    _warmed = None
