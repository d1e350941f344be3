"""Uploads checkpoints and metrics of rank 0 in a thread, while training continues.

The thread uploads one checkpoint at a time, and one more can wait. A newer checkpoint replaces the waiting one. If
storage is unavailable, that counts as a miss. After a transient error, the thread tries the upload again, with
growing pauses. A refusal of the credentials is transient, since they may be renewed. If the disk is full, the thread
deletes what is not kept. It also updates the run's status, and stops when another attempt takes the run over.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from infogan_ray.data.progress import counted
from infogan_ray.evaluation.bound import no_callback
from infogan_ray.evaluation.metrics import lower_is_better
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.errors import DiskFull, retry_with_room
from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.metrics_log import MetricsLog
from infogan_ray.storage.run_directory import RunDirectory, step_name
from infogan_ray.training.disk_room import with_advice
from infogan_ray.training.loop import never_stop

HEARTBEAT_S = 10.0
LONGEST_WAIT_S = 10.0  # training waits at most this long for a slow upload
STUCK_AFTER_S = 600.0  # an upload that takes longer counts as an error
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0  # between two tries
LAST_TIMEOUT_S = 600.0  # a finished run waits at most this long for unavailable storage
SHORT_TIMEOUT_S = 3.0  # for one storage operation; after a timeout the thread tries again


class StorageFailed(Exception):
    """Storage was unavailable for too long, or failed permanently. The message names the last whole checkpoint."""


class RunTakenOver(StorageFailed):
    """Another attempt writes this run and its status now."""


class OwnerChanged(StorageError):
    """The run's status names another owner. Two writers could damage each other's checkpoints."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where}: another attempt has taken this run over", transient=False)


