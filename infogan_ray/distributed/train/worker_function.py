"""The function that Ray Train runs on every rank of every run, in a worker group and in local mode."""

from __future__ import annotations

import contextlib
import socket
from functools import partial
from typing import Any, Protocol

import ray.train
import ray.util
import torch
from ray.train.torch import get_device

from infogan_ray.data.datasets import load_images
from infogan_ray.data.shards.sampling import SAMPLE
from infogan_ray.distributed.cluster.resources import REQUESTED
from infogan_ray.distributed.cluster.threads import set_threads
from infogan_ray.distributed.train import torchrun
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.checkpoint_uploader import StorageFailed
from infogan_ray.training.config import RunConfig
from infogan_ray.training.ddp import distributed
from infogan_ray.training.loop import Diverged
from infogan_ray.training.out_of_memory import is_out_of_memory, out_of_memory
from infogan_ray.training.run_outcome import failure_report
from infogan_ray.training.worker import run_worker


class Reporter(Protocol):
    """Rank 0's connection to the driver."""

    def start(self) -> int:
        """Called before the first report. Returns how often the workers of this run were restarted."""

    def send(self, report: dict[str, Any]) -> None:
        """Send a report to the driver's listener. Training does not wait for it."""

    def stop_requested(self) -> bool:
        """Whether the run must stop with a last checkpoint. Called at every step."""

    def flush(self) -> None:
        """Wait until every report has been sent."""

    def failure(self) -> dict[str, Any] | None:
        """The report of a failure that a restart of the workers would repeat; None without one."""


def train_on_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train according to ``settings["job"]``; returns the last report.

    ``settings["reporter"]``: rank 0's Reporter. Under torchrun the other ranks receive rank 0's job. Ray Train restarts
    a worker that raises. Divergence, a failed storage and a lack of memory are reported: a restart would fail again.
    Several ranks cannot end together without memory, so one raises, and after the restart all of them end at once.
    """
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    job, reporter = settings["job"], settings["reporter"]
    messages = torchrun.Messages() if settings["local"] and world_size > 1 else None
    if messages is not None:
        job = messages.from_rank_zero(job)
    if (failed := reporter.failure()) is not None:
        return failed
    try:
        last = _train(job, reporter, rank, world_size)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = out_of_memory(RunConfig().override(job["config"], "the driver"), error)
        last = {"run": job["run"], "phase": "failed", "message": message, "out_of_memory": True}
        reporter.send(last)
        reporter.flush()
        if world_size > 1:
            raise
    return last if messages is None else messages.from_rank_zero(last)


def this_machine() -> str:
    """How messages name this machine. Ray does not know the address of a rank of torchrun."""
    return socket.gethostname() if torchrun.is_active() else ray.util.get_node_ip_address()


def _train(job: dict[str, Any], reporter: Reporter, rank: int, world_size: int) -> dict[str, Any]:
    threads = set_threads(job["threads"], job["threads_from"], requested=job["threads_from"] == REQUESTED)
    config = RunConfig.from_dict(job["config"], "the driver")
    assert config.data is not None
    sample = SAMPLE if rank == 0 else 0  # rank 0 evaluates
    images = load_images(config.data, config.data_config, lambda line: None, feed=config.feed, sample=sample)
    device = get_device() if job["device"] == "cuda" else torch.device("cpu")
    rank_zero: dict[str, Any] = {}
    if rank == 0:
        rank_zero = {"restarts": reporter.start(), "stop": reporter.stop_requested}
        reporter.send({"phase": "starting", "say": threads})
    wrap = partial(distributed, wire=config.optimizer.wire) if world_size > 1 else None
    run = RunDirectory(open_storage(job["run"]))
    last: dict[str, Any] = {"run": job["run"]}
    reports = run_worker(
        config, images, run, device=device, rank=rank, world_size=world_size, wrap=wrap,
        place=this_machine(), **rank_zero,
    )  # fmt: skip
    try:
        with contextlib.closing(reports):
            for report in reports:
                if rank == 0:
                    last |= report.to_dict(rank_zero["restarts"], world_size)
                    reporter.send(report.to_dict(rank_zero["restarts"], world_size))
                if report.due:  # Ray Train waits for all ranks here
                    ray.train.report({k: v for k, v in report.metrics.items() if isinstance(v, (int, float))})
    except Diverged:  # rank 0 has reported it
        pass
    except StorageFailed as error:
        last |= failure_report(error)
        if rank == 0:
            reporter.send(failure_report(error))
    if rank == 0:
        reporter.flush()
    return last
