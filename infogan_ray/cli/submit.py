"""infogan submit and infogan jobs: work handed to this machine, a Ray cluster or Kubernetes, and what became of it."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from infogan_ray import UserError
from infogan_ray.cli import display
from infogan_ray.cli.flags import START_OR_RESUME, Failed, parse, peek, warn
from infogan_ray.cli.main import DONE, FAILED, INTERRUPTED
from infogan_ray.cli.search import parse_search
from infogan_ray.cli.train import default_name, train_config
from infogan_ray.data.formats.celeba import is_attribute
from infogan_ray.distributed.submission.submitter import KUBERAY, LOCAL, OVER, Job, SubmissionFailed, Submitter
from infogan_ray.distributed.submission.work import FILES, Work
from infogan_ray.searches.recipe import load_recipe
from infogan_ray.training.config import check_name
from infogan_ray.training.tracking.tracking import with_absolute_path

ADDRESS = "RAY_API_SERVER_ADDRESS"  # Ray's own variable for it
POLL_S = 1.0
STOPS_WITHIN_S = 60.0
Cluster = Annotated[str | None, tyro.conf.arg(metavar="URL|kuberay|local")]
TARGET = f"http://HOST:8265, kuberay or local; by default ${ADDRESS}, else local."


@dataclass
class Submit:
    cluster: Annotated[Cluster, tyro.conf.arg(help=TARGET)] = None
    follow: bool = False
    """Print what the job prints until it ends, and exit with its exit code."""
    dry_run: bool = False
    """Print what would be sent (for kuberay, the RayJob), and touch nothing."""
    working_dir: Path | None = None
    """A folder to send along, for a recipe that imports from it; without data, environments and secrets."""
    env: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=VALUE for the job, such as AWS_REGION=eu-north-1; may be given again. Secrets belong to the cluster."""
    with_packages: bool = False
    """The cluster installs torch and the rest for the job; not needed where its image has them."""
    image: str | None = None
    """kuberay: instead of the manifest's."""
    namespace: str | None = None
    """kuberay: instead of the manifest's."""
    manifest: Path | None = None
    """kuberay: a RayJob to fill in instead of cluster/kuberay/rayjob.yaml."""
    replicas: int | None = None
    """kuberay: pods for workers; by default the --workers of train, else the manifest's."""
    json: bool = False


@dataclass
class Jobs:
    action: tyro.conf.Positional[Literal["list", "status", "logs", "stop"]] = "list"
    id: tyro.conf.Positional[str] = ""
    """Of the job, as submit printed it."""
    cluster: Annotated[Cluster, tyro.conf.arg(help=TARGET)] = None
    namespace: str | None = None
    """kuberay: instead of that of cluster/kuberay/rayjob.yaml."""
    follow: bool = False
    """logs: until the job ends."""
    json: bool = False


def submit(arguments: list[str]) -> int:
    if "--" not in arguments and not {"-h", "--help"} & set(arguments):
        raise UserError("what to run is not given; write it behind '--': infogan submit -- train --preset mnist")
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    given = parse(
        Submit, "submit", arguments[:cut],
        "Hand a run or a search to a cluster and close the lid: infogan submit [flags] -- train … | search …. "
        "Example: infogan submit --cluster http://127.0.0.1:8265 -- train --preset mnist --storage s3://bucket/runs",
    )  # fmt: skip
    target = target_of(given.cluster)
    work = prepare(arguments[cut + 1 :], given, remote=target != LOCAL)
    submitter = choose(target, given, work)
    if given.dry_run:
        print(submitter.plan(work))
        return DONE
    try:
        id = submitter.submit(work)
    except SubmissionFailed as error:
        raise Failed(str(error)) from None
    where = [] if given.cluster is None else ["--cluster", given.cluster]
    if given.json:
        print(json.dumps({"job": id, "name": work.name, "cluster": target, "command": work.command}))
    else:
        print(id)
    warn(f"{work.name} is submitted to {target}; follow it: {_command('jobs', 'logs', id, '--follow', *where)}")
    flags = [word for word in arguments[:cut] if word not in ("--follow", "--json")]
    warn(f"should the cluster be lost: {_command('submit', *flags, '--', *_resumed(arguments[cut + 1 :], work.name))}")
    return _follow(submitter, id, where, sys.stderr if given.json else sys.stdout) if given.follow else DONE


def jobs(arguments: list[str]) -> int:
    given = parse(Jobs, "jobs", arguments, "Jobs that were submitted. Example: infogan jobs logs ID --follow")
    target = target_of(given.cluster)
    submitter = choose(target, given)
    where = [] if given.cluster is None else ["--cluster", given.cluster]
    if given.action != "list" and not given.id:
        raise UserError(f"id is not given; write infogan jobs {given.action} ID, with one that 'infogan jobs' lists")
    try:
        if given.action == "logs":
            if given.follow:
                return _follow(submitter, given.id, where, sys.stdout)
            for piece in submitter.logs(given.id, follow=False):
                print(piece, end="", flush=True)
            return DONE
        if given.action == "stop":
            return _stop(submitter, given.id, where)
        found = submitter.jobs() if given.action == "list" else [submitter.job(given.id)]
    except SubmissionFailed as error:
        raise Failed(str(error)) from None
    if given.json:
        print(json.dumps({"jobs": [dataclasses.asdict(job) for job in found]}))
    elif not found:
        print(f"no jobs at {target} yet; infogan submit -- train … makes one", file=sys.stderr)
    else:
        display.table(f"jobs at {target}", ["job", "state", "started", "took", "command"], [_row(job) for job in found])
        for job in found:
            if given.action == "status" and job.message:
                print(job.message)
    return DONE


