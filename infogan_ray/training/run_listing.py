"""What lies in a storage folder, as rows for a table or a page: an odd run does not hide the others."""

from __future__ import annotations

from typing import Any

from infogan_ray.evaluation.metrics import CHECKPOINT, headlines_of, lower_is_better
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import from_saved


def run_row(run: RunDirectory) -> dict[str, Any]:
    """Name, state, step, measurements of the best checkpoint, and what is wrong."""
    status = run.get_status()
    good, bad, chosen, state = state_of(run, status["state"], verify=False)
    metrics = chosen.metrics if chosen else {}
    last = checkpoints.last(good)
    unfinished = sum(isinstance(error, manifests.IncompleteCheckpoint) for error in bad)
    return {
        "name": run.name, "state": state, "step": status["step"],
        **headlines_of(metrics, (CHECKPOINT,)), "best": chosen.name if chosen else None,
        "last": last.name if last else None, "unfinished_checkpoints": unfinished,
        "broken_checkpoints": len(bad) - unfinished, "restarts": status.get("restarts", 0),
    }  # fmt: skip


def state_of(
    run: RunDirectory, state: str, verify: bool
) -> tuple[list[checkpoints.Checkpoint], list[manifests.BadCheckpoint], checkpoints.Checkpoint | None, str]:
    """Good and bad checkpoints, the best, and the state in words.

    ``verify`` compares all bytes, which of one run on this machine takes seconds; a listing of a thousand runs, or of
    one over a network, would fetch every checkpoint.
    """
    good: list[checkpoints.Checkpoint] = []
    bad: list[manifests.BadCheckpoint] = []
    try:
        good, bad = checkpoints.list_checkpoints(run.checkpoints, verify)
        metric = from_saved(run.read_config(), f"{run.folder}/{run.CONFIG}").metric
        return good, bad, checkpoints.best(good, metric, lower_is_better=lower_is_better(metric)), state
    except (ValueError, StorageError) as error:
        return good, bad, None, f"{state}, {error}" if run.exists else f"{state}, without {run.CONFIG}"
