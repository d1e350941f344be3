"""Describes a run as a row for a table or a page. A run with errors also gets a row."""

from __future__ import annotations

from typing import Any

from infogan_ray import UserError
from infogan_ray.evaluation.metrics import CHECKPOINT, headlines_of, lower_is_better
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import from_saved


def run_row(run: RunDirectory) -> dict[str, Any]:
    """Name, state, step, measurements of the best checkpoint, and numbers of unfinished and broken checkpoints."""
    status = run.get_status()
    good, bad, best, state = state_of(run, status["state"], verify=False)
    metrics = best.metrics if best else {}
    last = checkpoints.last(good)
    unfinished = sum(isinstance(error, manifests.IncompleteCheckpoint) for error in bad)
    return {
        "name": run.name, "state": state, "step": status["step"],
        **headlines_of(metrics, (CHECKPOINT,)), "best": best.name if best else None,
        "last": last.name if last else None, "unfinished_checkpoints": unfinished,
        "broken_checkpoints": len(bad) - unfinished, "restarts": status.get("restarts", 0),
    }  # fmt: skip


def outcome(run: RunDirectory) -> dict[str, Any]:
    """The state of a run, its cause if there is one, and the last row of its metrics."""
    status, rows = run.get_status(), list(run.read_metrics())
    return {
        "run": run.folder.uri, "state": status["state"], "step": status["step"], "cause": status.get("message") or None,
        "last_good": status.get("last_good"), "metrics": rows[-1] if rows else {},
    }  # fmt: skip


def state_of(
    run: RunDirectory, state: str, verify: bool
) -> tuple[list[checkpoints.Checkpoint], list[manifests.BadCheckpoint], checkpoints.Checkpoint | None, str]:
    """Good and bad checkpoints, the best one, and ``state``, with the error if the run cannot be read.

    ``verify`` reads all bytes of all checkpoints. That takes seconds for a local run, and too long for many runs or
    remote ones.
    """
    good: list[checkpoints.Checkpoint] = []
    bad: list[manifests.BadCheckpoint] = []
    try:
        good, bad = checkpoints.list_checkpoints(run.checkpoints, verify)
        metric = from_saved(run.read_config(), f"{run.folder}/{run.CONFIG}").metric
        return good, bad, checkpoints.best(good, metric, lower_is_better=lower_is_better(metric)), state
    except (UserError, StorageError) as error:
        return good, bad, None, f"{state}, {error}" if run.exists else f"{state}, without {run.CONFIG}"
