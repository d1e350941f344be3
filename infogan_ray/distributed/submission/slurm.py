"""Backend ``slurm``: jobs of ``cluster/slurm.sbatch``, which starts a Ray cluster on the nodes that Slurm allocates.

Users edit that script. Slurm's own variables, such as SBATCH_PARTITION and SBATCH_TIMELIMIT, have priority over it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import infogan_ray
from infogan_ray import UserError
from infogan_ray.distributed.submission.backend import FINAL_STATES, Backend, Job, NoFlags, State, SubmissionFailed
from infogan_ray.distributed.submission.work import Work

TIMEOUT_S = 60.0
INTERRUPTED = 130  # exit code of a command that a signal ended
COMMAND = "infogan "  # begins the comment of each job, which is its command
STATES: dict[str, State] = {
    "PENDING": "pending", "CONFIGURING": "pending", "REQUEUED": "pending", "SUSPENDED": "pending",
    "RUNNING": "running", "COMPLETING": "running", "STOPPED": "running",
    "COMPLETED": "succeeded", "CANCELLED": "stopped", "PREEMPTED": "stopped",
}  # fmt: skip
"""Slurm's states. All others, such as FAILED, TIMEOUT and NODE_FAIL, are failures."""


@dataclass
class SubmitFlags:
    script: Path | None = None
    """Batch script; by default cluster/slurm.sbatch. Slurm's variables, such as SBATCH_PARTITION, have priority."""
    nodes: int | None = None
    """Number of nodes; by default the script's."""


def default_script() -> Path:
    return Path(infogan_ray.__file__).parents[1] / "cluster" / "slurm.sbatch"


class Slurm(Backend):
    """The user's jobs that infogan submitted. Their folders and the virtual environment are on a shared disk."""

    NAME = CLUSTER = "slurm"
    REMOTE = False
    POLL_S = 1.0  # each look is a request to Slurm's controller, which all users share
    SUBMIT_FLAGS = SubmitFlags

    def __init__(self, cluster: str, flags: SubmitFlags | NoFlags, warn: Callable[[str], None]) -> None:
        self.flags = flags if isinstance(flags, SubmitFlags) else SubmitFlags()
        if self.flags.nodes is not None and self.flags.nodes < 1:
            raise UserError(f"nodes is {self.flags.nodes}; it must be at least 1")

    @classmethod
    def accepts(cls, cluster: str) -> bool:
        return cluster == cls.NAME

    def plan(self, work: Work) -> str:
        return shlex.join(self._sbatch(work))

    def submit(self, work: Work) -> str:
        environment = {"VIRTUALENV": sys.prefix, **os.environ, **work.environment}
        return _slurm(*self._sbatch(work), environment=environment).strip().partition(";")[0]

    def jobs(self) -> list[Job]:
        blocks = _slurm("scontrol", "show", "job").split("\n\n")
        user = f"({os.geteuid()})"
        own = [about for about in map(_fields, blocks) if _is_ours(about) and about["UserId"].endswith(user)]
        return sorted(map(_job, own), key=lambda job: -int(job.id))

    def job(self, id: str) -> Job:
        return _job(self._about(id))

    def logs(self, id: str, follow: bool) -> Iterator[str]:
        path = Path(self._about(id)["StdOut"])
        while follow and not path.exists() and self.job(id).state not in FINAL_STATES:
            time.sleep(self.POLL_S)
        try:
            yield from self.read_log(id, path, follow)
        except FileNotFoundError:
            raise SubmissionFailed(
                f"job {id} has no output yet, or this machine does not see {path}; "
                f"its state: infogan jobs status {id} --cluster slurm"
            ) from None

    def stop(self, id: str) -> None:
        if self.job(id).state == "running":
            _slurm("scancel", "--signal=TERM", "--batch", id)  # the script has time for a last checkpoint
        else:
            _slurm("scancel", id)

    def _sbatch(self, work: Work) -> list[str]:
        script = self.flags.script or default_script()
        if not script.is_file():
            raise UserError(
                f"script is {script}, which is not a file; name a batch script with --script, for example the "
                "project's cluster/slurm.sbatch"
            )
        flags = ["--parsable", f"--job-name={work.name}", f"--comment={work.command}"]
        flags += [f"--nodes={self.flags.nodes}"] if self.flags.nodes else []
        flags += [] if work.gpus else ["--gpus-per-node=0"]
        return ["sbatch", *flags, str(script), *work.restartable]

    def _about(self, id: str) -> dict[str, str]:
        """The fields of a job. Raises UserError if it is not a job of infogan."""
        about: dict[str, str] = {}
        if id.isdecimal():
            try:
                about = _fields(_slurm("scontrol", "show", "job", id))
            except SubmissionFailed as error:
                if "Invalid job id" not in str(error):
                    raise
        if not _is_ours(about):
            raise UserError(
                f"there is no job '{id}' of infogan; 'infogan jobs --cluster slurm' lists the jobs. Slurm forgets a "
                f"job some minutes after its end (MinJobAge); its output is then in infogan-{id}.log"
            )
        return about


def _slurm(*words: str, environment: dict[str, str] | None = None) -> str:
    """The stdout of one of Slurm's commands."""
    if shutil.which(words[0]) is None:
        raise SubmissionFailed(f"{words[0]} is not installed; use a machine from which Slurm's jobs are submitted")
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise SubmissionFailed(f"{words[0]}: no answer within {TIMEOUT_S:.0f} s") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it failed without a message"])[-1]
        raise SubmissionFailed(f"{words[0]}: {reason.removeprefix(f'{words[0]}: ').removeprefix('error: ')}")
    return done.stdout


def _fields(block: str) -> dict[str, str]:
    """The fields of ``scontrol show job``. A text that may have spaces has a line of its own."""
    fields: dict[str, str] = {}
    for line in map(str.strip, block.splitlines()):
        name, _, value = line.partition("=")
        if name in ("Comment", "Command", "WorkDir", "StdOut"):
            fields[name] = value
        else:
            fields |= dict(re.findall(r"(\w+)=(\S+)", line))
    return fields


def _is_ours(about: dict[str, str]) -> bool:
    return about.get("Comment", "").startswith(COMMAND)


def _job(about: dict[str, str]) -> Job:
    name, exit_code = about["JobState"], int(about["ExitCode"].partition(":")[0])
    # A requeued job keeps the exit code of its last start.
    state: State = "stopped" if name == "FAILED" and exit_code == INTERRUPTED else STATES.get(name, "failed")
    reason = "" if about["Reason"] == "None" else f" ({about['Reason']})"
    requeued = f", queued again {about['Restarts']} times" if about.get("Restarts", "0") != "0" else ""
    return Job(
        id=about["JobId"],
        state=state,
        command=about["Comment"],
        started=None if state == "pending" else _time(about["StartTime"]),
        ended=_time(about["EndTime"]) if state in FINAL_STATES else None,
        exit_code=exit_code if state in FINAL_STATES else None,
        message=f"Slurm: {name}{reason}{requeued}; output: {about['StdOut']}",
    )


def _time(text: str) -> float | None:
    return None if text == "Unknown" else datetime.fromisoformat(text).timestamp()
