"""Fault injection: kill processes at given steps, find worker processes, and compare checkpoints bit by bit."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from infogan_ray.storage import checkpoints
from infogan_ray.storage.run_directory import RunDirectory, step_name


class FaultInjector:
    """A listener that calls each fault once, when a run reaches its step, and keeps all reports."""

    def __init__(self, faults: dict[int, Callable[[], None]]) -> None:
        self.faults, self.reports = faults, list[dict[str, Any]]()

    def __call__(self, report: dict[str, Any]) -> None:
        self.reports.append(report)
        for step in [step for step in self.faults if report.get("step", 0) >= step]:
            self.faults.pop(step)()

    @property
    def messages(self) -> list[str]:
        return [report["say"] for report in self.reports if report.get("say")]


def processes_of(pid: int, pattern: str) -> list[psutil.Process]:
    """All descendants of a process whose command matches the pattern."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # Ray's processes start and end at any time
            if re.search(pattern, " ".join(process.cmdline())):
                found.append(process)
    return found


def process_of(pid: int, pattern: str) -> psutil.Process:
    """The only descendant that matches. Waits, because a new process may not have its command yet."""
    deadline = time.monotonic() + 10
    while not (found := processes_of(pid, pattern)) and time.monotonic() < deadline:
        time.sleep(0.02)
    (process,) = found
    return process


def workers_of(pid: int) -> list[psutil.Process]:
    """The training workers of the Ray instance that a process started."""
    return processes_of(pid, "RayTrainWorker")


@contextlib.contextmanager
def all_cpus_taken() -> Iterator[Any]:
    """Another actor holds all CPUs of the cluster that the tests share."""
    import ray

    class CpuHolder:
        def ready(self) -> bool:
            return True

    holder = ray.remote(CpuHolder).options(num_cpus=int(ray.cluster_resources()["CPU"])).remote()
    assert ray.get(holder.ready.remote())
    try:
        yield holder
    finally:
        ray.kill(holder)


def digest(run: RunDirectory, step: int) -> str:
    """SHA-256 over all tensors of a checkpoint: weights, averages, buffers and optimiser moments."""
    found = checkpoints.open_checkpoint(run.checkpoints / step_name(step))
    tensors = found.model_tensors() | {f"training.{k}": v for k, v in found.training_tensors().items()}
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + tensors[name].numpy().tobytes())
    return total.hexdigest()
