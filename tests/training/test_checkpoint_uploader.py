"""Uploads during training: outages, missed checkpoints, full disks, competing attempts.

Run: pytest tests/training/test_checkpoint_uploader.py
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from infogan_ray.data.image_set import ImageSet
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import Storage, StorageError, open_storage
from infogan_ray.storage.metrics_log import MetricsLog
from infogan_ray.storage.run_directory import RunDirectory, step_name
from infogan_ray.training import checkpoint_uploader as module
from infogan_ray.training.checkpoint_uploader import (
    SHORT_TIMEOUT_S,
    CheckpointUploader,
    PendingCheckpoint,
    RunTakenOver,
    StorageFailed,
)
from infogan_ray.training.run_logger import RunLogger
from infogan_ray.training.worker import Report, run_worker
from tests.conftest import small_disk, tiny_config, write_keys
from tests.servers import KEY, RENEWED_KEY, SECRET, Mode, Proxy
from tests.training.test_step import run_alone
from tests.training.test_tracking import event_files_of, shown, steps

FILES = {checkpoints.MODEL: b"m", checkpoints.STATE: json.dumps({"format": 1, "step": 1, "metrics": {}}).encode()}


def steps_in(run: RunDirectory) -> list[int]:
    return [checkpoint.step for checkpoint in checkpoints.list_checkpoints(run.checkpoints)[0]]


def everything_below(folder: Storage) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in folder.entries():
        if entry.is_folder:
            found |= {
                f"{entry.name}/{name}": content for name, content in everything_below(folder / entry.name).items()
            }
        else:
            found[entry.name] = folder.read(entry.name)
    return found


def run_on(uri: str, images: ImageSet, actions: dict[int, Any], **changes: Any) -> tuple[RunDirectory, list[Report]]:
    """A run without Ray on a storage. ``actions[step]`` is called when that step is reported."""
    config = tiny_config(**changes)
    run = RunDirectory(open_storage(uri) / "run")
    run.write_config({"model": config.model_spec(16, 1).to_dict(), "run": config.to_dict()})
    reports = []
    for report in run_worker(config, images, run, device=torch.device("cpu")):
        reports.append(report)
        actions.pop(report.metrics.get("step"), lambda: None)()
    return run, reports


def test_a_run_on_s3_stores_all_files_and_no_secret(image_set: ImageSet, proxy: Proxy) -> None:
    run, _ = run_on(proxy.uri("plain run"), image_set, {})
    found = everything_below(run.folder)
    assert {name.partition("/")[0] for name in found if not name.startswith(run.EVENTS)} == {
        "config.json", "metrics.jsonl", "status.json", "checkpoints", "model", "samples", "traversals",
    }  # fmt: skip
    assert steps_in(run) == [3, 6] and [row["step"] for row in run.read_metrics()] == [2, 3, 4, 6]
    assert not [name for name, content in found.items() if SECRET.encode() in content]


@pytest.mark.parametrize("mode", ["503", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("reset", "cut"))])
def test_training_continues_during_an_outage(image_set: ImageSet, proxy: Proxy, tmp_path: Path, mode: Mode) -> None:
    """Storage is unavailable from step 6 to 60. The lag is reported, and at the end everything is stored."""
    actions = {6: lambda: proxy.become(mode), 60: lambda: proxy.become("well")}
    run, reports = run_on(proxy.uri(f"outage {mode}"), image_set, actions, steps=90, checkpoint_every=10, keep=20)
    messages = [report.say for report in reports if report.say]
    assert any(line.startswith("storage is unavailable, the run continues") for line in messages), messages
    assert reports[-1].phase == "finished" and run.get_status()["state"] == "finished"
    assert steps_in(run)[-1] == 90 and len([row["step"] for row in run.read_metrics()]) == 45
    seen = shown(event_files_of(run, tmp_path / "copy"))
    assert steps(seen, "loss/d_loss") == list(range(2, 91, 2)), (
        "all curves are complete, although training did not wait for them"
    )
    assert not checkpoints.list_checkpoints(run.checkpoints)[1], "no incomplete checkpoint is left"


def test_training_continues_while_credentials_have_expired(
    image_set: ImageSet, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server refuses the old key from step 6; the new key is in the file of credentials at step 30."""
    write_keys(tmp_path / "keys", KEY, monkeypatch)
    actions = {
        6: lambda: proxy.become("expired"),
        20: lambda: time.sleep(SHORT_TIMEOUT_S + 2),  # until the upload of step 10 has given up; the next rows say so
        30: lambda: write_keys(tmp_path / "keys", RENEWED_KEY, monkeypatch),
    }
    run, reports = run_on(proxy.uri("expired"), image_set, actions, steps=40, checkpoint_every=10, keep=20)
    messages = [report.say for report in reports if report.say]
    refused = "storage is unavailable, the run continues .*ExpiredToken: The provided token has expired.*renew the cred"
    assert any(re.match(refused, line) for line in messages), messages
    assert reports[-1].phase == "finished" and run.get_status()["state"] == "finished"
    assert steps_in(run)[-1] == 40 and len([row["step"] for row in run.read_metrics()]) == 20
    seen = shown(event_files_of(run, tmp_path / "copy"))
    assert steps(seen, "loss/d_loss") == list(range(2, 41, 2)), "no curve has a gap"
    assert not checkpoints.list_checkpoints(run.checkpoints)[1], "no incomplete checkpoint is left"


