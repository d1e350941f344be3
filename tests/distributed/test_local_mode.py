"""One worker without a cluster runs in this process. Signals stop it, and --resume continues it.

Run: pytest tests/distributed/test_local_mode.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from infogan_ray import train
from infogan_ray.cli.exit_codes import DIVERGED, FAILED
from infogan_ray.cli.main import main
from infogan_ray.data.datasets import DataConfig, load_images
from infogan_ray.distributed.cluster.resources import Resources
from infogan_ray.distributed.train import checks, torchrun, trainer, worker_function
from infogan_ray.distributed.train.signals import handle_signals
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training import disk_room
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_outcome import OutOfMemory, TrainingFailed
from tests.conftest import tiny_config
from tests.fault_injection import FaultInjector, digest
from tests.storage.test_json_text import strict
from tests.training.test_step import run_alone

pytestmark = pytest.mark.timeout(240)

PROGRAM = "from infogan_ray.cli.main import main; raise SystemExit(main())"


@pytest.fixture
def bars(npz: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    return lambda **changes: tiny_config(data=str(npz), storage=str(tmp_path / "runs"), **changes)


def uninterrupted(npz: Path, folder: Path, **changes: Any) -> RunDirectory:
    """The same run without Ray and without interruption. It uses one thread, as all runs in this module."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run_alone(tiny_config(**changes), load_images(str(npz), DataConfig()), folder)[0]
    finally:
        torch.set_num_threads(threads)


def words(npz: Path, storage: Path, *more: str) -> list[str]:
    given = ["train", "--data", str(npz), "--codes", "noise=4 cat=3 uniform=1", "--batch-size", "16", "--threads", "1"]
    given += ["--network.width", "8", "--evaluation.samples", "200", "--device", "cpu", "--precision", "fp32"]
    return [*given, "--log-every", "2", "--storage", str(storage), "--name", "tiny", *more]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide a cluster that an earlier test has joined."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@contextmanager
def command(given: list[str], before_it: tuple[str, ...] = (), **more: Any) -> Iterator[subprocess.Popen[str]]:
    """Run ``infogan`` as a shell starts it. At the end, kill it and its descendants."""
    # A background job or nohup ignores these signals, and child processes inherit that: restore the default.
    before = {
        signal_number: signal.signal(signal_number, signal.SIG_DFL) for signal_number in (signal.SIGINT, signal.SIGHUP)
    }
    started = subprocess.Popen(
        [*(before_it or (sys.executable, "-P", "-c", PROGRAM)), *given], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True, **more,
    )  # fmt: skip
    for signal_number, handler in before.items():
        signal.signal(signal_number, handler)
    try:
        yield started
    finally:
        descendants = psutil.Process(started.pid).children(recursive=True) if started.poll() is None else []
        for process in (*descendants, started):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        started.communicate()


def until(started: subprocess.Popen[str], beginning: str) -> None:
    assert started.stderr is not None
    seen = []
    for line in started.stderr:
        seen.append(line)
        if line.startswith(beginning):
            return
    raise AssertionError("".join(seen))


def test_a_run_is_in_this_process_unless_it_has_several_workers_or_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.runs_in_this_process(Resources(1, 1, "cpu"))
    assert not checks.runs_in_this_process(Resources(2, 1, "cpu"))
    assert not checks.runs_in_this_process(Resources((1, 2), 1, "cpu"))
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    assert not checks.runs_in_this_process(Resources(1, 1, "cpu")), "a joined cluster is used"


