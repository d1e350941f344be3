"""A Ray cluster's Jobs API: ``http://HEAD:8265``."""

from __future__ import annotations

import asyncio
import logging
import shlex
import tempfile
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import TypeVar

from infogan_ray import UserError
from infogan_ray.distributed.submission.dashboard import Dashboard, compare, find_token
from infogan_ray.distributed.submission.submitter import STATES, Job, SubmissionFailed
from infogan_ray.distributed.submission.work import Work, stage

# Ray's own patience between SIGTERM and SIGKILL is 3 s; a last checkpoint takes up to ten.
STOP_WITHIN_S = 30
ENTRYPOINT = "exec python -m infogan_ray"  # exec: no shell between a stop's signal and us
# Of uploads and sockets.
TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging",
)  # fmt: skip
T = TypeVar("T")


class RayJobs:
    """Jobs on one cluster. ``with_packages``: the cluster installs what this code needs for the job.

    ``say`` hears what is to be known of the versions on both sides.
    """

    def __init__(self, url: str, with_packages: bool = False, say: Callable[[str], None] = lambda line: None) -> None:
        self.dashboard = Dashboard(url)
        self.with_packages = with_packages
        self.say = say
        self._known: object = None

    @property
    def _client(self):  # Ray is imported on first use
        if self._known is None:
            for line in compare(self.dashboard.versions()):
                self.say(line)
            from ray.job_submission import JobSubmissionClient

            for name in TALKATIVE:
                logging.getLogger(name).setLevel(logging.ERROR)
            # Given by us: Ray looks for its mode and token once, when something first imports it.
            token = find_token()
            headers = {"Authorization": f"Bearer {token}"} if token else None
            self._known = JobSubmissionClient(self.dashboard.url, headers=headers)
        return self._known

    def plan(self, work: Work) -> str:
        with tempfile.TemporaryDirectory(prefix="infogan-submit-") as folder:
            sizes = stage(work, Path(folder))
        lines = [f"would run on {self.dashboard.url}: {_entrypoint(work)}"]
        lines += [f"  {name}={value}" for name, value in work.environment.items()]
        lines.append(f"would send {len(sizes)} files, {sum(size for _, size in sizes) / 1e6:.2f} MB; the largest:")
        return "\n".join(lines + [f"  {name} ({size / 1000:.1f} kB)" for name, size in sizes[:5]])

    def submit(self, work: Work) -> str:
        with tempfile.TemporaryDirectory(prefix="infogan-submit-") as folder:
            stage(work, Path(folder))
            environment = {
                "working_dir": folder,
                "env_vars": {
                    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WITHIN_S),
                    "PYTHONUNBUFFERED": "1",
                    **work.environment,
                },
            }
            if self.with_packages:
                environment["pip"] = packages()
            return self._ask(
                lambda: self._client.submit_job(
                    entrypoint=_entrypoint(work),
                    submission_id=f"{work.name}-{uuid.uuid4().hex[:6]}",
                    runtime_env=environment,
                    metadata={"infogan": work.command},
                )
            )

    def jobs(self) -> list[Job]:
        found = self._ask(lambda: self._client.list_jobs())
        jobs = [_job(details) for details in found if details.submission_id is not None]
        return sorted(jobs, key=lambda job: -(job.started or 0))

    def job(self, id: str) -> Job:
        return _job(self._ask(lambda: self._client.get_job_info(id), id))

    def logs(self, id: str, follow: bool) -> Iterator[str]:
        if not follow:
            yield self._ask(lambda: self._client.get_job_logs(id), id)
            return
        self.job(id)
        pieces = self._client.tail_job_logs(id)
        loop = asyncio.new_event_loop()
        try:
            while (piece := self._ask(lambda: loop.run_until_complete(anext(pieces, None)))) is not None:
                yield piece
        finally:
            loop.run_until_complete(pieces.aclose())
            loop.close()

    def stop(self, id: str) -> None:
        self._ask(lambda: self._client.stop_job(id), id)

    def _ask(self, action: Callable[[], T], id: str | None = None) -> T:
        import requests  # comes with ray[default]

        try:
            return action()
        except (RuntimeError, ConnectionError, requests.RequestException) as error:
            said = str(error)
            if id is not None and ("404" in said or "does not exist" in said):
                raise UserError(
                    f"job '{id}' is not known at {self.dashboard.url}; 'infogan jobs list' names those that are"
                ) from None
            last = next((line for line in reversed(said.splitlines()) if line.strip()), type(error).__name__)
            raise SubmissionFailed(f"cluster: {self.dashboard.url} does not do it: {last.strip()}") from None


def packages() -> list[str]:
    """What this code needs beside Ray, as its own metadata have it."""
    return [line for line in requires("infogan-ray") or [] if "extra ==" not in line and not line.startswith("ray")]


def _entrypoint(work: Work) -> str:
    return f"{ENTRYPOINT} {shlex.join(work.arguments)}"


def _job(details) -> Job:  # ray's JobDetails
    return Job(
        id=details.submission_id,
        state=STATES[str(getattr(details.status, "value", details.status))],
        command=(details.metadata or {}).get("infogan", details.entrypoint),
        started=details.start_time and details.start_time / 1000,
        ended=details.end_time / 1000 if details.end_time else None,
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )
