"""Checkpoints: write, verify, list, prune, load. Nothing pickled is written or read.

A checkpoint is a folder whose MANIFEST.json, written last, holds the size and SHA-256 of every other file. A folder
without a manifest, or whose bytes do not match it, does not exist: it is never listed as good, loaded or pulled.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.storage.file_system import Storage

FORMAT = 1
MODEL, TRAINING, STATE, MANIFEST = "model.safetensors", "training.safetensors", "state.json", "MANIFEST.json"
MEASURED = "measured.json"  # metrics that were measured after the checkpoint had been written
STEP_FOLDER = r"step_\d{8,}"


class BadCheckpoint(ValueError):
    """A folder that is not a whole checkpoint; the message names the file and what is wrong with it."""


class Unfinished(BadCheckpoint):
    """A folder without a manifest: it is being written, or its writer was cut off."""


@dataclass(frozen=True)
class Manifest:
    """What a sealed folder must hold: size in bytes and SHA-256 by file name."""

    folder: Storage
    files: dict[str, tuple[int, str]]

    @classmethod
    def of(cls, folder: Storage, required: tuple[str, ...] = (MODEL, STATE)) -> Manifest:
        """The manifest of a folder whose files have the sizes that it names. Raises BadCheckpoint."""
        try:
            entries = json.loads(folder.read(MANIFEST))["files"]
            files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries.items()}
        except FileNotFoundError:
            raise Unfinished(f"{folder} has no {MANIFEST}: it was never finished") from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise BadCheckpoint(f"{folder}/{MANIFEST} is not a manifest") from None
        for name in required:
            if name not in files:
                raise BadCheckpoint(f"{folder}/{MANIFEST} does not list {name}")
        for name in files:
            if name in (".", "..", "") or "/" in name or "\\" in name or "\0" in name:
                raise BadCheckpoint(f"{folder}/{MANIFEST} lists '{name}', which is not a plain file name")
        sizes = {entry.name: entry.size for entry in folder.entries() if not entry.is_folder}
        for name, (size, _) in files.items():
            if name not in sizes:
                raise BadCheckpoint(f"{folder}/{name} is missing")
            if sizes[name] != size:
                raise BadCheckpoint(f"{folder}/{name} has {sizes[name]} bytes where the manifest says {size}")
        return cls(folder, files)

    def read(self, name: str) -> bytes:
        """The bytes of a listed file. Raises BadCheckpoint unless they are those that were written."""
        try:
            content = self.folder.read(name)
        except FileNotFoundError:
            raise BadCheckpoint(f"{self.folder}/{name} is missing") from None
        self._compare(name, len(content), hashlib.sha256(content).hexdigest())
        return content

    def verify(self) -> None:
        """Read every file. Raises BadCheckpoint for the first whose bytes are not those that were written."""
        for name in self.files:
            digest, size = hashlib.sha256(), 0
            try:
                for chunk in self.folder.chunks(name):
                    digest.update(chunk)
                    size += len(chunk)
            except FileNotFoundError:
                raise BadCheckpoint(f"{self.folder}/{name} is missing") from None
            self._compare(name, size, digest.hexdigest())

    def read_json(self, name: str) -> dict[str, Any]:
        return parse_json(f"{self.folder}/{name}", self.read(name))

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        return parse_tensors(f"{self.folder}/{name}", self.read(name))

    def _compare(self, name: str, size: int, digest: str) -> None:
        if (size, digest) != self.files[name]:
            raise BadCheckpoint(
                f"{self.folder}/{name} does not have the bytes that the manifest says (SHA-256 differs)"
            )


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder and what state.json says."""

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


def pack(step: int, model: dict[str, Tensor], training: dict[str, Tensor], state: dict[str, Any]) -> dict[str, bytes]:
    """The files of a checkpoint by name, the manifest not among them. Tensors are copied: training may go on."""
    files = {MODEL: _tensor_bytes(model), TRAINING: _tensor_bytes(training)}
    return files | {STATE: json.dumps({"format": FORMAT, "step": step, **state}, indent=1).encode()}


def _tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def seal(folder: Storage, files: Mapping[str, bytes], before_each: Callable[[], None] = lambda: None) -> None:
    """Write files and then their manifest into a folder; until that is there, readers see nothing.

    What an earlier attempt left there is replaced. ``before_each`` is called before anything is changed and before
    every file, the manifest among them, and may raise.
    """
    before_each()
    folder.delete(MANIFEST)  # first: what is being replaced must not look whole in between
    for name, content in files.items():
        before_each()
        folder.write(name, content)
    listed = {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()}
    for entry in folder.entries():
        if not entry.is_folder and entry.name not in listed:
            folder.delete(entry.name)
    before_each()
    _write_manifest(folder, listed)
    Manifest.of(folder, required=())


