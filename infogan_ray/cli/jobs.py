"""infogan jobs: lists, follows and stops submitted jobs."""

from __future__ import annotations

import dataclasses
import shlex
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TextIO

import tyro

from infogan_ray import UserError
from infogan_ray.cli import display
from infogan_ray.cli.backend_flags import open_backend, place_flags, with_backend_flags
from infogan_ray.cli.exit_codes import DONE, FAILED, INTERRUPTED, Failed
from infogan_ray.cli.flags import START_OR_RESUME, parse, peek
from infogan_ray.cli.output import print_json, print_progress, print_result, results, warn
from infogan_ray.distributed.submission.backend import FINAL_STATES, Backend, Job
from infogan_ray.storage.visible_text import shell_command

POLL_S = 1.0
STOP_TIMEOUT_S = 60.0


@dataclass
class Jobs:
    action: tyro.conf.Positional[Literal["list", "status", "logs", "stop"]] = "list"
    """What to do. status, logs and stop need an ID."""
    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[ID]")] = ""
    """Id of the job, as submit printed it."""
    follow: bool = False
    """For logs: print new lines until the job ends."""
    json: bool = False
    """Print one JSON object on stdout."""


def jobs(arguments: list[str]) -> int:
    flags = with_backend_flags(Jobs, "FLAGS")
    given: Any = parse(
        flags,
        "jobs",
        arguments,
        "Show and stop submitted jobs.",
        [
            "jobs",
            "jobs logs ID --follow",
            "jobs stop ID",
        ],
    )
    cluster, backend = open_backend(given, "FLAGS")
    place = place_flags(given)
    if given.action != "list" and not given.id:
        raise UserError(f"id is not given; write infogan jobs {given.action} ID; 'infogan jobs' lists the ids")
    if given.action == "logs" and given.follow:
        return follow(backend, given.id, place, results())
    if given.action == "logs":
        for piece in backend.logs(given.id, follow=False):
            print(piece, end="", flush=True, file=results())
        return DONE
    if given.action == "stop":
        return _stop(backend, given.id, place)
    found = backend.jobs() if given.action == "list" else [backend.job(given.id)]
    if given.json:
        print_json({"jobs": [dataclasses.asdict(job) for job in found]})
    elif not found:
        print_progress(f"no jobs at {cluster} yet; start one with: infogan submit -- train …")
    else:
        columns = ["job", "state", "started", "took", "command"]
        display.table(f"jobs at {cluster}", columns, [_row(job) for job in found])
        for job in found:
            if given.action == "status" and job.message:
                print_result(*job.message.splitlines())
    return DONE


def follow(backend: Backend, id: str, place: list[str], to: TextIO) -> int:
    """Print the job's output until it ends. Returns its exit code."""
    try:
        for piece in backend.logs(id, follow=True):
            print(piece, end="", flush=True, file=to)
        job = _wait_for_end(backend, id)
    except KeyboardInterrupt:
        again = infogan_command("jobs", "logs", id, "--follow", *place)
        raise Failed(f"{id} continues; follow it: {again}", INTERRUPTED) from None
    warn(f"{id} {job.state}" + (f": {job.message}" if job.message and job.state == "failed" else ""))
    if job.state == "succeeded":
        return DONE
    return job.exit_code if job.exit_code and job.exit_code > 0 else INTERRUPTED if job.state == "stopped" else FAILED


def _stop(backend: Backend, id: str, place: list[str]) -> int:
    before = backend.job(id)
    if before.state in FINAL_STATES:
        print_result(f"{id} has already ended: {before.state}")
        return DONE
    backend.stop(id)
    warn(f"stopping {id}, with a last checkpoint ...")
    job = _wait_for_end(backend, id)
    if job.state not in FINAL_STATES:
        raise Failed(f"{id} is still {job.state} after {STOP_TIMEOUT_S:.0f} s; check it with: infogan jobs status {id}")
    print_result(f"{id} {job.state}")
    words = shlex.split(job.command)[1:]
    if name := peek(words, "--name"):
        warn(f"continue it: {infogan_command('submit', *place, '--', *with_resume(words, name))}")
    return DONE


def _wait_for_end(backend: Backend, id: str) -> Job:
    """Wait until the job has ended, at most STOP_TIMEOUT_S. Returns its last state."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while (job := backend.job(id)).state not in FINAL_STATES and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return job


def with_resume(words: list[str], name: str) -> list[str]:
    """The command that continues the run or search that ``words`` started."""
    kept = [word for word in words if word not in ("--resume", START_OR_RESUME)]
    return [*kept, *([] if peek(kept, "--name") else ["--name", name]), "--resume"]


def infogan_command(*words: str) -> str:
    return shell_command(["infogan", *words])


def _row(job: Job) -> list[str]:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started)) if job.started else "-"
    took = display.duration((job.ended or time.time()) - job.started) if job.started else "-"
    exit_code = f" (exit {job.exit_code})" if job.exit_code else ""
    return [job.id, f"{job.state}{exit_code}", started, took, job.command]
