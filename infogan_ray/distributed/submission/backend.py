"""The interface of submission backends. ``registry.BACKENDS`` lists them, and commands use only this interface."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from infogan_ray.data.progress import counted
from infogan_ray.distributed.submission.work import Work

State = Literal["pending", "running", "succeeded", "failed", "stopped"]
FINAL_STATES = ("succeeded", "failed", "stopped")


class SubmissionFailed(Exception):
    """The backend cannot do what was requested. The message is one line with the next step."""


@dataclass(frozen=True)
class Job:
    """The state of a job. Times are Unix seconds.

    ``exit_code`` is the command's exit code, None if the backend does not store it.
    """

    id: str
    state: State
    command: str
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    message: str = ""


@dataclass(frozen=True)
class Finding:
    """A line of ``infogan doctor``."""

    mark: Literal["ok", "note", "bad"]
    what: str
    finding: str


@dataclass
class NoFlags:
    """Flags of a backend that has none."""


class Backend(ABC):
    """A place where jobs run. Methods raise SubmissionFailed, and UserError for an unknown job id."""

    NAME: ClassVar[str]
    """Also the title of the backend's flags in ``--help``."""
    CLUSTER: ClassVar[str]
    """The form of ``--cluster`` values that select this backend, for help texts."""
    CLUSTER_VARIABLE: ClassVar[str | None] = None
    """Environment variable with the default value of ``--cluster``."""
    REMOTE: ClassVar[bool] = True
    """Whether jobs run on machines that do not see this machine's files."""
    POLL_S: ClassVar[float] = 0.3
    """Seconds between two looks at a job whose log is followed by ``read_log``."""
    FLAGS: ClassVar[type] = NoFlags
    """Dataclass: flags of ``submit`` and ``jobs``. Each has a default and a name that is unique among all backends."""
    SUBMIT_FLAGS: ClassVar[type] = NoFlags
    """Dataclass: flags of ``submit``, including FLAGS."""

    @abstractmethod
    def __init__(self, cluster: str, flags: Any, warn: Callable[[str], None]) -> None:
        """``flags``: an instance of FLAGS or of SUBMIT_FLAGS. Raises UserError for invalid values."""

    @classmethod
    @abstractmethod
    def accepts(cls, cluster: str) -> bool:
        """Whether this value of ``--cluster`` selects this backend."""

    def examine(self) -> list[Finding]:
        """The findings of ``infogan doctor --cluster``."""
        try:
            count = len(self.jobs())
        except SubmissionFailed as error:
            return [Finding("bad", self.NAME, str(error))]
        return [Finding("ok", self.NAME, f"answers and has {counted(count, 'job')}")]

    @abstractmethod
    def plan(self, work: Work) -> str:
        """Text that describes what ``submit`` would send. Changes nothing."""

    @abstractmethod
    def submit(self, work: Work) -> str:
        """Start the job and return its id without waiting for it."""

    @abstractmethod
    def jobs(self) -> list[Job]:
        """All jobs, newest first."""

    @abstractmethod
    def job(self, id: str) -> Job: ...

    @abstractmethod
    def logs(self, id: str, follow: bool) -> Iterator[str]:
        """Yield pieces of the job's output; with ``follow``, until it ends."""

    def read_log(self, id: str, log: Path, follow: bool) -> Iterator[str]:
        """``logs`` for a backend whose jobs write a file that this machine sees. Raises FileNotFoundError."""
        with log.open(errors="replace") as file:
            while True:
                ended = not follow or self.job(id).state in FINAL_STATES  # checked before the last read
                if piece := file.read():
                    yield piece
                if ended:
                    return
                time.sleep(self.POLL_S)

    @abstractmethod
    def stop(self, id: str) -> None:
        """Request that the job stops with a last checkpoint. Does not wait for it."""