def amend(checkpoint: Checkpoint, metrics: dict[str, Any]) -> None:
    """Add metrics that were measured later: a new file, and a manifest that takes the old one's place in one write.

    At no moment is the checkpoint not whole.
    """
    content = json.dumps(metrics).encode()
    checkpoint.folder.write(MEASURED, content)
    added = {MEASURED: (len(content), hashlib.sha256(content).hexdigest())}
    _write_manifest(checkpoint.folder, checkpoint.manifest.files | added)


def replace(manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
    """Exchange some files of a sealed folder, or add them; returns the new manifest.

    They are taken off the manifest first: a kill in between leaves a folder that is whole without them.
    """
    others = {name: listed for name, listed in manifest.files.items() if name not in files}
    _write_manifest(manifest.folder, others)
    for name, content in files.items():
        manifest.folder.write(name, content)
    listed = {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()}
    _write_manifest(manifest.folder, others | listed)
    return Manifest.of(manifest.folder, required=())


def _write_manifest(folder: Storage, listed: dict[str, tuple[int, str]]) -> None:
    entries = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in sorted(listed.items())}
    folder.write(MANIFEST, json.dumps({"format": FORMAT, "files": entries}, indent=1).encode())


def open_checkpoint(folder: Storage, thorough: bool = True) -> Checkpoint:
    """Verify and open; ``thorough`` reads all bytes, else sizes and state.json are compared. Raises BadCheckpoint."""
    manifest = Manifest.of(folder)
    if thorough:
        manifest.verify()
    state = manifest.read_json(STATE)
    if state.get("format") != FORMAT:
        raise BadCheckpoint(f"{folder}/{STATE} has format {state.get('format')!r}; this version reads format {FORMAT}")
    if MEASURED in manifest.files:
        state["metrics"] = {**state.get("metrics", {}), **manifest.read_json(MEASURED)}
    if not isinstance(state.get("step"), int) or not isinstance(state.get("metrics", {}), dict):
        raise BadCheckpoint(f"{folder}/{STATE} does not say the step, or its metrics are no object")
    return Checkpoint(manifest, state)


def parse_tensors(where: str, content: bytes) -> dict[str, Tensor]:
    """Raises BadCheckpoint if the bytes are not safetensors; whatever else they are, they are not executed."""
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        pickled = content[:1] == b"\x80" or content[:2] == b"PK"
        what = "a pickle (or torch.save) file" if pickled else f"broken: {error}"
        raise BadCheckpoint(f"{where} is not a safetensors file; it is {what}, and pickles are never read") from None


