"""Runs every training run: RunConfig -> one ``TorchTrainer(train_on_worker, ScalingConfig(...)).fit()``.

One worker without a cluster uses Ray Train's local mode (``num_workers=0``): the same function in this process. Several
workers, or a cluster, use a worker group. Rank 0 writes and verifies checkpoints in our own store. A restarted worker
reads the store and not Ray's checkpoint.
"""

from __future__ import annotations

import dataclasses
import re
import uuid
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from infogan_ray import UserError
from infogan_ray.data.progress import counted
from infogan_ray.distributed.cluster.connection import connect, library_logs_in, open_log
from infogan_ray.distributed.cluster.local_ray import check_workers
from infogan_ray.distributed.cluster.machines import machines, resources
from infogan_ray.distributed.cluster.network_interface import TorchConfigOnRayInterface
from infogan_ray.distributed.cluster.resources import Resources, room
from infogan_ray.distributed.train import local_mode, torchrun
from infogan_ray.distributed.train.checks import Checked, check, runs_in_this_process
from infogan_ray.distributed.train.driver import Driver
from infogan_ray.distributed.train.head_monitor import placement_groups, remove_placement_groups
from infogan_ray.distributed.train.signals import handle_signals
from infogan_ray.distributed.train.status_mailbox import MailboxReporter, start_mailbox
from infogan_ray.distributed.train.worker_function import Reporter, train_on_worker
from infogan_ray.storage.file_system import StorageError, open_storage
from infogan_ray.storage.run_directory import RunDirectory, default_name
from infogan_ray.storage.scratch import scratch_folder
from infogan_ray.training.config import RunConfig
from infogan_ray.training.out_of_memory import is_out_of_memory, out_of_memory
from infogan_ray.training.run_estimate import computed_cost, cost_text, cost_warnings
from infogan_ray.training.run_outcome import (
    HeadLost,
    Listener,
    OutOfMemory,
    RunResult,
    TrainingFailed,
    last_line,
    set_last_status,
    to_result,
)
from infogan_ray.training.run_setup import log_path, prepare_run, with_absolute_paths

# Ray Train restarts a worker group this many times; ``run_worker_group`` then decides about a new attempt.
WORKER_RESTARTS = 3


def train(config: RunConfig | None = None, listen: Listener | None = None, **settings: Any) -> RunResult:
    """Run a training job to its end: in this process, on the connected cluster, or on a new local cluster.

    ``settings`` are fields of RunConfig, which replace those of ``config``: ``train(preset="mnist_robust", steps=500,
    network={"width": 32})``. Without a name, the run has that of the data and the time.

    ``listen`` is called with every report of rank 0: {"phase": ..., "step": ..., metrics}. Raises UserError before work
    starts, TrainingFailed if workers or storage keep failing, and KeyboardInterrupt if a stop left no time for a last
    checkpoint.
    """
    config = (config or RunConfig()).override(settings, "train")
    config = dataclasses.replace(config, name=config.name or default_name(config.data or "run"))
    listen = listen or (lambda report: None)
    if torchrun.is_other_rank():
        return join_rank_zero()
    checked = check(config, say=lambda line: listen({"phase": line}), sample=0)
    wanted = checked.wanted
    here = runs_in_this_process(wanted)
    # What can fail is tried before the run's name is claimed.
    storage, name = open_storage(config.storage), str(config.name)
    if not storage.is_local:
        open_log(log_path(storage / name)).close()
    if not here:
        RunDirectory.check_name(storage, name, config.resume)
        listen({"phase": "starting workers"})
        connect(None)
        check_workers()
    config, run = prepare_run(config, checked.images, checked.budget, listen)
    _report_cost(config, checked, run, listen)
    del checked  # and its images: workers load their own
    return (run_in_this_process if here else run_worker_group)(config, wanted, run, listen)


