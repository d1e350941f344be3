"""Getting work to where it runs: this machine, a Ray cluster's Jobs API, or Kubernetes, behind one seam.

``import ray`` is for ``ray_jobs.py`` alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from infogan_ray.distributed.submission.work import Work

State = Literal["pending", "running", "succeeded", "failed", "stopped"]
STATES: dict[str, State] = {  # of Ray's own words
    "PENDING": "pending", "RUNNING": "running", "SUCCEEDED": "succeeded", "FAILED": "failed", "STOPPED": "stopped",
}  # fmt: skip
OVER = ("succeeded", "failed", "stopped")
LOCAL, KUBERAY = "local", "kuberay"


class SubmissionFailed(Exception):
    """The cluster does not do as asked; one line, with the next step."""


@dataclass(frozen=True)
class Job:
    """What is known of a job. ``exit_code``: the command's own, as far as the cluster keeps it. Times: Unix seconds."""

    id: str
    state: State
    command: str
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    message: str = ""


class Submitter(Protocol):
    """One place where jobs run. All methods raise SubmissionFailed, and UserError for an id that it does not know."""

    def plan(self, work: Work) -> str:
        """What ``submit`` would send, for people; touches nothing."""

    def submit(self, work: Work) -> str:
        """Hand the work over; returns the job's id at once."""

    def jobs(self) -> list[Job]:
        """The newest first."""

    def job(self, id: str) -> Job: ...

    def logs(self, id: str, follow: bool) -> Iterator[str]:
        """Pieces of what the job has printed; with ``follow``, until it ends."""

    def stop(self, id: str) -> None:
        """Ask for an end with a last checkpoint; does not wait for it."""
