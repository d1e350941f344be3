"""Runs under Ray Train on a real local cluster, two ranks for real. Run: make test-ray"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from infogan_ray import train
from infogan_ray.distributed.cluster.resources import Resources, TooMuch
from infogan_ray.distributed.train import head_monitor, trainer
from infogan_ray.distributed.train.relay import WAITS
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory, RunExists
from infogan_ray.training.run_outcome import TrainingFailed
from tests.conftest import tiny_config
from tests.harm import all_cpus_taken

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240), pytest.mark.usefixtures("ray_cluster")]


def test_ray_train_starts_no_more_than_an_embedded_ray_needs(npz: Path, tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))  # what other tests, of Ray Data and Tune, have left
    seen: set[str] = set()
    config = tiny_config(data=str(npz), storage=str(tmp_path / "runs"), workers=2)
    train(config, lambda report: seen.update(names_of_processes(before)))
    assert "RayTrainWorker" in seen
    needless = ("_AutoscalingCoordinatorActor", "DatasetManager", "PlacementGroupCleaner", "PreemptionWatcher")
    assert not seen.intersection(needless)


def names_of_processes(before: set[psutil.Process]) -> set[str]:
    """What Ray calls the processes that it runs for us since then."""
    found = set()
    for process in set(psutil.Process().children(recursive=True)) - before:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.add(process.name().removeprefix("ray::").partition(".")[0])
    return found


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
    monkeypatch.setattr(head_monitor, "SAYS_SO_S", 1.0)
    make = trainer._trainer

    def ask(again: Callable[[], None]) -> list[int]:
        numbers: list[int] = []

        def counted(kind: Any, config: Any, wanted: Resources, *more: Any) -> Any:
            numbers.append(wanted.most)
            if len(numbers) == 2:
                again()
            return make(kind, config, wanted, *more)

        monkeypatch.setattr(trainer, "_trainer", counted)
        return numbers

    return ask


def test_several_workers_wait_for_the_room_that_others_have_and_say_so(asked: Any, npz: Path, tmp_path: Path) -> None:
    """For longer than Ray Train does by itself."""
    with all_cpus_taken() as others:
        numbers = asked(lambda: ray.kill(others))
        result, heard = run(npz, tmp_path, workers=2)
    assert result.state == "finished" and result.restarts == 0 and numbers == [2, 2]
    assert [report["phase"] for report in heard].count(WAITS) == 1


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


def starts_only_what_it_needs(family: list[psutil.Process]) -> None:
    """Each of Ray's services costs a second before the first step and cores after it; torch is half of a start."""
    commands, maps = {}, {}
    for process in family:
        with contextlib.suppress(
            psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError
        ):  # one that ends meanwhile
            commands[process.pid] = " ".join(process.cmdline())
            maps[process.pid] = Path(f"/proc/{process.pid}/maps").read_text()
    services = ("autoscaler/_private/monitor.py", "log_monitor.py", "dashboard/dashboard.py", "dashboard/agent.py")
    python = [command for command in commands.values() if not command.startswith("sh ") and "/raylet/" not in command]
    assert not [command for command in python for service in services if service in command]
    with_torch = {commands[pid] for pid, files in maps.items() if "libtorch_cpu" in files}
    assert len(with_torch) == 1 and "RayTrainWorker" in with_torch.pop()


@pytest.mark.parametrize("notice", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(notice: signal.Signals, npz: Path, tmp_path: Path) -> None:
    """In a process of its own, with an embedded Ray of its own, as a user's."""
    words = ["--data", str(npz), "--steps", "1000000", "--batch-size", "16", "--threads", "1", "--network.width", "8"]
    words += ["--codes", "noise=4 cat=3 uniform=1", "--storage", str(tmp_path / "runs"), "--name", "long"]
    words += ["--ray", "always"]
    command = [sys.executable, "-c", "from infogan_ray.cli.main import main; raise SystemExit(main())", "train", *words]
    # Tests that are themselves a background job have SIGINT ignored, and what they start would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("training: step"):
                break
        family = psutil.Process(process.pid).children(recursive=True)
        starts_only_what_it_needs(family)
        process.send_signal(notice)
        said = process.stderr.read()
        assert process.wait(timeout=60) == 130, said
        assert not psutil.wait_procs(family, timeout=10)[1], "all that it has started ends with it"
    finally:
        process.kill()
    told = re.search(r"infogan: interrupted: stopped at step ([\d,]+), which is stored; go on with: (.+)", said)
    assert told and told[2].startswith("infogan train") and told[2].endswith("--resume"), said
    run = RunDirectory(open_storage(tmp_path / "runs" / "long"))
    last = checkpoints.last_valid(run.checkpoints, warn=print)
    assert last is not None and last.step == int(told[1].replace(",", "")) > 0
    assert run.get_status()["state"] == "interrupted"
