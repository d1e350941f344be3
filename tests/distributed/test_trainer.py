"""Runs under Ray Train on a real local cluster, two ranks for real. Run: make test-ray"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from infogan_ray import checkpoints, train
from infogan_ray.runs import RunDirectory, RunExists
from infogan_ray.storage import open_storage

from ..conftest import tiny_config

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
    assert state["world_size"] == 2 and result.run.model.is_file(checkpoints.MANIFEST)
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
    command = [sys.executable, "-c", "from infogan_ray.cli import main; raise SystemExit(main())", "train", *words]
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
    last = checkpoints.last_whole(run.checkpoints, warn=print)
    assert last is not None and last.step == int(told[1].replace(",", "")) > 0
    assert run.get_status()["state"] == "interrupted"