@pytest.mark.slow
def test_after_too_many_missed_checkpoints_the_run_fails_with_valid_checkpoints(
    image_set: ImageSet, proxy: Proxy
) -> None:
    actions = {16: lambda: proxy.become("503")}
    with pytest.raises(
        StorageFailed, match="3 checkpoints in a row missed storage.*last whole checkpoint is step_0000"
    ):
        run_on(proxy.uri("unavailable"), image_set, actions, steps=10_000, checkpoint_every=5, max_missed_checkpoints=2)
    proxy.become("well")
    run = RunDirectory(open_storage(proxy.uri("unavailable")) / "run")
    last = checkpoints.last_valid(run.checkpoints, warn=pytest.fail)
    assert last is not None and last.step in (10, 15)


def test_a_full_disk_gives_a_readable_message_and_keeps_a_valid_checkpoint(image_set: ImageSet, tmp_path: Path) -> None:
    """A file size limit stands for a full disk: both stop a write in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = RunDirectory(open_storage(tmp_path) / "run")

    def fill() -> None:
        deadline = time.monotonic() + 60
        while steps_in(run) != [3]:  # a thread uploads it
            assert time.monotonic() < deadline
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))

    try:
        with pytest.raises(
            StorageFailed, match="no space is left.*the last whole checkpoint is step_00000003"
        ) as failure:
            run_on(str(tmp_path), image_set, {4: fill}, steps=1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(failure.value)
    good, bad = checkpoints.list_checkpoints(run.checkpoints)
    assert [checkpoint.step for checkpoint in good] == [3] and not bad, "an incomplete checkpoint is deleted"
    run_alone(tiny_config(steps=6), image_set, tmp_path / "run")
    assert steps_in(run) == [3, 6], "the run continues when there is room again"


def upload(run: RunDirectory, steps: list[int], keep: int) -> None:
    """Upload checkpoints of 1 MB; the first is the best. Raises StorageFailed."""
    uploader = CheckpointUploader(run, step=steps[0] - 1, keep=keep, metric="mi_fraction", max_misses=3)
    try:
        for step in steps:
            state = {"format": 1, "step": step, "metrics": {"mi_fraction": 1 / step}}
            files = {checkpoints.MODEL: bytes(1_000_000), checkpoints.STATE: json.dumps(state).encode()}
            uploader.put(PendingCheckpoint(step, files, {("samples", f"{step}.png"): bytes(10_000)}))
            uploader.flush(20)
            assert not uploader.warning
    finally:
        uploader.close()


def test_on_a_full_disk_old_checkpoints_are_deleted_before_the_next_is_written(tmp_path: Path) -> None:
    """The disk has room for the three checkpoints that are kept, and not for a fourth."""
    with small_disk(tmp_path / "disk", "size=3800k") as disk:
        run = RunDirectory(open_storage(disk) / "run")
        upload(run, [1, 2, 3, 4, 5, 6], keep=3)
        assert steps_in(run) == [1, 5, 6], "the best and the newest"
        assert not checkpoints.list_checkpoints(run.checkpoints)[1] and len(run.samples.entries()) == 6


def test_a_full_disk_says_what_to_delete_and_a_resumed_run_deletes_first(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=4200k") as disk:
        other = RunDirectory(open_storage(disk) / "other")
        other.set_status("finished")
        other.folder.write("big", bytes(500_000))
        run = RunDirectory(open_storage(disk) / "run")
        for steps in ([1, 2, 3, 4], [4]):  # the second time without deleting anything
            with pytest.raises(StorageFailed) as failure:
                upload(run, steps, keep=5)
            advice = (
                r"it takes 1.0 MB and 7\d\d.\d kB are free, so make room for 3\d\d.\d kB more: add --keep 2, which "
                r"deletes step_00000002 \(1.0 MB\), or delete other files on this disk, for example "
                rf"{other.folder} \(500.1 kB\); the last whole checkpoint is step_00000003$"
            )
            assert re.search(rf"no space is left \(No space left on device\); {advice}", str(failure.value))
            assert steps_in(run) == [1, 2, 3], "every whole checkpoint stays"
            assert [entry.name for entry in run.checkpoints.entries()] == [step_name(step) for step in (1, 2, 3)]
        upload(run, [4, 5, 6], keep=2)
        assert steps_in(run) == [1, 6]


def test_a_resumed_run_makes_room_for_its_status(tmp_path: Path) -> None:
    """The disk has no free byte."""
    with small_disk(tmp_path / "disk", "size=5m") as disk:
        run = RunDirectory(open_storage(disk) / "run")
        upload(run, [1, 2, 3, 4], keep=4)
        with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        with pytest.raises(StorageError, match="no space is left"):
            upload(run, [5], keep=4)
        upload(run, [5], keep=3)
        assert steps_in(run) == [1, 4, 5]
        CheckpointUploader(run, step=5, keep=1, metric="mi_fraction", max_misses=3).close()
        assert steps_in(run) == [1, 5], "a run that keeps fewer deletes the others when it starts"


def test_a_writer_whose_run_was_taken_over_stops(tmp_path: Path) -> None:
    run = RunDirectory(open_storage(tmp_path))
    config: dict[str, Any] = {"step": 0, "keep": 5, "metric": "mi_fraction", "max_misses": 3}
    old = CheckpointUploader(run, **config)
    new = CheckpointUploader(run, **config)
    old.put(PendingCheckpoint(7, FILES))
    with pytest.raises(StorageFailed, match="another attempt has taken this run over"):
        old.flush(20)
    new.put(PendingCheckpoint(8, FILES))
    new.flush(20)
    old.close()
    new.close("finished")
    assert [entry.name for entry in run.checkpoints.entries()] == ["step_00000008"]


def test_a_writer_whose_run_was_taken_over_changes_nothing_of_its_successor(tmp_path: Path) -> None:
    """The old writer stores a step late, after the new writer has already stored it."""
    run = RunDirectory(open_storage(tmp_path))
    config: dict[str, Any] = {"step": 0, "keep": 5, "metric": "mi_fraction", "max_misses": 3}
    old = CheckpointUploader(run, **config)
    new = CheckpointUploader(run, **config)
    new.put(PendingCheckpoint(7, FILES))
    new.flush(20)
    old.put(PendingCheckpoint(7, FILES | {checkpoints.MODEL: b"other"}))
    with pytest.raises(RunTakenOver):
        old.flush(20)
    old.close("failed")
    assert checkpoints.open_checkpoint(run.checkpoints / "step_00000007").manifest.read(checkpoints.MODEL) == b"m"
    new.close("finished")
    assert run.get_status()["state"] == "finished"


def test_a_slow_storage_never_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.01)
    real = manifests.write_with_manifest

    def slow(*arguments: Any, **more: Any) -> None:
        time.sleep(0.5)
        real(*arguments, **more)

    monkeypatch.setattr(manifests, "write_with_manifest", slow)
    uploader = CheckpointUploader(
        RunDirectory(open_storage(tmp_path)), step=0, keep=5, metric="mi_fraction", max_misses=2
    )
    for step in range(1, 8):
        uploader.put(PendingCheckpoint(step, FILES))
    assert uploader.failure is None and uploader.warning.startswith("uploads are slower than checkpoints")
    uploader.flush(20)
    uploader.close()
    assert steps_of_folders(tmp_path)[-1] == "step_00000007" and uploader.warning == ""


def steps_of_folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in (path / "checkpoints").iterdir())


def test_a_run_whose_checkpoints_cannot_be_read_is_not_restarted_from_step_0(
    image_set: ImageSet, tmp_path: Path
) -> None:
    run, _ = run_alone(tiny_config(), image_set, tmp_path / "run")
    for entry in run.checkpoints.entries():
        (Path(run.checkpoints.path) / entry.name / checkpoints.MODEL).write_bytes(b"rot")
    before = everything_below(run.folder)
    with pytest.raises(StorageFailed, match="no checkpoint in .* can be read; move them away to start from step 0"):
        run_alone(tiny_config(), image_set, tmp_path / "run")
    assert everything_below(run.folder) == before, "all files are unchanged"
    with pytest.raises(StorageFailed, match="steps is 3, and the run is at step 6"):
        run_alone(tiny_config(), image_set, tmp_path / "run2")
        run_alone(tiny_config(steps=3), image_set, tmp_path / "run2")


def test_a_full_disk_while_the_model_is_published_gives_a_readable_message(image_set: ImageSet, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    config = tiny_config()
    run = RunDirectory(open_storage(tmp_path / "run"))
    run.write_config({"model": config.model_spec(16, 1).to_dict(), "run": config.to_dict()})
    try:
        with pytest.raises(StorageFailed, match="no space is left"):
            for report in run_worker(config, image_set, run, device=torch.device("cpu")):
                if report.phase.startswith("evaluating the best"):
                    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps_in(run) == [3, 6]


def test_an_outage_is_reported_with_its_count_until_the_run_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*arguments: Any, **more: Any) -> None:
        raise StorageError("the server is unavailable", transient=True)

    monkeypatch.setattr(manifests, "write_with_manifest", unavailable)
    run = RunDirectory(open_storage(tmp_path))
    uploader = CheckpointUploader(run, step=0, keep=5, metric="mi_fraction", max_misses=1)
    log = RunLogger(tiny_config(), run, 0, uploader, None)
    uploader.step = 1
    uploader.put(PendingCheckpoint(1, FILES))
    while not uploader.error:
        time.sleep(0.01)
    said = [log.pop_status()]
    while uploader.missed < 2:
        uploader.put(PendingCheckpoint(1, FILES))
        if status := log.pop_status():
            said.append(status)
    start = "storage is unavailable, the run continues (1 step is not stored; "
    end = " missed in a row, at most 1 allowed): the server is unavailable"
    assert said == [start + count + end for count in ("0 checkpoints", "1 checkpoint")]
    assert str(uploader.failure).startswith("2 checkpoints in a row missed storage: the server is unavailable; ")
    log.tracking.close(0)
    uploader.close()


def test_the_end_of_an_outage_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if checkpoints came so fast that some were replaced: the outage was the reason, and not slow uploads."""
    real, away = manifests.write_with_manifest, [True]

    def write(*arguments: Any, **more: Any) -> None:
        time.sleep(0.2)
        if away:
            raise StorageError("the server is unavailable", transient=True)
        real(*arguments, **more)

    monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.01)
    monkeypatch.setattr(manifests, "write_with_manifest", write)
    run = RunDirectory(open_storage(tmp_path))
    uploader = CheckpointUploader(run, step=0, keep=5, metric="mi_fraction", max_misses=9)
    log = RunLogger(tiny_config(), run, 0, uploader, None)
    for step in (1, 2, 3):
        uploader.put(PendingCheckpoint(step, FILES))
    while not uploader.error:
        time.sleep(0.01)
    assert log.pop_status().startswith("storage is unavailable")
    away.clear()
    uploader.flush(20)
    assert [log.pop_status(), log.pop_status()] == ["storage is available again; step 3 is stored", ""]
    log.tracking.close(0)
    uploader.close()