def test_a_command_trains_publishes_and_starts_no_process(npz: Path, tmp_path: Path) -> None:
    """A user's file named like a standard module is not imported. Ray's messages are only in the log."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "json.py").write_text("raise ImportError('a file of the user')")
    given = words(npz, tmp_path, "--steps", "6", "--checkpoint-every", "3", "--json")
    with command(given, cwd=tmp_path / "beside") as started:
        until(started, "training: step")
        assert not psutil.Process(started.pid).children()
        out, output = started.communicate()
    assert started.returncode == 0, output
    report = json.loads(out)
    assert (report["state"], report["step"]) == ("finished", 6)
    run = RunDirectory(open_storage(tmp_path / "tiny"))
    assert run.get_status()["state"] == "finished" and run.model.is_file(manifests.MANIFEST)
    assert [row["step"] for row in run.read_metrics()] == [2, 3, 4, 6]
    assert digest(run, 6) == digest(uninterrupted(npz, tmp_path / "alone"), 6)
    assert "local mode" not in output and b"local mode" in run.folder.read("ray.log")
    assert not {entry.name for entry in run.folder.entries() if "attempt" in entry.name}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mlflow_gets_an_absolute_path_and_no_standard_streams_are_needed(npz: Path, tmp_path: Path) -> None:
    """MLflow's file is relative to the user's working directory."""
    pytest.importorskip("mlflow")
    given = words(npz, tmp_path, "--steps", "6", "--checkpoint-every", "3", "--mlflow", "sqlite:///ml.db")
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-c", PROGRAM, *given], stderr=subprocess.PIPE,
        text=True, cwd=tmp_path, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0 and (tmp_path / "ml.db").exists(), done.stderr
    assert "MLflow" not in done.stderr, done.stderr


def test_train_restores_the_settings_of_the_callers_process(bars: Any) -> None:
    def settings() -> list[Any]:
        loggers = [logging.getLogger(name) for name in ("ray", "ray.train", "py.warnings")]
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        return [
            torch.get_num_threads(), torch.backends.cuda.matmul.fp32_precision, torch.random.get_rng_state().tolist(),
            handlers, warnings.showwarning, *((list(logger.handlers), logger.propagate) for logger in loggers),
        ]  # fmt: skip

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = settings()
        seen: list[int] = []
        assert train(bars(), lambda report: seen.append(torch.get_num_threads())).state == "finished"
        assert seen[-1] == 1 and settings() == before
    finally:
        torch.set_num_threads(threads)


def test_divergence_ends_the_run(bars: Any) -> None:
    result = train(bars(steps=400).override({"objective": {"lambda_continuous": 1e38}}, "test"))
    assert result.state == "diverged" and "at step" in result.message


def test_a_diverged_run_is_described_as_json(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = words(npz, tmp_path / "runs", "--steps", "400", "--objective.lambda-continuous", "1e38", "--json")
    assert main(given) == DIVERGED
    shown = capsys.readouterr()
    found = strict(shown.out)
    assert isinstance(found, dict) and found["state"] == "diverged"
    assert f"tiny diverged: {found['cause']}; there is no earlier checkpoint\n" in shown.err
    assert main(["runs", str(tmp_path / "runs" / "tiny"), "--json"]) == 0
    assert strict(capsys.readouterr().out) == {**found, "rows": []}, "the same later"


def test_a_failing_listener_loses_no_step(bars: Any) -> None:
    def give_up(report: dict[str, Any]) -> None:
        if report.get("step", 0) >= 50:
            raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        train(bars(steps=100_000), give_up)
    run = RunDirectory(open_storage(bars().storage) / "tiny")
    assert run.get_status()["state"] == "interrupted" and run.get_status()["stored"] >= 50


def test_an_unexpected_error_is_raised_unchanged_and_the_run_fails(bars: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: dict[str, Any]) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(trainer, "train_on_worker", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        train(bars())
    assert RunDirectory(open_storage(bars().storage) / "tiny").get_status()["state"] == "failed"


@pytest.mark.parametrize(
    "signal_number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_command_prints_how_to_continue(
    signal_number: signal.Signals, npz: Path, tmp_path: Path
) -> None:
    with command(words(npz, tmp_path, "--steps", "1000000")) as started:
        until(started, "training: step 0")
        until(started, "training: step")
        os.killpg(started.pid, signal_number)  # as Slurm and a terminal do, also when the terminal is closed
        output = started.communicate()[1]
    assert started.returncode == 130, output
    resume_hint = re.search(
        r"infogan: interrupted: stopped at step ([\d,]+), which is stored; continue with: (.+)", output
    )
    assert resume_hint and resume_hint[2].startswith("infogan train") and resume_hint[2].endswith("--resume"), output
    assert "stopping; press Ctrl-C again to stop at once" in output
    run = RunDirectory(open_storage(tmp_path / "tiny"))
    last = checkpoints.last_valid(run.checkpoints, warn=print)
    assert last is not None and last.step == int(resume_hint[1].replace(",", "")) > 0
    assert run.get_status()["state"] == "interrupted"


def test_a_second_ctrl_c_stops_at_once(bars: Any) -> None:
    """Without a last checkpoint. Here the second Ctrl-C comes while the listener handles the first."""

    def press_again(report: dict[str, Any]) -> None:
        if report["phase"] == "stopping" or report.get("step", 0) >= 20:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(bars(steps=100_000, checkpoint_every=100_000), press_again)
    finally:
        signal.signal(signal.SIGINT, before)
    status = RunDirectory(open_storage(bars().storage) / "tiny").get_status()
    assert (status["state"], status.get("stored", 0)) == ("interrupted", 0)


def test_an_ignored_signal_stays_ignored() -> None:
    """SIGHUP is ignored under nohup, and SIGINT in a background job."""
    received: list[int] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handle_signals(lambda number, frame: received.append(number)):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with handle_signals(lambda number, frame: received.append(number)):
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL and received == [signal.SIGTERM, signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_in_a_thread_changes_no_signal_handler(bars: Any) -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(train(bars())))
    thread.start()
    thread.join()
    assert results[0].state == "finished"


def test_a_killed_and_resumed_run_is_bit_equal(npz: Path, tmp_path: Path) -> None:
    run = RunDirectory(open_storage(tmp_path / "tiny"))
    flags = ("--steps", "200", "--checkpoint-every", "25", "--keep", "40")
    with command(words(npz, tmp_path, *flags)) as started:
        until(started, "evaluating: step 50")
        started.kill()
    left = checkpoints.last_valid(run.checkpoints, warn=pytest.fail)
    assert left is not None and 25 <= left.step < 200
    with command(words(npz, tmp_path, *flags, "--resume")) as started:
        output = started.communicate()[1]
    assert started.returncode == 0 and f"resumed from step {left.step:,}" in output, output
    reference = uninterrupted(npz, tmp_path / "reference", steps=200, checkpoint_every=25, keep=40)
    assert digest(run, 200) == digest(reference, 200)
    assert [row["step"] for row in run.read_metrics()] == [row["step"] for row in reference.read_metrics()]


def test_a_log_that_cannot_be_written_is_reported_before_training(
    monkeypatch: pytest.MonkeyPatch, bars: Any, npz: Path
) -> None:
    monkeypatch.setattr(trainer, "log_path", lambda folder: npz / "logs" / "ray.log")
    with pytest.raises(TrainingFailed, match=r"the log .*bars.npz/logs/ray.log cannot be written: "):
        train(bars())


def test_a_run_without_memory_fails_with_advice(
    bars: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_room, "_check_one_fits", lambda *_: None)  # no disk has room for such checkpoints
    config = bars().override({"network": {"width": 4_000_000}}, "the test")
    with pytest.raises(
        OutOfMemory, match=r"batch_size 16 and network.width 4000000; use smaller .* bytes failed\); the log"
    ):
        train(config)
    status = RunDirectory(open_storage(config.storage) / "tiny").get_status()
    assert status["state"] == "failed" and "use smaller values" in status["message"]
    given = words(Path(str(config.data)), Path(config.storage), "--steps", "5", "--name", "other")
    assert main([*given, "--network.width", "4000000"]) == FAILED
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert last.startswith("infogan: out of memory with") and "--resume" not in last and not out


def test_what_several_workers_need_is_tried_before_the_name_is_claimed(
    bars: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (long := tmp_path / ("a" * 90)).mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with pytest.raises(ValueError, match="TMPDIR is .* set RAY_TMPDIR to a shorter folder"):
        train(bars(workers=2))
    assert not (tmp_path / "runs").exists()


def test_a_saved_configuration_of_an_earlier_version_still_loads() -> None:
    assert RunConfig().override({"ray": "always", "steps": 7}, "saved").steps == 7
    with pytest.raises(ValueError, match="unknown field 'network.ray'"):
        RunConfig().override({"network": {"ray": "always"}}, "saved")


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "infogan_ray")


@pytest.mark.slow
def test_two_ranks_of_torchrun_train_as_one_run(npz: Path, tmp_path: Path) -> None:
    """Only rank 0 prints and writes. One worker can continue the run."""
    given = words(npz, tmp_path, "--checkpoint-every", "3")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with command([*given, "--steps", "6", "--json"], TORCHRUN, env=environment) as started:
        out, output = started.communicate(timeout=200)
    assert started.returncode == 0, output
    report = json.loads(out)
    assert (report["state"], report["step"], report["world_size"]) == ("finished", 6, 2)
    assert output.count("finished: step 6") == 1 and "local mode" not in output
    run = RunDirectory(open_storage(tmp_path / "tiny"))
    assert checkpoints.open_checkpoint(run.checkpoints / "step_00000006").state["world_size"] == 2
    assert [row["step"] for row in run.read_metrics()] == [2, 3, 4, 6]
    with command([*given, "--steps", "9", "--resume"]) as started:
        output = started.communicate(timeout=200)[1]
    assert started.returncode == 0 and "world size 1, before 2" in output, output


@pytest.mark.slow
def test_ctrl_c_ends_both_ranks_of_torchrun_with_a_last_checkpoint(npz: Path, tmp_path: Path) -> None:
    """The terminal sends SIGINT to torchrun and both ranks, and torchrun sends it to both ranks again."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with command(words(npz, tmp_path, "--steps", "1000000"), TORCHRUN, env=environment) as started:
        until(started, "training: step 0")
        until(started, "training: step")
        os.killpg(started.pid, signal.SIGINT)
        output = started.communicate(timeout=60)[1]
    assert "infogan: interrupted: stopped at step" in output, output
    status = RunDirectory(open_storage(tmp_path / "tiny")).get_status()
    assert status["state"] == "interrupted" and status["stored"] == status["step"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"workers": 3, "batch_size": 18}, "workers is 3, but torchrun started 2"),
     ({"gpus_per_worker": 0.5}, "under torchrun each rank uses one GPU")],
)  # fmt: skip
def test_settings_that_torchrun_decides_are_refused(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, bars: Any
) -> None:
    for name, value in zip(torchrun.VARIABLES, ("0", "0", "2", "2", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        train(bars(**changes))


def test_messages_name_the_host_of_a_rank_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would say 127.0.0.1 for every machine."""
    for name in torchrun.VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    assert worker_function.this_machine() == "node7"


def test_a_run_waits_for_an_unavailable_storage(bars: Any, proxy: Any) -> None:
    """Storage is away until the run has said so, whether it still trains then or waits with its last checkpoint."""
    faults = FaultInjector({60: lambda: proxy.become("503")})

    def listener(report: dict[str, Any]) -> None:
        faults(report)
        if report.get("say", "").startswith("storage is unavailable"):
            proxy.become("well")

    config = dataclasses.replace(bars(steps=200, checkpoint_every=50), storage=proxy.uri("runs"))
    result = train(config, listener)
    said = " ".join(faults.messages)
    assert result.state == "finished" and "storage is available again; step " in said, said
    assert checkpoints.last_valid(result.run.checkpoints, warn=pytest.fail).step == 200  # type: ignore[union-attr]
