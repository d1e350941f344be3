"""The process that trials share, without Ray: one of its kind in this process.

Run: pytest tests/distributed/test_packing.py
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from infogan_ray.data.image_set import ImageSet
from infogan_ray.distributed.tune import packing
from infogan_ray.distributed.tune.packing import Pack
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from tests.conftest import tiny_config

METRIC = "mi_fraction"


def begin(pack: Pack, trial: int, folder: Path, **changes: Any) -> bool:
    config: RunConfig = tiny_config(**changes)
    run = RunDirectory(open_storage(folder / str(trial)))
    if not run.exists:
        run.write_config({"model": config.model_spec(16, 1).to_dict(), "run": config.to_dict()})
    return pack.begin(trial, config.to_dict(), run.folder.uri, METRIC)


def hear_out(pack: Pack, trial: int) -> tuple[list[packing.Said], tuple[str, str]]:
    said: list[packing.Said] = []
    end, read = ("", ""), 0
    while not end[0]:
        told, end = pack.hear(trial, 10.0, read)
        said += told
        read = said[-1][0] if said else 0
    return said, end


def wait_for(trials: list[int], pack: Pack) -> None:
    for trial in trials:
        assert pack.stop(trial, 20.0)


@pytest.fixture
def pack(image_set: ImageSet, monkeypatch: pytest.MonkeyPatch) -> Pack:
    monkeypatch.setattr(packing.ray, "get", lambda kept: kept)  # the only thing of Ray in it
    return Pack([image_set], "cpu", threads=1, most=2)


def test_there_is_room_for_so_many_and_again_when_one_has_ended(pack: Pack, tmp_path: Path) -> None:
    assert begin(pack, 0, tmp_path, steps=9) and begin(pack, 1, tmp_path, steps=100_000)
    assert not begin(pack, 0, tmp_path) and not begin(pack, 2, tmp_path) and pack.busy() == 2
    said, end = hear_out(pack, 0)
    assert end == ("ended", "") and [number for number, _, _ in said] == list(range(1, len(said) + 1))
    assert [step for _, step, metrics in said if METRIC in metrics] == [3, 6, 9, 9], "each score, and that of the best"
    assert begin(pack, 2, tmp_path, steps=3) and hear_out(pack, 2)[1][0] == "ended"
    wait_for([1], pack)
    assert pack.busy() == 0


def test_a_trial_waits_for_its_verdict_and_the_others_do_not(pack: Pack, tmp_path: Path) -> None:
    assert begin(pack, 0, tmp_path, steps=100_000) and begin(pack, 1, tmp_path, steps=6)
    assert hear_out(pack, 1)[1][0] == "ended"
    deadline = time.monotonic() + 20
    read = 0
    while True:  # up to its first score, which is left unread
        told, _ = pack.hear(0, 5.0, read)
        unread = [number for number, _, metrics in told if METRIC in metrics]
        if unread:
            break
        read = told[-1][0] if told else read
        assert time.monotonic() < deadline
    time.sleep(1)
    told, _ = pack.hear(0, 0.0, read)
    assert told[-1][0] == unread[0], "nothing was said after it"
    wait_for([0], pack)
    assert RunDirectory(open_storage(tmp_path / "0")).get_status()["step"] <= 6


def test_a_trial_that_nobody_listens_to_ends_as_a_failure(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as one that is over: its own process may come back, and the trial is to be started again."""
    monkeypatch.setattr(packing, "DEAF_S", 1.0)
    assert begin(pack, 0, tmp_path, steps=100_000)
    time.sleep(1.5)
    deadline = time.monotonic() + 20
    while pack.busy():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    _, end = hear_out(pack, 0)
    assert end == ("failed", "TimeoutError: nobody has listened to the trial for 1 s")


def test_what_ends_a_trial_is_told(pack: Pack, tmp_path: Path) -> None:
    objective = dataclasses.replace(tiny_config().objective, lambda_categorical=3e38)
    assert begin(pack, 0, tmp_path, objective=objective)
    how, why = hear_out(pack, 0)[1]
    assert how == "diverged" and "at step 1" in why
    assert begin(pack, 1, tmp_path, steps=6) and hear_out(pack, 1)[1] == ("ended", "")
    assert begin(pack, 1, tmp_path, steps=3)
    assert hear_out(pack, 1)[1] == ("failed", "StorageFailed: steps is 3, and the run is at step 6; give --steps more")
    with pytest.raises(KeyError):
        pack.hear(7, 0.0, 0)
