"""A run under Ray Train: RunConfig -> TorchTrainer with N workers, progress to the caller, errors in one line.

Each worker runs ``session.run_worker``. Rank 0 writes checkpoints through our own store, verified, and tells Ray Train
only where they are; on a restart the workers read the store, not Ray's memory of it. Live progress goes through a
small actor without a barrier, since ``ray.train.report`` makes all ranks wait.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2.api.config import FailureConfig  # ray.train types its own as the older class
from torch.nn.parallel import DistributedDataParallel

from infogan_ray.checkpoints import read_json
from infogan_ray.config import RunConfig
from infogan_ray.data import ImageSet, load_images
from infogan_ray.networks import plan
from infogan_ray.runs import RunDirectory, write_whole
from infogan_ray.session import run_worker
from infogan_ray.training import Diverged

POLL_S = 0.3
WORKER_RESTARTS = 3
# Ray Train polls its workers this often; a report waits for the poll (2 s by default).
ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}

Listener = Callable[[dict[str, Any]], None]


class TrainingFailed(Exception):
    """The workers failed more often than they are restarted; the message has the cause and the log."""


@dataclass(frozen=True)
class Resources:
    """What a run takes of the cluster."""

    workers: int
    threads: int
    device: str


@dataclass(frozen=True)
class RunResult:
    """How a run ended: ``finished`` or ``diverged``, and the final metrics of its best checkpoint."""

    run: RunDirectory
    state: str
    metrics: dict[str, Any]
    message: str = ""


def resources(config: RunConfig) -> Resources:
    """Resolve workers, threads and device. Raises ValueError for more than this machine or cluster has."""
    gpus, cpus = torch.cuda.device_count(), os.cpu_count() or 1
    if ray.is_initialized():
        total = ray.cluster_resources()
        gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 1))
    if config.device == "cuda" and gpus == 0:
        raise ValueError("device is 'cuda', and no GPU is to be seen; take --device cpu (or auto)")
    device = "cuda" if gpus and config.device != "cpu" else "cpu"
    workers = config.workers or (gpus if device == "cuda" else 1)
    available = gpus if device == "cuda" else cpus
    if workers > available:
        unit = "GPUs" if device == "cuda" else "CPUs"
        raise ValueError(f"workers is {workers}, more than the {available} {unit} there are; take 1 to {available}")
    if config.batch_size % workers:
        raise ValueError(f"batch_size is {config.batch_size}, which {workers} workers cannot share equally")
    threads = config.threads or max(1, cpus // workers)
    if threads * workers > cpus:
        raise ValueError(f"threads is {threads}: {workers} workers would take {threads * workers} of {cpus} CPUs")
    return Resources(workers, threads, device)


def check(config: RunConfig, say: Callable[[str], None] = print) -> tuple[Resources, ImageSet]:
    """All that can be refused before a worker starts. Raises ValueError, in one line. ``say`` hears of a fetch."""
    wanted = resources(config)
    if config.data is None:
        raise ValueError("data is not set; give --data (mnist, fashion_mnist, a folder, an .npz file) or a --preset")
    if config.image_size is not None:
        plan(config.image_size, config.channels or 1)
    images = load_images(config.data, config.data_config, say)
    config.total_steps(len(images.images))
    config.model_spec(images.image_size, images.channels)
    return wanted, images


def train(config: RunConfig, listen: Listener | None = None) -> RunResult:
    """Run a training job to its end on the connected Ray cluster, or on an embedded one.

    Raises ValueError for what can be refused before work starts and TrainingFailed for workers that keep failing.
    ``listen`` hears every report of rank 0: {"phase": ..., "step": ..., metrics}.
    """
    if config.name is None:
        raise ValueError("name is not set; give the run a --name")
    if os.environ.get("RAY_ADDRESS"):
        connect(None)
    listen = listen or (lambda report: None)
    wanted, images = check(config, say=lambda line: listen({"phase": line}))
    run = RunDirectory.claim(Path(config.storage).expanduser().absolute(), config.name, config.resume)
    write_config(run, config, images)
    return launch(config, wanted, run, listen)


def write_config(run: RunDirectory, config: RunConfig, images: ImageSet) -> None:
    """Save the resolved configuration. Raises ValueError where a resumed run was another model."""
    spec = config.model_spec(images.image_size, images.channels).to_dict()
    if run.config.is_file() and read_json(run.config).get("model") != spec:
        raise ValueError(f"name '{run.name}' belongs to a model that differs from this one; its config is {run.config}")
    write_whole(run.config, json.dumps({"model": spec, "run": config.to_dict()}, indent=1))


def launch(config: RunConfig, wanted: Resources, run: RunDirectory, listen: Listener) -> RunResult:
    """Start the workers of a checked configuration in a claimed run directory, and wait for them."""
    connect(run.log)
    if threading.current_thread() is threading.main_thread():
        # A spot machine's notice ends a run as Ctrl-C does; set here since ray.init takes the signal for itself.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    listen({"phase": "starting workers", "step": 0})
    board: Any = ray.remote(num_cpus=0)(Board).remote()
    data_dir = Path(config.data_dir).expanduser().absolute() if config.data_dir else None
    assert config.data is not None
    data = str(Path(config.data).expanduser().absolute()) if Path(config.data).expanduser().exists() else config.data
    # Workers run in another folder: only absolute paths mean the same there.
    settings = config.to_dict() | {"data": data, "data_dir": data_dir and str(data_dir)}
    use_gpu = wanted.device == "cuda"
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"config": settings, "run": str(run.path), "threads": wanted.threads, "board": board},
        scaling_config=ScalingConfig(
            num_workers=wanted.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": wanted.threads} | ({"GPU": 1} if use_gpu else {}),
        ),
        # A name of its own for each attempt: Ray would take up a run of the same name silently, even a finished one.
        run_config=ray.train.RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=str(run.path / "ray"),
            failure_config=FailureConfig(max_failures=WORKER_RESTARTS, controller_failure_limit=WORKER_RESTARTS),
        ),
    )
    final: dict[str, Any] = {}
    # Ray Train would take SIGINT over in the main thread, and end the process with code 1 and no word.
    with ThreadPoolExecutor(1, "ray-train") as pool:
        fitting = pool.submit(trainer.fit)
        try:
            while True:
                ended = bool(wait([fitting], timeout=POLL_S).done)
                for report in ray.get(board.drain.remote()):
                    final.update(report)
                    listen(report)
                if ended:
                    break
            fitting.result()
        except ray.train.TrainingFailedError as error:
            run.set_status("failed", final.get("step", 0))
            raise TrainingFailed(f"{_cause(error)}; the log is {run.log}") from None
        except KeyboardInterrupt:
            ray.shutdown()  # ends this job's workers, and the cluster if it is an embedded one
            run.set_status("interrupted", final.get("step", 0))
            raise
    ray.kill(board)
    return RunResult(run, run.get_status()["state"], final, final.get("message", ""))


class Board:
    """Where rank 0 pins its reports and the driver fetches them."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []

    def pin(self, report: dict[str, Any]) -> None:
        self.reports.append(report)

    def drain(self) -> list[dict[str, Any]]:
        reports, self.reports = self.reports, []
        return reports


