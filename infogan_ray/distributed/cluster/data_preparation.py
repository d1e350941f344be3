"""Makes the shards of a dataset with Ray Data: a stream of tasks in, a stream of their records out.

Each task writes its shards, and then a record. A task that has a record is not done again after a kill. The driver
counts records, and writes the manifest.
"""

from __future__ import annotations

import dataclasses
import json
import logging
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
from infogan_ray.distributed.cluster.connection import connect
from infogan_ray.distributed.cluster.machines import check_files, machines
from infogan_ray.storage.file_system import Storage, StorageError, open_storage
from infogan_ray.training.config import RunConfig

UNREADABLE = (
    UserError, OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, pa.ArrowException,
)  # fmt: skip
"""What reading a damaged source raises. Other exceptions in a task are bugs."""


class PreparingFailed(Exception):
    """A task has failed: one line. The shards of other tasks stay."""


class TooManyBroken(Exception):
    """More images are broken than max_bad allows. Nothing is published."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """``earlier``: images of tasks that were done before this attempt."""

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
    """Do what is missing of a job, and publish it.

    ``source`` is the path that workers read, None for images in memory. Raises UserError for a folder of something
    else; TooManyBroken, StorageError and PreparingFailed.
    """
    log, tasks = ProgressLog(folder), job.tasks()
    log.begin(job.asked, overwrite)
    records = log.done(tasks)
    earlier = sum(record.rows for record in records.values())

    def report() -> None:
        rows, bad = (sum(counts) for counts in zip(*((r.rows, len(r.broken)) for r in records.values()), strict=True)
                     ) if records else (0, 0)  # fmt: skip
        listen(Progress(rows, job.count(), len(records), len(tasks), bad, earlier))
        if bad > max_bad * job.count():
            raise TooManyBroken(_too_many(job, records, max_bad))

    report()
    missing = [task for task in tasks if task.number not in records]
    if missing:
        for record in _records(job, missing, folder, source, workers):
            records[record.number] = record
            report()
    if not any(record.shards for record in records.values()):
        raise TooManyBroken(_too_many(job, records, max_bad))
    return log.write_manifest(job, records.values())


def _records(
    job: ShardPlan, tasks: list[ShardTask], folder: Storage, source: Path | None, workers: int | None
) -> Iterator[TaskRecord]:
    """Records in the order in which tasks finish."""
    log = cache_folder() / "logs" / f"prepare-{folder.name}.log"
    connect(log)
    _silence_ray_data()
    if threading.current_thread() is threading.main_thread():
        # SIGTERM ends this as Ctrl-C does. It is set here since ray.init sets a handler of its own.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    cpus = int(sum(machine.get("CPU", 0) for machine in machines()))
    if workers is not None and not 1 <= workers <= cpus:
        raise UserError(f"workers is {workers}; take 1 to {cpus}, the CPUs that there are")
    check_files(RunConfig(data=None if source is None else str(source)), folder)
    shared = [ray.put(job)]  # one copy for each machine
    uri = folder.uri

    def work(row: dict[str, Any]) -> dict[str, Any]:
        return _do(shared[0], uri, ShardTask(**row))

    asked = ray.data.from_items([dataclasses.asdict(task) for task in tasks], override_num_blocks=len(tasks))
    made = asked.map(work, num_cpus=1, compute=ray.data.TaskPoolStrategy(size=workers or cpus))
    try:
        for row in made.iter_rows():
            if row["failure"]:
                raise PreparingFailed(row["failure"])
            yield TaskRecord.from_dict(json.loads(row["record"]))
    except ray.exceptions.RayTaskError:
        raise  # a bug in a task; its trace is in the message
    except ray.exceptions.RayError as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise PreparingFailed(f"a process that makes shards has failed: {last}; the log is {log}") from None


_JOB: dict[Any, ShardPlan] = {}  # of this process, so that a long list of names is unpacked once


def _do(shared: Any, uri: str, task: ShardTask) -> dict[str, Any]:
    """Runs in a process of Ray. Failures of storage and source come back as a line; other exceptions are bugs."""
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
        return {"record": "", "failure": f"{job.name} cannot be read any further: {' '.join(str(error).split())}"}
    return {"record": json.dumps(record.to_dict()), "failure": ""}


def _silence_ray_data() -> None:
    """Ray Data logs where Ray logs, and shows no progress bars."""
    logger = logging.getLogger("ray.data")
    logger.handlers, logger.propagate = list(logging.getLogger("ray").handlers), False
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _too_many(job: ShardPlan, records: dict[int, TaskRecord], max_bad: float) -> str:
    broken = {name: why for number in sorted(records) for name, why in records[number].broken.items()}
    read = sum(record.rows for record in records.values())
    count = f"{len(broken):,} of the first {read:,}" if read < job.count() else f"{len(broken):,} of {job.count():,}"
    if len(broken) == read:
        return f"data: {count} images of {job.name} are broken, and nothing is published: {name_some(broken)}"
    share = -(-len(broken) * 1000 // read) / 1000
    return (
        f"data: {count} images of {job.name} are broken, more than max_bad allows ({max_bad:.2%} of all), and nothing "
        f"is published: {name_some(broken)}. Allow more by --max-bad {share:g}, which continues from what is done; or "
        "remove or repair them and add --overwrite"
    )
