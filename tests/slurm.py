"""A real Slurm on this machine: munge, slurmctld, and several slurmd that are nodes with ports of their own.

Debian's packages slurm-wlm and munge have all that it needs. It runs as root, beside any other Slurm.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.servers import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel")
CONFIG = """\
ClusterName=infogan
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=30
KillWait=60
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1
PartitionName=graceful Nodes=ALL PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL PriorityTier=10
"""


@dataclass
class Slurm:
    """``start``: start a program and end it with the test. ``nodes``: the slurmd of each node by its name."""

    folder: Path
    environment: dict[str, str]
    start: Callable[..., subprocess.Popen[bytes]]
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start_node(self, name: str) -> None:
        self.nodes[name] = self.start("slurmd", "-D", "-N", name, "-f", str(self.folder / "slurm.conf"))

    def run(self, *words: str, cwd: Path | None = None) -> str:
        """The stdout of a Slurm command. Raises CalledProcessError, with its stderr in the test's output."""
        command = subprocess.run(words, env=self.environment, cwd=cwd, stdout=subprocess.PIPE, text=True, timeout=60)
        command.check_returncode()
        return command.stdout

    def submit(self, script: Path, *words: str, cwd: Path) -> str:
        """The number of a new job. ``words``: flags of sbatch, "--", and the script's arguments."""
        cut = words.index("--")
        return self.run("sbatch", "--parsable", *words[:cut], str(script), *words[cut + 1 :], cwd=cwd).strip()

    def job(self, number: str) -> dict[str, str]:
        """The fields of ``scontrol show job``."""
        return dict(re.findall(r"(\w+)=(\S+)", self.run("scontrol", "--oneliner", "show", "job", number)))

    def wait_for(self, number: str, states: tuple[str, ...], seconds: float) -> str:
        return self.until(lambda: state if (state := self.job(number)["JobState"]) in states else "", seconds)

    def kill_node(self, name: str) -> None:
        """End a node as a power failure would: its slurmd, its slurmstepds and their processes, by SIGKILL."""
        victims = [psutil.Process(self.nodes[name].pid)]
        for process in psutil.process_iter(["name"]):
            if process.info["name"] == "slurmstepd":
                own = process.children(recursive=True)
                if any(_node_of(child) == name for child in own):
                    victims += [process, *own]
        assert len(victims) > 1, f"nothing runs on {name}"
        for process in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    @staticmethod
    def until(found: Callable[[], str], seconds: float) -> str:
        """What ``found`` returns as soon as it is not empty. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not (value := found()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing within {seconds:.0f} s")
            time.sleep(0.5)
        return value


def _node_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("SLURMD_NODENAME", "")
    except psutil.Error:
        return ""


def can_run_slurm() -> bool:
    return os.geteuid() == 0 and all(map(shutil.which, PROGRAMS))


@contextlib.contextmanager
def slurm(folder: Path, nodes: int, cpus: int) -> Iterator[Slurm]:
    """Start a Slurm whose files are in ``folder``, and stop it at the end with all its processes."""
    names = [f"n{number}" for number in range(1, nodes + 1)]
    port, *ports = free_ports(1 + nodes)
    lines = [
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={own} CPUs={cpus} State=UNKNOWN"
        for name, own in zip(names, ports, strict=True)
    ]
    host = os.uname().nodename
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, port=port, folder=folder, nodes="\n".join(lines)))
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    (folder / "state").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RAY_"))}
    environment["SLURM_CONF"] = str(folder / "slurm.conf")
    with contextlib.ExitStack() as started:

        def start(*words: str) -> subprocess.Popen[bytes]:
            log = started.enter_context(open(folder / f"{words[0]}.out", "ab"))
            process = subprocess.Popen(
                words, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
            started.callback(stop, process)
            return process

        cluster = Slurm(folder, environment, start)
        munge = [f"--{name}-file={folder}/munge.{ending}" for name, ending in
                 (("key", "key"), ("pid", "pid"), ("log", "log"), ("seed", "seed"))]  # fmt: skip
        start("munged", "--foreground", "--force", f"--socket={folder}/munge.sock", *munge)
        start("slurmctld", "-D", "-f", str(folder / "slurm.conf"))
        for name in names:
            cluster.start_node(name)
        idle = ["sinfo", "--noheader", "--Node", "--states=idle", "--partition=main", "--format=%N"]
        cluster.until(lambda: "all" if quiet(cluster, idle).split() == names else "", 60)
        yield cluster
        for job in quiet(cluster, ["squeue", "--noheader", "--format=%i"]).split():
            cluster.run("scancel", job)
        cluster.until(lambda: "" if quiet(cluster, ["squeue", "--noheader"]).strip() else "none", 120)


def quiet(cluster: Slurm, words: list[str]) -> str:
    """The stdout of a command that may fail, for example while slurmctld starts."""
    try:
        return cluster.run(*words)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return ""


def stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
