"""Checkpoints of a run: write, open, list, choose and delete.

A checkpoint is a folder with a manifest. One without, or whose bytes do not match it, is never listed as valid, loaded
or pulled.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.storage.file_system import Storage
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
    """The files of a checkpoint by name, without the manifest. Tensors are copied: training may continue."""
    files = {MODEL: _tensor_bytes(model), TRAINING: _tensor_bytes(training)}
    return files | {STATE: json.dumps({"format": FORMAT, "step": step, **state}, indent=1).encode()}


def _tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def add_metrics(checkpoint: Checkpoint, metrics: dict[str, Any]) -> None:
    """Add metrics that were measured later: a new file, then a manifest that replaces the old one in one write.

    The checkpoint stays valid at every moment.
    """
    content = json.dumps(metrics).encode()
    checkpoint.folder.write(ADDED_METRICS, content)
    write_manifest(checkpoint.folder, checkpoint.manifest.files | describe_files({ADDED_METRICS: content}))


def open_checkpoint(folder: Storage, verify: bool = True) -> Checkpoint:
    """Open a checkpoint. ``verify`` compares all bytes, else sizes and state.json. Raises BadCheckpoint."""
    manifest = Manifest.load(folder, required=(MODEL, STATE))
    if verify:
        manifest.verify()
    state = manifest.read_json(STATE)
    if state.get("format") != FORMAT:
        raise BadCheckpoint(f"{folder}/{STATE} has format {state.get('format')!r}; this version reads format {FORMAT}")
    if ADDED_METRICS in manifest.files:
        state["metrics"] = {**state.get("metrics", {}), **manifest.read_json(ADDED_METRICS)}
    if not isinstance(state.get("step"), int) or not isinstance(state.get("metrics", {}), dict):
        raise BadCheckpoint(f"{folder}/{STATE} does not say the step, or its metrics are no object")
    return Checkpoint(manifest, state)


def list_checkpoints(checkpoints: Storage, verify: bool = True) -> tuple[list[Checkpoint], list[BadCheckpoint]]:
    """Valid checkpoints by rising step, and what is wrong with the others.

    ``verify`` compares all bytes, else sizes and state.json: enough for a listing over a network. Loading a checkpoint
    always compares the bytes that it reads.
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
    """The best by a metric, the later of equals. None if no checkpoint has a finite value of it."""
    sign = -1 if lower_is_better else 1
    ranked = [
        c for c in checkpoints if isinstance(c.metrics.get(metric), (int, float)) and math.isfinite(c.metrics[metric])
    ]
    return max(ranked, key=lambda c: (sign * c.metrics[metric], c.step), default=None)


def choose(
    checkpoints: Storage, which: str, metric: str, warn: Callable[[str], None] = lambda line: None, *,
    lower_is_better: bool,
) -> Checkpoint:  # fmt: skip
    """The ``best``, the ``last`` or ``step_XXXXXXXX`` of a run's checkpoints, with all bytes verified.

    Broken checkpoints are skipped, and ``warn`` is called with each. Raises UserError, which names the valid choices,
    and BadCheckpoint for a broken checkpoint that was named itself.
    """
    if re.fullmatch(STEP_FOLDER, which) and (checkpoints / which).is_file(MANIFEST):
        return open_checkpoint(checkpoints / which)
    chosen, bad = _first_valid(checkpoints, lambda valid: _by_name(valid, which, metric, lower_is_better, warn), warn)
    if chosen is None:
        why = f" ({'; '.join(map(str, bad))})" if bad else ""
        raise UserError(f"{checkpoints} holds no whole checkpoint{why}")
    return chosen


def last_valid(checkpoints: Storage, warn: Callable[[str], None]) -> Checkpoint | None:
    """The last checkpoint whose bytes match its manifest; ``warn`` is called with each later one that does not match.

    None if no checkpoint was ever completed. Raises BadCheckpoint if all completed ones are broken: a start from step 0
    would overwrite what may still be repaired.
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
    """The checkpoint that ``pick`` returns, verified. One that fails is removed, and ``pick`` is called again."""
    valid, bad = list_checkpoints(checkpoints, verify=False)
    warned: set[str] = set()
    while True:
        for error in bad:
            if not isinstance(error, IncompleteCheckpoint) and str(error) not in warned:
                warned.add(str(error))
                warn(f"passed over: {error}")
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
            else:  # pruned by a run that still trains: there may be newer ones
                valid, bad = list_checkpoints(checkpoints, verify=False)


def _by_name(
    valid: list[Checkpoint], which: str, metric: str, lower_is_better: bool, warn: Callable[[str], None]
) -> Checkpoint:
    names = {c.name: c for c in valid}
    best_one = best(valid, metric, lower_is_better=lower_is_better)
    chosen = {"last": last(valid), "best": best_one}.get(which, names.get(which))
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


def prune(checkpoints: Storage, keep: int, metric: str, stored: int, *, lower_is_better: bool) -> None:
    """Delete the oldest valid checkpoints past ``keep``. The best by ``metric`` and the last are always kept.

    ``stored`` is the step of the checkpoint that was just written. Later ones were found broken when the run resumed.
    They are kept for a repair until the run reaches their step.
    """
    valid = [c for c in list_checkpoints(checkpoints, verify=False)[0] if c.step <= stored]
    kept = {c.name for c in (last(valid), best(valid, metric, lower_is_better=lower_is_better)) if c is not None}
    others = sorted((c for c in valid if c.name not in kept), key=lambda c: c.step, reverse=True)
    for checkpoint in others[max(keep - len(kept), 0) :]:
        delete_checkpoint(checkpoint.folder)


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
