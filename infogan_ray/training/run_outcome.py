"""How a run ends: its final state, the result for the caller, and its last status on storage. No Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training import checkpoint_uploader
from infogan_ray.training.checkpoint_uploader import StorageFailed

FINAL_PHASES = ("finished", "interrupted", "failed", "diverged")
SHUTDOWN_GRACE_S = 10.0  # how long a driver waits, after a notice, for its workers' last checkpoint
LAST_STATUS_S = 3.0

Listener = Callable[[dict[str, Any]], None]
"""Called with every report of rank 0: ``phase``, ``step``, metrics and, for people, ``say``."""


class TrainingFailed(Exception):
    """The workers failed too often, or storage did; the message has the cause and the log."""


class RunTakenOver(TrainingFailed):
    """Another attempt has taken the run over."""


class HeadLost(TrainingFailed):
    """Ray's head has died. No call to Ray in this process returns any more, not even a shutdown."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended: ``finished``, ``diverged`` or ``interrupted``, and the final metrics of its best checkpoint."""

    run: RunDirectory
    state: str
    metrics: dict[str, Any]
    message: str = ""
    restarts: int = 0


def set_last_status(run: RunDirectory, state: str, step: int, **about: Any) -> None:
    """Write how a run ended. An outage of storage is not waited for and is no error."""
    with contextlib.suppress(StorageError):
        run = run.with_retry_timeout(LAST_STATUS_S)
        known = {k: v for k, v in run.get_status().items() if k in ("owner", "stored", "restarts", "last_good")}
        run.set_status(state, step, **known, **about)


def to_result(run: RunDirectory, final: dict[str, Any], log: Path | str) -> RunResult:
    """The result that rank 0's last report stands for. Raises TrainingFailed for a failure, or for no final report."""
    phase, step = final.get("phase", ""), final.get("step", 0)
    if phase == "failed":
        if not final.get("overtaken"):
            set_last_status(run, "failed", step)
        failure = RunTakenOver if final.get("overtaken") else TrainingFailed
        raise failure(f"{final['message']}; the log is {log}")
    if phase not in FINAL_PHASES:
        raise TrainingFailed(f"the workers ended at step {step:,} without a final report; the log is {log}")
    return RunResult(run, phase, final, final.get("message", ""), final.get("restarts", 0))


def failure_report(error: StorageFailed) -> dict[str, Any]:
    """A worker's last report where storage has failed."""
    return {"phase": "failed", "message": str(error), "overtaken": isinstance(error, checkpoint_uploader.RunTakenOver)}


def last_line(error: BaseException) -> str:
    """The last line of an error's message. Where the message quotes a trace, that line names the error."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()
