"""The run directory: the one owner of every file name in it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STALE_AFTER_S = 180  # a running run whose files have not moved for this long has been killed


class RunExists(ValueError):
    """The name belongs to another run."""


@dataclass(frozen=True)
class RunDirectory:
    """``<storage>/<run>``: where each of its files lies, and the small ones read and written."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def log(self) -> Path:
        return self.path / "ray.log"

    def samples(self, step: int) -> Path:
        return self.path / "samples" / f"{step_name(step)}.png"

    def traversal(self, step: int, code: str) -> Path:
        return self.path / "traversals" / f"{step_name(step)}_{code}.png"

    @classmethod
    def free(cls, storage: Path, name: str, resume: bool) -> RunDirectory:
        """The directory of a name that may be taken, untouched.

        Raises RunExists for a taken one unless ``resume``, and ValueError for what is no folder or not there to resume.
        """
        run = cls(storage / name)
        for folder in (storage, run.path):
            if folder.exists() and not folder.is_dir():
                raise ValueError(f"storage: {folder} is a file where a folder should be; name another with --storage")
        if resume and not run.config.is_file():
            raise ValueError(
                f"name is '{name}', and there is no such run in {storage} to resume; drop --resume to start it"
            )
        if not resume and run.path.exists() and any(run.path.iterdir()):
            raise RunExists(f"name '{name}' is taken in {storage}; take another --name, or go on with it by --resume")
        return run

    @classmethod
    def claim(cls, storage: Path, name: str, resume: bool) -> RunDirectory:
        """Take a name in a storage folder: ``free``, and the folder is made."""
        run = cls.free(storage, name, resume)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"storage: cannot write to {storage} ({error.strerror}); name another with --storage"
            ) from None
        return run

    def set_status(self, state: str, step: int = 0, **more: Any) -> None:
        """``running``, ``finished``, ``diverged``, ``interrupted`` or ``failed``."""
        write_whole(self.status, json.dumps({"state": state, "step": step, "time": time.time(), **more}))

    def get_status(self) -> dict[str, Any]:
        """What was last said of the run; ``killed`` if it says running and nothing has moved for minutes."""
        try:
            status = json.loads(self.status.read_text())
        except (OSError, ValueError):
            return {"state": "unknown", "step": 0}
        if status["state"] == "running":
            moved = max(path.stat().st_mtime for path in (self.status, self.metrics) if path.exists())
            if time.time() - moved > STALE_AFTER_S:
                status["state"] = "killed"
        return status

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        with self.metrics.open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Every whole line; one that a kill cut short is passed over."""
        if not self.metrics.exists():
            return
        for line in self.metrics.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of work that was lost, so that a resumed run's steps rise."""
        lines = [json.dumps(row) + "\n" for row in self.read_metrics() if row.get("step", 0) <= step]
        write_whole(self.metrics, "".join(lines))


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def runs_in(storage: Path) -> list[RunDirectory]:
    """The runs of a storage folder by name. Raises ValueError if it is no folder."""
    if not storage.is_dir():
        raise ValueError(
            f"storage: {storage} {'is a file' if storage.exists() else 'does not exist'}; name a folder of runs"
        )
    return [RunDirectory(p) for p in sorted(storage.iterdir()) if p.is_dir() and RunDirectory(p).config.is_file()]


def write_whole(path: Path, text: str) -> None:
    """Write beside and rename: a reader sees the old text or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
