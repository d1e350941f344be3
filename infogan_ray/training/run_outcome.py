"""How a run ends, and what is said and kept of it. No Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.checkpoint_uploader import RunTakenOver, StorageFailed

ENDINGS = ("finished", "interrupted", "failed", "diverged")
WORKER_RESTARTS = 3  # of workers that die, as long as there is no new checkpoint
LAST_WORDS_S = 10.0  # how long a driver waits, after a notice, for its workers' last checkpoint
LAST_STATUS_S = 3.0

Listener = Callable[[dict[str, Any]], None]
"""Hears every report of the first rank: ``phase``, ``step``, metrics and, for people, ``say``."""


class TrainingFailed(Exception):
    """The workers failed more often than they are restarted, or storage did; the message has the cause and the log."""


class TakenOver(TrainingFailed):
    """Another attempt has taken the run over."""


class HeadLost(TrainingFailed):
    """Ray's head has died. Nothing can be asked of Ray in this process any more, not even to shut down."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended: ``finished``, ``diverged`` or ``interrupted``, and the final metrics of its best checkpoint."""

    run: RunDirectory
    state: str
    metrics: dict[str, Any]
    message: str = ""
    restarts: int = 0


def set_last_status(run: RunDirectory, state: str, step: int, **about: Any) -> None:
    """As far as storage lets it be said."""
    with contextlib.suppress(StorageError):
        run = run.with_retry_timeout(LAST_STATUS_S)
        known = {k: v for k, v in run.get_status().items() if k in ("owner", "stored", "restarts", "last_good")}
        run.set_status(state, step, **known, **about)


def conclude(run: RunDirectory, final: dict[str, Any], log: Path | str) -> RunResult:
    """What the first rank's last words amount to. Raises TrainingFailed where they are a failure, or no ending."""
    phase, step = final.get("phase", ""), final.get("step", 0)
    if phase == "failed":
        if not final.get("overtaken"):
            set_last_status(run, "failed", step)
        failure = TakenOver if final.get("overtaken") else TrainingFailed
        raise failure(f"{final['message']}; the log is {log}")
    if phase not in ENDINGS:
        raise TrainingFailed(f"the workers ended at step {step:,} without a word; the log is {log}")
    return RunResult(run, phase, final, final.get("message", ""), final.get("restarts", 0))


def failed(error: StorageFailed) -> dict[str, Any]:
    """A worker's last words where storage has failed it."""
    return {"phase": "failed", "message": str(error), "overtaken": isinstance(error, RunTakenOver)}


def last_line(error: BaseException) -> str:
    """Of what an error says: where it quotes a trace, the error in it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()