def test_a_bug_in_the_thread_ends_the_run(tmp_path: Path) -> None:
    uploader = CheckpointUploader(
        RunDirectory(open_storage(tmp_path)), step=0, keep=5, metric="mi_fraction", max_misses=3
    )
    uploader.put(PendingCheckpoint(1, FILES, {("no/plain/name", "x"): b""}))
    with pytest.raises(StorageFailed, match="not a plain name"):
        uploader.flush(20)
    uploader.close()


def test_a_stop_during_an_evaluation_keeps_the_step(image_set: ImageSet, tmp_path: Path) -> None:
    """The step's checkpoint has no metrics and never ranks. It is evaluated when the run continues."""
    stopping: list[bool] = []

    class Stop:
        def __call__(self) -> bool:
            return bool(stopping)

    config = tiny_config()
    run = RunDirectory(open_storage(tmp_path / "run"))
    run.write_config({"model": config.model_spec(16, 1).to_dict(), "run": config.to_dict()})
    for report in run_worker(config, image_set, run, device=torch.device("cpu"), stop=Stop()):
        if report.phase == "evaluating" and report.metrics["step"] == 6:
            stopping.append(True)
    assert report.phase == "interrupted" and report.metrics["message"] == "stopped at step 6, which is stored"
    last = checkpoints.last_valid(run.checkpoints, warn=pytest.fail)
    assert last is not None and last.step == 6 and "mi_fraction" not in last.metrics
    run_alone(config, image_set, tmp_path / "run")
    last = checkpoints.last_valid(run.checkpoints, warn=pytest.fail)
    assert last is not None and "mi_fraction" in last.metrics and run.get_status()["state"] == "finished"


