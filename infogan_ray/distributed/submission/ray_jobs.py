"""Backend ``ray``: uses the Jobs API of a Ray cluster at ``http://HEAD:8265``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import requires
from pathlib import Path
from typing import TypeVar, cast

from rich.filesize import decimal

from infogan_ray import UserError
from infogan_ray.data.progress import counted
from infogan_ray.distributed.submission import dashboard
from infogan_ray.distributed.submission.backend import FINAL_STATES, Backend, Finding, Job, State, SubmissionFailed
from infogan_ray.distributed.submission.dashboard import Dashboard, compare_versions, find_token
from infogan_ray.distributed.submission.work import Work, stage
from infogan_ray.storage.scratch import scratch_folder

STOP_GRACE_S = 30
"""Time between SIGTERM and SIGKILL. Ray's default is 3 s; a last checkpoint needs up to 10 s."""
POLL_S = 1.0
ENTRYPOINT = "exec python -m infogan_ray"  # with exec, SIGTERM reaches this process and not a shell
T = TypeVar("T")


@dataclass
class SubmitFlags:
    with_packages: bool = False
    """The cluster installs torch and the other packages for the job. Not needed if its image has them."""


class RayJobs(Backend):
    """Jobs of one cluster."""

    NAME = "ray"
    CLUSTER = "http://HOST:8265"
    CLUSTER_VARIABLE = "RAY_API_SERVER_ADDRESS"  # Ray's own
    SUBMIT_FLAGS = SubmitFlags

    def __init__(self, cluster: str, flags: object, warn: Callable[[str], None]) -> None:
        self.dashboard = Dashboard(cluster)
        self.with_packages = isinstance(flags, SubmitFlags) and flags.with_packages
        self.warn = warn

    @classmethod
    def accepts(cls, cluster: str) -> bool:
        return cluster.startswith(("http://", "https://"))

    def examine(self) -> list[Finding]:
        return dashboard.examine(self.dashboard)

    @cached_property
    def _client(self):  # Ray is imported at the first use
        token = find_token()
        if token and self.dashboard.sends_in_clear:
            self.warn(f"the token goes to {self.dashboard.host} in clear, over http; use https or a tunnel")
        for line in filter(None, [*compare_versions(self.dashboard.versions()), self.dashboard.route.remark]):
            self.warn(line)
        from ray.job_submission import JobSubmissionClient

        for handler in logging.getLogger("ray").handlers:  # no lines about uploads
            handler.setLevel(logging.ERROR)
        # Ray itself reads its mode and token only once, at its first import.
        return JobSubmissionClient(self.dashboard.url, headers={"Authorization": f"Bearer {token}"} if token else None)

    def plan(self, work: Work) -> str:
        with scratch_folder() as folder:
            sizes = stage(work, Path(folder))
        lines = [f"would run on {self.dashboard.url}: {_entrypoint(work)}"]
        lines += [f"  {name}={value}" for name, value in work.environment.items()]
        total = decimal(sum(size for _, size in sizes))
        lines.append(f"would send {counted(len(sizes), 'file')}, {total}; largest files:")
        return "\n".join(lines + [f"  {name} ({decimal(size)})" for name, size in sizes[:5]])

    def submit(self, work: Work) -> str:
        with scratch_folder() as folder:
            stage(work, Path(folder))
            environment = {
                "working_dir": folder,
                "env_vars": {
                    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S),
                    "PYTHONUNBUFFERED": "1",
                    **work.environment,
                },
            }
            if self.with_packages:
                environment["pip"] = packages()
            return self._call(
                lambda: self._client.submit_job(
                    entrypoint=_entrypoint(work),
                    submission_id=f"{work.name}-{uuid.uuid4().hex[:6]}",
                    runtime_env=environment,
                    metadata={"infogan": work.command},
                )
            )

    def jobs(self) -> list[Job]:
        found = self._call(lambda: self._client.list_jobs())
        jobs = [_job(details) for details in found if details.submission_id is not None]
        return sorted(jobs, key=lambda job: -(job.started or 0))

    def job(self, id: str) -> Job:
        return _job(self._call(lambda: self._client.get_job_info(id), id))

    def logs(self, id: str, follow: bool) -> Iterator[str]:
        if not follow:
            yield self._call(lambda: self._client.get_job_logs(id), id)
            return
        self.job(id)
        if self.dashboard.route.proxy:  # Ray's client opens its stream of lines directly, past every proxy
            yield from self._poll_logs(id)
            return
        pieces = self._client.tail_job_logs(id)
        loop = asyncio.new_event_loop()
        try:
            while (piece := self._call(lambda: loop.run_until_complete(anext(pieces, None)))) is not None:
                yield piece
        finally:
            loop.run_until_complete(pieces.aclose())
            loop.close()

    def _poll_logs(self, id: str) -> Iterator[str]:
        length = 0
        while True:
            ended = self.job(id).state in FINAL_STATES  # checked before the last read
            text = self._call(lambda: self._client.get_job_logs(id), id)
            yield text[length:]
            length = len(text)
            if ended:
                return
            time.sleep(POLL_S)

    def stop(self, id: str) -> None:
        self._call(lambda: self._client.stop_job(id), id)

    def _call(self, action: Callable[[], T], id: str | None = None) -> T:
        import aiohttp  # both come with ray[default]
        import requests

        # Ray's client prefers the address of the environment, and requests the password of ~/.netrc.
        own = {self.CLUSTER_VARIABLE: self.dashboard.url, "NETRC": os.devnull}
        try:
            with _environment(own):
                return action()
        except (RuntimeError, ConnectionError, requests.RequestException, aiohttp.ClientError) as error:
            message = str(error)
            if id is not None and ("404" in message or "does not exist" in message):
                raise UserError(
                    f"there is no job '{id}' at {self.dashboard.url}; 'infogan jobs list' lists the jobs"
                ) from None
            last = next((line for line in reversed(message.splitlines()) if line.strip()), type(error).__name__)
            raise SubmissionFailed(f"cluster: {self.dashboard.url} refused the request: {last.strip()}") from None


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Inside the block these environment variables are set."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def packages() -> list[str]:
    """The requirements of this package, without Ray."""
    return [line for line in requires("infogan-ray") or [] if "extra ==" not in line and not line.startswith("ray")]


def _entrypoint(work: Work) -> str:
    return f"{ENTRYPOINT} {shlex.join(work.arguments)}"


def _job(details) -> Job:  # ray's JobDetails
    return Job(
        id=details.submission_id,
        state=cast(State, str(getattr(details.status, "value", details.status)).lower()),
        command=(details.metadata or {}).get("infogan", details.entrypoint),
        started=details.start_time and details.start_time / 1000,
        ended=details.end_time / 1000 if details.end_time else None,
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )
