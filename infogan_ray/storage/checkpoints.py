"""Checkpoints of a run: write, open, list, choose and delete.

A checkpoint is a folder with a manifest. A folder without a manifest, or with other bytes than the manifest lists, is
never listed as valid, loaded or pulled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.storage.file_system import Storage
from infogan_ray.storage.json_text import to_json
from infogan_ray.storage.manifests import (
    FORMAT,
    MANIFEST,
    BadCheckpoint,
    IncompleteCheckpoint,
    Manifest,
    describe_files,
    write_manifest,
)

MODEL, TRAINING, STATE = "model.safetensors", "training.safetensors", "state.json"
ADDED_METRICS = "measured.json"  # metrics that were measured after the checkpoint was written
STEP_FOLDER = r"step_\d{8,}"


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint: its manifest and the content of state.json."""

    manifest: Manifest
    state: dict[str, Any]

    @property
    def folder(self) -> Storage:
        return self.manifest.folder

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def metrics(self) -> dict[str, Any]:
        return self.state.get("metrics", {})

    def model_tensors(self) -> dict[str, Tensor]:
        return self.manifest.read_tensors(MODEL)

    def training_tensors(self) -> dict[str, Tensor]:
        return self.manifest.read_tensors(TRAINING)


def serialize(
    step: int, model: dict[str, Tensor], training: dict[str, Tensor], state: dict[str, Any]
) -> dict[str, bytes]:
    """The files of a checkpoint by name, without the manifest. Tensors are copied, so training can continue."""
    files = {MODEL: _tensor_bytes(model), TRAINING: _tensor_bytes(training)}
    return files | {STATE: to_json({"format": FORMAT, "step": step, **state}, indent=1).encode()}


def _tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def add_metrics(checkpoint: Checkpoint, metrics: dict[str, Any]) -> None:
    """Add metrics that were measured later: write a new file, then replace the manifest in one write.

    The checkpoint is valid at every moment.
    """
    content = to_json(metrics).encode()
    checkpoint.folder.write(ADDED_METRICS, content)
    write_manifest(checkpoint.folder, checkpoint.manifest.files | describe_files({ADDED_METRICS: content}))


def open_checkpoint(folder: Storage, verify: bool = True) -> Checkpoint:
    """Open a checkpoint. Compares all bytes if ``verify``, else only sizes and state.json. Raises BadCheckpoint."""
    manifest = Manifest.load(folder, required=(MODEL, STATE))
    if verify:
        manifest.verify()
    state = manifest.read_json(STATE)
    if state.get("format") != FORMAT:
        raise BadCheckpoint(f"{folder}/{STATE} has format {state.get('format')!r}; this version reads format {FORMAT}")
    if ADDED_METRICS in manifest.files:
        state["metrics"] = {**state.get("metrics", {}), **manifest.read_json(ADDED_METRICS)}
    if not isinstance(state.get("step"), int) or not isinstance(state.get("metrics", {}), dict):
        raise BadCheckpoint(f"{folder}/{STATE} has no valid step, or its metrics are not an object")
    return Checkpoint(manifest, state)


def list_checkpoints(checkpoints: Storage, verify: bool = True) -> tuple[list[Checkpoint], list[BadCheckpoint]]:
    """Valid checkpoints sorted by step, and the errors of the others.

    Compares all bytes if ``verify``, else only sizes and state.json, which is faster over a network. Loading a
    checkpoint always compares the bytes that it reads.
    """
    valid: list[Checkpoint] = []
    bad: list[BadCheckpoint] = []
    for entry in checkpoints.entries():
        if not entry.is_folder or not re.fullmatch(STEP_FOLDER, entry.name):
            continue
        try:
            valid.append(open_checkpoint(checkpoints / entry.name, verify))
        except BadCheckpoint as error:
            bad.append(error)
    return sorted(valid, key=lambda checkpoint: checkpoint.step), bad


