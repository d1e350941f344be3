"""Where a run is started: one worker on this machine in a process of its own, everything else under Ray Train."""

from __future__ import annotations

from typing import Any

from infogan_ray.config import RunConfig
from infogan_ray.endings import Listener, RunResult
from infogan_ray.solo import driver as solo
from infogan_ray.solo import process


def launcher(config: RunConfig) -> Any:
    """The module that runs it: with ``check``, ``train``, and ``UNDER`` what it does so. Raises ValueError."""
    if solo.fits(config):
        return solo
    process.discard()
    from infogan_ray.distributed import trainer

    return trainer


def train(config: RunConfig, listen: Listener | None = None) -> RunResult:
    """Run a training job to its end: under Ray Train on the cluster of $RAY_ADDRESS, on the one that this process has
    joined, or on an embedded one; one worker without a cluster in a process of its own, unless ``config.ray`` forbids.

    Raises ValueError for what can be refused before work starts and TrainingFailed for workers that keep failing and
    for storage that does. ``listen`` hears every report of rank 0: {"phase": ..., "step": ..., metrics}.
    """
    result: RunResult = launcher(config).train(config, listen)
    return result