def _report_cost(config: RunConfig, checked: Checked, run: RunDirectory, listen: Listener) -> None:
    images, wanted = checked.images, checked.wanted
    steps = config.total_steps(images.count)
    cost = computed_cost(
        config, images.image_size, images.channels, wanted.device, wanted.threads, wanted.max_workers
    )  # fmt: skip
    left = steps - run.get_status().get("stored", 0)
    warnings = [f"warning: {text}" for text in cost_warnings(config, cost, steps, images.count, left)]
    for line in (cost_text(cost, left), *warnings):
        listen({"phase": "starting", "step": 0, "say": line})


def run_in_this_process(config: RunConfig, wanted: Resources, run: RunDirectory, listen: Listener) -> RunResult:
    """Train a prepared run in Ray Train's local mode.

    A signal stops it with a last checkpoint. This process is not restarted; the user may resume the run.
    """
    log = log_path(run.folder)
    reporter = local_mode.LocalReporter(listen)
    try:
        with library_logs_in(log), local_mode.restored_torch_settings(), handle_signals(reporter.handle_signal):
            final = _fit_locally(worker_job(config, wanted, run), reporter)
    except StorageError as error:
        raise TrainingFailed(f"{error}; the log is {log}") from None
    except KeyboardInterrupt:
        set_last_status(run, "interrupted", reporter.step)
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {last_line(error)}"
        if is_out_of_memory(error):
            cause = out_of_memory(config, error)
        set_last_status(run, "failed", reporter.step, message=cause)
        if is_out_of_memory(error):
            raise OutOfMemory(f"{cause}; the log is {log}") from None
        raise
    if reporter.listener_error is not None:
        raise reporter.listener_error
    return to_result(run, final, log)


def join_rank_zero() -> RunResult:
    """Train as a rank other than 0 under torchrun. Rank 0 makes all decisions and logs the same lines."""
    reporter = local_mode.LocalReporter(lambda report: None)
    with local_mode.quiet(), local_mode.restored_torch_settings(), handle_signals(reporter.handle_signal):
        final = _fit_locally(None, reporter)
    run = RunDirectory(open_storage(final["run"]))
    if final["phase"] == "failed":
        raise TrainingFailed(str(final["message"]))
    return RunResult(run, final["phase"], final, final.get("message", ""))


def _fit_locally(job: dict[str, Any] | None, reporter: Reporter) -> dict[str, Any]:
    with scratch_folder() as scratch:
        result = ray_trainer(job, reporter, ray.train.ScalingConfig(num_workers=0), TorchConfig(), scratch).fit()
    final: dict[str, Any] = result.return_value  # type: ignore[attr-defined]  # typed as the older Result
    return final


