"""A run under Ray Train: RunConfig -> TorchTrainer with N workers, progress to the caller, errors in one line.

Each worker runs ``session.run_worker``. Rank 0 writes checkpoints through our own store, verified; on a restart the
workers read the store, not Ray's memory of it. Live progress goes through a small actor without a barrier, since
``ray.train.report`` makes all ranks wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import re
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.config import FailureConfig  # ray.train types its own as the older class

from infogan_ray import __version__
from infogan_ray.config import LABEL_METRICS, RunConfig
from infogan_ray.data import ImageSet, load_images
from infogan_ray.data.choosing import AUTO, MEMORY, Room, feed_line, free_memory
from infogan_ray.data.fetch import cache_folder
from infogan_ray.data.sampling import SAMPLE
from infogan_ray.display import checkpoint_plan
from infogan_ray.distributed.board import StopWatch, start_board
from infogan_ray.distributed.cluster import ASKED, Resources, check_files, connect, machines, resources
from infogan_ray.distributed.driver import ENDINGS, Driver, HeadLost, Listener, TrainingFailed
from infogan_ray.distributed.embedded import EmbeddedTrainer, freed, is_embedded
from infogan_ray.distributed.light import OneWorker
from infogan_ray.gradients import distributed
from infogan_ray.latents import Categorical
from infogan_ray.networks import ModelSpec, plan
from infogan_ray.outbox import Overtaken, StorageFailed
from infogan_ray.runs import RunDirectory
from infogan_ray.searches import difference
from infogan_ray.session import run_worker
from infogan_ray.state import checkpoint_bytes
from infogan_ray.storage import Storage, StorageError, open_storage
from infogan_ray.threads import use
from infogan_ray.tracking import check_packages, with_absolute_path
from infogan_ray.training import Diverged

WORKER_RESTARTS = 3  # of an attempt; another attempt follows if there is a new checkpoint since
LAST_STATUS_S = 3.0


class TakenOver(TrainingFailed):
    """Another attempt has taken the run over."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended: ``finished``, ``diverged`` or ``interrupted``, and the final metrics of its best checkpoint."""

    run: RunDirectory
    state: str
    metrics: dict[str, Any]
    message: str = ""
    restarts: int = 0


def check(config: RunConfig, say: Callable[[str], None] = print, sample: int = SAMPLE) -> tuple[Resources, ImageSet]:
    """All that can be refused before a worker starts. Raises ValueError, in one line. ``say`` hears of a fetch.

    ``sample``: how many images of a streamed dataset are read; a run's own workers read theirs.
    """
    check_packages(config.mlflow, config.wandb)
    wanted = resources(config, say)
    if config.data is None:
        raise ValueError("data is not set; give --data (mnist, fashion_mnist, shapes, or a path) or a --preset")
    if config.image_size is not None:
        plan(config.image_size, config.channels or 1)
    images = load_images(
        config.data, config.data_config, say, feed=kept_feed(config), room=room_for_images(wanted), sample=sample
    )
    config.total_steps(images.count)
    spec = config.model_spec(images.image_size, images.channels)
    if config.metric in LABEL_METRICS:
        if images.labels is None or images.test_labels is None:
            raise ValueError(f"metric is '{config.metric}', which needs labels, and {config.data} has none")
        if not any(isinstance(code, Categorical) for _, code in spec.latents.items()):
            raise ValueError(f"metric is '{config.metric}', which needs a categorical code; add cat=K to --codes")
    return wanted, images


def kept_feed(config: RunConfig) -> str:
    """The feed that is asked for; of a resumed run, the one that it has: they deal the images in different orders.

    Raises ValueError where another is asked for.
    """
    run = RunDirectory(open_storage(config.storage) / config.name) if config.resume and config.name else None
    if run is None or not run.exists:
        return config.feed
    kept = str(run.read_config()["run"].get("feed", MEMORY))  # runs of earlier versions had their images in memory
    if kept == AUTO or config.feed == kept:
        return config.feed
    if config.feed != AUTO:
        raise ValueError(
            f"feed is '{config.feed}', and {config.name} has read its images by '{kept}', in another order; "
            "leave --feed out to go on"
        )
    return kept


