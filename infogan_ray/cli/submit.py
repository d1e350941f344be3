"""infogan submit: starts a run or a search as a job on this machine, a Ray cluster or Kubernetes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from infogan_ray import UserError
from infogan_ray.cli.backend_flags import open_backend, place_flags, with_backend_flags
from infogan_ray.cli.exit_codes import DONE
from infogan_ray.cli.flags import START_OR_RESUME, parse
from infogan_ray.cli.jobs import follow, infogan_command, with_resume
from infogan_ray.cli.output import print_json, print_result, results, warn
from infogan_ray.cli.search import parse_search
from infogan_ray.cli.train import train_config
from infogan_ray.data.formats.celeba import is_attribute
from infogan_ray.distributed.submission.work import FILES, Work
from infogan_ray.searches.recipe import load_recipe
from infogan_ray.storage.run_directory import check_new_name, default_name
from infogan_ray.training.config import check_name
from infogan_ray.training.tracking.addresses import with_absolute_path


@dataclass
class Submit:
    follow: bool = False
    """Print the job's output until it ends, and exit with its exit code."""
    dry_run: bool = False
    """Print what would be sent; send nothing."""
    working_dir: Path | None = None
    """Folder to send too, for recipes that import from it. Data, virtual environments and secrets are not sent."""
    env: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=VALUE for the job, such as AWS_REGION=eu-north-1; may be repeated. Set secrets on the cluster."""
    json: bool = False
    """Print one JSON object on stdout."""


def submit(arguments: list[str]) -> int:
    if "--" not in arguments and not {"-h", "--help"} & set(arguments):
        raise UserError("the command is not given; write it after '--': infogan submit -- train --preset mnist")
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    given: Any = parse(
        with_backend_flags(Submit, "SUBMIT_FLAGS"), "submit", arguments[:cut],
        "Start a run or a search as a job, which continues without this terminal: "
        "infogan submit [flags] -- train … | search ….",
        [
            "submit -- train --preset mnist_robust --name nightly",
            "submit --cluster http://127.0.0.1:8265 -- train --preset mnist_robust --storage s3://bucket/runs",
            "submit --cluster http://127.0.0.1:8265 -- search tuning/quick.py --storage s3://bucket/runs",
        ],
    )  # fmt: skip
    cluster, backend = open_backend(given, "SUBMIT_FLAGS")
    if given.working_dir and not backend.REMOTE:
        raise UserError(
            f"working_dir is {given.working_dir}, but nothing is sent to {cluster}, which sees this machine's files; "
            "remove --working-dir, and set PYTHONPATH for recipes that import from a folder"
        )
    work = work_of(arguments[cut + 1 :], given, backend.REMOTE)
    if given.dry_run:
        print_result(*backend.plan(work).splitlines())
        return DONE
    id = backend.submit(work)
    place = place_flags(given)
    if given.json:
        print_json({"job": id, "name": work.name, "cluster": cluster, "command": work.command})
    else:
        print_result(id)
    follow_command = infogan_command("jobs", "logs", id, "--follow", *place)
    warn(f"{work.name} was submitted to {cluster}; follow it with: {follow_command}")
    flags = [word for word in arguments[:cut] if word not in ("--follow", "--json")]
    again = infogan_command("submit", *flags, "--", *with_resume(arguments[cut + 1 :], work.name))
    warn(f"if the cluster is lost, continue with: {again}")
    return follow(backend, id, place, sys.stderr if given.json else results()) if given.follow else DONE


def work_of(arguments: list[str], given: Submit, remote: bool) -> Work:
    """The work of a command, with a name and its files. Raises UserError for work that the cluster would refuse."""
    if not arguments or arguments[0] not in ("train", "search"):
        what = f"'{arguments[0]}'" if arguments else "nothing"
        raise UserError(f"the command is {what}; valid are train and search, with their flags, after '--'")
    kind, *rest = arguments
    file = Path(rest[0]) if rest and not rest[0].startswith("-") else None
    if kind == "train":
        words = [word for word in rest if word not in ("--json", "--dry-run", "--measure", START_OR_RESUME)]
        config = train_config(words, own_settings=False)  # storage may be open to the cluster alone
        storage, name, data, data_dir, labels = (
            config.storage, config.name, config.data, config.data_dir, config.labels,
        )  # fmt: skip
        workers, gpus = config.worker_range, config.device != "cpu"
        if remote and with_absolute_path(config.mlflow) != config.mlflow:
            raise UserError(
                f"mlflow is '{config.mlflow}', a file of this machine, which a cluster does not see; give a server, "
                "http://HOST:5000, or the absolute path of a file that all its machines share"
            )
    else:
        search = parse_search(rest)
        recipe = load_recipe(search.recipe)
        storage, name, data_dir = search.storage, search.name, search.data_dir
        data, labels = search.data or recipe.config(0).data, recipe.config(0).labels
        workers, gpus = None, True
    if {"--dry-run", "--measure"} & {*rest}:
        raise UserError("--dry-run comes after '--'; write it before '--' to see what would be submitted")
    if remote:
        file_of_labels = labels.rpartition(":")[0] if labels and is_attribute(labels) else labels
        _check_paths(storage, data=data, data_dir=data_dir, labels=file_of_labels)
    if name is None:
        name = default_name(str(file) if kind == "search" and file else data or "run")
        rest = [*rest, "--name", name]
    check_name(name)
    if "--resume" not in rest and START_OR_RESUME not in rest:
        check_new_name(name)
    environment = {}
    for pair in given.env:
        variable, equals, value = pair.partition("=")
        if not equals or not variable:
            raise UserError(f"env is '{pair}'; write NAME=VALUE")
        environment[variable] = value
    files: tuple[Path, ...] = ()
    if remote and file is not None:
        files, rest[0] = (file,), f"{FILES}/{file.name}"
    return Work(name, (kind, *rest), files, given.working_dir, environment, workers, gpus)


def _check_paths(storage: str, **paths: str | None) -> None:
    """Raises UserError for a relative path, which only this machine has. The cluster checks absolute paths."""
    if "://" not in storage and not storage.startswith("/"):
        raise UserError(
            f"storage is '{storage}', a folder of this machine, which a cluster does not see; give --storage "
            "s3://bucket/prefix, or the absolute path of a folder that all its machines share"
        )
    for field_name, path in paths.items():
        if path and not path.startswith("/") and Path(path).expanduser().exists():
            raise UserError(
                f"{field_name} is '{path}', a path of this machine, which a cluster does not see; give a named "
                "dataset, or the absolute path of a folder that all its machines share"
            )
