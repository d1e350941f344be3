"""A run under Ray Train: RunConfig -> TorchTrainer with N workers, progress to the caller, errors in one line.

Each worker runs ``session.run_worker``. Rank 0 writes checkpoints through our own store, verified; on a restart the
workers read the store, not Ray's memory of it. Live progress goes through a small actor without a barrier, since
``ray.train.report`` makes all ranks wait.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
import threading
import uuid
from functools import partial
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.config import RunConfig as TrainConfig  # ray.train types its own as the older classes

from infogan_ray import UserError
from infogan_ray.data.datasets import load_images
from infogan_ray.data.shards.sampling import SAMPLE
from infogan_ray.distributed.cluster.connection import connect
from infogan_ray.distributed.cluster.machines import check, check_files, count_machines_again, machines, resources
from infogan_ray.distributed.cluster.network_interface import BetweenMachines
from infogan_ray.distributed.cluster.resources import ASKED, Resources, room
from infogan_ray.distributed.cluster.threads import use
from infogan_ray.distributed.train.driver import Driver
from infogan_ray.distributed.train.embedded import EmbeddedTrainer, freed, is_embedded
from infogan_ray.distributed.train.light import OneWorker
from infogan_ray.distributed.train.status_mailbox import StopWatch, start_board
from infogan_ray.storage.file_system import StorageError, open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.checkpoint_uploader import StorageFailed
from infogan_ray.training.config import RunConfig
from infogan_ray.training.ddp import distributed
from infogan_ray.training.heap import HUGE_PAGES, TUNABLES
from infogan_ray.training.loop import Diverged
from infogan_ray.training.run_outcome import (
    ENDINGS,
    WORKER_RESTARTS,
    HeadLost,
    Listener,
    RunResult,
    TrainingFailed,
    conclude,
    failed,
    set_last_status,
)
from infogan_ray.training.run_setup import begin, log_path, with_absolute_paths
from infogan_ray.training.worker import run_worker


def train(config: RunConfig, listen: Listener | None = None) -> RunResult:
    """Run a training job to its end on the connected Ray cluster, or on an embedded one.

    Raises UserError for what can be refused before work starts and TrainingFailed for workers that keep failing and
    for storage that does.
    """
    if os.environ.get("RAY_ADDRESS"):
        connect(None)
    listen = listen or (lambda report: None)
    found = check(config, say=lambda line: listen({"phase": line}), sample=0)
    wanted = found.wanted
    if ray.is_initialized() and not check_files(config, open_storage(config.storage)):
        wanted = resources(config, lambda line: listen({"phase": line}))  # of the machines that are left
    config, run = begin(config, found.images, found.room, listen)
    del found  # with its images, of which the workers have copies of their own
    return launch(config, wanted, run, listen)


def launch(
    config: RunConfig, wanted: Resources, run: RunDirectory, listen: Listener, patience: float | None = None
) -> RunResult:
    """Start the workers of a checked configuration in a claimed run directory, and wait for them.

    ``patience``: see Driver; inside a trial of a search.

    Workers that fail are restarted from the last whole checkpoint, for as long as there are new ones. Room that others
    have is waited for, as long as there are machines enough. Raises TrainingFailed, and KeyboardInterrupt if a stop was
    asked for and the workers did not say their last words in time.
    """
    log = log_path(run.folder)
    connect(log)
    if threading.current_thread() is threading.main_thread():
        # A spot machine's notice ends a run as Ctrl-C does; set here since ray.init takes the signal for itself.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    board = start_board()
    # Ray Train's own files lie on this machine alone: on shared storage, an outage would end its controller and a
    # snapshot that was cut short would keep the run from starting. What matters goes through our own store.
    scratch = tempfile.mkdtemp(prefix="infogan-ray-train-")
    driver = Driver(board, listen, patience)
    try:
        while True:
            stored = run.get_status().get("stored", 0)
            if isinstance(wanted.workers, tuple):
                count_machines_again()
            kind: Any = EmbeddedTrainer if is_embedded() and not driver.is_guest else TorchTrainer
            with freed() if kind is EmbeddedTrainer else contextlib.nullcontext():
                error = driver.follow(_trainer(kind, config, wanted, run, board, scratch))
            if error is None or driver.phase in ENDINGS:
                break
            cause = _cause(error)
            if _found_no_place(error):  # in a minute; others have it, or machines have died
                try:
                    wanted = _wanted_now(config, wanted, driver)
                    continue
                except ValueError as too_few:
                    cause = str(too_few)
            if run.get_status().get("stored", 0) == stored:
                set_last_status(run, "failed", driver.step)
                raise TrainingFailed(f"{cause}; the log is {log}")
            listen({"phase": "starting workers again", "step": driver.step})
    except HeadLost as error:
        set_last_status(run, "failed", driver.step)
        raise HeadLost(f"{error}; the log is {log}") from None
    except StorageError as error:
        raise TrainingFailed(f"{error}; the log is {log}") from None
    except KeyboardInterrupt:
        set_last_status(run, "interrupted", driver.step)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        driver.head.close()
        if ray.is_initialized() and not driver.head.lost:
            ray.kill(board)
    return conclude(run, driver.final, log)


def _found_no_place(error: BaseException) -> bool:
    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


def _wanted_now(config: RunConfig, wanted: Resources, driver: Driver) -> Resources:
    """What to wait for of the machines there are now. Raises UserError where they are too few."""
    if not driver.is_guest:
        # On the device that it was found to have: what began on GPUs does not go on without them.
        config = config.override({"device": wanted.device}, "the run")
        return resources(config, lambda line: driver.listen({"phase": line}))
    nodes = machines()  # a trial's resources are the search's to decide
    if (places := room(wanted.of_a_worker, nodes, wanted.placement)) < wanted.most:
        raise UserError(f"the cluster's {len(nodes)} machine(s) have room for {places} of {wanted.most} workers")
    return wanted


def _trainer(
    kind: Any, config: RunConfig, wanted: Resources, run: RunDirectory, board: Any, scratch: str
) -> TorchTrainer:
    settings = with_absolute_paths(config).to_dict()
    threads = {"threads": wanted.threads, "threads_from": wanted.threads_from}
    # NCCL does not let two ranks share a GPU; gloo does.
    backend = "gloo" if wanted.gpus_per_worker < 1 else None
    several = TorchConfig(backend) if is_embedded() else BetweenMachines(backend)
    group: Any = OneWorker() if wanted.workers == 1 else several
    trainer: TorchTrainer = kind(
        _worker,
        train_loop_config={"config": settings, "run": run.folder.uri, "board": board, **threads},
        scaling_config=ScalingConfig(
            num_workers=wanted.workers,  # type: ignore[arg-type]  # a pair is elastic; the annotation is the older one's
            use_gpu=wanted.device == "cuda",
            resources_per_worker=wanted.of_a_worker,
            placement_strategy=wanted.placement.upper(),
        ),
        torch_config=group,
        # A name of its own for each attempt: Ray would take up a run of the same name silently, even a finished one.
        run_config=TrainConfig(
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=scratch,
            # A cluster's workers do not inherit it: there the driver's stands for what the operator says.
            worker_runtime_env={"env_vars": {TUNABLES: os.environ.get(TUNABLES, HUGE_PAGES)}},
            failure_config=FailureConfig(max_failures=WORKER_RESTARTS, controller_failure_limit=WORKER_RESTARTS),
        ),
    )
    return trainer


def _worker(settings: dict[str, Any]) -> None:
    """Runs on every rank."""
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    line = use(settings["threads"], settings["threads_from"], asked=settings["threads_from"] == ASKED)
    config = RunConfig().override(settings["config"], "the driver")
    run = RunDirectory(open_storage(settings["run"]))
    board = settings["board"]
    assert config.data is not None
    sample = SAMPLE if rank == 0 else 0  # it is rank 0 that evaluates
    images = load_images(config.data, config.data_config, lambda line: None, feed=config.feed, sample=sample)
    wrap = partial(distributed, wire=config.optimizer.wire) if world_size > 1 else None
    first: dict[str, Any] = {}
    if rank == 0:
        first = {"stop": StopWatch(board), "restarts": ray.get(board.enter.remote())}
        board.pin.remote({"phase": "starting workers", "say": line})
    ending: dict[str, Any] = {}
    pinned = None
    try:
        for report in run_worker(
            config, images, run, device=get_device(), rank=rank, world_size=world_size, wrap=wrap, **first
        ):
            if rank == 0:
                pinned = board.pin.remote(report.to_dict(first["restarts"], world_size))
            if report.due:
                ray.train.report({k: v for k, v in report.metrics.items() if isinstance(v, (int, float))})
    except Diverged:  # which rank 0 has reported; to start again would end the same way
        pass
    except StorageFailed as error:
        ending = failed(error)
    if rank == 0 and ending:
        pinned = board.pin.remote(ending)
    if pinned is not None:
        ray.get(pinned)  # the last word must be there before this worker goes


def _cause(error: BaseException) -> str:
    """The line of a worker's traceback that names its error."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    lines = str(next(iter(failures.values()))).strip().splitlines() or [type(error).__name__]
    named = [line.strip() for line in lines if re.match(r"\s*[\w.]+(Error|Exception|Exit)\b", line)]
    return (named or lines)[-1]
