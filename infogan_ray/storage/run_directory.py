"""The run directory: the one owner of every file name in it."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from infogan_ray import UserError
from infogan_ray.storage.file_system import Storage, StorageError

# A run whose writer has not been heard of for this long has been killed. One that starts says so once: it may wait for
# room on the cluster, or for a large folder to be read.
STALE_AFTER_S = {"starting": 3600, "running": 180}


class RunExists(UserError):
    """The name belongs to another run."""


@dataclass(frozen=True)
class RunDirectory:
    """``<storage>/<run>``: where each of its files lies, and the small ones read and written."""

    folder: Storage

    CONFIG = "config.json"
    METRICS = "metrics.jsonl"
    STATUS = "status.json"
    REPORT = "report.html"
    EVENTS = "events.out.tfevents."  # what TensorBoard's files begin with
    TRACKING = "tracking.json"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def title(self) -> str:
        """The name; of a trial, behind that of its search."""
        above = self.folder.parent
        return f"{above.parent.name}/{self.name}" if above.name == "trials" else self.name

    @property
    def checkpoints(self) -> Storage:
        return self.folder / "checkpoints"

    @property
    def model(self) -> Storage:
        return self.folder / "model"

    @property
    def samples(self) -> Storage:
        """Holds ``sample_picture`` of every checkpoint."""
        return self.folder / "samples"

    @property
    def traversals(self) -> Storage:
        """Holds ``traversal_picture`` of every checkpoint and code."""
        return self.folder / "traversals"

    @property
    def profile(self) -> Storage:
        """Holds the traces that --profile makes, gzipped JSON of Chrome's format."""
        return self.folder / "profile"

    def patient(self, seconds: float) -> RunDirectory:
        """The same, with so many seconds of retries where storage is away."""
        return RunDirectory(self.folder.patient(seconds))

    @property
    def exists(self) -> bool:
        return self.folder.is_file(self.CONFIG)

    @property
    def looks_like_one(self) -> bool:
        """Whether the folder is a run, be it a half-written one."""
        parts = {self.CONFIG, self.STATUS, self.METRICS, "checkpoints"}
        return bool(parts & {entry.name for entry in self.folder.entries()})

    @classmethod
    def free(cls, storage: Storage, name: str, resume: bool) -> RunDirectory:
        """The directory of a name that may be taken, untouched.

        Raises RunExists for a taken one unless ``resume``, ValueError for what is no folder or not there to resume.
        """
        run = cls(storage / name)
        for folder in (storage, run.folder):
            if folder.is_itself_a_file:
                raise UserError(f"storage: {folder} is a file where a folder should be; name another with --storage")
        taken = bool(run.folder.entries())
        if resume and not run.exists:
            hint = "what has that name is none; take another" if taken else "drop --resume to start it"
            raise UserError(f"name is '{name}', and there is no such run in {storage} to resume; {hint}")
        if not resume and taken:
            hint = ", or go on with it by --resume" if run.exists else ""
            raise RunExists(f"name '{name}' is taken in {storage}; take another --name{hint}")
        return run

    @classmethod
    def has_begun(cls, storage: Storage, name: str) -> bool:
        """Whether there is a run to go on with. What one left that was killed as it took its name is cleared away."""
        run = cls(storage / name)
        if not run.exists and [entry.name for entry in run.folder.entries()] == [cls.STATUS]:
            run.folder.delete(cls.STATUS)
        return run.exists

    @classmethod
    def claim(cls, storage: Storage, name: str, resume: bool) -> RunDirectory:
        """Take a name in a storage folder: ``free``, and a new run's first file is written, which shows that it can be.

        Raises UserError where it cannot, and as ``free`` does.
        """
        run = cls.free(storage, name, resume)
        try:
            if not resume:
                run.set_status("starting")
        except StorageError as error:
            raise UserError(f"storage: cannot write to {error}; name another with --storage") from None
        for entry in run.folder.entries():
            if entry.name.endswith(".tmp"):  # of a writer that was killed
                run.folder.delete(entry.name)
        return run

    def write_config(self, config: dict[str, Any]) -> None:
        self.folder.write(self.CONFIG, json.dumps(config, indent=1).encode())

    def read_config(self) -> dict[str, Any]:
        """Raises UserError if there is none or it is not ours."""
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
        """``starting``, ``running``, ``finished``, ``diverged``, ``interrupted``, ``failed``, ``stopped``."""
        status = {"state": state, "step": step, "time": time.time(), **more}
        self.folder.write(self.STATUS, json.dumps(status).encode())

    def get_status(self) -> dict[str, Any]:
        """What was last said of the run; ``killed`` if it says running and its writer is silent."""
        try:
            status = json.loads(self.folder.read(self.STATUS))
            step, age = int(status["step"]), time.time() - float(status["time"])
            status["state"] = str(status["state"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError):
            return {"state": "unknown", "step": 0}
        if age > STALE_AFTER_S.get(status["state"], age):
            status["state"] = "killed"
        return {**status, "step": step}

    def key(self) -> str:
        """What the run is called by trackers that remember it; made when first asked for. Raises StorageError."""
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
        """Every whole line; one that a kill cut short is passed over."""
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


class MetricsLog:
    """``metrics.jsonl`` of a running run: lines are added at once and reach storage with ``flush``.

    An object store cannot append: there the whole file is written anew, so flush seldom.
    """

    def __init__(self, run: RunDirectory, step: int) -> None:
        """Starts with what is there up to ``step``: the lines of work that was lost go, so that steps rise."""
        self._folder, self._name = run.folder, run.METRICS
        self._lines = [json.dumps(row) + "\n" for row in run.read_metrics() if row.get("step", 0) <= step]
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        if self._lines or self._folder.is_file(self._name):
            self._folder.write(self._name, "".join(self._lines).encode())
        self._flushed, self._torn = len(self._lines), False

    def add(self, row: dict[str, Any]) -> None:
        with self._lock:
            self._lines.append(json.dumps(row) + "\n")

    def flush(self, patience_s: float) -> None:
        """Raises StorageError after so many seconds; then nothing is lost, and the next call writes it."""
        folder = self._folder.patient(patience_s)
        with self._flushing:
            with self._lock:
                until = len(self._lines)
            if until == self._flushed:
                return
            if folder.is_local and not self._torn:
                self._torn = True  # by an error in the midst of a line, after which the whole file is written anew
                with contextlib.suppress(StorageError):
                    folder.append(self._name, self._text(self._flushed, until))
                    self._torn = False
            if self._torn or not folder.is_local:
                folder.write(self._name, self._text(0, until))
            self._flushed, self._torn = until, False

    def _text(self, start: int, stop: int) -> bytes:
        return "".join(self._lines[start:stop]).encode()


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def sample_picture(step: int) -> str:
    return f"{step_name(step)}.png"


def traversal_picture(step: int, code: str) -> str:
    return f"{step_name(step)}_{code}.png"


def runs_in(storage: Storage) -> list[RunDirectory]:
    """What looks like a run in a storage folder, half-written ones too. Raises UserError if it is no folder."""
    entries = storage.entries()
    if not entries and storage.is_itself_a_file:
        raise UserError(f"storage: {storage} is a file; name a folder of runs")
    if not entries and storage.is_local and storage.name and not storage.parent.exists(storage.name):
        raise UserError(f"storage: {storage} does not exist; name a folder of runs")
    runs = [RunDirectory(storage / entry.name) for entry in entries if entry.is_folder]
    return [run for run in runs if run.looks_like_one]
