"""The run directory: defines the name of every file in it."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from infogan_ray import UserError
from infogan_ray.storage.claim import TEMPORARY, is_taken, take_folder
from infogan_ray.storage.errors import StorageError
from infogan_ray.storage.file_system import Storage

# A run counts as killed if it has not written its status for this long. A starting run writes it only once: it may wait
# for resources of the cluster, or read a large folder.
STALE_AFTER_S = {"starting": 3600, "running": 180}


class RunExists(UserError):
    """The name belongs to another run."""


@dataclass(frozen=True)
class RunDirectory:
    """``<storage>/<run>``: the names of all files, and functions that read and write small ones."""

    folder: Storage

    CONFIG = "config.json"
    METRICS = "metrics.jsonl"
    STATUS = "status.json"
    REPORT = "report.html"
    EVENTS = "events.out.tfevents."  # the start of the names of TensorBoard's files
    TRACKING = "tracking.json"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def title(self) -> str:
        """The run's name; for a trial, with the search's name before it."""
        parent = self.folder.parent
        return f"{parent.parent.name}/{self.name}" if parent.name == "trials" else self.name

    @property
    def checkpoints(self) -> Storage:
        return self.folder / "checkpoints"

    @property
    def model(self) -> Storage:
        return self.folder / "model"

    @property
    def samples(self) -> Storage:
        """One ``sample_picture_name`` for each checkpoint."""
        return self.folder / "samples"

    @property
    def traversals(self) -> Storage:
        """One ``traversal_picture_name`` for each checkpoint and code."""
        return self.folder / "traversals"

    @property
    def profile(self) -> Storage:
        """The traces of --profile: gzipped JSON in Chrome's format."""
        return self.folder / "profile"

    def with_retry_timeout(self, seconds: float) -> RunDirectory:
        """The same directory with another time limit for retries while storage is unavailable."""
        return RunDirectory(self.folder.with_retry_timeout(seconds))

    @property
    def exists(self) -> bool:
        return self.folder.is_file(self.CONFIG)

    @property
    def can_resume(self) -> bool:
        """Whether there is a run to continue. It may have ended before it wrote its configuration."""
        names = [entry.name for entry in self.folder.entries() if not entry.name.endswith(TEMPORARY)]
        return self.CONFIG in names or names == [self.STATUS]

    @property
    def looks_like_run(self) -> bool:
        """Whether the folder holds a run, complete or not."""
        parts = {self.CONFIG, self.STATUS, self.METRICS, "checkpoints"}
        return bool(parts & {entry.name for entry in self.folder.entries()})

    @classmethod
    def check_name(cls, storage: Storage, name: str, resume: bool) -> RunDirectory:
        """Check that a run may use a name, and return its directory. Writes nothing.

        Raises RunExists for a taken name unless ``resume``. Raises UserError if a file has the name, and for ``resume``
        without a run of that name.
        """
        run = cls(storage / name)
        for folder in (storage, run.folder):
            if folder.path_is_file:
                raise UserError(f"storage: {folder} is a file, not a folder; name another with --storage")
        if resume and not run.can_resume:
            hint = "that name is not a run; take another" if is_taken(run.folder) else "drop --resume to start it"
            raise UserError(f"name is '{name}', and {storage} has no such run to resume; {hint}")
        if not resume and is_taken(run.folder):
            hint = ", or continue it with --resume" if run.can_resume else ""
            if hint and run.get_status()["state"] in STALE_AFTER_S:
                hint += " if it has ended"
            raise RunExists(f"name '{name}' is taken in {storage}; take another --name{hint}")
        return run

    @classmethod
    def claim(cls, storage: Storage, name: str, resume: bool) -> RunDirectory:
        """Take a name in a storage folder: check it, and write a new run's first file.

        Of several processes at most one gets the name. Raises UserError if storage cannot be written to, and the errors
        of ``check_name``.
        """
        run = cls.check_name(storage, name, resume)
        try:
            if not resume:
                take_folder(run.folder, cls.STATUS, status_content("starting", 0))
        except FileExistsError as error:
            raise RunExists(
                f"name '{name}' was taken in {storage} by another process just now ({error}); take another --name"
            ) from None
        except StorageError as error:
            raise UserError(f"storage: cannot write to {error}; name another with --storage") from None
        for entry in run.folder.entries() if resume else ():
            if entry.name.endswith(TEMPORARY):  # left by a writer that was killed
                run.folder.delete(entry.name)
        return run

    def write_config(self, config: dict[str, Any]) -> None:
        self.folder.write(self.CONFIG, json.dumps(config, indent=1).encode())

    def read_config(self) -> dict[str, Any]:
        """Read config.json. Raises UserError if it is missing or is not the configuration of a run."""
        try:
            config = json.loads(self.folder.read(self.CONFIG))
        except FileNotFoundError:
            raise UserError(f"{self.folder} has no {self.CONFIG}; it is not a run") from None
        except ValueError as error:
            raise UserError(f"{self.folder}/{self.CONFIG} is not JSON ({error})") from None
        if not isinstance(config, dict) or not isinstance(config.get("run"), dict):
            raise UserError(f"{self.folder}/{self.CONFIG} is not the configuration of a run")
        return config

    def set_status(self, state: str, step: int = 0, **more: Any) -> None:
        """Write the state: starting, running, finished, diverged, interrupted, failed or stopped."""
        self.folder.write(self.STATUS, status_content(state, step, **more))

    def get_status(self) -> dict[str, Any]:
        """The last status. The state is ``killed`` if a running or starting run has not written it for too long."""
        try:
            status = json.loads(self.folder.read(self.STATUS))
            step, age = int(status["step"]), time.time() - float(status["time"])
            status["state"] = str(status["state"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError):
            return {"state": "unknown", "step": 0}
        if age > STALE_AFTER_S.get(status["state"], age):
            status["state"] = "killed"
        return {**status, "step": step}

    def tracking_key(self) -> str:
        """The run's identifier for trackers, created on first use. Raises StorageError."""
        try:
            found = json.loads(self.folder.read(self.TRACKING))
            if isinstance(found, dict) and re.fullmatch("[0-9a-f]{16}", str(found.get("key"))):
                return found["key"]
        except (FileNotFoundError, ValueError):
            pass
        key = uuid.uuid4().hex[:16]
        self.folder.write(self.TRACKING, json.dumps({"key": key}).encode())
        return key

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Yield every complete line. A line that a kill truncated is skipped."""
        try:
            content = self.folder.read(self.METRICS)
        except FileNotFoundError:
            return
        for line in content.decode(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def status_content(state: str, step: int, **more: Any) -> bytes:
    """The content of a run's status file, with the current time."""
    return json.dumps({"state": state, "step": step, "time": time.time(), **more}).encode()


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def sample_picture_name(step: int) -> str:
    return f"{step_name(step)}.png"


def traversal_picture_name(step: int, code: str) -> str:
    return f"{step_name(step)}_{code}.png"


def list_runs(storage: Storage) -> list[RunDirectory]:
    """The runs in a storage folder, including incomplete ones. Raises UserError if it is not a folder."""
    entries = storage.entries()
    if not entries and storage.path_is_file:
        raise UserError(f"storage: {storage} is a file; name a folder of runs")
    if not entries and storage.is_local and storage.name and not storage.parent.exists(storage.name):
        raise UserError(f"storage: {storage} does not exist; name a folder of runs")
    runs = [RunDirectory(storage / entry.name) for entry in entries if entry.is_folder]
    return [run for run in runs if run.looks_like_run]