def test_a_non_finite_metric_records_the_last_good_checkpoint(
    image_set: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infogan_ray.training import checkpoint_writer
    from infogan_ray.training.loop import Diverged

    measured = iter([0.5, float("nan")])
    monkeypatch.setattr(
        checkpoint_writer, "evaluate_state", lambda *_: {"mi_fraction": next(measured), "mi_bound": 1.0}
    )
    with pytest.raises(Diverged, match="mi_fraction is nan at step 6"):
        run_alone(tiny_config(steps=9), image_set, tmp_path / "run")
    run = RunDirectory(open_storage(tmp_path / "run"))
    status = run.get_status()
    assert (status["state"], status["last_good"], status["quantity"]) == ("diverged", "step_00000003", "mi_fraction")
    assert steps_in(run) == [3]


def test_the_later_attempt_owns_the_run_with_any_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, ahead = RunDirectory(open_storage(tmp_path) / "run"), time.time_ns() + 30 * 10**9
    owners = []
    for clock in (lambda: ahead, time.time_ns):
        with monkeypatch.context() as machine:
            machine.setattr(time, "time_ns", clock)
            uploader = CheckpointUploader(run, step=0, keep=2, metric="mi_fraction", max_misses=1)
        owners.append(run.get_status()["owner"])
        uploader.close()
    assert owners[0] < owners[1], "an attempt stops when it reads a greater owner"


def test_a_partly_written_line_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(open_storage(tmp_path) / "run")
    run.set_status("running")
    log = MetricsLog(run, 0)
    log.add({"step": 1})
    log.flush(0)
    whole = Storage.append

    def half(folder: Storage, name: str, content: bytes) -> None:
        whole(folder, name, content[: len(content) // 2])
        raise StorageError("a network share is unavailable", transient=True)

    monkeypatch.setattr(Storage, "append", half)
    for step in (2, 3):
        log.add({"step": step})
    log.flush(0)
    monkeypatch.undo()
    log.add({"step": 4})
    log.flush(0)
    assert Path(run.folder.path, run.METRICS).read_text().splitlines() == [f'{{"step": {n}}}' for n in (1, 2, 3, 4)]
