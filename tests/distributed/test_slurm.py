"""cluster/slurm.sbatch on a real Slurm with three nodes on this machine. Run: pytest -m slow tests/distributed

The nodes share an address and a disk, so this tests the script and Slurm's signals, and not the network.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infogan_ray.cli.exit_codes import DONE, USAGE
from infogan_ray.cli.main import main
from infogan_ray.storage import checkpoints
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from tests.clusters import BIN, ROOT, short_folder
from tests.slurm import Slurm, can_run_slurm, slurm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not can_run_slurm(), reason="needs root, and Debian's slurm-wlm and munge"),
]

START_S = 240
FLAGS = ["--nodes=2", "--cpus-per-task=1", "--time=10:00"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with short_folder() as folder, slurm(folder, nodes=3, cpus=2) as started:
        yield started


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The file as a user without GPUs edits it."""
    text = (ROOT / "cluster" / "slurm.sbatch").read_text()
    edited = re.sub(r"^#SBATCH --gpus-per-node.*\n", "", text, flags=re.MULTILINE)
    assert edited != text
    (tmp_path / "slurm.sbatch").write_text(edited)
    (tmp_path / ".venv").symlink_to(BIN.parent)
    return tmp_path / "slurm.sbatch"


def train(npz: Path, tmp_path: Path, steps: int) -> list[str]:
    return [
        "train", "--data", str(npz), "--steps", str(steps), "--batch-size", "16", "--network.width", "8", "--codes",
        "noise=4 cat=3", "--workers", "2", "--threads", "1", "--checkpoint-every", "20", "--storage",
        str(tmp_path / "runs"), "--name", "first", "--start-or-resume",
    ]  # fmt: skip


def run_of(tmp_path: Path) -> RunDirectory:
    return RunDirectory(open_storage(tmp_path / "runs" / "first"))


def step_of(tmp_path: Path, at_least: int) -> str:
    """The run's last stored step as text, if it is large enough."""
    run = run_of(tmp_path)
    stored = int(run.get_status().get("stored", 0)) if run.exists else 0
    return str(stored) if stored >= at_least else ""


