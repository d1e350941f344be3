"""The flags of ``submit`` and ``jobs`` that select a submission backend: ``--cluster``, and each backend's flags."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import tyro

from infogan_ray import UserError
from infogan_ray.cli.output import warn
from infogan_ray.distributed.submission import registry
from infogan_ray.distributed.submission.backend import Backend

FlagSet = Literal["FLAGS", "SUBMIT_FLAGS"]


def with_backend_flags(kind: type, flag_set: FlagSet) -> Any:
    """The dataclass ``kind`` with a field ``cluster`` and a section for each backend that has flags."""
    backends = registry.BACKENDS
    variables = [f"${backend.CLUSTER_VARIABLE}, else" for backend in backends if backend.CLUSTER_VARIABLE]
    text = (
        f"Where jobs run: {', '.join(backend.CLUSTER for backend in backends)}; default: {' '.join(variables)} local."
    )
    cluster = tyro.conf.arg(help=text, metavar="|".join(backend.CLUSTER for backend in backends))
    fields: list[Any] = [("cluster", Annotated[str | None, cluster], None)]
    for backend in backends:
        flags = getattr(backend, flag_set)
        if dataclasses.fields(flags):
            fields.append((backend.NAME, flags, dataclasses.field(default_factory=flags)))
    return dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,))


def open_backend(given: Any, flag_set: FlagSet) -> tuple[str, Backend]:
    """The value of ``--cluster`` or its default, and its backend. Raises UserError for a flag of another backend."""
    cluster = given.cluster or registry.default_cluster()
    chosen = registry.backend_of(cluster)
    for backend in registry.BACKENDS:
        flags = getattr(given, backend.NAME, None)
        for field in dataclasses.fields(flags) if flags is not None and backend is not chosen else ():
            if getattr(flags, field.name) != field.default:
                raise UserError(
                    f"{_flag(field.name)} needs --cluster {backend.CLUSTER}, but the cluster is '{cluster}'"
                )
    return cluster, chosen(cluster, getattr(given, chosen.NAME, None) or getattr(chosen, flag_set)(), warn)


def place_flags(given: Any) -> list[str]:
    """The flags with which another command finds the same jobs."""
    words = [] if given.cluster is None else ["--cluster", given.cluster]
    for backend in registry.BACKENDS:
        for field in dataclasses.fields(backend.FLAGS):
            if (value := getattr(getattr(given, backend.NAME), field.name)) != field.default:
                words += [_flag(field.name), str(value)]
    return words


def _flag(field_name: str) -> str:
    return f"--{field_name.replace('_', '-')}"
