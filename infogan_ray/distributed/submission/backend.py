"""What a submission backend is: one module that says its name, its flags and its checks, and does the work.

``registry.BACKENDS`` lists them. Commands know a backend by this class alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from infogan_ray.distributed.submission.work import Work

State = Literal["pending", "running", "succeeded", "failed", "stopped"]
FINAL_STATES = ("succeeded", "failed", "stopped")


class SubmissionFailed(Exception):
    """The backend does not do what was asked. One line, with the next step."""


@dataclass(frozen=True)
class Job:
    """What is known of a job. Times are Unix seconds.

    ``exit_code`` is that of the command, None where the backend does not keep it.
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
    """A backend without flags of its own."""


class Backend(ABC):
    """Where jobs run. Methods raise SubmissionFailed, and UserError for a job's id that the backend does not know."""

    NAME: ClassVar[str]
    """Also names the backend's flags in ``--help``."""
    CLUSTER: ClassVar[str]
    """Values of ``--cluster`` that select this backend, for people."""
    CLUSTER_VARIABLE: ClassVar[str | None] = None
    """Environment variable whose value is taken where no ``--cluster`` is given."""
    REMOTE: ClassVar[bool] = True
    """Whether jobs run where the files of this machine are not seen."""
    FLAGS: ClassVar[type] = NoFlags
    """Dataclass: flags of ``submit`` and ``jobs``. Each has a default, and a name that no other backend's flag has."""
    SUBMIT_FLAGS: ClassVar[type] = NoFlags
    """Dataclass: flags of ``submit``; those of FLAGS are among them."""

    @abstractmethod
    def __init__(self, cluster: str, flags: Any, warn: Callable[[str], None]) -> None:
        """``flags``: an instance of FLAGS or of SUBMIT_FLAGS. Raises UserError for values that cannot be right."""

    @classmethod
    @abstractmethod
    def accepts(cls, cluster: str) -> bool:
        """Whether this value of ``--cluster`` is of this backend."""

    def examine(self) -> list[Finding]:
        """What ``infogan doctor --cluster`` says."""
        try:
            count = len(self.jobs())
        except SubmissionFailed as error:
            return [Finding("bad", self.NAME, str(error))]
        return [Finding("ok", self.NAME, f"answers; it knows {count} jobs")]

    @abstractmethod
    def plan(self, work: Work) -> str:
        """What ``submit`` would send, for people. Touches nothing."""

    @abstractmethod
    def submit(self, work: Work) -> str:
        """Hand the work over. Returns the job's id at once."""

    @abstractmethod
    def jobs(self) -> list[Job]:
        """The newest first."""

    @abstractmethod
    def job(self, id: str) -> Job: ...

    @abstractmethod
    def logs(self, id: str, follow: bool) -> Iterator[str]:
        """Pieces of what the job has printed; with ``follow``, until it ends."""

    @abstractmethod
    def stop(self, id: str) -> None:
        """Ask the job to end with a last checkpoint. Does not wait for that."""
