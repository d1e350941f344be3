"""What is refused before a worker starts, and where a run's workers will be."""

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
from infogan_ray.distributed.cluster.resources import Resources, fit, room_for_images, this_machine
from infogan_ray.distributed.cluster.threads import limit
from infogan_ray.distributed.train import torchrun
from infogan_ray.storage.file_system import open_storage
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_setup import check_data
from infogan_ray.training.tracking.addresses import check_packages


@dataclass(frozen=True)
class Checked:
    """What is known before a run begins: its resources, the memory that there is for its images, and the images."""

    wanted: Resources
    room: MemoryBudget
    images: ImageSet


def check(config: RunConfig, say: Callable[[str], None] = print, sample: int = SAMPLE) -> Checked:
    """Refuse what can be refused before a worker starts. Raises UserError, in one line; see ``check_data``.

    The cluster of $RAY_ADDRESS is joined, so that the run is compared with the cluster and not with this machine.
    """
    check_packages(config.mlflow, config.wandb)
    if torchrun.is_active():
        wanted, there = _under_torchrun(config), [this_machine()]
    else:
        if os.environ.get("RAY_ADDRESS"):
            connect(None)
        wanted, there = resources(config, say), machines()
    room = room_for_images(wanted, there)
    images = check_data(config, room, say, sample)
    if ray.is_initialized() and not check_files(config, open_storage(config.storage)):
        wanted = resources(config, say)  # of the machines that are left
    return Checked(wanted, room, images)


def runs_in_this_process(wanted: Resources) -> bool:
    """Whether Ray Train's local mode is used: for one worker without a cluster, and for a rank of torchrun."""
    return torchrun.is_active() or (wanted.workers == 1 and not ray.is_initialized())


def _under_torchrun(config: RunConfig) -> Resources:
    _, ranks = torchrun.rank_and_world_size()
    if config.worker_range not in (None, (ranks, ranks)):
        raise UserError(f"workers is {config.workers}, and torchrun has started {ranks}; leave --workers out")
    if config.gpus_per_worker != 1:
        raise UserError(f"gpus_per_worker is {config.gpus_per_worker:g}; under torchrun each rank has a GPU of its own")
    here = this_machine()
    if config.device == "cpu" and here["GPU"]:
        raise UserError("device is 'cpu'; under torchrun, hide the GPUs by CUDA_VISIBLE_DEVICES= as well")
    nodes = [here] * max(1, ranks // torchrun.ranks_on_this_machine())
    return fit(replace(config, workers=ranks), nodes, limit(os.environ))
