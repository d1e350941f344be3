"""Every training run: RunConfig -> one ``TorchTrainer(train_on_worker, ScalingConfig(...)).fit()``.

One worker on a machine without a cluster is Ray Train's local mode (``num_workers=0``): the same function in this
process. Several workers, or a cluster, are a worker group. Rank 0 writes checkpoints through our own store, verified. A
restarted worker reads the store, not Ray's memory of it.
"""

from __future__ import annotations

import re
import tempfile
import uuid
from typing import Any

import ray
import ray.exceptions
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from infogan_ray import UserError
from infogan_ray.distributed.cluster.connection import connect, library_logs_in
from infogan_ray.distributed.cluster.machines import machines, resources
from infogan_ray.distributed.cluster.network_interface import TorchConfigOnRaysInterface
from infogan_ray.distributed.cluster.resources import Resources, room
from infogan_ray.distributed.train import local_mode, torchrun
from infogan_ray.distributed.train.checks import check, runs_in_this_process
from infogan_ray.distributed.train.driver import Driver
from infogan_ray.distributed.train.head_monitor import free_places, places
from infogan_ray.distributed.train.signals import handle_signals
from infogan_ray.distributed.train.status_mailbox import MailboxReporter, start_mailbox
from infogan_ray.distributed.train.worker_function import Reporter, train_on_worker
from infogan_ray.storage.file_system import StorageError, open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_outcome import (
    HeadLost,
    Listener,
    RunResult,
    TrainingFailed,
    last_line,
    set_last_status,
    to_result,
)
from infogan_ray.training.run_setup import log_path, prepare_run, with_absolute_paths

# Of a worker group, by Ray Train; see ``run_worker_group`` for what follows when there are no more.
WORKER_RESTARTS = 3
# Between two looks of a running elastic group at whether there is room for more workers.
RESIZE_CHECK_S = 20.0


def train(config: RunConfig, listen: Listener | None = None) -> RunResult:
    """Run a training job to its end: in this process, or on the connected cluster, or on one that is started for it.

    ``listen`` is called with every report of rank 0: {"phase": ..., "step": ..., metrics}. Raises UserError for what
    can be refused before work starts, TrainingFailed for workers and storage that keep failing, and KeyboardInterrupt
    where a stop left no time for a last checkpoint.
    """
    listen = listen or (lambda report: None)
    if torchrun.is_other_rank():
        return join_rank_zero()
    checked = check(config, say=lambda line: listen({"phase": line}), sample=0)
    config, run = prepare_run(config, checked.images, checked.room, listen)
    wanted = checked.wanted
    del checked  # with its images, of which workers have their own
    run_workers = run_in_this_process if runs_in_this_process(wanted) else run_worker_group
    return run_workers(config, wanted, run, listen)


def run_in_this_process(config: RunConfig, wanted: Resources, run: RunDirectory, listen: Listener) -> RunResult:
    """Train a run that has been prepared, in Ray Train's local mode.

    A signal ends it with a last checkpoint. Nobody restarts this process; who resumes the run continues it.
    """
    log = log_path(run.folder)
    reporter = local_mode.LocalReporter(listen)
    try:
        with library_logs_in(log), local_mode.restored_torch_settings(), handle_signals(reporter.handle_signal):
            final = _fit_locally(job_of(config, wanted, run), reporter)
    except StorageError as error:
        raise TrainingFailed(f"{error}; the log is {log}") from None
    except (MemoryError, torch.OutOfMemoryError) as error:
        set_last_status(run, "failed", reporter.step)
        raise TrainingFailed(f"out of memory: {last_line(error)}; the log is {log}") from None
    except KeyboardInterrupt:
        set_last_status(run, "interrupted", reporter.step)
        raise
    except Exception:
        set_last_status(run, "failed", reporter.step)
        raise
    if reporter.listener_error is not None:
        raise reporter.listener_error
    return to_result(run, final, log)


def join_rank_zero() -> RunResult:
    """Train as another rank of torchrun, whose rank 0 decides everything. Its log lines say nothing new."""
    reporter = local_mode.LocalReporter(lambda report: None)
    with local_mode.quiet(), local_mode.restored_torch_settings(), handle_signals(reporter.handle_signal):
        final = _fit_locally(None, reporter)
    run = RunDirectory(open_storage(final["run"]))
    if final["phase"] == "failed":
        raise TrainingFailed(str(final["message"]))
    return RunResult(run, final["phase"], final, final.get("message", ""))


def _fit_locally(job: dict[str, Any] | None, reporter: Reporter) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="infogan-ray-train-") as scratch:
        result = ray_trainer(job, reporter, ray.train.ScalingConfig(num_workers=0), TorchConfig(), scratch).fit()
    final: dict[str, Any] = result.return_value  # type: ignore[attr-defined]  # typed as the older Result
    return final


