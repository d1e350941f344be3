"""One worker without Ray: kills, freezes and notices for real. Run: pytest tests/distributed/test_solo.py"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from infogan_ray import train
from infogan_ray.data.datasets import DataConfig, load_images
from infogan_ray.distributed.solo import driver as solo
from infogan_ray.distributed.solo import process
from infogan_ray.distributed.solo.reports import Reports
from infogan_ray.distributed.train import remote, trainer
from infogan_ray.distributed.train.launching import launcher
from infogan_ray.distributed.train.warming import warmed_for
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_outcome import TrainingFailed
from tests.conftest import tiny_config
from tests.harm import Harm, digest, process_of, processes_of
from tests.training.test_step import run_alone

pytestmark = pytest.mark.timeout(120)

PROGRAM = "from infogan_ray.cli.main import main; raise SystemExit(main())"
LONG: dict[str, Any] = {"steps": 300, "checkpoint_every": 50, "keep": 20}


def worker_of(pid: int) -> psutil.Process:
    return process_of(pid, "infogan_ray.distributed.solo.worker")


def signalled(how: signal.Signals) -> Callable[[], None]:
    return lambda: worker_of(os.getpid()).send_signal(how)


@pytest.fixture
def bars(npz: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    return lambda **changes: tiny_config(data=str(npz), storage=str(tmp_path / "runs"), **changes)


def undisturbed(npz: Path, folder: Path, **changes: Any) -> RunDirectory:
    """The same run in this process, with the one thread that workers of these tests have."""
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
    """Whatever tests before these have joined."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@contextmanager
