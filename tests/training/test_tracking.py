"""Event files, MLflow and Weights & Biases, read with their libraries. Run: pytest tests/training/test_tracking.py"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch

from infogan_ray.cli.main import USAGE, main
from infogan_ray.data.image_set import ImageSet
from infogan_ray.storage.file_system import Storage, StorageError, open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training import rank_zero, worker
from infogan_ray.training.config import RunConfig
from infogan_ray.training.tracking import channel as channels
from infogan_ray.training.tracking import event_files
from infogan_ray.training.tracking.addresses import with_absolute_path
from infogan_ray.training.tracking.channel import Channel
from infogan_ray.training.tracking.curves import RESULTS, hparams
from infogan_ray.training.tracking.event_files import SESSION_END, SESSION_START, EventFiles
from infogan_ray.training.tracking.trackers import MLflow
from tests.conftest import tiny_config
from tests.servers import Proxy, RecordingProxy, http_server
from tests.training.test_step import run_alone

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
SECRET = "a" * 20 + "b" * 20


def shown(folder: Path) -> Any:
    """A run's folder as TensorBoard reads it."""
    return accumulators.EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def steps(found: Any, tag: str) -> list[int]:
    return [event.step for event in found.Scalars(tag)]


def hparams_of(found: Any) -> dict[str, Any]:
    from tensorboard.plugins.hparams import metadata

    content = found.PluginTagToContent("hparams")[SESSION_START]
    about = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in about.items()}


def rows_of(run: RunDirectory) -> list[int]:
    return [row["step"] for row in run.read_metrics()]


def test_tensorboard_reads_curves_pictures_and_hparams_of_a_finished_run(finished: Path) -> None:
    from tensorboard.plugins.hparams import metadata

    found, run = shown(finished), RunDirectory(open_storage(finished))
    assert steps(found, "loss/d_loss") == rows_of(run) == [2, 3, 4, 6]
    assert steps(found, "bound/cat0") == steps(found, "agreement/clustering_error") == [3, 6]
    logged = {row["step"]: row for row in run.read_metrics()}
    for tag, name in (("discriminator/d_accuracy", "d_accuracy"), ("bound/uniform0", "mi/uniform0")):
        for event in found.Scalars(tag):
            assert event.value == pytest.approx(logged[event.step][name])
    assert "at most 1.099" in found.SummaryMetadata("bound/cat0").summary_description
    final = json.loads(run.model.read("metrics.json"))
    assert steps(found, "achieved/mi_fraction") == [3, 6, 7] and steps(found, "achieved/swd") == [7]
    for name in RESULTS:
        assert found.Scalars(f"achieved/{name}")[-1].value == pytest.approx(final[name]), (
            "metrics of the best checkpoint on all data"
        )

    assert set(found.Tags()["images"]) == {"samples", "traversal/cat0", "traversal/uniform0"}
    for tag, place in (("samples", "samples/step_{:08d}.png"), ("traversal/cat0", "traversals/step_{:08d}_cat0.png")):
        pictures = found.Images(tag)
        assert [picture.step for picture in pictures] == [3, 6]
        for picture in pictures:
            content = (finished / place.format(picture.step)).read_bytes()
            assert picture.encoded_image_string == content
            assert (picture.width, picture.height) == tuple(int.from_bytes(content[i : i + 4]) for i in (16, 20))

    about = hparams_of(found)
    assert about["objective.lambda_categorical"] == 1.0 and about["codes"] == "noise=4 cat=3 uniform=1"
    assert about["network.sync_batchnorm"] is False and {"seed", "batch_size", "optimizer.lr_generator"} <= set(about)
    assert not {"storage", "name", "mlflow", "wandb", "threads"} & set(about)
    end = metadata.parse_session_end_info_plugin_data(found.PluginTagToContent("hparams")[SESSION_END])
    assert end.status == 1, "a success"
    (name,) = [path.name for path in finished.iterdir() if "tfevents" in path.name]
    assert os.uname().nodename not in name


KILLED = """
import sys, time, torch
from pathlib import Path
from tests.conftest import make_image_set, tiny_config
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.worker import run_worker
from infogan_ray.storage.file_system import open_storage

config = tiny_config(steps=30)
run = RunDirectory(open_storage(sys.argv[1]))
run.write_config({"model": config.model_spec(16, 1).to_dict(), "run": config.to_dict()})
for report in run_worker(config, make_image_set(), run, device=torch.device("cpu")):
    if report.metrics["step"] == 8 and report.phase == "training":
        time.sleep(600)
"""