def target_of(cluster: str | None) -> str:
    return cluster or os.environ.get(ADDRESS) or LOCAL


def choose(target: str, given: Submit | Jobs, work: Work | None = None) -> Submitter:
    """The place that a target names. Raises UserError."""
    if target == LOCAL:
        from infogan_ray.distributed.submission.local import LocalJobs

        return LocalJobs()
    if target == KUBERAY:
        from infogan_ray.distributed.submission.kuberay import Fields, KubeRay

        if not isinstance(given, Submit) or work is None:
            return KubeRay(fields=Fields(namespace=given.namespace))
        replicas, least, gpus = given.replicas, None, True
        if work.arguments[0] == "train":
            config = train_config(list(work.arguments[1:]))
            if replicas is None and config.worker_range is not None:
                least, replicas = config.worker_range
            gpus = config.device != "cpu"
        return KubeRay(given.manifest, Fields(given.image, given.namespace, replicas, least, gpus))
    from infogan_ray.distributed.submission.ray_jobs import RayJobs

    if isinstance(given, Submit):
        return RayJobs(target, given.with_packages, warn)
    return RayJobs(target)


def prepare(arguments: list[str], given: Submit, remote: bool) -> Work:
    """What is to run, its name pinned and its files named. Raises UserError for what a cluster could only refuse."""
    if not arguments or arguments[0] not in ("train", "search"):
        what = f"'{arguments[0]}'" if arguments else "nothing"
        raise UserError(f"what to run is {what}; valid are train and search, with their flags, behind '--'")
    kind, *rest = arguments
    file = Path(rest[0]) if rest and not rest[0].startswith("-") else None
    if kind == "train":
        config = train_config([word for word in rest if word not in ("--json", "--dry-run", START_OR_RESUME)])
        storage, name, data, data_dir, labels = (
            config.storage, config.name, config.data, config.data_dir, config.labels,
        )  # fmt: skip
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
    if "--dry-run" in rest:
        raise UserError("--dry-run stands behind '--'; before it, it shows what would be submitted")
    if remote:
        file_of_labels = labels.rpartition(":")[0] if labels and is_attribute(labels) else labels
        _check_paths(storage, data=data, data_dir=data_dir, labels=file_of_labels)
    if name is None:
        name = default_name(str(file) if kind == "search" and file else data or "run")
        rest = [*rest, "--name", name]
    check_name(name)
    environment = {}
    for pair in given.env:
        variable, equals, value = pair.partition("=")
        if not equals or not variable:
            raise UserError(f"env is '{pair}'; write NAME=VALUE")
        environment[variable] = value
    files: tuple[Path, ...] = ()
    if remote and file is not None:
        files, rest[0] = (file,), f"{FILES}/{file.name}"
    return Work(name, (kind, *rest), files, given.working_dir, environment)


def _check_paths(storage: str, **paths: str | None) -> None:
    """Refuse what means something on this machine alone. What is absolute, the cluster looks for itself."""
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


def _follow(submitter: Submitter, id: str, where: list[str], to: object) -> int:
    try:
        for piece in submitter.logs(id, follow=True):
            print(piece, end="", flush=True, file=to)  # type: ignore[call-overload]
        job = _until_over(submitter, id)
    except SubmissionFailed as error:
        raise Failed(str(error)) from None
    except KeyboardInterrupt:
        again = _command("jobs", "logs", id, "--follow", *where)
        raise Failed(f"{id} goes on without you; follow it: {again}", INTERRUPTED) from None
    warn(f"{id} {job.state}" + (f": {job.message}" if job.message and job.state == "failed" else ""))
    if job.state == "succeeded":
        return DONE
    return job.exit_code if job.exit_code and job.exit_code > 0 else INTERRUPTED if job.state == "stopped" else FAILED


def _stop(submitter: Submitter, id: str, where: list[str]) -> int:
    before = submitter.job(id)
    if before.state in OVER:
        print(f"{id} had {before.state} before")
        return DONE
    submitter.stop(id)
    warn(f"asked {id} to end with a last checkpoint ...")
    job = _until_over(submitter, id)
    if job.state not in OVER:
        raise Failed(f"{id} is still {job.state} after {STOPS_WITHIN_S:.0f} s; look at: infogan jobs status {id}")
    print(f"{id} {job.state}")
    words = shlex.split(job.command)[1:]
    if peek(words, "--name"):
        warn(f"go on with it: {_command('submit', *where, '--', *_resumed(words, str(peek(words, '--name'))))}")
    return DONE


def _until_over(submitter: Submitter, id: str) -> Job:
    """The job when it has ended, or as it is after STOPS_WITHIN_S."""
    deadline = time.monotonic() + STOPS_WITHIN_S
    while (job := submitter.job(id)).state not in OVER and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return job


def _resumed(words: list[str], name: str) -> list[str]:
    """The command that goes on with what these words began."""
    kept = [word for word in words if word not in ("--resume", START_OR_RESUME)]
    return [*kept, *([] if peek(kept, "--name") else ["--name", name]), "--resume"]


def _command(*words: str) -> str:
    return shlex.join(["infogan", *words])


def _row(job: Job) -> list[str]:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started)) if job.started else "-"
    took = display.duration((job.ended or time.time()) - job.started) if job.started else "-"
    exit_code = f" (exit {job.exit_code})" if job.exit_code else ""
    return [job.id, f"{job.state}{exit_code}", started, took, job.command]
