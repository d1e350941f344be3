"""Checkpoints: write, verify, list, prune, load. Nothing pickled is written or read.

A checkpoint is a folder whose MANIFEST.json, written last, holds the size and SHA-256 of every other file. A folder
without a manifest, or whose bytes do not match it, does not exist: it is never listed as good, loaded or pulled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from infogan_ray.config import LOWER_IS_BETTER
from infogan_ray.runs import step_name

FORMAT = 1
MODEL, TRAINING, STATE, MANIFEST = "model.safetensors", "training.safetensors", "state.json", "MANIFEST.json"
CHUNK = 1 << 20


class BadCheckpoint(ValueError):
    """A folder that is not a whole checkpoint; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder and what state.json says."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def metrics(self) -> dict[str, Any]:
        return self.state.get("metrics", {})

    def model_tensors(self) -> dict[str, Tensor]:
        return read_tensors(self.path / MODEL)

    def training_tensors(self) -> dict[str, Tensor]:
        return read_tensors(self.path / TRAINING)


def write_checkpoint(
    folder: Path, step: int, model: dict[str, Tensor], training: dict[str, Tensor], state: dict[str, Any]
) -> Checkpoint:
    """Write ``folder/step_XXXXXXXX``: files into a hidden folder beside it, manifest last, then one rename."""
    final = folder / step_name(step)
    hidden = folder / f".{final.name}.{uuid.uuid4().hex[:8]}"
    hidden.mkdir(parents=True)
    try:
        for name, tensors in ((MODEL, model), (TRAINING, training)):
            safetensors.torch.save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, hidden / name)
        state = {"format": FORMAT, "step": step, **state}
        (hidden / STATE).write_text(json.dumps(state, indent=1))
        seal(hidden)
        if final.exists():  # left by an attempt that was cut off; this one is whole
            shutil.rmtree(final)
        hidden.rename(final)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return Checkpoint(final, state)


def seal(folder: Path) -> None:
    """Write the manifest of a folder's files, after they have reached the disk."""
    entries = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name != MANIFEST):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        entries[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": entries}, indent=1))


def verify(folder: Path, required: tuple[str, ...] = (MODEL, STATE)) -> None:
    """Raises BadCheckpoint unless every file of the manifest is there with the size and hash that it names."""
    try:
        entries = json.loads((folder / MANIFEST).read_text())["files"]
        sizes = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries.items()}
    except OSError:
        raise BadCheckpoint(f"{folder} has no {MANIFEST}: it was never finished") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadCheckpoint(f"{folder / MANIFEST} is not a manifest") from None
    for name in required:
        if name not in sizes:
            raise BadCheckpoint(f"{folder / MANIFEST} does not list {name}")
    for name, (size, digest) in sizes.items():
        if Path(name).name != name or name in (".", ".."):
            raise BadCheckpoint(f"{folder / MANIFEST} lists '{name}', which is not a plain file name")
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise BadCheckpoint(f"{path} is missing")
        if path.stat().st_size != size:
            raise BadCheckpoint(f"{path} has {path.stat().st_size} bytes where the manifest says {size}")
        if sha256(path) != digest:
            raise BadCheckpoint(f"{path} does not have the bytes that the manifest says (SHA-256 differs)")


def open_checkpoint(folder: Path) -> Checkpoint:
    """Verify and open. Raises BadCheckpoint."""
    verify(folder)
    state = read_json(folder / STATE)
    if state.get("format") != FORMAT:
        raise BadCheckpoint(f"{folder / STATE} has format {state.get('format')!r}; this version reads format {FORMAT}")
    return Checkpoint(folder, state)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises BadCheckpoint if the file is not safetensors; whatever else it is, it is not executed."""
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise BadCheckpoint(f"{path} is missing") from None
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        with path.open("rb") as file:
            start = file.read(2)
        what = "a pickle (or torch.save) file" if start[:1] == b"\x80" or start == b"PK" else f"broken: {error}"
        raise BadCheckpoint(f"{path} is not a safetensors file; it is {what}, and pickles are never read") from None


def read_json(path: Path) -> dict[str, Any]:
    """Raises BadCheckpoint if the file is not a JSON object."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadCheckpoint(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path} does not hold a JSON object")
    return content


def list_checkpoints(folder: Path) -> tuple[list[Checkpoint], list[BadCheckpoint]]:
    """Whole checkpoints by rising step, and what is wrong with the others."""
    good: list[Checkpoint] = []
    bad: list[BadCheckpoint] = []
    for path in sorted(folder.glob("step_*")) if folder.is_dir() else []:
        if not re.fullmatch(r"step_\d{8,}", path.name):
            continue
        try:
            good.append(open_checkpoint(path))
        except BadCheckpoint as error:
            bad.append(error)
    return good, bad


def last(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    return max(checkpoints, key=lambda c: c.step, default=None)


def best(checkpoints: list[Checkpoint], metric: str) -> Checkpoint | None:
    """The best by a metric, the later of equals; checkpoints without that metric never rank. None if none has it."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    ranked = [c for c in checkpoints if isinstance(c.metrics.get(metric), (int, float))]
    return max(ranked, key=lambda c: (sign * c.metrics[metric], c.step), default=None)


def choose(folder: Path, which: str, metric: str) -> Checkpoint:
    """``best``, ``last`` or ``step_XXXXXXXX`` of a run's checkpoints. Raises ValueError, naming what there is."""
    good, bad = list_checkpoints(folder)
    if not good:
        why = f" ({'; '.join(map(str, bad))})" if bad else ""
        raise ValueError(f"{folder} holds no whole checkpoint{why}")
    names = {c.path.name: c for c in good}
    chosen = {"last": last(good), "best": best(good, metric)}.get(which, names.get(which))
    if chosen is None:
        if which == "best":
            known = sorted({m for c in good for m, v in c.metrics.items() if isinstance(v, (int, float))})
            raise ValueError(f"metric is '{metric}', which no checkpoint has; they have {', '.join(known)}")
        raise ValueError(f"checkpoint is '{which}'; valid are best, last, {', '.join(names)}")
    return chosen


def prune(folder: Path, keep: int, metric: str) -> None:
    """Delete the oldest whole checkpoints past ``keep``; the best by ``metric`` and the last always stay."""
    good, _ = list_checkpoints(folder)
    spared = {c.path for c in (last(good), best(good, metric)) if c is not None}
    others = sorted((c for c in good if c.path not in spared), key=lambda c: c.step, reverse=True)
    for checkpoint in others[max(keep - len(spared), 0) :]:
        (checkpoint.path / MANIFEST).unlink()  # first, so that a cut-off deletion leaves nothing that looks whole
        shutil.rmtree(checkpoint.path)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
