"""A run continues with its own settings. Others are refused or recorded. Run: pytest tests/training/test_resume.py"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from infogan_ray import UserError
from infogan_ray.cli.train import train_config
from infogan_ray.data.feeds.feed_policy import MemoryBudget
from infogan_ray.storage import checkpoints
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory, step_name
from infogan_ray.training import worker
from infogan_ray.training.config import RunConfig
from infogan_ray.training.publish import model_files
from infogan_ray.training.resume import epoch_offset, own_settings, recorded_changes, settings_at, steps_of_epochs
from infogan_ray.training.run_cost import steps_plan
from infogan_ray.training.run_setup import check_data, prepare_run
from infogan_ray.training.worker import run_worker
from tests.conftest import tiny_config

ROOM, CPU = MemoryBudget(2**34), torch.device("cpu")


def silent(report: dict[str, Any]) -> None:
    """A listener that ignores all reports."""


@pytest.fixture
def started(npz: Path, tmp_path: Path) -> RunConfig:
    """A run that has its configuration and a status, as after a kill at step 2."""
    config = tiny_config(data=str(npz), storage=str(tmp_path / "runs"), name="run", steps=8)
    prepare_run(config, check_data(config, ROOM), ROOM, silent)
    directory(config).set_status("running", 2, stored=2)
    return config


def directory(config: RunConfig) -> RunDirectory:
    return RunDirectory(open_storage(config.storage) / str(config.name))


def content(config: RunConfig) -> dict[str, bytes]:
    folder = Path(directory(config).folder.path)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_resume_alone_takes_the_settings_of_the_run(started: RunConfig) -> None:
    place = ["--storage", started.storage, "--name", "run", "--resume"]
    config = train_config(place)
    assert config == own_settings(directory(started))
    assert config.override({"resume": False, "feed": "auto"}, "test") == started
    assert train_config([*place, "--steps", "20", "--workers", "2", "--keep", "3"]).steps == 20
    assert train_config(place[:-1], start_or_resume=True).resume
    new = train_config([*place[:2], "--name", "new", "--preset", "mnist"], start_or_resume=True)
    assert not new.resume and new.data == "mnist"


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--seed", "3"], "seed is 3, and was 0"),
        (["--batch-size", "32"], "batch_size is 32, and was 16"),
        (["--optimizer.lr-generator", "0.5"], "optimizer.lr_generator is 0.5, and was 0.001"),
        (["--objective.lambda-categorical", "3"], "objective.lambda_categorical is 3.0, and was 1.0"),
        (["--precision", "bf16"], "precision is bf16, and was fp32"),
        (["--metric", "step"], "metric is step, and was mi_fraction"),
        (["--preset", "mnist_robust"], "consistency.weight is 1.0, and was 0.0"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_written(
    started: RunConfig, flags: list[str], difference: str
) -> None:
    before = content(started)
    # mnist_robust brings its own data and codes; the run's own are given again
    own = ["--data", str(started.data), "--codes", started.codes] if "--preset" in flags else []
    config = train_config(["--storage", started.storage, "--name", "run", "--resume", *flags, *own])
    with pytest.raises(UserError) as refused:
        prepare_run(config, check_data(config, ROOM), ROOM, silent)
    assert difference in str(refused.value) and "give --accept-changes to continue with these" in str(refused.value)
    assert content(started) == before


def test_a_refused_number_of_steps_writes_nothing(started: RunConfig) -> None:
    before = content(started)
    config = train_config(["--storage", started.storage, "--name", "run", "--resume", "--steps", "1"])
    with pytest.raises(UserError, match="steps is 1, and run is at step 2 already; give --steps more"):
        prepare_run(config, check_data(config, ROOM), ROOM, silent)
    assert content(started) == before


def test_the_same_preset_again_changes_nothing(tmp_path: Path, npz: Path) -> None:
    config = tiny_config(preset="shapes", data=str(npz), storage=str(tmp_path), name="run", steps=8)
    prepare_run(config, check_data(config, ROOM), ROOM, silent)
    again = train_config(["--preset", "shapes", "--storage", str(tmp_path), "--name", "run", "--resume"])
    assert again == own_settings(directory(config)), "the preset's batch size is 64, and this run's is 16"
    (file := tmp_path / "config.yaml").write_text("preset: shapes\nbatch_size: 16\n")
    assert train_config([str(file), "--storage", str(tmp_path), "--name", "run", "--resume"]) == again


def test_accepted_changes_are_recorded_with_their_step_and_the_epoch_continues(
    started: RunConfig,
) -> None:
    images = check_data(started, ROOM)
    run = directory(started)
    for _ in run_worker(own_settings(run).override({"steps": 4}, "test"), images, run, device=CPU):
        pass
    flags = ["--batch-size", "32", "--accept-changes", "--steps", "8"]
    config = train_config(["--storage", started.storage, "--name", "run", "--resume", *flags])
    messages: list[str] = []
    config, _ = prepare_run(config, images, ROOM, lambda report: messages.append(report.get("say", "")))
    assert "from step 4 on, batch_size is 32 instead of 16" in messages
    change = {"step": 4, "field": "batch_size", "before": 16, "after": 32}
    assert recorded_changes(run) == [change]
    assert run.read_config()["run"]["accept_changes"] is False, "a later --resume accepts nothing"
    for _ in run_worker(config, images, run, device=CPU):
        pass
    epochs = {row["step"]: row["epoch"] for row in run.read_metrics()}
    assert epochs[4] == pytest.approx(4 / 5) and epochs[8] == pytest.approx(4 / 5 + 4 / 2), (
        "81 images: 5 and then 2 steps"
    )
    early, late = (checkpoints.open_checkpoint(run.checkpoints / step_name(step)) for step in (4, 8))
    cards = [model_files(checkpoint, config, checkpoint.metrics)["README.md"].decode() for checkpoint in (early, late)]
    assert "--batch-size 16" in cards[0] and "does not repeat it" not in cards[0]
    assert "--batch-size 32" in cards[1] and "from step 4 on, batch_size is 32 instead of 16." in cards[1]
    saved = json.loads(model_files(late, config, late.metrics)["config.json"])
    assert saved["changes"] == [change]
    third = own_settings(run).override({"seed": 9, "accept_changes": True, "steps": 12}, "test")
    prepare_run(third, images, ROOM, silent)
    assert [c["field"] for c in recorded_changes(run)] == ["batch_size", "seed"]


def test_only_rank_zero_reads_the_changes_of_a_run(started: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run, images = directory(started), check_data(started, ROOM)
    run.folder.write(run.CONFIG, b"{")
    offsets = []
    monkeypatch.setattr(worker, "train", lambda state, feed, **loop: offsets.append(loop.get("epoch_offset")) or ())
    list(run_worker(started, images, run, device=CPU, rank=1))
    assert offsets == [None]
    with pytest.raises(UserError, match="is not JSON"):
        list(run_worker(started, images, run, device=CPU))


def test_epochs_that_are_made_count_in_full() -> None:
    changes = [{"step": 10, "field": "batch_size", "before": 10, "after": 50}]  # 100 images: 10, then 2 steps
    assert epoch_offset(changes, 100) == 1 - 5
    config = RunConfig(data="bars", epochs=3, batch_size=50)
    assert steps_of_epochs(config, changes, 100) == 10 + 2 * 2
    assert steps_of_epochs(RunConfig(data="bars", epochs=1, batch_size=50), changes, 100) == 10
    whole = steps_plan(dataclasses.replace(config, steps=14, epochs=None), 14, 100, epoch_offset(changes, 100))
    assert whole.startswith("steps: 14 of 50 images, 3 epochs; an epoch is 2 steps")


def test_the_settings_of_an_early_checkpoint_are_those_before_the_changes() -> None:
    config = RunConfig(seed=2).override({"optimizer": {"lr_generator": 0.2}}, "test")
    changes = [
        {"step": 5, "field": "optimizer.lr_generator", "before": 0.1, "after": 0.2},
        {"step": 9, "field": "seed", "before": 1, "after": 2},
    ]
    early, before = settings_at(config, changes, 5)
    assert (early.seed, early.optimizer.lr_generator, before) == (1, 0.1, [])
    middle, before = settings_at(config, changes, 9)
    assert (middle.seed, middle.optimizer.lr_generator, before) == (1, 0.2, changes[:1])
    assert settings_at(config, changes, 10) == (config, changes)


def test_other_images_of_the_same_number_are_another_setting(started: RunConfig, npz: Path, tmp_path: Path) -> None:
    import numpy as np

    with np.load(npz) as arrays:
        np.savez(tmp_path / "darker.npz", images=arrays["images"] // 2, labels=arrays["labels"])
        np.savez(tmp_path / "moved.npz", **arrays)
    place = ["--storage", started.storage, "--name", "run", "--resume", "--data"]
    config = train_config([*place, str(tmp_path / "darker.npz")])
    with pytest.raises(UserError, match=r"data is .*darker\.npz, and was .*bars\.npz"):
        prepare_run(config, check_data(config, ROOM), ROOM, silent)
    config = train_config([*place, str(tmp_path / "moved.npz")])
    prepare_run(config, check_data(config, ROOM), ROOM, silent)
    assert recorded_changes(directory(started)) == [], "the same images in another place"
