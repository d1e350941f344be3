"""The end of a run: its final state, the result for the caller, and its last status on storage. No Ray."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infogan_ray.models.infogan import InfoGAN
from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.checkpoint_uploader import RunTakenOver, StorageFailed
from infogan_ray.training.load_model import load

FINAL_PHASES = ("finished", "interrupted", "failed", "diverged")
SHUTDOWN_GRACE_S = 10.0  # after a signal, a driver waits this long for its workers' last checkpoint
LAST_STATUS_S = 3.0  # timeout for the last write of a status

Listener = Callable[[dict[str, Any]], None]
"""Called with every report of rank 0: ``phase``, ``step``, metrics and ``say``, a message for people.

Reports before the first step also have ``total_steps``. With ``best_step``, the metrics are the best checkpoint's.
"""


class TrainingFailed(Exception):
    """The workers failed too often, or storage failed. The message has the cause and the log's path."""


class OutOfMemory(TrainingFailed):
    """A worker needs more memory than there is. Another attempt with the same settings would fail too."""


class TrainingTakenOver(TrainingFailed):
    """The workers reported RunTakenOver: another attempt writes the run now."""


class HeadLost(TrainingFailed):
    """Ray's head has died. Calls to Ray in this process do not return any more, including a shutdown."""


@dataclass(frozen=True)
class RunResult:
    """The final state (``finished``, ``diverged`` or ``interrupted``), and the best checkpoint's final metrics."""

    run: RunDirectory
    state: str
    metrics: dict[str, Any]
    message: str = ""
    restarts: int = 0

    @property
    def model(self) -> InfoGAN:
        """The best checkpoint. Raises UserError if the run has none."""
        return load(self.run.folder.uri)

    def __repr__(self) -> str:
        shown = ("step", "mi_bound", "clustering_error", "spread")
        numbers = "".join(f", {name} {self.metrics[name]:.4g}" for name in shown if self.metrics.get(name) is not None)
        return f"RunResult({self.run.name}, {self.state}{numbers})"

    def _repr_html_(self) -> str:
        """The model's images and the result, for notebooks."""
        return f"{self.model._repr_html_()}<br>{html.escape(repr(self))}"


def set_last_status(run: RunDirectory, state: str, step: int, **fields: Any) -> None:
    """Write the final state of a run. Tries for LAST_STATUS_S, and ignores a StorageError."""
    with contextlib.suppress(StorageError):
        run = run.with_retry_timeout(LAST_STATUS_S)
        kept = {k: v for k, v in run.get_status().items() if k in ("owner", "stored", "restarts", "last_good")}
        run.set_status(state, step, **kept, **fields)


def to_result(run: RunDirectory, final: dict[str, Any], log: Path | str) -> RunResult:
    """Convert rank 0's last report to a result. Raises TrainingFailed if it reports a failure or is not final."""
    phase, step = final.get("phase", ""), final.get("step", 0)
    if phase == "failed":
        if not final.get("overtaken"):
            set_last_status(run, "failed", step, message=final["message"])
        taken_over, no_memory = final.get("overtaken"), final.get("out_of_memory")
        failure = TrainingTakenOver if taken_over else OutOfMemory if no_memory else TrainingFailed
        raise failure(f"{final['message']}; the log is {log}")
    if phase not in FINAL_PHASES:
        raise TrainingFailed(f"the workers ended at step {step:,} without a final report; the log is {log}")
    return RunResult(run, phase, final, final.get("message", ""), final.get("restarts", 0))


def failure_report(error: StorageFailed) -> dict[str, Any]:
    """A worker's last report after storage has failed."""
    return {"phase": "failed", "message": str(error), "overtaken": isinstance(error, RunTakenOver)}


def last_line(error: BaseException) -> str:
    """The last line of an error's message. If the message quotes a traceback, this line has the error."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()