def room_for_images(wanted: Resources) -> Room:
    """The least that any machine has free, and the most workers that one machine may get."""
    nodes = [node for node in machines() if node.get("CPU")]
    each = [min(node.get(name, 0) / amount for name, amount in wanted.of_a_worker.items() if amount) for node in nodes]
    copies = max(1, min(wanted.most, int(max(each, default=1))))
    free = [int(node["memory"]) for node in nodes if "memory" in node]  # as Ray found it on each machine
    return Room(min(free, default=free_memory()), copies)


def train(config: RunConfig, listen: Listener | None = None) -> RunResult:
    """Run a training job to its end on the connected Ray cluster, or on an embedded one.

    Raises ValueError for what can be refused before work starts and TrainingFailed for workers that keep failing and
    for storage that does. ``listen`` hears every report of rank 0: {"phase": ..., "step": ..., metrics}.
    """
    name = config.name
    if name is None:
        raise ValueError("name is not set; give the run a --name")
    if os.environ.get("RAY_ADDRESS"):
        connect(None)
    listen = listen or (lambda report: None)
    wanted, images = check(config, say=lambda line: listen({"phase": line}), sample=0)
    line = feed_line(kept_feed(config), images, room_for_images(wanted))
    config = config.override({"feed": images.feed}, "the data")  # all workers, and whoever resumes the run, do the same
    if ray.is_initialized():
        check_files(config, open_storage(config.storage))
    run = RunDirectory.claim(open_storage(config.storage), name, config.resume)
    before = run.get_status()
    if config.resume and before["state"] == "running":
        ago = time.time() - before["time"]
        say = f"{run.name} was heard of {ago:.0f} s ago; should it still run, it stops: this attempt takes it over"
        listen({"phase": "resuming", "step": before["step"], "say": say})
    steps = config.total_steps(images.count)
    if config.resume and before.get("stored", 0) > steps:
        raise ValueError(
            f"steps is {steps:,}, and {run.name} is at step {before['stored']:,} already; give --steps more"
        )
    config = as_begun(config, run)
    write_config(run, config, images)
    spec = config.model_spec(images.image_size, images.channels)
    del images  # the workers have copies of their own
    listen({"phase": "starting workers", "step": 0, "say": line})
    listen({
        "phase": "starting workers", "step": 0,
        "say": checkpoint_plan(config, steps, checkpoint_bytes(spec, config.contrastive), run.folder),
    })  # fmt: skip
    return launch(config, wanted, run, listen)


def as_begun(config: RunConfig, run: RunDirectory) -> RunConfig:
    """Of a run that is resumed, what decides nothing but its beginning, as that was."""
    if not run.exists:
        return config
    begun = run.read_config()["run"].get("stability", {})
    return config.override({"stability": {"mean_bias": begun.get("mean_bias", False)}}, "the run")


def write_config(run: RunDirectory, config: RunConfig, images: ImageSet) -> None:
    """Save the resolved configuration. Raises ValueError where a resumed run was another model or has other shards."""
    spec = config.model_spec(images.image_size, images.channels).to_dict()
    if run.exists:
        # Read and written again: what did not exist yet when the run began has its default.
        before = ModelSpec.from_dict(run.read_config().get("model", {})).to_dict()
        if found := difference(before, spec):
            raise ValueError(
                f"name '{run.name}' belongs to a model that differs from this one ({found}); its config is "
                f"{run.folder}/{run.CONFIG}"
            )
        learned = run.read_config().get("run", {}).get("prior", {})
        if learned.get("learn") and (not config.prior.learn or learned.get("method") != config.prior.method):
            raise ValueError(
                f"'{run.name}' learns its prior by prior.method {learned.get('method')}, which would be lost; give "
                f"--prior.learn --prior.method {learned.get('method')}, or start a run of another --name"
            )
    data = None if images.shards is None else {"manifest": images.shards.identity}
    if run.exists and run.read_config().get("data", data) != data:
        raise ValueError(
            f"data is {config.data}, which has been prepared anew since '{run.name}' began: its images would come in "
            "another order; prepare them as they were, or start a run of another --name"
        )
    run.write_config({"model": spec, "run": config.to_dict(), "data": data, "environment": environment()})


def environment() -> dict[str, str]:
    """What a run was made with; nothing of it tells whose machine it was."""
    return {
        "infogan-ray": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "ray": ray.__version__, "system": f"{platform.system()} {platform.machine()}",
    }  # fmt: skip


