"""Uploads checkpoints and metrics of rank 0 in a thread of its own, while training continues.

One upload is in flight and one more may wait. A newer checkpoint replaces the one that waits: that is a miss. After
errors that may pass, the upload is tried again with growing pauses. The uploader also keeps the run's status fresh, and
stops when another attempt has taken the run over.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from infogan_ray.evaluation.bound import no_callback
from infogan_ray.evaluation.metrics import lower_is_better
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.metrics_log import MetricsLog
from infogan_ray.storage.run_directory import RunDirectory, step_name
from infogan_ray.training.loop import never_stop

HEARTBEAT_S = 10.0
LONGEST_WAIT_S = 10.0  # of training for an upload that is slower than the checkpoint interval
STUCK_AFTER_S = 600.0  # an upload that takes so long without an error counts as trouble, too
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
LAST_PATIENCE_S = 600.0  # how long a finished run waits for a storage that is unavailable
SHORT_PATIENCE_S = 3.0  # of a single operation; the thread waits for longer outages


class StorageFailed(Exception):
    """Storage was unavailable for too long, or refuses for good. The message names the last whole checkpoint."""


class RunTakenOver(StorageFailed):
    """Another attempt writes this run now, its status included."""


class OwnerChanged(StorageError):
    """What the thread finds: another attempt owns the run. Two writers would spoil each other's checkpoints."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where}: another attempt has taken this run over", transient=False)


@dataclass(frozen=True)
class PendingCheckpoint:
    """A checkpoint to be uploaded: its files, and pictures by folder name and file name."""

    step: int
    files: Mapping[str, bytes]
    pictures: Mapping[tuple[str, str], bytes] = field(default_factory=dict)


def _number_after(owner: Any) -> int:
    """A number greater than the previous attempt's, even if its clock was ahead. The greatest owns the run."""
    before = str(owner or "").partition("-")[0]
    return max(time.time_ns(), int(before) + 1 if before.isdecimal() else 0)