def parse_json(where: str, content: bytes) -> dict[str, Any]:
    """Raises BadCheckpoint if the bytes are not a JSON object."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{where} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{where} does not hold a JSON object")
    return value


def list_checkpoints(checkpoints: Storage, thorough: bool = True) -> tuple[list[Checkpoint], list[BadCheckpoint]]:
    """Whole checkpoints by rising step, and what is wrong with the others.

    ``thorough`` reads all bytes; else sizes and state.json are compared, which is what a listing over a network can
    afford. Whoever loads a checkpoint compares all bytes that it reads in any case.
    """
    good: list[Checkpoint] = []
    bad: list[BadCheckpoint] = []
    for entry in checkpoints.entries():
        if not entry.is_folder or not re.fullmatch(STEP_FOLDER, entry.name):
            continue
        try:
            good.append(open_checkpoint(checkpoints / entry.name, thorough))
        except BadCheckpoint as error:
            bad.append(error)
    return sorted(good, key=lambda checkpoint: checkpoint.step), bad


def last(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    return max(checkpoints, key=lambda c: c.step, default=None)


def best(checkpoints: list[Checkpoint], metric: str, lower_is_better: bool = False) -> Checkpoint | None:
    """The best by a metric, the later of equals; checkpoints without that metric never rank. None if none has it."""
    sign = -1 if lower_is_better else 1
    ranked = [
        c for c in checkpoints if isinstance(c.metrics.get(metric), (int, float)) and math.isfinite(c.metrics[metric])
    ]
    return max(ranked, key=lambda c: (sign * c.metrics[metric], c.step), default=None)


def choose(
    checkpoints: Storage, which: str, metric: str, warn: Callable[[str], None] = lambda line: None, *,
    lower_is_better: bool = False,
) -> Checkpoint:  # fmt: skip
    """``best``, ``last`` or ``step_XXXXXXXX`` of a run's checkpoints, all of its bytes verified.

    A broken one is passed over, and ``warn`` hears which. Raises UserError, naming what there is, and BadCheckpoint
    for a broken one that was asked for by name.
    """
    if re.fullmatch(STEP_FOLDER, which) and (checkpoints / which).is_file(MANIFEST):
        return open_checkpoint(checkpoints / which)
    chosen, bad = _first_whole(checkpoints, lambda good: _chosen(good, which, metric, lower_is_better, warn), warn)
    if chosen is None:
        why = f" ({'; '.join(map(str, bad))})" if bad else ""
        raise UserError(f"{checkpoints} holds no whole checkpoint{why}")
    return chosen


def last_whole(checkpoints: Storage, warn: Callable[[str], None]) -> Checkpoint | None:
    """The last checkpoint whose bytes are all right; ``warn`` hears of those after it that are not.

    None if none was ever finished. Raises BadCheckpoint if there are some and none is right: to start again from
    nothing would overwrite what may still be mended.
    """
    chosen, bad = _first_whole(checkpoints, last, warn)
    broken = [error for error in bad if not isinstance(error, Unfinished)]
    if chosen is None and broken:
        raise BadCheckpoint(
            f"no checkpoint in {checkpoints} can be read; move them away to start from step 0: "
            + "; ".join(map(str, broken[:3]))
        )
    return chosen


def _first_whole(
    checkpoints: Storage, pick: Callable[[list[Checkpoint]], Checkpoint | None], warn: Callable[[str], None]
) -> tuple[Checkpoint | None, list[BadCheckpoint]]:
    """What ``pick`` takes of the good ones, its bytes compared; if they are wrong it picks again among the others."""
    good, bad = list_checkpoints(checkpoints, thorough=False)
    told: set[str] = set()
    while True:
        for error in bad:
            if not isinstance(error, Unfinished) and str(error) not in told:
                told.add(str(error))
                warn(f"passed over: {error}")
        chosen = pick(good) if good else None
        if chosen is None:
            return None, bad
        try:
            chosen.manifest.verify()
            return chosen, bad
        except BadCheckpoint as error:
            if chosen.folder.is_file(MANIFEST):
                good.remove(chosen)
                bad.append(error)
            else:  # pruned by a run that goes on: there may be newer ones
                good, bad = list_checkpoints(checkpoints, thorough=False)


def _chosen(
    good: list[Checkpoint], which: str, metric: str, lower_is_better: bool, warn: Callable[[str], None]
) -> Checkpoint:
    names = {c.name: c for c in good}
    chosen = {"last": last(good), "best": best(good, metric, lower_is_better)}.get(which, names.get(which))
    if chosen is None:
        if which == "best":
            known = sorted({m for c in good for m, v in c.metrics.items() if isinstance(v, (int, float))})
            newest = last(good)
            if newest is not None and set(known) <= {"step"}:  # of a run that was stopped early
                warn(f"no checkpoint has been measured yet, so this is the last, {newest.name}")
                return newest
            raise UserError(f"metric is '{metric}', which no checkpoint has; they have {', '.join(known)}")
        raise UserError(f"checkpoint is '{which}'; valid are best, last, {', '.join(names)}")
    return chosen


def prune(checkpoints: Storage, keep: int, metric: str, stored: int, *, lower_is_better: bool = False) -> None:
    """Delete the oldest whole checkpoints past ``keep``; the best by ``metric`` and the last always stay.

    ``stored``: the step of the last, which has just been. What lies beyond it looks whole by its sizes and was passed
    over when the run began, and stays for whoever may mend it, until the run comes there."""
    good = [c for c in list_checkpoints(checkpoints, thorough=False)[0] if c.step <= stored]
    spared = {c.name for c in (last(good), best(good, metric, lower_is_better)) if c is not None}
    others = sorted((c for c in good if c.name not in spared), key=lambda c: c.step, reverse=True)
    for checkpoint in others[max(keep - len(spared), 0) :]:
        discard(checkpoint.folder)


def discard(folder: Storage) -> None:
    """Delete a checkpoint: its manifest first, so that a cut-off deletion leaves nothing that looks whole."""
    folder.delete(MANIFEST)
    folder.delete_all()


def discard_orphans(checkpoints: Storage) -> list[str]:
    """Delete step folders without a manifest, which an attempt left that was cut off; returns their names."""
    entries = checkpoints.entries()
    folders = [entry.name for entry in entries if entry.is_folder and re.fullmatch(STEP_FOLDER, entry.name)]
    orphans = [name for name in folders if not (checkpoints / name).is_file(MANIFEST)]
    for name in orphans:
        (checkpoints / name).delete_all()
    return orphans
