"""Runs under Ray Train on a real local cluster, two ranks for real. Run: pytest -m ray"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from infogan_ray import train
from infogan_ray.distributed.cluster.resources import Resources, TooMuch
from infogan_ray.distributed.train import head_monitor, trainer
from infogan_ray.distributed.train.head_monitor import WAITING_FOR_ROOM
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory, RunExists
from infogan_ray.training.run_outcome import TrainingFailed
from tests.conftest import tiny_config
from tests.harm import all_cpus_taken

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240), pytest.mark.usefixtures("ray_cluster")]


def run(npz: Path, tmp_path: Path, **changes: Any) -> tuple[Any, list[dict[str, Any]]]:
    heard: list[dict[str, Any]] = []
    config = tiny_config(data=str(npz), storage=str(tmp_path / "runs"), **changes)
    return train(config, heard.append), heard


def test_two_ranks_train_report_and_publish_without_a_restart(npz: Path, tmp_path: Path) -> None:
    result, heard = run(npz, tmp_path, workers=2)
    assert result.state == "finished"
    assert not [report for report in heard if report.get("say", "").startswith("resumed")], "no worker was restarted"
    assert [row["step"] for row in result.run.read_metrics()] == [2, 3, 4, 6]
    state = checkpoints.open_checkpoint(result.run.checkpoints / "step_00000006").state
    assert state["world_size"] == 2 and result.run.model.is_file(manifests.MANIFEST)
    with pytest.raises(RunExists, match="name 'tiny' is taken"):
        run(npz, tmp_path)


@pytest.mark.slow
def test_with_synchronised_statistics_two_workers_equal_one(npz: Path, tmp_path: Path) -> None:
    """One step of 1x16 and 2x8: Adam's first moment after it is (1 - beta1) times the gradient."""
    moments = []
    for workers in (1, 2):
        config = {"steps": 1, "checkpoint_every": 1, "workers": workers, "name": f"w{workers}"}
        heard: list[dict[str, Any]] = []
        base = tiny_config(data=str(npz), storage=str(tmp_path / "runs"), **config)
        result = train(base.override({"network": {"sync_batchnorm": True}}, "test"), heard.append)
        tensors = checkpoints.open_checkpoint(result.run.checkpoints / "step_00000001").training_tensors()
        moments.append({name: tensor for name, tensor in tensors.items() if name.endswith("exp_avg")})
    assert moments[0].keys() == moments[1].keys() and len(moments[0]) > 10
    for name, one in moments[0].items():
        assert torch.allclose(one, moments[1][name], atol=1e-5), name
    assert max(tensor.abs().max() for tensor in moments[0].values()) > 1e-3


def test_divergence_ends_the_run_without_a_restart(npz: Path, tmp_path: Path) -> None:
    config = tiny_config(data=str(npz), storage=str(tmp_path / "runs"), steps=400, checkpoint_every=400, name="wild")
    config = config.override({"objective": {"lambda_continuous": 1e38}}, "test")
    heard: list[dict[str, Any]] = []
    result = train(config, heard.append)
    assert result.state == "diverged" and "at step" in result.message
    assert not [report for report in heard if report.get("say", "").startswith("resumed")]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], list[int]]:
    """Ray Train looks for room four times for a second, not for 15, and the driver says so after one. Who calls this
    gets the list of how many workers have been asked for, and is called back when they are for the second time."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    monkeypatch.setattr(head_monitor, "QUIET_S", 1.0)
    make = trainer.ray_trainer

    def ask(again: Callable[[], None]) -> list[int]:
        numbers: list[int] = []

        def counted(job: Any, reporter: Any, workers: Any, *more: Any) -> Any:
            numbers.append(workers.num_workers)
            if len(numbers) == 2:
                again()
            return make(job, reporter, workers, *more)

        monkeypatch.setattr(trainer, "ray_trainer", counted)
        return numbers

    return ask


@pytest.mark.slow
def test_several_workers_wait_for_the_room_that_others_have_and_say_so(asked: Any, npz: Path, tmp_path: Path) -> None:
    """For longer than Ray Train does by itself."""
    with all_cpus_taken() as others:
        numbers = asked(lambda: ray.kill(others))
        result, heard = run(npz, tmp_path, workers=2)
    assert result.state == "finished" and result.restarts == 0 and numbers == [2, 2]
    assert [report["phase"] for report in heard].count(WAITING_FOR_ROOM) == 1


@pytest.mark.slow
def test_room_that_the_machines_have_no_more_is_not_waited_for(
    asked: Any, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the death of one: the second time the workers are fitted to what is left."""

    def fewer(config: Any, say: Any) -> Resources:
        raise TooMuch("workers is 2, and one machine is left")

    numbers = asked(lambda: monkeypatch.setattr(trainer, "resources", fewer))
    monkeypatch.setattr(trainer, "resources", lambda config, say: Resources(3, 1, "cpu"))
    with all_cpus_taken(), pytest.raises(TrainingFailed, match="workers is 2, and one machine is left; the log is"):
        run(npz, tmp_path, workers=2)
    assert numbers == [2, 3]
    assert RunDirectory(open_storage(tmp_path / "runs/tiny")).get_status()["state"] == "failed"
