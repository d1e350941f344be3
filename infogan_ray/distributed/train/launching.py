"""Where a run is started: one worker in a process of its own, here or on a cluster, several under Ray Train."""

from __future__ import annotations

from typing import Any

from infogan_ray.distributed.cluster.resources import Resources
from infogan_ray.distributed.solo import driver as solo
from infogan_ray.distributed.train.warming import discard
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_outcome import Listener, RunResult


def launcher(config: RunConfig) -> Any:
    """The module that runs it, with ``check`` and ``train``. Raises UserError."""
    if solo.fits(config):
        return solo
    if solo.has_cluster() and config.ray == "auto" and config.worker_range in (None, (1, 1)):
        from infogan_ray.distributed.train import remote

        return remote
    discard()
    from infogan_ray.distributed.train import trainer

    return trainer


def under(config: RunConfig, wanted: Resources) -> str:
    """What a run's workers are."""
    return "a process of its own" if config.ray == "auto" and wanted.workers == 1 else "processes of Ray Train"


def train(config: RunConfig, listen: Listener | None = None) -> RunResult:
    """Run a training job to its end on the cluster of $RAY_ADDRESS, on the one that this process has joined, or on this
    machine: one worker in a process of its own, unless ``config.ray`` forbids, and several under Ray Train.

    Raises UserError for what can be refused before work starts and TrainingFailed for workers that keep failing and
    for storage that does. ``listen`` hears every report of rank 0: {"phase": ..., "step": ..., metrics}.
    """
    result: RunResult = launcher(config).train(config, listen)
    return result
