"""Checks a run before a worker starts, and decides where its workers run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import ray

from infogan_ray import UserError
from infogan_ray.data.feeds.feed_policy import MemoryBudget
from infogan_ray.data.image_set import ImageSet
from infogan_ray.data.shards.sampling import SAMPLE
from infogan_ray.distributed.cluster.connection import connect
from infogan_ray.distributed.cluster.machines import check_files, machines, resources
from infogan_ray.distributed.cluster.resources import Resources, fit, image_memory_budget, this_machine
from infogan_ray.distributed.cluster.threads import thread_limit
from infogan_ray.distributed.train import torchrun
from infogan_ray.storage import proxies
from infogan_ray.storage.file_system import open_storage
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_setup import check_data
from infogan_ray.training.tracking.addresses import check_packages


@dataclass(frozen=True)
class Checked:
    """Result of the checks: the run's resources, the memory for its images, and the images."""

    wanted: Resources
    budget: MemoryBudget
    images: ImageSet


def check(config: RunConfig, say: Callable[[str], None] = print, sample: int = SAMPLE) -> Checked:
    """Check a run's settings, resources and data before a worker starts. Raises UserError, in one line.

    If $RAY_ADDRESS is set, connect to its cluster first: the run needs the cluster's resources, not this machine's.
    ``sample``: see ``check_data``.
    """
    check_packages(config.mlflow, config.wandb)
    if remark := proxies.settle_route(config.mlflow or "").remark:
        say(remark)
    if torchrun.is_active():
        wanted, nodes = _under_torchrun(config), [this_machine()]
    else:
        if os.environ.get("RAY_ADDRESS"):
            connect(None)
        wanted, nodes = resources(config, say), machines()
    budget = image_memory_budget(wanted, nodes)
    images = check_data(config, budget, say, sample)
    if ray.is_initialized() and not check_files(config, open_storage(config.storage)):
        wanted = resources(config, say)  # of the remaining machines
    return Checked(wanted, budget, images)


def runs_in_this_process(wanted: Resources) -> bool:
    """Whether the run uses Ray Train's local mode: one worker without a cluster, or a rank of torchrun."""
    return torchrun.is_active() or (wanted.workers == 1 and not ray.is_initialized())


def _under_torchrun(config: RunConfig) -> Resources:
    _, ranks = torchrun.rank_and_world_size()
    if config.worker_range not in (None, (ranks, ranks)):
        raise UserError(f"workers is {config.workers}, but torchrun started {ranks}; remove --workers")
    if config.gpus_per_worker != 1:
        raise UserError(f"gpus_per_worker is {config.gpus_per_worker:g}; under torchrun each rank uses one GPU")
    here = this_machine()
    if config.device == "cpu" and here["GPU"]:
        raise UserError("device is 'cpu'; under torchrun, also hide the GPUs with CUDA_VISIBLE_DEVICES=")
    nodes = [here] * max(1, ranks // torchrun.ranks_on_this_machine())
    return fit(replace(config, workers=ranks), nodes, thread_limit(os.environ))
