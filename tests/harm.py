"""What kills have in common: when they come, which processes are the workers, and whether two runs ended in the same
bits."""

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


class Harm:
    """A listener that does something to a run at given steps, once each, and remembers what it heard."""

    def __init__(self, at: dict[int, Callable[[], None]]) -> None:
        self.at, self.heard = at, list[dict[str, Any]]()

    def __call__(self, report: dict[str, Any]) -> None:
        self.heard.append(report)
        for step in [step for step in self.at if report.get("step", 0) >= step]:
            self.at.pop(step)()

    @property
    def said(self) -> list[str]:
        return [report["say"] for report in self.heard if report.get("say")]


def processes_of(pid: int, pattern: str) -> list[psutil.Process]:
    """What a process has started, and what that has, if the pattern is found in its command."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # Ray's come and go
            if re.search(pattern, " ".join(process.cmdline())):
                found.append(process)
    return found


def process_of(pid: int, pattern: str) -> psutil.Process:
    """The only one. One that has just been started may not have its command yet."""
    deadline = time.monotonic() + 10
    while not (found := processes_of(pid, pattern)) and time.monotonic() < deadline:
        time.sleep(0.02)
    (process,) = found
    return process


def workers_of(pid: int) -> list[psutil.Process]:
    """The training workers of the Ray that a process has started."""
    return processes_of(pid, "RayTrainWorker")


@contextlib.contextmanager
def all_cpus_taken() -> Iterator[Any]:
    """By somebody else, of the cluster that the tests share."""
    import ray

    class Other:
        def here(self) -> bool:
            return True

    there = ray.remote(Other).options(num_cpus=int(ray.cluster_resources()["CPU"])).remote()
    assert ray.get(there.here.remote())
    try:
        yield there
    finally:
        ray.kill(there)


def digest(run: RunDirectory, step: int) -> str:
    """SHA-256 over all tensors of a checkpoint: weights, averages, buffers and optimiser moments."""
    found = checkpoints.open_checkpoint(run.checkpoints / step_name(step))
    tensors = found.model_tensors() | {f"training.{k}": v for k, v in found.training_tensors().items()}
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + tensors[name].numpy().tobytes())
    return total.hexdigest()
