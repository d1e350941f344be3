"""The commands behind ``infogan``: each parses its flags, calls the package, prints, and returns an exit code."""

from infogan_ray.commands.comparing import compare
from infogan_ray.commands.exploring import explore
from infogan_ray.commands.machine import data, doctor
from infogan_ray.commands.model import encode, evaluate, export, name, sample, traverse
from infogan_ray.commands.parsing import USER_ERRORS, Failed
from infogan_ray.commands.searching import search
from infogan_ray.commands.serving import serve
from infogan_ray.commands.store import pull, report, runs
from infogan_ray.commands.submitting import jobs, submit
from infogan_ray.commands.training import train, train_config

__all__ = [
    "USER_ERRORS",
    "Failed",
    "compare",
    "data",
    "doctor",
    "encode",
    "evaluate",
    "explore",
    "export",
    "jobs",
    "name",
    "pull",
    "report",
    "runs",
    "sample",
    "search",
    "serve",
    "submit",
    "train",
    "train_config",
    "traverse",
]
