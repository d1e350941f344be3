"""Backend ``local``: a process on this machine that continues after the terminal closes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from infogan_ray import UserError
from infogan_ray.data.fetch import cache_folder
from infogan_ray.distributed.submission.backend import Backend, Job, SubmissionFailed
from infogan_ray.distributed.submission.work import Work

DESCRIPTION, WATCHER, ENDED, LOG = "job.json", "watcher.json", "ended.json", "log"


class LocalJobs(Backend):
    """Jobs of this machine. Each has a folder with its description, its log, and its exit code."""

    NAME = CLUSTER = "local"
    REMOTE = False

    def __init__(
        self, cluster: str = NAME, flags: object = None, warn: Callable[[str], None] | None = None,
        folder: Path | None = None,
    ) -> None:  # fmt: skip
        self.folder = folder or cache_folder() / "jobs"

    @classmethod
    def accepts(cls, cluster: str) -> bool:
        return cluster == cls.NAME

    def plan(self, work: Work) -> str:
        return f"would run on this machine: {work.command}\nlog: {self.folder / f'{work.name}-…' / LOG}"

    def submit(self, work: Work) -> str:
        id = f"{work.name}-{uuid.uuid4().hex[:6]}"
        folder = self.folder / id
        folder.mkdir(parents=True, mode=0o700)
        (folder / DESCRIPTION).write_text(json.dumps({"command": work.command, "started": time.time()}))
        with (folder / LOG).open("ab") as log:
            watcher = subprocess.Popen(
                [sys.executable, "-m", "infogan_ray.distributed.submission.local", str(folder), *work.arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **work.environment, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        _write(folder / WATCHER, {"pid": watcher.pid, "born": _started_at(watcher.pid)})
        return id

    def jobs(self) -> list[Job]:
        found = (path.parent.name for path in self.folder.glob(f"*/{DESCRIPTION}"))
        return sorted(map(self.job, found), key=lambda job: -(job.started or 0))

    def job(self, id: str) -> Job:
        folder = self._job_folder(id)
        about = _read(folder / DESCRIPTION)
        ended = _read(folder / ENDED)
        if ended:
            code = ended["exit_code"]
            state: Any = "succeeded" if code == 0 else "stopped" if ended["stopped"] else "failed"
            return Job(id, state, about["command"], about["started"], ended["time"], code)
        if not (folder / WATCHER).exists():
            return Job(id, "pending", about["command"], about["started"])
        if self._watcher(folder) is None:
            reason = "its process ended without an exit code"
            return Job(id, "failed", about["command"], about["started"], message=reason)
        return Job(id, "running", about["command"], about["started"])

    def logs(self, id: str, follow: bool) -> Iterator[str]:
        return self.read_log(id, self._job_folder(id) / LOG, follow)

    def stop(self, id: str) -> None:
        folder = self._job_folder(id)
        watcher = self._watcher(folder)
        if watcher is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(watcher, signal.SIGTERM)

    def _job_folder(self, id: str) -> Path:
        folder = self.folder / id
        if "/" in id or not (folder / DESCRIPTION).is_file():
            raise UserError(f"there is no job '{id}' on this machine; 'infogan jobs list' lists the jobs")
        return folder

    def _watcher(self, folder: Path) -> int | None:
        """The pid of the process that waits for the job; None if it has ended, even if its pid is used again."""
        about = _read(folder / WATCHER)
        return about["pid"] if about and _started_at(about["pid"]) == about["born"] else None


def _started_at(pid: int) -> str | None:
    """Start time of a process in kernel ticks; None if it has ended. Pid and start time identify a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SubmissionFailed(f"{path} cannot be read ({error})") from None


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def watch(folder: Path, arguments: list[str]) -> None:
    """Run infogan, forward SIGTERM to it, and write its exit code."""
    running: list[subprocess.Popen[bytes]] = []
    stopped = threading.Event()

    def stop(*_: object) -> None:
        stopped.set()
        for process in running:
            process.terminate()

    signal.signal(signal.SIGTERM, stop)
    running.append(subprocess.Popen([sys.executable, "-m", "infogan_ray", *arguments]))
    if stopped.is_set():  # SIGTERM came before the process was known
        running[0].terminate()
    _write(folder / ENDED, {"exit_code": running[0].wait(), "stopped": stopped.is_set(), "time": time.time()})


if __name__ == "__main__":
    watch(Path(sys.argv[1]), sys.argv[2:])
