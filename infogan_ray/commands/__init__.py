"""The commands behind ``infogan``: each parses its flags, calls the package, prints, and returns an exit code."""

from infogan_ray.commands.machine import data, doctor
from infogan_ray.commands.model import encode, evaluate, sample, traverse
from infogan_ray.commands.parsing import USER_ERRORS, Failed
from infogan_ray.commands.searching import search
from infogan_ray.commands.store import pull, runs
from infogan_ray.commands.submitting import jobs, submit
from infogan_ray.commands.training import train, train_config

__all__ = [
    "USER_ERRORS",
    "Failed",
    "data",
    "doctor",
    "encode",
    "evaluate",
    "jobs",
    "pull",
    "runs",
    "sample",
    "search",
    "submit",
    "train",
    "train_config",
    "traverse",
]
