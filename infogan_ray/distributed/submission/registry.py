"""The submission backends. A new one is a module of this package, a line here, and its test."""

from __future__ import annotations

import os

from infogan_ray import UserError
from infogan_ray.distributed.submission.backend import Backend
from infogan_ray.distributed.submission.kuberay import KubeRay
from infogan_ray.distributed.submission.local import LocalJobs
from infogan_ray.distributed.submission.ray_jobs import RayJobs
from infogan_ray.training.config import not_one_of

BACKENDS: tuple[type[Backend], ...] = (RayJobs, KubeRay, LocalJobs)


def backend_of(cluster: str) -> type[Backend]:
    """The backend that a value of ``--cluster`` selects. Raises UserError for a value that is of none."""
    for backend in BACKENDS:
        if backend.accepts(cluster):
            return backend
    raise UserError(not_one_of("cluster", cluster, [backend.CLUSTER for backend in BACKENDS]))


def default_cluster() -> str:
    """The value of ``--cluster`` where none is given: of a backend's variable, or else this machine."""
    variables = [backend.CLUSTER_VARIABLE for backend in BACKENDS if backend.CLUSTER_VARIABLE]
    return next((os.environ[name] for name in variables if os.environ.get(name)), LocalJobs.CLUSTER)