def last(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    return max(checkpoints, key=lambda c: c.step, default=None)


def best(checkpoints: list[Checkpoint], metric: str, *, lower_is_better: bool) -> Checkpoint | None:
    """The best checkpoint by a metric, the later one of equals. None if no checkpoint has a finite value."""
    sign = -1 if lower_is_better else 1
    ranked = [
        c for c in checkpoints if isinstance(c.metrics.get(metric), (int, float)) and math.isfinite(c.metrics[metric])
    ]
    return max(ranked, key=lambda c: (sign * c.metrics[metric], c.step), default=None)


def choose(
    checkpoints: Storage, which: str, metric: str, warn: Callable[[str], None] = lambda line: None, *,
    lower_is_better: bool,
) -> Checkpoint:  # fmt: skip
    """Choose ``best``, ``last`` or ``step_XXXXXXXX`` among a run's checkpoints, and verify all its bytes.

    Broken checkpoints are skipped, and ``warn`` is called with each. Raises UserError, which lists the valid choices,
    and BadCheckpoint if ``which`` names a broken checkpoint.
    """
    if re.fullmatch(STEP_FOLDER, which) and (checkpoints / which).is_file(MANIFEST):
        return open_checkpoint(checkpoints / which)
    chosen, bad = _first_valid(checkpoints, lambda valid: _by_name(valid, which, metric, lower_is_better, warn), warn)
    if chosen is None:
        reasons = f" ({'; '.join(map(str, bad))})" if bad else ""
        raise UserError(f"{checkpoints} has no valid checkpoint{reasons}")
    return chosen


def last_valid(checkpoints: Storage, warn: Callable[[str], None]) -> Checkpoint | None:
    """The last checkpoint whose bytes match its manifest. ``warn`` is called with each later one that does not match.

    None if no checkpoint was completed. Raises BadCheckpoint if all completed ones are broken: a start from step 0
    would overwrite files that may still be repaired.
    """
    chosen, bad = _first_valid(checkpoints, last, warn)
    broken = [error for error in bad if not isinstance(error, IncompleteCheckpoint)]
    if chosen is None and broken:
        raise BadCheckpoint(
            f"no checkpoint in {checkpoints} can be read; move them away to start from step 0: "
            + "; ".join(map(str, broken[:3]))
        )
    return chosen


def _first_valid(
    checkpoints: Storage, pick: Callable[[list[Checkpoint]], Checkpoint | None], warn: Callable[[str], None]
) -> tuple[Checkpoint | None, list[BadCheckpoint]]:
    """Verify the checkpoint that ``pick`` returns. If it fails, remove it from the list and call ``pick`` again."""
    valid, bad = list_checkpoints(checkpoints, verify=False)
    warned: set[str] = set()
    while True:
        for error in bad:
            if not isinstance(error, IncompleteCheckpoint) and str(error) not in warned:
                warned.add(str(error))
                warn(f"skipped: {error}")
        chosen = pick(valid) if valid else None
        if chosen is None:
            return None, bad
        try:
            chosen.manifest.verify()
            return chosen, bad
        except BadCheckpoint as error:
            if chosen.folder.is_file(MANIFEST):
                valid.remove(chosen)
                bad.append(error)
            else:  # a running run has pruned it: there may be newer ones
                valid, bad = list_checkpoints(checkpoints, verify=False)


def _by_name(
    valid: list[Checkpoint], which: str, metric: str, lower_is_better: bool, warn: Callable[[str], None]
) -> Checkpoint:
    names = {c.name: c for c in valid}
    by_metric = best(valid, metric, lower_is_better=lower_is_better)
    chosen = {"last": last(valid), "best": by_metric}.get(which, names.get(which))
    if chosen is None:
        if which == "best":
            known = sorted({m for c in valid for m, v in c.metrics.items() if isinstance(v, (int, float))})
            newest = last(valid)
            if newest is not None and set(known) <= {"step"}:  # the run was stopped before its first evaluation
                warn(f"no checkpoint has been measured yet, so this is the last, {newest.name}")
                return newest
            raise UserError(f"metric is '{metric}', which no checkpoint has; they have {', '.join(known)}")
        raise UserError(f"checkpoint is '{which}'; valid are best, last, {', '.join(names)}")
    return chosen


def prune(checkpoints: Storage, keep: int, metric: str, stored: int, *, lower_is_better: bool) -> list[str]:
    """Delete the oldest valid checkpoints if there are more than ``keep``. The best by ``metric`` and the last stay.

    ``stored``: step of the last checkpoint that was written or loaded. Later ones were broken when the run resumed.
    They stay for a repair until the run reaches their step. Returns the names of the deleted ones.
    """
    deleted = deletable(checkpoints, keep, metric, stored, lower_is_better=lower_is_better)
    for checkpoint in deleted:
        delete_checkpoint(checkpoint.folder)
    return [checkpoint.name for checkpoint in deleted]


def deletable(
    checkpoints: Storage, keep: int, metric: str, stored: int | None = None, *, lower_is_better: bool
) -> list[Checkpoint]:
    """The checkpoints that ``prune`` deletes. Without ``stored``, all valid ones count."""
    valid = [c for c in list_checkpoints(checkpoints, verify=False)[0] if stored is None or c.step <= stored]
    kept = {c.name for c in (last(valid), best(valid, metric, lower_is_better=lower_is_better)) if c is not None}
    others = sorted((c for c in valid if c.name not in kept), key=lambda c: c.step, reverse=True)
    return others[max(keep - len(kept), 0) :]


def delete_checkpoint(folder: Storage) -> None:
    """Delete a checkpoint, its manifest first: an interrupted deletion leaves a folder that counts as incomplete."""
    folder.delete(MANIFEST)
    folder.delete_all()


def delete_incomplete(checkpoints: Storage) -> list[str]:
    """Delete step folders without a manifest, which an interrupted upload left; returns their names."""
    entries = checkpoints.entries()
    folders = [entry.name for entry in entries if entry.is_folder and re.fullmatch(STEP_FOLDER, entry.name)]
    incomplete = [name for name in folders if not (checkpoints / name).is_file(MANIFEST)]
    for name in incomplete:
        (checkpoints / name).delete_all()
    return incomplete