def run_worker_group(
    config: RunConfig, wanted: Resources, run: RunDirectory, listen: Listener, grace_s: float | None = None
) -> RunResult:
    """Start the workers of a prepared run and wait for them.

    ``grace_s``: see Driver; set only inside a trial of a search.

    Restart policy: Ray Train restarts failed workers up to WORKER_RESTARTS times. A new attempt follows a failed one if
    a checkpoint was stored meanwhile. It also follows if Ray Train found no room but the machines have it. Otherwise
    TrainingFailed is raised. KeyboardInterrupt is raised if the workers had no time for a last checkpoint.
    """
    log = log_path(run.folder)
    with library_logs_in(log):
        connect(None)
        mailbox = start_mailbox()
        driver = Driver(mailbox, listen, grace_s)
        try:
            with scratch_folder() as scratch, handle_signals(_interrupt):
                _run_attempts(config, wanted, run, driver, scratch)
        except HeadLost as error:
            set_last_status(run, "failed", driver.step, message=str(error))
            raise HeadLost(f"{error}; the log is {log}") from None
        except TrainingFailed as error:
            set_last_status(run, "failed", driver.step, message=str(error))
            raise TrainingFailed(f"{error}; the log is {log}") from None
        except StorageError as error:
            raise TrainingFailed(f"{error}; the log is {log}") from None
        except KeyboardInterrupt:
            set_last_status(run, "interrupted", driver.step)
            raise
        except Exception:
            set_last_status(run, "failed", driver.step)
            raise
        finally:
            driver.head.close()
            if ray.is_initialized() and not driver.head.lost:
                ray.kill(mailbox)
        return to_result(run, driver.final, log)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _run_attempts(
    config: RunConfig, wanted: Resources, run: RunDirectory, driver: Driver, scratch: str
) -> None:  # fmt: skip
    reporter = MailboxReporter(driver.mailbox)
    while True:
        stored = run.get_status().get("stored", 0)
        scaling: Any = ray.train.ScalingConfig  # typed as the older class
        workers = scaling(
            num_workers=wanted.workers, use_gpu=wanted.device == "cuda", resources_per_worker=wanted.per_worker,
            placement_strategy=wanted.placement.upper(), elastic_resize_monitor_interval_s=config.resize_every,
        )  # fmt: skip
        # NCCL does not let two ranks share a GPU; gloo does.
        group = TorchConfigOnRayInterface("gloo" if wanted.gpus_per_worker < 1 else None)
        earlier_groups = placement_groups()
        error = driver.run_attempt(ray_trainer(worker_job(config, wanted, run), reporter, workers, group, scratch))
        if error is None or driver.has_ended:
            return
        if isinstance(error, ray.exceptions.RayError) and not driver.in_trial:  # the controller was killed
            remove_placement_groups(placement_groups() - earlier_groups)
        cause = _cause(error)
        if _found_no_room(error):  # other jobs use it, or machines have died
            try:
                wanted = _current_resources(config, wanted, driver)
                continue
            except UserError as too_few:
                cause = str(too_few)
        if run.get_status().get("stored", 0) == stored:
            raise TrainingFailed(cause)
        driver.listen({"phase": "starting workers again", "step": driver.step})


def worker_job(config: RunConfig, wanted: Resources, run: RunDirectory) -> dict[str, Any]:
    """The settings that every worker of a prepared run receives, as JSON values."""
    return {
        "config": with_absolute_paths(config).to_dict(), "run": run.folder.uri, "device": wanted.device,
        "threads": wanted.threads, "threads_from": wanted.threads_from,
    }  # fmt: skip


def ray_trainer(
    job: dict[str, Any] | None, reporter: Reporter, workers: Any, group: TorchConfig, scratch: str
) -> TorchTrainer:
    """The TorchTrainer of every run.

    ``scratch``: a local folder for Ray Train's own files. On shared storage, an outage would end Ray Train's
    controller, and an incomplete snapshot would prevent a new start. Checkpoints use our own store.
    """
    failures: Any = ray.train.FailureConfig  # typed as the older class
    trainer: TorchTrainer = TorchTrainer(
        train_on_worker,  # type: ignore[arg-type]  # the annotation is that of the older Ray Train
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
    """Whether Ray Train found no room for its workers in time. The error's class has no public name."""
    failure = getattr(error, "controller_failure", None)
    return type(failure).__name__ == "WorkerGroupStartupTimeoutError"


def _current_resources(config: RunConfig, wanted: Resources, driver: Driver) -> Resources:
    """The resources of the next attempt, from the current machines. Raises UserError if they are not enough."""
    if not driver.in_trial:
        # The device stays: a run that started on GPUs does not continue without them.
        config = config.override({"device": wanted.device}, "the run")
        return resources(config, lambda line: driver.listen({"phase": line}))
    nodes = machines()  # the search decides a trial's resources
    if (fitting := room(wanted.per_worker, nodes, wanted.placement)) < wanted.max_workers:
        workers = wanted.max_workers
        raise UserError(f"the cluster ({counted(len(nodes), 'machine')}) has room for {fitting} of {workers} workers")
    return wanted


def _cause(error: BaseException) -> str:
    """The line with the error in the traceback of a worker."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    lines = str(next(iter(failures.values()))).strip().splitlines() or [type(error).__name__]
    named = [line.strip() for line in lines if re.match(r"\s*[\w.]+(Error|Exception|Exit)\b", line)]
    return (named or lines)[-1]