def test_after_a_kill_no_step_is_shown_twice(image_set: ImageSet, tmp_path: Path) -> None:
    """The run is killed at step 8 after a checkpoint of step 6. It is resumed, and continued after its end."""
    path, root = tmp_path / "run", Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], cwd=root)
    try:
        run = RunDirectory(open_storage(path))
        until(lambda: run.get_status().get("stored") == 6 and 8 in steps(shown(path), "loss/d_loss"))
    finally:
        process.kill()
        process.wait()
    (first,) = [file for file in path.iterdir() if "tfevents" in file.name]
    with first.open("ab") as file:
        file.write(b"\x30\x00\x00")  # a record that the kill truncated
    for last in (12, 12, 15):
        run_alone(tiny_config(steps=last), image_set, path)
        found = shown(path)
        evaluated = list(range(3, last + 1, 3))
        assert steps(found, "loss/d_loss") == rows_of(run)
        assert steps(found, "bound/mi_bound") == [picture.step for picture in found.Images("samples")] == evaluated
        assert steps(found, "achieved/mi_bound") == [*evaluated, last + 1]
        assert steps(found, "achieved/swd") == [last + 1]


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (KeyError, accumulators.directory_watcher.DirectoryDeletedError):
            pass  # nothing is there yet
        time.sleep(0.2)
    pytest.fail("the condition was not met in time")


def test_files_of_a_later_attempt_sort_later_even_if_its_clock_is_behind(tmp_path: Path) -> None:
    run = RunDirectory(open_storage(tmp_path))
    ahead = f"{run.EVENTS}{int(time.time()) + 5000:010d}.0.00000"
    run.folder.write(ahead, b"")
    files = EventFiles(run, 0, {}, {})
    files.row(1, {"a": 1.0}, time.time())
    files.flush(False)
    assert sorted(entry.name for entry in run.folder.entries())[0] == ahead


def test_a_partial_write_is_repeated_in_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full for some time, and a write is stored only in part."""
    files = EventFiles(RunDirectory(open_storage(tmp_path)), 0, {"seed": 1}, {})
    files.row(1, {"a": 1.0}, time.time())
    files.flush(False)
    whole = Storage.append

    def half(folder: Storage, name: str, content: bytes) -> None:
        whole(folder, name, content[: 2 * len(content) // 3])
        raise StorageError("no room", transient=True)

    monkeypatch.setattr(Storage, "append", half)
    files.row(2, {"a": 2.0}, time.time())
    files.row(3, {"a": 3.0}, time.time())
    with pytest.raises(StorageError):
        files.flush(False)
    monkeypatch.undo()
    files.row(4, {"a": 4.0}, time.time())
    files.flush(False)
    assert [(event.step, event.value) for event in shown(tmp_path).Scalars("a")] == [(n, n) for n in (1, 2, 3, 4)]
    assert hparams_of(shown(tmp_path)) == {"seed": 1}


def test_the_local_file_has_a_limit_while_the_storage_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event above the limit is refused, so that its channel sends it again."""
    monkeypatch.setattr(event_files, "LIMIT_BYTES", 10)
    files = EventFiles(RunDirectory(open_storage(tmp_path)), 0, {"seed": 1}, {})

    def unavailable(folder: Storage, name: str, content: bytes) -> None:
        raise StorageError("unavailable", transient=True)

    monkeypatch.setattr(Storage, "append", unavailable)
    files.row(1, {"a": 1.0}, time.time())
    for _ in range(2):
        with pytest.raises(StorageError):
            files.row(2, {"a": 2.0}, time.time())
    monkeypatch.undo()
    files.row(2, {"a": 2.0}, time.time())
    files.flush(False)
    assert steps(shown(tmp_path), "a") == [1, 2]


def event_files_of(run: RunDirectory, copy: Path) -> Path:
    """Copy the event files of a run in a bucket to a local folder."""
    copy.mkdir()
    for entry in run.folder.entries():
        if entry.name.startswith(run.EVENTS):
            (copy / entry.name).write_bytes(run.folder.read(entry.name))
    return copy


def test_in_a_bucket_each_checkpoint_has_its_own_event_file(proxy: Proxy, tmp_path: Path) -> None:
    run = RunDirectory(open_storage(proxy.uri("event files by checkpoint")) / "run")
    files = EventFiles(run, 0, {}, {})
    for step in range(1, 5):
        files.row(step, {"a": 1.0}, time.time())
        files.flush(due=step % 2 == 0)
    files.flush(due=True)
    assert len(run.folder.entries()) == 2
    assert steps(shown(event_files_of(run, tmp_path / "copy")), "a") == [1, 2, 3, 4]