def log_path(folder: Storage) -> Path:
    """Where Ray's own messages go: into a run's or search's folder on this machine's disks, else the user's cache."""
    if folder.is_local:
        return Path(folder.path) / "ray.log"
    return cache_folder() / "logs" / f"{folder.name}.log"


def launch(
    config: RunConfig, wanted: Resources, run: RunDirectory, listen: Listener, patience: float | None = None
) -> RunResult:
    """Start the workers of a checked configuration in a claimed run directory, and wait for them.

    ``patience``: see Driver; inside a trial of a search.

    Workers that fail are restarted from the last whole checkpoint, for as long as there are new ones. Raises
    TrainingFailed, and KeyboardInterrupt if a stop was asked for and the workers did not say their last words in time.
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
            kind: Any = EmbeddedTrainer if is_embedded() and not driver.is_guest else TorchTrainer
            with freed() if kind is EmbeddedTrainer else contextlib.nullcontext():
                error = driver.follow(_trainer(kind, config, wanted, run, board, scratch))
            if error is None or driver.phase in ENDINGS:
                break
            if run.get_status().get("stored", 0) == stored:
                set_last_status(run, "failed", driver.step)
                raise TrainingFailed(f"{_cause(error)}; the log is {log}")
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
    final = driver.final
    if driver.phase == "failed":
        if not final.get("overtaken"):
            set_last_status(run, "failed", driver.step)
        failure = TakenOver if final.get("overtaken") else TrainingFailed
        raise failure(f"{final['message']}; the log is {log}")
    if driver.phase not in ENDINGS:
        raise TrainingFailed(f"the workers ended at step {driver.step:,} without a word; the log is {log}")
    return RunResult(run, driver.phase, final, final.get("message", ""), driver.restarts)


def _trainer(
    kind: Any, config: RunConfig, wanted: Resources, run: RunDirectory, board: Any, scratch: str
) -> TorchTrainer:
    settings = with_absolute_paths(config).to_dict()
    threads = {"threads": wanted.threads, "threads_from": wanted.threads_from}
    # NCCL does not let two ranks share a GPU; gloo does.
    several = TorchConfig(backend="gloo" if wanted.gpus_per_worker < 1 else None)
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
        run_config=ray.train.RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=WORKER_RESTARTS, controller_failure_limit=WORKER_RESTARTS),
        ),
    )
    return trainer


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Workers run in another folder, where a relative path means something else. A dataset's name stays a name."""
    data = Path(config.data).expanduser() if config.data else None
    return dataclasses.replace(
        config,
        data=str(data.absolute()) if data and data.exists() else config.data,
        data_dir=str(Path(config.data_dir).expanduser().absolute()) if config.data_dir else None,
        labels=str(Path(config.labels).expanduser().absolute()) if config.labels else None,
        mlflow=with_absolute_path(config.mlflow),
    )


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
                about = {"phase": report.phase, "say": report.say, "restarts": first["restarts"]}
                pinned = board.pin.remote({**about, "world_size": world_size, **report.metrics})
            if report.due:
                ray.train.report({k: v for k, v in report.metrics.items() if isinstance(v, (int, float))})
    except Diverged:  # which rank 0 has reported; to start again would end the same way
        pass
    except StorageFailed as error:
        ending = {"phase": "failed", "message": str(error), "overtaken": isinstance(error, Overtaken)}
    if rank == 0 and ending:
        pinned = board.pin.remote(ending)
    if pinned is not None:
        ray.get(pinned)  # the last word must be there before this worker goes


def set_last_status(run: RunDirectory, state: str, step: int, **about: Any) -> None:
    """As far as storage lets it be said."""
    with contextlib.suppress(StorageError):
        run = run.patient(LAST_STATUS_S)
        known = {k: v for k, v in run.get_status().items() if k in ("owner", "stored", "restarts", "last_good")}
        run.set_status(state, step, **known, **about)


def _cause(error: BaseException) -> str:
    """The line of a worker's traceback that names its error."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    lines = str(next(iter(failures.values()))).strip().splitlines() or [type(error).__name__]
    named = [line.strip() for line in lines if re.match(r"\s*[\w.]+(Error|Exception|Exit)\b", line)]
    return (named or lines)[-1]
