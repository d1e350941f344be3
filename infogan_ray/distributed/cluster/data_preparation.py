"""Makes the shards of a dataset with Ray Data.

Each task writes its shards, and then a record. After a restart, only tasks without a record run. The driver counts the
records and writes the manifest.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from infogan_ray import UserError
from infogan_ray.data.fetch import cache_folder
from infogan_ray.data.image_loader import name_some
from infogan_ray.data.preparation.progress_log import ProgressLog
from infogan_ray.data.preparation.shard_plan import ShardPlan, ShardTask
from infogan_ray.data.preparation.shard_writer import TaskRecord, write_shards
from infogan_ray.data.shards.dataset import ShardSet
from infogan_ray.distributed.cluster.connection import connect, library_logs_in
from infogan_ray.distributed.cluster.machines import check_files, machines
from infogan_ray.storage.file_system import Storage, StorageError, open_storage
from infogan_ray.training.config import RunConfig

UNREADABLE = (
    UserError, OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, pa.ArrowException,
)  # fmt: skip
"""Exceptions of a damaged source. Other exceptions in a task are bugs."""


class PreparingFailed(Exception):
    """A task has failed. The message is one line. The shards of other tasks stay."""


class TooManyBroken(Exception):
    """More images are broken than max_bad allows. Nothing is published."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """Progress of a preparation. ``earlier``: images of the tasks that an earlier attempt has done."""

    images: int
    of_images: int
    shards: int
    of_shards: int
    broken: int
    earlier: int


def prepare(
    job: ShardPlan, folder: Storage, source: Path | None = None, workers: int | None = None, max_bad: float = 0.0,
    overwrite: bool = False, listen: Callable[[Progress], None] = lambda progress: None,
) -> ShardSet:  # fmt: skip
    """Run the missing tasks of a job and publish the dataset.

    ``source`` is the path that workers read, None for images in memory. Raises UserError if the folder belongs to other
    data; TooManyBroken, StorageError, PreparingFailed, and TrainingFailed if the log cannot be written.
    """
    log, tasks = ProgressLog(folder), job.tasks()
    log.begin(job.request, overwrite)
    records = log.done(tasks)
    earlier = sum(record.rows for record in records.values())

    def report() -> None:
        rows, bad = (sum(counts) for counts in zip(*((r.rows, len(r.broken)) for r in records.values()), strict=True)
                     ) if records else (0, 0)  # fmt: skip
        listen(Progress(rows, job.count(), len(records), len(tasks), bad, earlier))
        if bad > max_bad * job.count():
            raise TooManyBroken(_too_many_message(job, records, max_bad))

    report()
    missing = [task for task in tasks if task.number not in records]
    if missing:
        log_file = cache_folder() / "logs" / f"prepare-{folder.name}.log"
        with library_logs_in(log_file):
            for record in _records(job, missing, folder, source, workers, log_file):
                records[record.number] = record
                report()
    if not any(record.shards for record in records.values()):
        raise TooManyBroken(_too_many_message(job, records, max_bad))
    return log.write_manifest(job, records.values())


def _records(
    job: ShardPlan, tasks: list[ShardTask], folder: Storage, source: Path | None, workers: int | None, log: Path
) -> Iterator[TaskRecord]:
    """Yield records in the order in which tasks finish."""
    connect(None)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if threading.current_thread() is threading.main_thread():
        # SIGTERM ends this as Ctrl-C does. The handler is set here because ray.init replaces an earlier one.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    cpus = int(sum(machine.get("CPU", 0) for machine in machines()))
    if workers is not None and not 1 <= workers <= cpus:
        raise UserError(f"workers is {workers}; use 1 to {cpus}, the number of available CPUs")
    check_files(RunConfig(data=None if source is None else str(source)), folder)
    shared = [ray.put(job)]  # one copy for each machine
    uri = folder.uri

    def work(row: dict[str, Any]) -> dict[str, Any]:
        return _run_task(shared[0], uri, ShardTask(**row))

    dataset = ray.data.from_items([dataclasses.asdict(task) for task in tasks], override_num_blocks=len(tasks))
    made = dataset.map(work, num_cpus=1, compute=ray.data.TaskPoolStrategy(size=min(workers or cpus, len(tasks))))
    try:
        for row in made.iter_rows():
            if row["failure"]:
                raise PreparingFailed(row["failure"])
            yield TaskRecord.from_dict(json.loads(row["record"]))
    except ray.exceptions.RayTaskError:
        raise  # a bug in a task; the message contains its trace
    except ray.exceptions.RayError as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise PreparingFailed(f"a process that makes shards failed: {last}; the log is {log}") from None


_JOB: dict[Any, ShardPlan] = {}  # one per process, so that a long list of names is unpacked once


def _run_task(shared: Any, uri: str, task: ShardTask) -> dict[str, Any]:
    """Run a task in a Ray process. Errors of storage or source are returned as a line; other exceptions are bugs."""
    if shared not in _JOB:
        _JOB.clear()
        _JOB[shared] = ray.get(shared)
    job = _JOB[shared]
    folder = open_storage(uri)
    try:
        record = write_shards(job, task, folder)
        ProgressLog(folder).add(record)
    except StorageError as error:
        return {"record": "", "failure": str(error)}
    except UNREADABLE as error:
        return {"record": "", "failure": f"{job.name} cannot be read: {' '.join(str(error).split())}"}
    return {"record": json.dumps(record.to_dict()), "failure": ""}


def _too_many_message(job: ShardPlan, records: dict[int, TaskRecord], max_bad: float) -> str:
    broken = {name: reason for number in sorted(records) for name, reason in records[number].broken.items()}
    read = sum(record.rows for record in records.values())
    count = f"{len(broken):,} of the first {read:,}" if read < job.count() else f"{len(broken):,} of {job.count():,}"
    if len(broken) == read:
        return f"data: {count} images of {job.name} are broken; nothing was published: {name_some(broken)}"
    share = -(-len(broken) * 1000 // read) / 1000
    return (
        f"data: {count} images of {job.name} are broken, more than max_bad allows ({max_bad:.2%} of all); nothing "
        f"was published: {name_some(broken)}. To allow them and continue, add --max-bad {share:g}; or remove or repair "
        "them and add --overwrite"
    )
