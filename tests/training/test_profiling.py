"""The trace that --profile writes. Run: pytest tests/training/test_profiling.py"""

from __future__ import annotations

import gzip
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from infogan_ray.data.feeds.memory import InMemoryFeed
from infogan_ray.data.image_set import ImageSet
from infogan_ray.storage.file_system import Storage, StorageError, open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.loop import train
from infogan_ray.training.profiling import RECORDED, WARM_UP, Profile
from tests.conftest import tiny_config
from tests.servers import Proxy, S3Server
from tests.training.test_step import make_state, run_alone

ENOUGH = WARM_UP + RECORDED + 5


def messages_with(reports: list[Any], word: str) -> list[str]:
    return [report.say for report in reports if word in report.say]


def read(run: RunDirectory) -> dict[str, Any]:
    (entry,) = run.profile.entries()
    return json.loads(gzip.decompress(run.profile.read(entry.name)))


def test_the_trace_has_the_steps_after_the_warm_up(image_set: ImageSet, tmp_path: Path) -> None:
    config = tiny_config(steps=ENOUGH, checkpoint_every=100, profile=True)
    run, reports = run_alone(config, image_set, tmp_path / "run")
    content = gzip.decompress(Path(run.profile.path, "step_00000016.json.gz").read_bytes())
    events = json.loads(content)["traceEvents"]
    steps = sorted((event["ts"], event["ts"] + event["dur"], event["name"]) for event in events
                   if str(event.get("name")).startswith("step ") and event.get("ph") == "X")  # fmt: skip
    assert [name for _, _, name in steps] == [f"step {number}" for number in range(16, 21)]
    for start, end, name in steps:  # each step contains both updates
        inside = [e["name"] for e in events if e.get("ph") == "X" and start <= e["ts"] <= end]
        assert inside.count("Optimizer.step#Adam.step") == 2 and "aten::native_batch_norm_backward" in inside, name
    (line,) = messages_with(reports, "trace")
    assert f"steps 16 to 20 of rank 0: {run.profile}/step_00000016.json.gz; open it at" in line
    assert socket.gethostname() not in json.loads(content).values() and b"infogan-profile-" not in content


def test_profiling_does_not_change_training(image_set: ImageSet) -> None:
    tensors = []
    for profile in (None, Profile(0, torch.device("cpu"))):
        state = make_state()
        feed = InMemoryFeed(image_set.images, 16, 0)
        list(train(state, feed, steps=25, log_every=25, checkpoint_every=25, on_step=profile and profile.step))
        tensors.append(state.training_tensors())
    assert profile is not None and profile.trace
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


def test_a_run_that_is_too_short_for_a_trace_is_reported(image_set: ImageSet, tmp_path: Path) -> None:
    run, reports = run_alone(tiny_config(profile=True), image_set, tmp_path / "run")
    assert messages_with(reports, "trace") == [
        "no trace was made: it takes 20 steps, and 6 were made; give --steps more"
    ]
    assert not run.profile.entries() and run.get_status()["state"] == "finished"


def test_a_trace_is_stored_after_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, profile = RunDirectory(open_storage(tmp_path / "run")), Profile(100, torch.device("cpu"))
    assert profile.store(run, retry=True) == ""
    for _ in range(WARM_UP + RECORDED):
        torch.ones(2) + 1
        profile.step()

    def unavailable(*_: object) -> None:
        raise StorageError("the store does not answer", transient=True)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", unavailable)
        assert "stored at the next checkpoint" in profile.store(run, retry=False)
    assert profile.store(run, retry=False) == "", "it is not tried at every row, because training would wait"
    assert "trace of steps 116 to 120" in profile.store(run, retry=True)
    assert profile.store(run, retry=True) == "" and profile.close() == ""
    assert any(event.get("name") == "step 116" for event in read(run)["traceEvents"])


def test_a_trace_is_stored_in_an_object_store(proxy: Proxy, s3: S3Server) -> None:
    run, profile = RunDirectory(open_storage(proxy.uri("profiled")) / "run"), Profile(0, torch.device("cpu"))
    for _ in range(WARM_UP + RECORDED):
        torch.ones(2) + 1
        profile.step()
    line = profile.store(run, retry=False)
    assert "fetch it and open it at https://ui.perfetto.dev" in line and f": {run.folder}/profile/step_00000016" in line
    assert any(event.get("name") == "step 20" for event in read(run)["traceEvents"])