class CheckpointUploader:
    """Owned by rank 0. ``log`` never waits for storage. ``put`` waits for seconds at most, and not in an outage."""

    def __init__(
        self, run: RunDirectory, *, step: int, keep: int, metric: str, max_misses: int, restarts: int = 0
    ) -> None:
        """Takes the run over and writes that into its status. Raises StorageError, and UserError for symbolic links."""
        self.step, self.stored = step, step
        self.restarts, self.missed = restarts, 0
        self.trouble = ""
        self.before_each: Callable[[], None] = no_callback  # called in the thread before a checkpoint is uploaded
        self._run = run.with_retry_timeout(SHORT_PATIENCE_S)
        self._keep, self._metric, self._max_misses = keep, metric, max_misses
        self._owner = f"{_number_after(run.get_status().get('owner')):020d}-{uuid.uuid4().hex[:8]}"
        self._waiting: PendingCheckpoint | None = None
        self._in_flight: PendingCheckpoint | None = None
        self._uploaded: PendingCheckpoint | None = None
        self._slow, self._in_flight_since = False, 0.0
        self._failure: StorageError | None = None
        self._closing = False
        self._changed, self._status_lock = threading.Condition(), threading.Lock()
        self._next_heartbeat = time.monotonic() + HEARTBEAT_S
        run.set_status("running", step, **self._status_fields())
        checkpoints.delete_incomplete(run.checkpoints)
        self._log = MetricsLog(self._run, step)
        self._next_flush = 0.0
        self._thread = threading.Thread(target=self._run_thread, name="checkpoint-uploader", daemon=True)
        self._thread.start()

    def log(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        self._log.add(row)

    def put(self, checkpoint: PendingCheckpoint, hurry: Callable[[], bool] = never_stop) -> None:
        """Upload a checkpoint. It replaces one that still waits, which is a miss if storage is in trouble.

        If storage is merely slow, this waits a few seconds first, unless ``hurry``.
        """
        deadline = time.monotonic() + LONGEST_WAIT_S
        with self._changed:
            while self._waiting and time.monotonic() < deadline:
                if self.trouble or self._failure or hurry():
                    break
                self._changed.wait(0.2)
            if self._in_flight and time.monotonic() - self._in_flight_since > STUCK_AFTER_S:
                self.trouble = f"the upload of {step_name(self._in_flight.step)} does not end"
            if self._waiting and self.trouble:
                self.missed += 1
            self._slow = self._slow or self._waiting is not None
            self._waiting = checkpoint
            self._changed.notify_all()

    @property
    def busy(self) -> bool:
        return self._waiting is not None or self._in_flight is not None

    @property
    def failure(self) -> StorageFailed | None:
        """Why the run must end, if it must: storage refuses for good, or too many checkpoints in a row missed it."""
        if self._failure is not None:
            kind = RunTakenOver if isinstance(self._failure, OwnerChanged) else StorageFailed
            return kind(f"{self._failure}; {self._last_whole}")
        if self.missed > self._max_misses:
            return StorageFailed(
                f"{self.missed} checkpoints in a row missed storage: {self.trouble}; {self._last_whole}"
            )
        return None

    @property
    def lag(self) -> str:
        """What people should know about storage now; empty if uploads keep up."""
        behind = f"{self.step - self.stored:,} steps are not stored"
        if self.trouble:
            misses = f"{self.missed} of {self._max_misses} misses"
            return f"storage is unavailable, training continues ({behind}, {misses}): {self.trouble}"
        return f"uploads are slower than checkpoints: some are left out ({behind})" if self._slow else ""

    def flush(self, seconds: float = LAST_PATIENCE_S, each: Callable[[], None] = no_callback) -> None:
        """Wait until all that was put is on storage. Raises StorageFailed after so many seconds, and what ``each``
        raises, which is called several times a second."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self.busy and self._failure is None and time.monotonic() < deadline:
                each()
                self._changed.wait(0.2)
        if self._failure is not None:
            raise self.failure or StorageFailed(str(self._failure))
        if self.busy:
            reason = self.trouble or "the upload is not done"
            raise StorageFailed(f"the checkpoint was not stored within {seconds:.0f} s: {reason}; {self._last_whole}")

    def close(self, state: str = "", patience_s: float = SHORT_PATIENCE_S, **more: Any) -> None:
        """Stop the thread; write the last lines of metrics and the run's last ``state``. Raises StorageError."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=SHORT_PATIENCE_S + 1)
        if not state or self._failure is not None:
            return
        self._log.flush(patience_s)
        if not self._status_lock.acquire(timeout=max(patience_s, SHORT_PATIENCE_S)):
            raise StorageError(f"{self._run.folder}: an earlier write of the run's status has not ended", True)
        try:
            self._run.with_retry_timeout(patience_s).set_status(state, self.step, **{**self._status_fields(), **more})
        finally:
            self._status_lock.release()

    @property
    def _last_whole(self) -> str:
        return f"the last whole checkpoint is {step_name(self.stored)}" if self.stored else "no checkpoint was stored"

    # The thread

    def _run_thread(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._waiting is not None or self._closing,
                    max(0.0, self._next_heartbeat - time.monotonic()),
                )
                if self._closing:
                    return
                checkpoint, self._waiting = self._waiting, None
                self._in_flight, self._in_flight_since = checkpoint, time.monotonic()
                self._changed.notify_all()
            try:
                if checkpoint is not None:  # curves and metrics first: a resumed run continues from the checkpoint
                    self.before_each()
                self._flush_log(checkpoint is not None)
                if checkpoint is not None:
                    self._upload(checkpoint)
                self._heartbeat(always=checkpoint is not None)
            except Exception as error:  # a thread that dies silently would let training go on for days in vain
                passing = isinstance(error, StorageError) and error.transient
                with self._changed:
                    self.trouble = str(error) if isinstance(error, StorageError) else f"{type(error).__name__}: {error}"
                    self._in_flight = None
                    if not passing:
                        known = error if isinstance(error, StorageError) else None
                        self._failure = known or StorageError(self.trouble, transient=False)
                    elif self._waiting is None and checkpoint is not self._uploaded:
                        self._waiting = checkpoint
                    self._changed.notify_all()
                    if self._failure is not None:
                        return
                    self._changed.wait_for(lambda: self._closing, pause)
                self._next_heartbeat = time.monotonic()  # so that an idle uploader, too, notices when storage is back
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            with self._changed:
                pause, self.trouble, self._in_flight = FIRST_PAUSE_S, "", None
                self._slow = self._slow and self._waiting is not None
                self._changed.notify_all()

    def _upload(self, checkpoint: PendingCheckpoint) -> None:
        folder = self._run.checkpoints / step_name(checkpoint.step)
        try:
            manifests.write_with_manifest(
                folder, checkpoint.files, before_each=lambda: self._heartbeat(always=False, check=True)
            )
        except StorageError as error:
            if not error.transient and not isinstance(error, OwnerChanged):  # a full disk: do not leave it fuller
                with contextlib.suppress(StorageError):
                    checkpoints.delete_checkpoint(folder)
            raise
        with self._changed:
            self.stored, self.missed, self._uploaded = checkpoint.step, 0, checkpoint
        for (place, name), content in checkpoint.pictures.items():
            (self._run.folder / place).write(name, content)
        checkpoints.delete_incomplete(self._run.checkpoints)
        checkpoints.prune(
            self._run.checkpoints, self._keep, self._metric, checkpoint.step,
            lower_is_better=lower_is_better(self._metric),
        )  # fmt: skip

    def _heartbeat(self, always: bool, check: bool = False) -> None:
        """Write the status if a heartbeat is due, or ``always``. Then, or on ``check``, verify that the run is ours."""
        due = always or time.monotonic() >= self._next_heartbeat
        if not due and not check:
            return
        with self._status_lock:
            if str(self._run.get_status().get("owner", "")) > self._owner:
                raise OwnerChanged(str(self._run.folder))
            if due and not self._closing:
                self._run.set_status("running", self.step, **self._status_fields())
                self._next_heartbeat = time.monotonic() + HEARTBEAT_S

    def _flush_log(self, now: bool) -> None:
        started = time.monotonic()
        if now or started >= self._next_flush:
            self._log.flush(SHORT_PATIENCE_S)
            took = time.monotonic() - started
            # On an object store every flush writes the whole file: a long one is written less often.
            self._next_flush = time.monotonic() + max(HEARTBEAT_S, 50 * took)

    def _status_fields(self) -> dict[str, Any]:
        return {"owner": self._owner, "stored": self.stored, "restarts": self.restarts}
