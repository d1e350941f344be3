"""This machine as a place for jobs: a process of its own that goes on when the terminal closes."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infogan_ray import UserError
from infogan_ray.data.fetch import cache_folder
from infogan_ray.distributed.submission.submitter import OVER, Job, SubmissionFailed
from infogan_ray.distributed.submission.work import Work

POLL_S = 0.3
ABOUT, WATCHER, ENDED, LOG = "job.json", "watcher.json", "ended.json", "log"


class LocalJobs:
    """Jobs of this machine, one folder each: what it is, its log, and how it ended."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "jobs"

    def plan(self, work: Work) -> str:
        return f"would run on this machine: {work.command}\nlog: {self.folder / f'{work.name}-…' / LOG}"

    def submit(self, work: Work) -> str:
        id = f"{work.name}-{uuid.uuid4().hex[:6]}"
        place = self.folder / id
        place.mkdir(parents=True, mode=0o700)
        (place / ABOUT).write_text(json.dumps({"command": work.command, "started": time.time()}))
        with (place / LOG).open("ab") as log:
            watcher = subprocess.Popen(
                [sys.executable, "-m", "infogan_ray.distributed.submission.local", str(place), *work.arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **work.environment, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        _write(place / WATCHER, {"pid": watcher.pid, "born": _born(watcher.pid)})
        return id

    def jobs(self) -> list[Job]:
        ids = (
            [place.name for place in self.folder.iterdir() if (place / ABOUT).is_file()] if self.folder.is_dir() else []
        )
        return sorted(map(self.job, ids), key=lambda job: -(job.started or 0))

    def job(self, id: str) -> Job:
        place = self._place(id)
        about = _read(place / ABOUT)
        ended = _read(place / ENDED)
        if ended:
            code = ended["exit_code"]
            state: Any = "succeeded" if code == 0 else "stopped" if ended["stopped"] else "failed"
            return Job(id, state, about["command"], about["started"], ended["time"], code)
        if not (place / WATCHER).exists():
            return Job(id, "pending", about["command"], about["started"])
        if self._watcher(place) is None:
            return Job(id, "failed", about["command"], about["started"], message="its process is gone without a word")
        return Job(id, "running", about["command"], about["started"])

    def logs(self, id: str, follow: bool) -> Iterator[str]:
        with (self._place(id) / LOG).open(errors="replace") as log:
            while True:
                over = not follow or self.job(id).state in OVER  # asked before the last read
                if piece := log.read():
                    yield piece
                if over:
                    return
                time.sleep(POLL_S)

    def stop(self, id: str) -> None:
        place = self._place(id)
        watcher = self._watcher(place)
        if watcher is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(watcher, signal.SIGTERM)

    def _place(self, id: str) -> Path:
        place = self.folder / id
        if "/" in id or not (place / ABOUT).is_file():
            raise UserError(f"job '{id}' is not known on this machine; 'infogan jobs list' names those that are")
        return place

    def _watcher(self, place: Path) -> int | None:
        """The process that waits for the job, unless it is gone and its number perhaps another's."""
        about = _read(place / WATCHER)
        return about["pid"] if about and _born(about["pid"]) == about["born"] else None


def _born(pid: int) -> str | None:
    """When a process began, by the kernel's count: with its number, one process and no other. None if it is gone."""
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


def watch(place: Path, arguments: list[str]) -> None:
    """Run infogan, hand SIGTERM on to it, and keep how it ended."""
    running: list[subprocess.Popen[bytes]] = []
    stopped = threading.Event()

    def stop(*_: object) -> None:
        stopped.set()
        for process in running:
            process.terminate()

    signal.signal(signal.SIGTERM, stop)
    running.append(subprocess.Popen([sys.executable, "-m", "infogan_ray", *arguments]))
    if stopped.is_set():  # before the process was known
        running[0].terminate()
    _write(place / ENDED, {"exit_code": running[0].wait(), "stopped": stopped.is_set(), "time": time.time()})


if __name__ == "__main__":
    watch(Path(sys.argv[1]), sys.argv[2:])