def test_a_job_runs_to_its_end_on_two_nodes(cluster: Slurm, script: Path, npz: Path, tmp_path: Path) -> None:
    job = cluster.submit(script, *FLAGS, "--", *train(npz, tmp_path, 40), cwd=tmp_path)
    own = tmp_path / f".infogan-{job}"
    cluster.until(lambda: str(own) if (own / "token").exists() else "", 60)
    for path in (own, own / "token"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, "only the user of the job may read its token"
    assert cluster.wait_for(job, ("COMPLETED", "FAILED", "TIMEOUT"), 300) == "COMPLETED", log_of(tmp_path, job)
    assert run_of(tmp_path).get_status()["state"] == "finished" and not own.exists()
    assert cluster.job(job)["NodeList"] == "n[1-2]"
    assert not Path(f"/tmp/infogan-{job}").exists(), "each node deletes Ray's files"


def test_a_signal_writes_a_checkpoint_and_a_requeued_job_continues(
    cluster: Slurm, script: Path, npz: Path, tmp_path: Path
) -> None:
    flags = [*FLAGS, "--export=ALL,INFOGAN_REQUEUE=1"]  # only a job at its time limit queues itself again
    job = cluster.submit(script, *flags, "--", *train(npz, tmp_path, 3000), cwd=tmp_path)
    cluster.until(lambda: step_of(tmp_path, 20), START_S)
    cluster.run("scancel", "--signal=TERM", "--batch", job)
    assert cluster.wait_for(job, ("COMPLETED", "FAILED", "CANCELLED"), 120) in ("FAILED", "CANCELLED")
    assert run_of(tmp_path).get_status()["state"] == "interrupted", log_of(tmp_path, job)
    last = checkpoints.last_valid(run_of(tmp_path).checkpoints, warn=lambda line: None)
    assert last is not None

    cluster.run("scontrol", "requeue", job)
    cluster.until(lambda: step_of(tmp_path, last.step + 40), 240)
    assert f"resumed from step {last.step:,}" in log_of(tmp_path, job)
    cluster.run("scancel", job)
    cluster.wait_for(job, ("CANCELLED", "COMPLETED", "FAILED"), 120)


@pytest.mark.parametrize("partition", ["main", "graceful"])
def test_a_preempted_job_is_requeued_and_continues(
    partition: str, cluster: Slurm, script: Path, npz: Path, tmp_path: Path
) -> None:
    """The partition "graceful" has a GraceTime, in which the job ends by itself."""
    flags = [*FLAGS, f"--partition={partition}"]
    job = cluster.submit(script, *flags, "--", *train(npz, tmp_path, 3000), cwd=tmp_path)
    before = int(cluster.until(lambda: step_of(tmp_path, 20), START_S))
    urgent = cluster.submit(sleep(tmp_path, 5), "--partition=urgent", "--nodes=3", "--exclusive", "--", cwd=tmp_path)
    assert cluster.wait_for(urgent, ("COMPLETED",), 200) == "COMPLETED"
    assert cluster.job(job)["Restarts"] == "1", f"{cluster.job(job)}\n{log_of(tmp_path, job)}"
    cluster.until(lambda: step_of(tmp_path, before + 200), 300)
    cluster.run("scancel", job)
    cluster.wait_for(job, ("CANCELLED", "COMPLETED", "FAILED"), 120)


def test_a_lost_node_is_replaced_and_the_run_continues(cluster: Slurm, script: Path, npz: Path, tmp_path: Path) -> None:
    job = cluster.submit(script, *FLAGS, "--", *train(npz, tmp_path, 3000), cwd=tmp_path)
    before = int(cluster.until(lambda: step_of(tmp_path, 20), START_S))
    assert cluster.job(job)["NodeList"] == "n[1-2]"
    cluster.kill_node("n2")
    cluster.until(lambda: "yes" if cluster.job(job)["Restarts"] == "1" else "", 240)
    cluster.until(lambda: step_of(tmp_path, before + 100), 300)
    assert cluster.job(job)["NodeList"] == "n[1,3]"
    assert re.search(r"resumed from step \d+", log_of(tmp_path, job))
    cluster.run("scancel", job)
    cluster.wait_for(job, ("CANCELLED", "COMPLETED", "FAILED"), 120)
    cluster.start_node("n2")


def test_a_job_at_its_time_limit_queues_itself_again(cluster: Slurm, script: Path, npz: Path, tmp_path: Path) -> None:
    """TERM comes one to two minutes before the limit of four. A requeued job waits two minutes."""
    flags = [*FLAGS, "--time=4:00", "--export=ALL,INFOGAN_REQUEUE=1"]
    job = cluster.submit(script, *flags, "--", *train(npz, tmp_path, 9000), cwd=tmp_path)
    cluster.until(lambda: "yes" if cluster.job(job)["Restarts"] == "1" else "", 300)
    assert run_of(tmp_path).get_status()["state"] == "interrupted", log_of(tmp_path, job)
    last = int(step_of(tmp_path, 20))
    cluster.until(lambda: step_of(tmp_path, last + 20), 120 + START_S)
    assert f"resumed from step {last:,}" in log_of(tmp_path, job)
    cluster.run("scancel", job)
    assert cluster.wait_for(job, ("CANCELLED", "COMPLETED", "FAILED"), 120) == "CANCELLED", "not queued again"


def test_jobs_are_submitted_listed_followed_and_stopped(
    cluster: Slurm,
    script: Path,
    npz: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)  # the tests' own
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("SBATCH_TIMELIMIT", "10:00")
    monkeypatch.chdir(tmp_path)
    words = [word for word in train(npz, tmp_path, 3000) if word != "--start-or-resume"]
    place = ["--cluster", "slurm"]
    original = Path(__file__).parents[2] / "cluster" / "slurm.sbatch"
    text = re.sub("--cpus-per-task=8", "--cpus-per-task=1", original.read_text())
    script.write_text(text)  # it requests a GPU, which --device cpu takes back
    flags = [*place, "--script", str(script), "--nodes", "2"]
    assert main(["submit", *flags, "--json", "--", *words, "--device", "cpu"]) == DONE
    job = json.loads(capsys.readouterr().out)["job"]
    cluster.until(lambda: step_of(tmp_path, 20), START_S)

    assert main(["jobs", *place, "--json"]) == DONE
    newest = json.loads(capsys.readouterr().out)["jobs"][0]
    assert (newest["id"], newest["state"], newest["exit_code"]) == (job, "running", None)
    assert newest["command"].startswith("infogan train --data") and newest["started"] < time.time()
    assert main(["jobs", "logs", job, *place]) == DONE and "feed: " in capsys.readouterr().out

    assert main(["jobs", "stop", job, *place]) == DONE
    assert f"{job} stopped" in capsys.readouterr().out
    assert main(["jobs", "status", job, *place]) == DONE and "(exit 130)" in capsys.readouterr().out
    assert run_of(tmp_path).get_status()["state"] == "interrupted", log_of(tmp_path, job)

    assert main(["jobs", "status", "999999", *place]) == USAGE
    assert "there is no job '999999' of infogan" in capsys.readouterr().err
    other = cluster.submit(sleep(tmp_path, 1), "--", cwd=tmp_path)
    assert main(["jobs", "stop", other, *place]) == USAGE, "a job of something else"


def sleep(tmp_path: Path, seconds: int) -> Path:
    (tmp_path / "sleep.sh").write_text(f"#!/bin/bash\nsleep {seconds}\n")
    return tmp_path / "sleep.sh"


def log_of(tmp_path: Path, job: str) -> str:
    return (tmp_path / f"infogan-{job}.log").read_text(errors="replace")