def command(given: list[str], program: str = PROGRAM, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """``infogan`` as a user's shell starts it. Ends with all that it has started."""
    # Tests that are themselves a background job, or under nohup, have these ignored, and what they start inherits that.
    before = {notice: signal.signal(notice, signal.SIG_DFL) for notice in (signal.SIGINT, signal.SIGHUP)}
    started = subprocess.Popen(
        [sys.executable, "-P", "-c", program, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, **more,
    )  # fmt: skip
    for notice, handler in before.items():
        signal.signal(notice, handler)
    try:
        yield started
    finally:
        family = psutil.Process(started.pid).children(recursive=True) if started.poll() is None else []
        for one in (*family, started):
            one.kill()
        started.communicate()


def until(started: subprocess.Popen[str], beginning: str) -> None:
    assert started.stderr is not None
    seen = []
    for line in started.stderr:
        seen.append(line)
        if line.startswith(beginning):
            return
    raise AssertionError("".join(seen))


@pytest.mark.parametrize(
    ("changes", "here", "on_a_cluster"),
    [({}, solo, remote), ({"workers": 1}, solo, remote), ({"ray": "always"}, trainer, trainer),
     ({"workers": 2}, trainer, trainer), ({"workers": "1:2"}, trainer, trainer)],
)  # fmt: skip
def test_one_worker_needs_no_ray_train_and_without_a_cluster_no_ray(
    changes: dict[str, Any], here: Any, on_a_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solo, "this_machine", lambda: {"CPU": 4, "GPU": 0})
    assert launcher(tiny_config(**changes)) is here
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert launcher(tiny_config(**changes)) is on_a_cluster
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    assert launcher(tiny_config(**changes)) is on_a_cluster, "whoever has joined a cluster wants it"


def test_a_gpu_each_is_a_worker_each(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpus, module in ((1, solo), (2, trainer)):
        monkeypatch.setattr(solo, "this_machine", lambda gpus=gpus: {"CPU": 4, "GPU": gpus})
        assert launcher(RunConfig()) is module
    with pytest.raises(ValueError, match="workers is 3, more than the 2 GPUs there are") as error:
        launcher(RunConfig(workers=3, batch_size=24))
    assert type(error.value) is ValueError, "others are bugs of ours to the command line"


def test_it_trains_and_publishes_without_ray(npz: Path, tmp_path: Path) -> None:
    """Neither driver nor worker, whose paths lead to a Ray that cannot be imported; nor do they take a file of the user
    that is called like a module of Python's."""
    (tmp_path / "blocked" / "ray").mkdir(parents=True)
    (tmp_path / "blocked" / "ray" / "__init__.py").write_text("raise ImportError('ray is blocked')")
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "json.py").write_text("raise ImportError('a file of the user')")
    # An empty place would be where one stands.
    places = [str(tmp_path / "blocked"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": ":".join(places)}
    given = words(npz, tmp_path, "--steps", "6", "--checkpoint-every", "3", "--json")
    with command(given, env=environment, cwd=tmp_path / "beside") as started:
        out, said = started.communicate()
    assert started.returncode == 0, said
    report = json.loads(out)
    assert (report["state"], report["step"]) == ("finished", 6)
    assert "threads: 1 for each worker" in said and "feed: in memory" in said
    run = RunDirectory(open_storage(tmp_path / "tiny"))
    assert run.get_status()["state"] == "finished" and run.model.is_file(manifests.MANIFEST)
    assert [row["step"] for row in run.read_metrics()] == [2, 3, 4, 6]
    assert digest(run, 6) == digest(undisturbed(npz, tmp_path / "alone"), 6)
    assert not run.folder.read("worker.log")


def test_a_worker_gets_absolute_paths_and_no_standard_streams_are_needed(npz: Path, tmp_path: Path) -> None:
    """MLflow's file is named from where the user stands."""
    pytest.importorskip("mlflow")
    given = words(npz, tmp_path, "--steps", "6", "--checkpoint-every", "3", "--mlflow", "sqlite:///ml.db")
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-c", PROGRAM, *given], stderr=subprocess.PIPE,
        text=True, cwd=tmp_path, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0 and (tmp_path / "ml.db").exists(), done.stderr
    assert "MLflow" not in done.stderr, done.stderr


def test_killed_workers_are_replaced_and_the_bits_are_those_of_an_undisturbed_run(
    bars: Any, npz: Path, tmp_path: Path
) -> None:
    harm = Harm({80: signalled(signal.SIGKILL), 210: signalled(signal.SIGKILL)})
    result = train(bars(**LONG), harm)
    assert (result.state, result.restarts, result.run.get_status()["restarts"]) == ("finished", 2, 2)
    assert "the worker was ended by SIGKILL (the kernel does so where memory runs out)" in harm.said
    assert [line for line in harm.said if line.startswith("resumed from step") and "restart 2 of" in line]
    calm = undisturbed(npz, tmp_path / "calm", **LONG)
    assert digest(result.run, 300) == digest(calm, 300)
    assert [row["step"] for row in result.run.read_metrics()] == [row["step"] for row in calm.read_metrics()]


def test_a_frozen_worker_is_noticed_and_replaced(bars: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solo, "SILENT_S", 10.0)  # a minute in earnest
    harm = Harm({120: signalled(signal.SIGSTOP)})
    result = train(bars(**LONG), harm)
    assert (result.state, result.restarts) == ("finished", 1)
    assert "the worker has given no sign of life for 10 s" in harm.said


def test_a_worker_that_cannot_begin_is_not_started_for_ever(
    bars: Any, npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solo, "WORKER_RESTARTS", 1)
    heard: list[dict[str, Any]] = []

    def spoil(report: dict[str, Any]) -> None:
        heard.append(report)
        npz.unlink(missing_ok=True)  # it has been read for the checks, and not yet by the worker

    with pytest.raises(TrainingFailed, match=r"ValueError: data .*bars.npz.*; the log is .*worker.log"):
        train(bars(), spoil)
    assert [report["phase"] for report in heard].count("starting workers again") == 1
    run = RunDirectory(open_storage(bars().storage) / "tiny")
    assert run.get_status()["state"] == "failed"
    assert b"Traceback" in run.folder.read("worker.log")


def test_divergence_ends_the_run_without_a_restart(bars: Any) -> None:
    harm = Harm({})
    result = train(bars(steps=400).override({"objective": {"lambda_continuous": 1e38}}, "test"), harm)
    assert result.state == "diverged" and "at step" in result.message and not result.restarts
    assert not [line for line in harm.said if line.startswith("resumed")]


def test_a_notice_to_the_worker_alone_ends_the_run_as_interrupted(bars: Any) -> None:
    result = train(bars(steps=100_000), Harm({50: signalled(signal.SIGTERM)}))
    assert result.state == "interrupted" and "which is stored" in result.message


def test_a_listener_that_fails_loses_nothing(bars: Any) -> None:
    def give_up(report: dict[str, Any]) -> None:
        if report.get("step", 0) >= 50:
            raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        train(bars(steps=100_000), give_up)
    run = RunDirectory(open_storage(bars().storage) / "tiny")
    assert run.get_status()["state"] == "interrupted" and run.get_status()["stored"] >= 50


@pytest.mark.parametrize("notice", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_says_how_to_go_on(notice: signal.Signals, npz: Path, tmp_path: Path) -> None:
    with command(words(npz, tmp_path, "--steps", "1000000")) as started:
        until(started, "training: step")
        worker = worker_of(started.pid)
        os.killpg(started.pid, notice)  # as a terminal does, also when it is closed, and Slurm
        said = started.communicate()[1]
    assert started.returncode == 130, said
    assert not worker.is_running()
    told = re.search(r"infogan: interrupted: stopped at step ([\d,]+), which is stored; go on with: (.+)", said)
    assert told and told[2].startswith("infogan train") and told[2].endswith("--resume"), said
    run = RunDirectory(open_storage(tmp_path / "tiny"))
    last = checkpoints.last_valid(run.checkpoints, warn=print)
    assert last is not None and last.step == int(told[1].replace(",", "")) > 0
    assert run.get_status()["state"] == "interrupted"


def test_a_closed_terminal_is_no_notice_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with solo.notices():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with solo.notices():
            assert signal.getsignal(signal.SIGHUP) is signal.default_int_handler
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_worker_that_does_not_stop_is_ended(npz: Path, tmp_path: Path) -> None:
    impatient = (
        "from infogan_ray.distributed.solo import driver; driver.LAST_WORDS_S = 1.0; " + PROGRAM
    )  # ten in earnest
    with command(words(npz, tmp_path, "--steps", "1000000"), impatient) as started:
        until(started, "training: step")
        worker = worker_of(started.pid)
        worker.suspend()
        started.send_signal(signal.SIGINT)
        said = started.communicate()[1]
    assert started.returncode == 130 and "infogan: interrupted; go on with: infogan train" in said, said
    assert not worker.is_running()
    assert RunDirectory(open_storage(tmp_path / "tiny")).get_status()["state"] == "interrupted"


def test_a_killed_driver_takes_its_worker_along_and_is_resumed_to_the_same_bits(npz: Path, tmp_path: Path) -> None:
    run = RunDirectory(open_storage(tmp_path / "tiny"))
    some = ("--steps", "800", "--checkpoint-every", "50", "--keep", "40")
    with command(words(npz, tmp_path, *some)) as started:
        until(started, "evaluating: step 50")
        worker = worker_of(started.pid)
        started.kill()
        assert worker.wait(timeout=30) is None or not worker.is_running()
    left = checkpoints.last_valid(run.checkpoints, warn=pytest.fail)
    assert left is not None and 50 <= left.step < 800, "the worker has stored what it had, and gone"
    with command(words(npz, tmp_path, *some, "--resume")) as started:
        said = started.communicate()[1]
    assert started.returncode == 0 and f"resumed from step {left.step:,}" in said, said
    calm = undisturbed(npz, tmp_path / "calm", steps=800, checkpoint_every=50, keep=40)
    assert digest(run, 800) == digest(calm, 800)


def test_a_process_that_was_started_in_vain_is_ended() -> None:
    with warmed_for(["--preset", "mnist", "--workers", "2"]):
        assert process._warmed is None, "Ray Train will be needed"
    with warmed_for(["--preset", "mnist"]):
        started = worker_of(os.getpid())
    assert not started.is_running()
    with warmed_for(["mine.yaml"]):
        started = worker_of(os.getpid())
        assert launcher(tiny_config(ray="always")) is trainer
        assert not started.is_running(), "it has cores and memory that another needs"


def test_a_worker_that_cannot_even_import_says_why_in_a_line(monkeypatch: pytest.MonkeyPatch, bars: Any) -> None:
    monkeypatch.setattr(solo, "WORKER_RESTARTS", 0)
    broken = process.PROGRAM.replace(
        "from infogan_ray.distributed.solo.worker", "raise RuntimeError('of two\\nlines')\n    from x"
    )
    monkeypatch.setattr(process, "PROGRAM", broken)
    with pytest.raises(TrainingFailed, match="RuntimeError: of two lines; the log is"):
        train(bars())


def test_a_worker_that_hangs_at_its_end_is_ended(monkeypatch: pytest.MonkeyPatch, bars: Any) -> None:
    monkeypatch.setattr(solo, "LAST_WORDS_S", 1.0)
    hangs = process.PROGRAM.replace("    main(told)", "    main(told)\n    import threading; threading.Event().wait()")
    monkeypatch.setattr(process, "PROGRAM", hangs)
    assert train(bars()).state == "finished"
    assert not processes_of(os.getpid(), "infogan_ray.distributed.solo.worker")


def test_training_does_not_wait_for_a_driver_that_does_not_read() -> None:
    """As one that is suspended: a pipe takes 64 kB."""
    end, out = os.pipe()
    told = Reports(out)
    for step in range(1000):
        told.write({"step": step, "say": "x" * 1000})
    with os.fdopen(end) as read:
        steps = [json.loads(next(line for line in read if line.strip()))["step"] for _ in range(1000)]
    assert steps == list(range(1000)), "and nothing is lost when it reads again"


def test_a_log_that_cannot_be_written_is_said_before_a_worker_starts(
    monkeypatch: pytest.MonkeyPatch, bars: Any, npz: Path
) -> None:
    monkeypatch.setattr(solo, "log_path", lambda folder, name: npz / "logs" / name)
    monkeypatch.setattr(process, "take", lambda: pytest.fail("a worker was started"))
    with pytest.raises(TrainingFailed, match=r"the log .*bars.npz/logs/worker.log cannot be written: "):
        train(bars())