def _worker(settings: dict[str, Any]) -> None:
    """Runs on every rank."""
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(settings["threads"])
    config = RunConfig().override(settings["config"], "the driver")
    run = RunDirectory(Path(settings["run"]))
    board = settings["board"]
    assert config.data is not None
    images = load_images(config.data, config.data_config, say=lambda line: None)
    # Batch-norm buffers are each rank's own; weights and gradients are kept equal by DDP.
    wrap = (lambda module: DistributedDataParallel(module, broadcast_buffers=False)) if world_size > 1 else None
    try:
        for report in run_worker(config, images, run, device=get_device(), rank=rank, world_size=world_size, wrap=wrap):
            if rank == 0:
                board.pin.remote({"phase": report.phase, **report.metrics})
            if report.due:
                scalars = {k: v for k, v in report.metrics.items() if isinstance(v, (int, float))}
                where = {"checkpoint": str(report.checkpoint.path)} if report.checkpoint else {}
                # Ray takes checkpoints only inside its own folder of the attempt: it is told the path, as a metric.
                ray.train.report(scalars | where)
    except Diverged as error:  # every rank sees it at the same step; to start again would end the same way
        if rank == 0:
            run.set_status("diverged", error.step, quantity=error.quantity)
            ray.get(board.pin.remote({"phase": "diverged", "step": error.step, "message": str(error)}))


def connect(log: Path | None) -> None:
    """Join the cluster of $RAY_ADDRESS, or start an embedded one. Ray's own messages go to ``log``."""
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    if not ray.is_initialized():
        dashboard = None if os.environ.get("RAY_ADDRESS") else False  # an embedded cluster for Train alone needs none
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)
        except ConnectionError as error:
            raise ValueError(
                f"RAY_ADDRESS is '{os.environ.get('RAY_ADDRESS')}', and no Ray cluster answers there ({error}); "
                "start one, or unset RAY_ADDRESS to use an embedded one"
            ) from None
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        for name in ("ray", "ray.train", "ray.tune"):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [logging.FileHandler(log)], False


def _cause(error: BaseException) -> str:
    """The line of a worker's traceback that names its error."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    lines = str(next(iter(failures.values()))).strip().splitlines() or [type(error).__name__]
    named = [line.strip() for line in lines if re.match(r"\s*[\w.]+(Error|Exception|Exit)\b", line)]
    return (named or lines)[-1]