def run_worker_group(
    config: RunConfig, wanted: Resources, run: RunDirectory, listen: Listener, patience: float | None = None
) -> RunResult:
    """Start the workers of a run that has been prepared, and wait for them.

    ``patience``: see Driver; inside a trial of a search.

    The restart policy: Ray Train restarts workers that fail, up to WORKER_RESTARTS times. An attempt that has failed is
    followed by another if a checkpoint was stored meanwhile, or if it found no room that the machines do have. Raises
    TrainingFailed otherwise, and KeyboardInterrupt if the workers had no time for a last checkpoint.
    """
    log = log_path(run.folder)
    with library_logs_in(log):
        connect(None)
        mailbox = start_mailbox()
        driver = Driver(mailbox, listen, patience)
        try:
            with tempfile.TemporaryDirectory(prefix="infogan-ray-train-") as scratch, handle_signals(_interrupt):
                _fit_until_it_ends(config, wanted, run, driver, scratch)
        except HeadLost as error:
            set_last_status(run, "failed", driver.step)
            raise HeadLost(f"{error}; the log is {log}") from None
        except TrainingFailed as error:
            set_last_status(run, "failed", driver.step)
            raise TrainingFailed(f"{error}; the log is {log}") from None
        except StorageError as error:
            raise TrainingFailed(f"{error}; the log is {log}") from None
        except KeyboardInterrupt:
            set_last_status(run, "interrupted", driver.step)
            raise
        finally:
            driver.head.close()
            if ray.is_initialized() and not driver.head.lost:
                ray.kill(mailbox)
        return to_result(run, driver.final, log)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _fit_until_it_ends(
    config: RunConfig, wanted: Resources, run: RunDirectory, driver: Driver, scratch: str
) -> None:  # fmt: skip
    reporter = MailboxReporter(driver.mailbox)
    while True:
        stored = run.get_status().get("stored", 0)
        scaling: Any = ray.train.ScalingConfig  # typed as the older class
        workers = scaling(
            num_workers=wanted.workers, use_gpu=wanted.device == "cuda", resources_per_worker=wanted.of_a_worker,
            placement_strategy=wanted.placement.upper(), elastic_resize_monitor_interval_s=RESIZE_CHECK_S,
        )  # fmt: skip
        # NCCL does not let two ranks share a GPU; gloo does.
        group = TorchConfigOnRaysInterface("gloo" if wanted.gpus_per_worker < 1 else None)
        others = places()
        error = driver.follow(ray_trainer(job_of(config, wanted, run), reporter, workers, group, scratch))
        if error is None or driver.has_ended:
            return
        if isinstance(error, ray.exceptions.RayError) and not driver.is_guest:  # the controller was killed
            free_places(places() - others)
        cause = _cause(error)
        if _found_no_room(error):  # others have it, or machines have died
            try:
                wanted = _resources_now(config, wanted, driver)
                continue
            except UserError as too_few:
                cause = str(too_few)
        if run.get_status().get("stored", 0) == stored:
            raise TrainingFailed(cause)
        driver.listen({"phase": "starting workers again", "step": driver.step})


def job_of(config: RunConfig, wanted: Resources, run: RunDirectory) -> dict[str, Any]:
    """What every worker of a prepared run is told, as values of JSON."""
    return {
        "config": with_absolute_paths(config).to_dict(), "run": run.folder.uri, "device": wanted.device,
        "threads": wanted.threads, "threads_from": wanted.threads_from,
    }  # fmt: skip


def ray_trainer(
    job: dict[str, Any] | None, reporter: Reporter, workers: Any, group: TorchConfig, scratch: str
) -> TorchTrainer:
    """The only trainer that there is.

    ``scratch``: a local folder for Ray Train's own files. On shared storage, an outage would end its controller, and a
    snapshot that was cut short would keep the run from starting. Checkpoints go through our own store.
    """
    failures: Any = ray.train.FailureConfig  # typed as the older class
    trainer: TorchTrainer = TorchTrainer(
        train_on_worker,  # type: ignore[arg-type]  # Ray Train returns what it returns; the annotation is the older one's
        train_loop_config={"job": job, "reporter": reporter, "local": workers.num_workers == 0},
        scaling_config=workers,
        torch_config=group,
        run_config=ray.train.RunConfig(
            # A new name for each attempt: Ray Train resumes a run of the same name silently, even a finished one.
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=scratch,
            failure_config=failures(max_failures=WORKER_RESTARTS, controller_failure_limit=WORKER_RESTARTS),
        ),
    )
    return trainer


def _found_no_room(error: BaseException) -> bool:
    """Whether Ray Train found no places for its workers in time. Its class for that has no public name."""
    failure = getattr(error, "controller_failure", None)
    return type(failure).__name__ == "WorkerGroupStartupTimeoutError"


def _resources_now(config: RunConfig, wanted: Resources, driver: Driver) -> Resources:
    """The resources to wait for, of the machines there are now. Raises UserError where they are too few."""
    if not driver.is_guest:
        # On the same device as before: what began on GPUs does not continue without them.
        config = config.override({"device": wanted.device}, "the run")
        return resources(config, lambda line: driver.listen({"phase": line}))
    nodes = machines()  # a trial's resources are the search's to decide
    if (fitting := room(wanted.of_a_worker, nodes, wanted.placement)) < wanted.most:
        raise UserError(f"the cluster's {len(nodes)} machine(s) have room for {fitting} of {wanted.most} workers")
    return wanted


def _cause(error: BaseException) -> str:
    """The line of a worker's traceback that names its error."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    lines = str(next(iter(failures.values()))).strip().splitlines() or [type(error).__name__]
    named = [line.strip() for line in lines if re.match(r"\s*[\w.]+(Error|Exception|Exit)\b", line)]
    return (named or lines)[-1]
