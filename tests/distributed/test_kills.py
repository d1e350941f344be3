"""Kill processes on a real local Ray: checkpoints stay valid and the result stays the same. Run: pytest -m ray"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from infogan_ray import train
from infogan_ray.storage import checkpoints
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_outcome import TrainingFailed
from tests.clusters import head_on_loopback, short_folder
from tests.conftest import tiny_config
from tests.distributed.test_search import RECIPE
from tests.fault_injection import FaultInjector, digest, processes_of, workers_of
from tests.servers import Proxy
from tests.training.test_tracking import shown
from tests.training.test_tracking import steps as shown_steps

pytestmark = [pytest.mark.ray, pytest.mark.timeout(480)]

STEPS, EVERY = 300, 50
LONG: dict[str, Any] = {"steps": STEPS, "checkpoint_every": EVERY, "keep": 20}


def kill(count: int | None = None, how: signal.Signals = signal.SIGKILL) -> None:
    for process in workers_of(os.getpid())[:count]:
        os.kill(process.pid, how)


@pytest.fixture
def bars(npz: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    return lambda **changes: tiny_config(data=str(npz), storage=str(tmp_path / "runs"), **changes)


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("ray_cluster")
def test_killed_workers_are_replaced_and_the_result_is_bit_equal(count: int, bars: Any) -> None:
    """Kill one of two workers, or both."""
    steps = 120
    faults = FaultInjector({60: lambda: kill(count)})
    interrupted = train(bars(workers=2, name="interrupted", **LONG | {"steps": steps}), faults)
    reference = train(bars(workers=2, name="reference", **LONG | {"steps": steps}))
    assert interrupted.state == "finished" and interrupted.restarts == 1
    assert [line for line in faults.messages if line.startswith("resumed from step") and "restart 1 of" in line]
    assert digest(interrupted.run, steps) == digest(reference.run, steps)
    logged = [row["step"] for row in interrupted.run.read_metrics()]
    assert logged == [row["step"] for row in reference.run.read_metrics()], "every step once, in order"
    assert interrupted.run.get_status()["restarts"] == 1
    assert shown_steps(shown(Path(interrupted.run.folder.path)), "loss/d_loss") == logged, (
        "TensorBoard has the same steps"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_world_size_can_change_between_attempts(bars: Any) -> None:
    """Train with 2, then 1, then 3 workers: the global batch is the same, and counters only rise."""
    for workers, steps in ((2, 6), (1, 9), (3, 12)):
        config = bars(workers=workers, steps=steps, batch_size=18, resume=workers != 2)
        result = train(config)
        assert result.state == "finished"
        state = checkpoints.open_checkpoint(result.run.checkpoints / f"step_{steps:08d}").state
        assert (state["world_size"], state["step"]) == (workers, steps)
    rows = list(result.run.read_metrics())
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert {row["step"] / row["epoch"] for row in rows} == {4.0}, "18 of 76 images at every step"

    for entry in result.run.checkpoints.entries():
        (result.run.checkpoints / entry.name).write(checkpoints.MODEL, b"rot")
    with pytest.raises(TrainingFailed, match="no checkpoint in .* can be read"):  # all ranks fail, and none waits
        train(bars(workers=2, steps=14, batch_size=18, resume=True))
    assert result.run.get_status()["state"] == "failed"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_an_elastic_run_uses_all_available_workers(bars: Any) -> None:
    faults = FaultInjector({})
    result = train(bars(workers="1:6", steps=6), faults)
    assert result.state == "finished"
    state = checkpoints.open_checkpoint(result.run.checkpoints / "step_00000006").state
    assert state["world_size"] == 4, "the cluster of these tests has four CPUs; a batch of 16 is shared by any number"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_frozen_worker_is_detected_and_replaced(bars: Any) -> None:
    frozen: list[psutil.Process] = []

    def freeze() -> None:
        frozen.extend(workers_of(os.getpid()))
        kill(how=signal.SIGSTOP)

    faults = FaultInjector({150: freeze})
    result = train(bars(steps=400, checkpoint_every=100), faults)
    assert result.state == "finished" and result.restarts == 1
    assert len(frozen) == 1 and not frozen[0].is_running()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_controller_is_restarted(bars: Any) -> None:
    """A storage outage can end Ray Train's controller process.

    The worker has most of the CPUs. They must be free again for the next attempt.
    """

    def kill_controller() -> None:
        (controller,) = processes_of(os.getpid(), "TrainController")
        controller.kill()

    faults = FaultInjector({120: kill_controller})
    result = train(bars(steps=300, checkpoint_every=50, workers=1, threads=3), faults)
    assert result.state == "finished" and result.restarts == 1
    assert "starting workers again" in [report["phase"] for report in faults.reports]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_killed_during_an_s3_outage_continues_after_it(bars: Any, proxy: Proxy) -> None:
    def kill_in_an_outage() -> None:
        proxy.become("503")
        threading.Timer(20, proxy.become, ["well"]).start()
        kill()

    faults = FaultInjector({150: kill_in_an_outage})
    config = dataclasses.replace(bars(steps=300, checkpoint_every=100), storage=proxy.uri("runs"))
    result = train(config, faults)
    assert result.state == "finished" and result.restarts == 1
    assert checkpoints.last_valid(result.run.checkpoints, warn=pytest.fail).step == 300  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_after_a_killed_driver_and_a_killed_head_the_result_is_bit_equal(npz: Path, tmp_path: Path) -> None:
    """Three processes, each with an embedded Ray. The test kills the driver, then Ray's head, then a worker."""
    program = "from infogan_ray.distributed.train import head_monitor as head; "
    program += "head.HEAD_SILENT_S = 10.0; "  # outside tests: 45
    program += "from infogan_ray.cli.main import main; raise SystemExit(main())"
    command = [sys.executable, "-c", program, "train"]
    steps = 2 * STEPS  # more than a fast machine makes before the kills
    command += ["--data", str(npz), "--storage", str(tmp_path), "--name", "run", "--steps", str(steps)]
    command += ["--codes", "noise=4 cat=3 uniform=1", "--batch-size", "16", "--checkpoint-every", str(EVERY)]
    command += ["--threads", "1", "--network.width", "8", "--evaluation.samples", "200", "--keep", "40"]
    command += ["--device", "cpu", "--precision", "fp32", "--log-every", "2", "--workers", "2"]
    run = RunDirectory(open_storage(tmp_path / "run"))

    def after_a_checkpoint(more: list[str], inject_fault: Callable[[psutil.Process], None]) -> tuple[int, str, str]:
        before = run.get_status().get("stored", 0)
        process = subprocess.Popen(
            command + more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        driver = psutil.Process(process.pid)
        known: list[psutil.Process] = []
        try:
            while process.poll() is None and run.get_status().get("stored", 0) == before:
                known = driver.children(recursive=True)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.05)
            inject_fault(driver)
            out, output = process.communicate(timeout=120)
            psutil.wait_procs(known, timeout=30)
            return process.returncode, out, output
        finally:
            for survivor in [*known, driver]:
                if survivor.is_running():
                    survivor.kill()

    def kill_head(driver: psutil.Process) -> None:
        for process in driver.children(recursive=True):
            process.kill()

    code, _, _ = after_a_checkpoint([], lambda driver: driver.kill())
    assert code == -signal.SIGKILL
    code, _, output = after_a_checkpoint(["--resume"], kill_head)
    assert code == 1 and output.strip().splitlines()[-1].startswith("infogan: "), output
    assert "Ray's head has not answered" in output and "Traceback" not in output and "--resume" in output
    code, out, output = after_a_checkpoint(["--resume", "--json"], lambda driver: workers_of(driver.pid)[0].kill())
    assert code == 0, output
    report = json.loads(out)  # Ray's messages about a dead worker are not mixed into the JSON
    assert (report["state"], report["restarts"]) == ("finished", 1)
    assert "after restart 1 of the workers" in output and "raylet" not in output

    command[command.index("--name") + 1] = "reference"
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    reference = RunDirectory(open_storage(tmp_path / "reference"))
    assert digest(run, steps) == digest(reference, steps)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "search"])
