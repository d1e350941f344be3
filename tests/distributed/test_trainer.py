"""Runs under Ray Train on a real local cluster, with two ranks. Run: pytest -m ray"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from infogan_ray import train
from infogan_ray.distributed.cluster.resources import InsufficientResources, Resources
from infogan_ray.distributed.train import head_monitor, trainer
from infogan_ray.distributed.train.head_monitor import WAITING_FOR_ROOM
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory, RunExists
from infogan_ray.training import disk_room
from infogan_ray.training.run_outcome import OutOfMemory, TrainingFailed
from tests.conftest import tiny_config
from tests.fault_injection import all_cpus_taken

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240), pytest.mark.usefixtures("ray_cluster")]


class Reports(list[dict[str, Any]]):
    """A run's reports. ``listening``: where this process's descendants listened while it trained."""

    def __init__(self) -> None:
        self.listening: set[str] = set()

    def listen(self, report: dict[str, Any]) -> None:
        self.append(report)
        for process in psutil.Process().children(recursive=True) if report["phase"] == "training" else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                open_ports = [port for port in process.net_connections("tcp") if port.status == psutil.CONN_LISTEN]
                self.listening.update(port.laddr.ip.removeprefix("::ffff:") for port in open_ports)


def run(npz: Path, tmp_path: Path, **changes: Any) -> tuple[Any, Reports]:
    reports = Reports()
    config = tiny_config(data=str(npz), storage=str(tmp_path / "runs"), **changes)
    return train(config, reports.listen), reports


def test_two_ranks_train_report_and_publish_without_a_restart(npz: Path, tmp_path: Path) -> None:
    result, reports = run(npz, tmp_path, workers=2)
    assert reports.listening == {"127.0.0.1"}, "other machines reach Ray or the workers"
    assert result.state == "finished"
    assert not [report for report in reports if report.get("say", "").startswith("resumed")], "no worker was restarted"
    assert [row["step"] for row in result.run.read_metrics()] == [2, 3, 4, 6]
    state = checkpoints.open_checkpoint(result.run.checkpoints / "step_00000006").state
    assert state["world_size"] == 2 and result.run.model.is_file(manifests.MANIFEST)
    with pytest.raises(RunExists, match="name 'tiny' is taken"):
        run(npz, tmp_path)


@pytest.mark.slow
def test_workers_without_memory_are_restarted_only_to_end(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_room, "_check_one_fits", lambda *_: None)  # no disk has room for such checkpoints
    config = tiny_config(data=str(npz), storage=str(tmp_path / "runs"), workers=2)
    with pytest.raises(OutOfMemory, match="out of memory with batch_size 16 and network.width 4000000; use smaller"):
        train(config.override({"network": {"width": 4_000_000}}, "the test"))
    status = RunDirectory(open_storage(tmp_path / "runs" / "tiny")).get_status()
    assert status["state"] == "failed" and "use smaller values" in status["message"]


@pytest.mark.slow
def test_with_synchronised_statistics_two_workers_equal_one(npz: Path, tmp_path: Path) -> None:
    """One step with 1x16 and 2x8 images. Then Adam's first moment is (1 - beta1) times the gradient."""
    moments = []
    for workers in (1, 2):
        config = {"steps": 1, "checkpoint_every": 1, "workers": workers, "name": f"w{workers}"}
        reports: list[dict[str, Any]] = []
        base = tiny_config(data=str(npz), storage=str(tmp_path / "runs"), **config)
        result = train(base.override({"network": {"sync_batchnorm": True}}, "test"), reports.append)
        tensors = checkpoints.open_checkpoint(result.run.checkpoints / "step_00000001").training_tensors()
        moments.append({name: tensor for name, tensor in tensors.items() if name.endswith("exp_avg")})
    assert moments[0].keys() == moments[1].keys() and len(moments[0]) > 10
    for name, moment in moments[0].items():
        assert torch.allclose(moment, moments[1][name], atol=1e-5), name
    assert max(tensor.abs().max() for tensor in moments[0].values()) > 1e-3


@pytest.mark.slow
def test_divergence_ends_the_run_without_a_restart(npz: Path, tmp_path: Path) -> None:
    config = tiny_config(data=str(npz), storage=str(tmp_path / "runs"), steps=400, checkpoint_every=400, name="wild")
    config = config.override({"objective": {"lambda_continuous": 1e38}}, "test")
    reports: list[dict[str, Any]] = []
    result = train(config, reports.append)
    assert result.state == "diverged" and "at step" in result.message
    assert not [report for report in reports if report.get("say", "").startswith("resumed")]


@pytest.fixture
def requested_workers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], list[int]]:
    """Record how many workers each attempt requests; the argument is called at the second request.

    Ray Train waits for room for 1 s per attempt instead of 15 s. The driver reports the wait after 1 s.
    """
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    monkeypatch.setattr(head_monitor, "QUIET_S", 1.0)
    make = trainer.ray_trainer

    def record_requests(on_second_request: Callable[[], None]) -> list[int]:
        numbers: list[int] = []

        def recording_trainer(job: Any, reporter: Any, workers: Any, *more: Any) -> Any:
            numbers.append(workers.num_workers)
            if len(numbers) == 2:
                on_second_request()
            return make(job, reporter, workers, *more)

        monkeypatch.setattr(trainer, "ray_trainer", recording_trainer)
        return numbers

    return record_requests


@pytest.mark.slow
def test_workers_wait_for_room_that_others_use_and_report_it(requested_workers: Any, npz: Path, tmp_path: Path) -> None:
    """They wait longer than Ray Train itself does."""
    with all_cpus_taken() as cpu_holder:
        numbers = requested_workers(lambda: ray.kill(cpu_holder))
        result, reports = run(npz, tmp_path, workers=2)
    assert result.state == "finished" and result.restarts == 0 and numbers == [2, 2]
    assert [report["phase"] for report in reports].count(WAITING_FOR_ROOM) == 1


@pytest.mark.slow
def test_a_run_does_not_wait_for_room_that_no_longer_exists(
    requested_workers: Any, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine has died. The second attempt fits the workers to the remaining machines."""

    def fewer(config: Any, say: Any) -> Resources:
        raise InsufficientResources("workers is 2, and one machine is left")

    numbers = requested_workers(lambda: monkeypatch.setattr(trainer, "resources", fewer))
    monkeypatch.setattr(trainer, "resources", lambda config, say: Resources(3, 1, "cpu"))
    with all_cpus_taken(), pytest.raises(TrainingFailed, match="workers is 2, and one machine is left; the log is"):
        run(npz, tmp_path, workers=2)
    assert numbers == [2, 3]
    assert RunDirectory(open_storage(tmp_path / "runs/tiny")).get_status()["state"] == "failed"