@dataclass(frozen=True)
class PendingCheckpoint:
    """A checkpoint to upload: its files by name, and PNG pictures by (folder name, file name)."""

    step: int
    files: Mapping[str, bytes]
    pictures: Mapping[tuple[str, str], bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The bytes of all files and pictures."""
        return sum(map(len, [*self.files.values(), *self.pictures.values()]))


def _number_after(owner: Any) -> int:
    """A number greater than the previous owner's, even if that machine's clock was ahead.

    The attempt with the greatest number owns the run.
    """
    previous = str(owner or "").partition("-")[0]
    return max(time.time_ns(), int(previous) + 1 if previous.isdecimal() else 0)


class CheckpointUploader:
    """Owned by rank 0. ``log`` never waits for storage. ``put`` waits at most LONGEST_WAIT_S, and not in an outage."""

    def __init__(
        self, run: RunDirectory, *, step: int, keep: int, metric: str, max_misses: int, restarts: int = 0
    ) -> None:
        """Take the run over, and write the new owner to its status.

        Raises StorageError, and UserError for symbolic links.
        """
        self.step, self.stored = step, step
        self.restarts, self.missed = restarts, 0
        self.error = ""  # the last error; empty if storage is available
        self.before_each: Callable[[], None] = no_callback  # called in the thread before each checkpoint's upload
        self._run = run  # with its own time limit until the thread starts
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
        retry_with_room(lambda: run.set_status("running", step, **self._status_fields()), self._make_room)
        checkpoints.delete_incomplete(run.checkpoints)
        self._make_room()  # a resumed run may keep fewer
        self._log = MetricsLog(run, step)
        self._run = run.with_retry_timeout(SHORT_TIMEOUT_S)
        self._next_flush = 0.0
        self._thread = threading.Thread(target=self._run_thread, name="checkpoint-uploader", daemon=True)
        self._thread.start()

    def log(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        self._log.add(row)

    def put(self, checkpoint: PendingCheckpoint, hurry: Callable[[], bool] = never_stop) -> None:
        """Pass a checkpoint to the thread. It replaces a waiting one. In an outage, the replaced one is a miss.

        If storage is only slow, ``put`` first waits up to LONGEST_WAIT_S, unless ``hurry``.
        """
        deadline = time.monotonic() + LONGEST_WAIT_S
        with self._changed:
            while self._waiting and time.monotonic() < deadline:
                if self.error or self._failure or hurry():
                    break
                self._changed.wait(0.2)
            if self._in_flight and time.monotonic() - self._in_flight_since > STUCK_AFTER_S:
                self.error = f"the upload of {step_name(self._in_flight.step)} does not end"
            if self._waiting and self.error:
                self.missed += 1
            self._slow = self._slow or self._waiting is not None
            self._waiting = checkpoint
            self._changed.notify_all()

    @property
    def busy(self) -> bool:
        return self._waiting is not None or self._in_flight is not None

    @property
    def failure(self) -> StorageFailed | None:
        """The error that must end the run: permanent, or after too many misses in a row. None if there is none."""
        if self._failure is not None:
            kind = RunTakenOver if isinstance(self._failure, OwnerChanged) else StorageFailed
            return kind(f"{self._failure}; {self._last_whole}")
        if self.missed > self._max_misses:
            missed = counted(self.missed, "checkpoint")
            return StorageFailed(f"{missed} in a row missed storage: {self.error}; {self._last_whole}")
        return None

    @property
    def warning(self) -> str:
        """A message about an outage or slow uploads, for people; empty if storage works."""
        steps = self.step - self.stored
        not_stored = f"{counted(steps, 'step')} {'is' if steps == 1 else 'are'} not stored"
        if self.error:
            misses = f"{counted(self.missed, 'checkpoint')} missed in a row, at most {self._max_misses} allowed"
            return f"storage is unavailable, the run continues ({not_stored}; {misses}): {self.error}"
        return f"uploads are slower than checkpoints: some are skipped ({not_stored})" if self._slow else ""

    def flush(self, timeout_s: float = LAST_TIMEOUT_S) -> None:
        """Wait until no checkpoint waits or is in flight. Raises StorageFailed, as ``wait`` does."""
        for _ in self.wait(timeout_s):
            pass

    def wait(self, timeout_s: float = LAST_TIMEOUT_S) -> Iterator[None]:
        """Yield several times a second, until no checkpoint waits or is in flight.

        Raises StorageFailed after the timeout or a permanent error.
        """
        deadline = time.monotonic() + timeout_s
        while self.busy and self._failure is None and time.monotonic() < deadline:
            yield
            with self._changed:
                self._changed.wait_for(lambda: not self.busy, 0.2)
        if self._failure is not None:
            raise self.failure or StorageFailed(str(self._failure))
        if self.busy:
            reason = self.error or "the upload is not done"
            raise StorageFailed(f"the checkpoint was not stored within {timeout_s:.0f} s: {reason}; {self._last_whole}")

    def close(self, state: str = "", timeout_s: float = SHORT_TIMEOUT_S, **fields: Any) -> None:
        """Stop the thread. With a ``state``, also write the last metrics, and the state and ``fields`` to the status.

        Raises StorageError.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=SHORT_TIMEOUT_S + 1)
        if not state or self._failure is not None:
            return
        self._log.flush(timeout_s)
        if not self._status_lock.acquire(timeout=max(timeout_s, SHORT_TIMEOUT_S)):
            raise StorageError(f"{self._run.folder}: an earlier write of the run's status has not ended", True)
        try:
            self._run.with_retry_timeout(timeout_s).set_status(state, self.step, **{**self._status_fields(), **fields})
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
                retry_with_room(partial(self._write, checkpoint), self._make_room)
            except Exception as error:  # any error must reach the run; else it would continue without checkpoints
                transient = isinstance(error, StorageError) and error.transient
                permanent = None if transient else self._permanent(error, checkpoint)
                with self._changed:
                    self.error, self._failure, self._in_flight = str(permanent or error), permanent, None
                    self._slow = False  # the upload took long because of the error
                    if transient and self._waiting is None and checkpoint is not self._uploaded:
                        self._waiting = checkpoint
                    self._changed.notify_all()
                    if self._failure is not None:
                        return
                    self._changed.wait_for(lambda: self._closing, pause)
                self._next_heartbeat = time.monotonic()  # so an idle uploader also notices when storage is available
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            with self._changed:
                pause, self.error, self._in_flight = FIRST_PAUSE_S, "", None
                self._slow = self._slow and self._waiting is not None
                self._changed.notify_all()

    def _write(self, checkpoint: PendingCheckpoint | None) -> None:
        """Write what is due: metrics, a checkpoint if there is one, and the status. May be repeated after an error."""
        if checkpoint is not None:  # Metrics come first: a resumed run does not repeat steps before it.
            self.before_each()
        self._flush_log(checkpoint is not None)
        if checkpoint is not None:
            if checkpoint is not self._uploaded:
                self._upload(checkpoint)
            for (folder_name, name), content in checkpoint.pictures.items():
                (self._run.folder / folder_name).write(name, content)
        self._heartbeat(always=checkpoint is not None)

    def _upload(self, checkpoint: PendingCheckpoint) -> None:
        folder = self._run.checkpoints / step_name(checkpoint.step)
        try:
            manifests.write_with_manifest(
                folder, checkpoint.files, before_each=lambda: self._heartbeat(always=False, check=True)
            )
        except StorageError as error:
            if not error.transient and not isinstance(error, OwnerChanged):  # perhaps the disk is full
                with contextlib.suppress(StorageError):
                    checkpoints.delete_checkpoint(folder)
            raise
        with self._changed:
            self.stored, self.missed, self._uploaded = checkpoint.step, 0, checkpoint
        checkpoints.delete_incomplete(self._run.checkpoints)
        self._make_room()

    def _make_room(self) -> bool:
        """Delete the checkpoints that are not kept, or will not be kept beside the one in flight. Whether there are."""
        in_flight = self._in_flight is not None and self._in_flight is not self._uploaded
        return bool(
            checkpoints.prune(
                self._run.checkpoints, self._keep - in_flight, self._metric, self.stored,
                lower_is_better=lower_is_better(self._metric),
            )
        )  # fmt: skip

    def _permanent(self, error: Exception, checkpoint: PendingCheckpoint | None) -> StorageError:
        """The error that ends the run. If the disk is full, it says what to delete."""
        if isinstance(error, DiskFull):
            size = checkpoint.size if checkpoint is not None else 0
            return DiskFull(with_advice(error, self._run, self._keep, self._metric, size))
        return error if isinstance(error, StorageError) else StorageError(f"{type(error).__name__}: {error}", False)

    def _heartbeat(self, always: bool, check: bool = False) -> None:
        """Write the status if a heartbeat is due or ``always`` is true.

        Before that, or if ``check`` is true, raise OwnerChanged if a newer attempt owns the run.
        """
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
            self._log.flush(SHORT_TIMEOUT_S)
            duration = time.monotonic() - started
            # On an object store every flush writes the whole file, so a large file is written less often.
            self._next_flush = time.monotonic() + max(HEARTBEAT_S, 50 * duration)

    def _status_fields(self) -> dict[str, Any]:
        return {"owner": self._owner, "stored": self.stored, "restarts": self.restarts}