def test_event_files_in_a_bucket_are_never_rewritten(image_set: ImageSet, proxy: Proxy, tmp_path: Path) -> None:
    """No event file is written twice, and together they contain the complete run."""
    run = RunDirectory(open_storage(proxy.uri("event files")) / "run")
    known: dict[str, bytes] = {}
    for last in (6, 9):
        for _ in worker.run_worker(tiny_config(steps=last), image_set, run, device=torch.device("cpu")):
            pass
        copy = event_files_of(run, tmp_path / str(last))
        found = shown(copy)
        assert steps(found, "loss/d_loss") == rows_of(run)
        assert steps(found, "achieved/swd") == [last + 1] and len(found.Images("samples")) == last // 3
        assert hparams_of(found)["batch_size"] == 16
        now = {path.name: path.read_bytes() for path in copy.iterdir()}
        assert known.items() <= now.items() and len(now) > len(known)
        known = now


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--mlflow ./mlruns", "mlflow is './mlruns'; write http://HOST:5000, sqlite:///FILE.db or databricks"),
        ("--mlflow http://me:secret@host", "mlflow has credentials or settings in its URI; put them into the env"),
        ("--mlflow http://host?token=secret", "MLFLOW_TRACKING_TOKEN"),
        ("--mlflow mysql://me:secret@host/db", "mlflow is 'mysql://…'; write http://HOST:5000"),
        ("--wandb me/project", "wandb is 'me/project'; write a project's name, without / "),
    ],
)
def test_wrong_addresses_are_refused_and_no_secret_is_repeated(
    flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--steps", "1", "--storage", str(tmp_path), "--name", "x", *flags.split()]) == USAGE
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "secret" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value"), [("mlflow", "http://127.0.0.1:5000"), ("wandb", "digits")])
def test_a_missing_package_is_reported_before_the_run_starts(
    name: str, value: str, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, name, None)  # None makes the import fail
    words = ["--data", str(npz), "--steps", "1", "--batch-size", "16", "--storage", str(tmp_path / "runs")]
    assert main(["train", *words, "--name", "x", f"--{name}", value]) == USAGE
    line = f"{name} is '{value}', and its package is not installed; pip install 'infogan-ray[{name}]'"
    assert capsys.readouterr().err == f"infogan: {line}\n" and not (tmp_path / "runs").exists()


def test_trackers_are_imported_only_when_needed() -> None:
    code = "import sys, infogan_ray.training.tracking.tracking, infogan_ray.training.config; "
    code += "raise SystemExit(str([n for n in ('tensorboardX', 'tensorboard', 'mlflow', 'wandb', 'ray') "
    code += "if n in sys.modules] or 0))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == "0"


def test_a_database_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_absolute_path("sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"
    assert with_absolute_path("sqlite:////x/a.db") == "sqlite:////x/a.db"
    assert with_absolute_path("http://host") == "http://host"


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_mlflow_gets_all_data_and_a_resumed_run_is_the_same_mlflow_run(
    image_set: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(rank_zero, "TRACKERS_TIMEOUT_S", 200.0)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    for last in (6, 9):
        for lost in (tmp_path / "run" / "checkpoints").glob(
            "step_00000006/*"
        ):  # so that steps 4 to 6 are computed again
            lost.unlink()
        run, reports = run_alone(tiny_config(steps=last, mlflow=uri), image_set, tmp_path / "run")
        assert not [report.say for report in reports if "MLflow" in report.say]
        experiment = client.get_experiment_by_name("infogan_ray")
        (found,) = client.search_runs([experiment.experiment_id])
        history = client.get_metric_history(found.info.run_id, "loss/d_loss")
        assert sorted(metric.step for metric in history) == rows_of(run)
        assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
        assert found.data.params["objective.lambda_categorical"] == "1.0"
        assert found.data.metrics["achieved/swd"] == json.loads(run.model.read("metrics.json"))["swd"]
        pictures = [file.path for file in client.list_artifacts(found.info.run_id, "pictures/traversal/cat0")]
        assert pictures == [f"pictures/traversal/cat0/step_{step:08d}.png" for step in range(3, last + 1, 3)]
    assert SECRET.encode() not in everything_in(tmp_path)


def wandb_records(file: Path) -> Iterator[Any]:
    """A .wandb file is a LevelDB log: blocks of 32 KiB, with records in one or several parts."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, pieces = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        if at + 7 + length > len(content):
            return  # it is still being written
        pieces = (pieces if kind in (3, 4) else b"") + content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(pieces)


def whole_wandb_records(file: Path) -> list[Any]:
    """Wait for the complete file: the service of wandb closes it only after ``finish`` has returned."""
    deadline = time.monotonic() + 60
    while not (records := list(wandb_records(file))) or records[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < deadline, f"{file} has no end after a minute"
        time.sleep(0.05)
    return records


def test_wandb_gets_all_data_offline_and_a_resumed_run_is_the_same_wandb_run(
    image_set: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setattr(rank_zero, "TRACKERS_TIMEOUT_S", 200.0)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    ids, known = set(), set[Path]()
    for last, expected in ((6, [2, 3, 4, 6]), (9, [8, 9])):
        run, reports = run_alone(tiny_config(steps=last, wandb="bars"), image_set, tmp_path / "run")
        assert not [report.say for report in reports if "Biases" in report.say]
        (file,) = set((tmp_path / "run").glob("wandb/offline-run-*/*.wandb")) - known
        known.add(file)
        logged: dict[int, dict[str, Any]] = {}
        for record in whole_wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.add(record.run.run_id)
                assert (record.run.project, record.run.display_name, record.run.host) == ("bars", "run", "-")
                fields = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                assert fields["objective.lambda_categorical"] == 1.0
            if kind == "history":
                row = {item.nested_key[0] or item.key: json.loads(item.value_json) for item in record.history.item}
                logged.setdefault(row["_step"], {}).update(row)
        assert [step for step, row in logged.items() if "loss/d_loss" in row] == expected
        pictured = [step for step, row in logged.items() if "samples" in row and "traversal/cat0" in row]
        assert pictured == [step for step in expected if step % 3 == 0]
        assert logged[last + 1]["achieved/swd"] == json.loads(run.model.read("metrics.json"))["swd"]
    assert len(ids) == 1
    assert SECRET.encode() not in everything_in(tmp_path)


def test_an_unavailable_tracker_is_reported_once_and_the_run_continues(
    image_set: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = tiny_config(steps=9, mlflow="http://127.0.0.1:9")
    run, reports = run_alone(config, image_set, tmp_path / "run")
    assert run.get_status()["state"] == "finished" and steps(shown(tmp_path / "run"), "achieved/swd") == [10]
    messages = [report.say for report in reports if report.say.startswith("MLflow: ")]
    assert len(messages) == 1 and messages[0].endswith("; the run continues, and some data may be missing there")


def test_the_token_of_mlflow_goes_to_its_server_and_to_no_proxy(
    recording_proxy: RecordingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    received: list[str | None] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append(self.headers["Authorization"])
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with http_server(Server) as url, pytest.raises(MlflowException):
        MLflow(url, RunDirectory(open_storage(str(tmp_path))), {})
    assert set(received) == {f"Bearer {SECRET}"} and recording_proxy.requests == []


class BlockedTracker:
    """A tracker whose calls never return."""

    def row(self, *_: Any, **__: Any) -> None:
        time.sleep(600)

    picture = flush = end = row


def test_a_channel_never_blocks_and_has_a_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "LIMIT_BYTES", 50_000)
    channel = Channel("stuck", BlockedTracker)
    started = time.monotonic()
    for _ in range(1000):
        channel.put(lambda tracker: tracker.row(1, {}, 0.0), 1000)
    channel.close()
    channel.wait(time.monotonic() + 0.5)
    assert time.monotonic() - started < 5 and sum(size for _, size, _ in channel._queue) <= 50_000
    assert "stuck: " in channel.pop_status() and channel.pop_status() == ""


class UnreliableTracker:
    """A tracker that refuses images and accepts each row only at the second try."""

    def __init__(self) -> None:
        self.tries, self.rows = 0, list[int]()

    def row(self, step: int, values: Mapping[str, float], moment: float) -> None:
        self.tries += 1
        if self.tries % 2:
            raise ConnectionError("busy")
        self.rows.append(step)

    def picture(self, step: int, tag: str, png: bytes, moment: float) -> None:
        raise PermissionError("no pictures here")

    def flush(self, due: bool) -> None: ...

    def end(self, state: str, step: int, values: Mapping[str, float]) -> None: ...


def test_rows_are_retried_in_order_and_a_failed_image_does_not_block_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "PAUSE_S", 0.01)
    monkeypatch.setattr(channels, "LONGEST_PAUSE_S", 0.01)
    tracker = UnreliableTracker()
    channel = Channel("shaky", lambda: tracker)
    channel.put(lambda it: it.picture(1, "samples", b"", 0.0), 1, keep=False)
    for step in (1, 2, 3):
        channel.put(lambda it, step=step: it.row(step, {}, 0.0), 1)  # type: ignore[misc]
    until(lambda: tracker.rows == [1, 2, 3])
    channel.close()
    assert channel.pop_status().startswith("shaky: PermissionError: no pictures here; the run continues")


def test_hparams_are_those_that_differ_between_runs() -> None:
    base = hparams(RunConfig().to_dict())
    changed = RunConfig().override(
        {"objective": {"lambda_code": {"uniform1": 0.5}}, "seed": 4, "storage": "s3://b/x", "name": "n"}, "test"
    )
    found = hparams(changed.to_dict())
    assert {key: value for key, value in found.items() if base.get(key) != value} == {
        "objective.lambda_code.uniform1": 0.5, "seed": 4,
    }  # fmt: skip
