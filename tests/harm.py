"""What kills have in common: which processes are the workers, and whether two runs ended in the same bits."""

from __future__ import annotations

import hashlib

import psutil

from infogan_ray import checkpoints
from infogan_ray.runs import RunDirectory, step_name


def workers_of(pid: int) -> list[psutil.Process]:
    """The training workers of the Ray that a process has started."""
    return [p for p in psutil.Process(pid).children(recursive=True) if "RayTrainWorker" in p.name()]


def digest(run: RunDirectory, step: int) -> str:
    """SHA-256 over all tensors of a checkpoint: weights, averages, buffers and optimiser moments."""
    found = checkpoints.open_checkpoint(run.checkpoints / step_name(step))
    tensors = found.model_tensors() | {f"training.{k}": v for k, v in found.training_tensors().items()}
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + tensors[name].numpy().tobytes())
    return total.hexdigest()