def test_ctrl_c_in_a_terminal_stops_an_embedded_ray_cleanly(command: str, npz: Path, tmp_path: Path) -> None:
    """A terminal sends SIGINT to the whole foreground group. It must not kill Ray's processes or workers first."""
    (recipe := tmp_path / "bars.py").write_text(RECIPE.format(data=str(npz)))
    flags = [str(recipe)]
    if command == "train":
        flags = ["--data", str(npz), "--codes", "noise=4 cat=3", "--batch-size", "16", "--steps", "100000"]
        flags += ["--workers", "2", "--threads", "1", "--network.width", "8", "--evaluation.samples", "200"]
        flags += ["--checkpoint-every", "20"]
    # A background process ignores SIGINT, and its children inherit that: restore the default handler.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from infogan_ray.cli.main import main; raise SystemExit(main())"
    words = [sys.executable, "-c", program, command, *flags]
    words += ["--storage", str(tmp_path / "runs"), "--name", "stopped"]
    with psutil.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        known: list[psutil.Process] = []
        try:
            output = ""
            for line in process.stderr:
                output += line
                if re.search("training: step [1-9]|trial .* images, ", output):
                    known = process.children(recursive=True)
                    os.killpg(process.pid, signal.SIGINT)
                    break
            output += process.stderr.read()
            assert process.wait(timeout=60) == 130, output
            assert f" with: infogan {command} " in output and "its process died" not in output
            assert not psutil.wait_procs(known, timeout=30)[1]
        finally:
            for survivor in [*known, process]:
                if survivor.is_running():
                    survivor.kill()
    if command == "train":
        status = RunDirectory(open_storage(tmp_path / "runs" / "stopped")).get_status()
        assert status["state"] == "interrupted" and status["stored"] == status["step"] > 0, "the last step is stored"


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_a_stop_on_a_cluster_ends_with_code_130(frozen: bool, npz: Path, tmp_path: Path) -> None:
    """A process crashes if it shuts Ray down while a thread waits for Ray, in about half of all cases."""
    words = [sys.executable, "-m", "infogan_ray", "train", "--data", str(npz), "--codes", "noise=4 cat=3"]
    words += ["--batch-size", "16", "--steps", "100000", "--workers", "2", "--threads", "1", "--network.width", "8"]
    words += ["--evaluation.samples", "200", "--checkpoint-every", "1000", "--storage", str(tmp_path)]
    with short_folder() as folder, head_on_loopback(folder) as head:
        address = {"RAY_ADDRESS": f"127.0.0.1:{head.gcs}", "RAY_AUTH_MODE": "token"}
        for attempt in range(2):
            command = [*words, "--name", f"run{attempt}"]
            with psutil.Popen(command, stderr=subprocess.PIPE, text=True, env=head.environment | address) as process:
                assert any("training: step " in line and "nats" in line for line in process.stderr)
                workers = workers_of(os.getpid())
                if frozen:
                    workers[0].suspend()
                process.terminate()
                output = process.stderr.read()
                assert process.wait(timeout=60) == 130, output
            assert f"--name run{attempt}" in output.splitlines()[-1]
            for worker in workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.kill()
