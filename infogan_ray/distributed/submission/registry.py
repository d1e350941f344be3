"""The submission backends. A new backend needs a module in this package, an entry here, and a test."""

from __future__ import annotations

import os

from infogan_ray import UserError
from infogan_ray.distributed.submission.backend import Backend
from infogan_ray.distributed.submission.kuberay import KubeRay
from infogan_ray.distributed.submission.local import LocalJobs
from infogan_ray.distributed.submission.ray_jobs import RayJobs
from infogan_ray.distributed.submission.slurm import Slurm
from infogan_ray.training.config_fields import not_one_of

BACKENDS: tuple[type[Backend], ...] = (RayJobs, KubeRay, Slurm, LocalJobs)


def backend_of(cluster: str) -> type[Backend]:
    """The backend that a value of ``--cluster`` selects. Raises UserError if none does."""
    for backend in BACKENDS:
        if backend.accepts(cluster):
            return backend
    raise UserError(not_one_of("cluster", cluster, [backend.CLUSTER for backend in BACKENDS]))


def default_cluster() -> str:
    """The default of ``--cluster``: the value of a backend's environment variable, or else this machine."""
    variables = [backend.CLUSTER_VARIABLE for backend in BACKENDS if backend.CLUSTER_VARIABLE]
    return next((os.environ[name] for name in variables if os.environ.get(name)), LocalJobs.CLUSTER)
