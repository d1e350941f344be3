"""A run starts, and continues only with the same data. Run: pytest tests/training/test_run_setup.py"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from infogan_ray.cli.exit_codes import DONE, USAGE
from infogan_ray.cli.main import main
from infogan_ray.cli.train import train_config
from infogan_ray.data.feeds.feed_policy import MemoryBudget
from infogan_ray.data.image_set import ImageSet
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from infogan_ray.training.disk_room import run_warning, search_warning
from infogan_ray.training.resume import own_settings, recorded_changes
from infogan_ray.training.run_cost import checkpoint_size
from infogan_ray.training.run_setup import check_data, prepare_run
from tests.conftest import small_disk, tiny_config

ROOM = MemoryBudget(2**34)


def test_a_run_continues_only_with_the_same_data(npz: Path, tmp_path: Path) -> None:
    config = tiny_config(data=str(npz), storage=str(tmp_path), name="run")
    images = check_data(config, ROOM)
    messages: list[str] = []

    def prepare(found: ImageSet) -> RunConfig:
        messages.clear()
        prepared, _ = prepare_run(resumed, found, ROOM, lambda report: messages.append(report.get("say", "")))
        return prepared

    resumed = config
    prepare(images)
    resumed = config.override({"resume": True}, "the test")
    prepare(images)
    assert not any("have changed" in line for line in messages)

    darker = ImageSet("bars", images.images // 2, images.labels, images.test_images, images.test_labels)
    prepare(darker)
    assert f"the images of {npz} have changed since run began; their number is the same" in messages
    fewer = ImageSet("bars", images.images[1:], None, images.test_images, None)
    with pytest.raises(ValueError, match=r"has changed since 'run' began \(81 images, and 80 now\): its images"):
        prepare(fewer)
    assert torch.equal(check_data(config, ROOM).images, images.images)


def wide_arrays(path: Path, most: int) -> str:
    np.save(path, np.linspace(0, most, 40 * 16 * 16).reshape(40, 16, 16).astype(np.uint16))
    return str(path)


def setup(config: RunConfig) -> tuple[RunConfig, ImageSet, list[str]]:
    messages: list[str] = []
    images = check_data(config, ROOM, messages.append)
    prepared, _ = prepare_run(config, images, ROOM, lambda report: messages.append(report.get("say", "")))
    return prepared, images, messages


def test_the_pixel_range_that_was_found_is_recorded_and_kept(tmp_path: Path) -> None:
    data = wide_arrays(tmp_path / "a.npy", 4000)
    config = tiny_config(data=data, storage=str(tmp_path / "runs"), name="run")
    prepared, first, _ = setup(config)
    assert prepared.pixel_range == "0:4095" and prepared.fit == "crop"
    resumed = config.override({"resume": True}, "the test")
    wide_arrays(tmp_path / "a.npy", 5000)
    again, images, messages = setup(resumed)
    assert again.pixel_range == "0:4095" and images.images.max() == 255 and images.images[39].min() == 255
    assert any("pixel_range is 0:4095, as run began" in line for line in messages)
    wide_arrays(tmp_path / "a.npy", 4000)
    assert torch.equal(setup(resumed)[1].images, first.images)
    for changes, message in (
        ({"pixel_range": "0:255"}, "pixel_range is 0:255, and was 0:4095"),
        ({"fit": "pad"}, "fit is pad, and was crop"),
    ):
        with pytest.raises(ValueError, match=message):
            setup(resumed.override(changes, "the test"))
    prepared, _, messages = setup(resumed.override({"pixel_range": "0:255", "accept_changes": True}, "the test"))
    assert prepared.pixel_range == "0:255" == setup(resumed)[0].pixel_range
    assert "from step 0 on, pixel_range is 0:255 instead of 0:4095" in messages


def test_a_resume_with_the_same_settings_passes_whatever_range_was_found(tmp_path: Path) -> None:
    data = wide_arrays(tmp_path / "a.npy", 4000)
    config = tiny_config(data=data, storage=str(tmp_path / "runs"), name="run")
    _, run = prepare_run(config, check_data(config, ROOM), ROOM, lambda report: None)
    place = ["--storage", config.storage, "--name", "run", "--resume"]
    from_command_line = train_config(place)
    assert from_command_line.pixel_range == "0:4095"
    for resumed in (
        from_command_line, own_settings(run), dataclasses.replace(config, resume=True),
        train_config([*place, "--pixel-range", "0:4095", "--fit", "crop"]),
    ):  # fmt: skip
        prepared, _, messages = setup(resumed)
        assert (prepared.pixel_range, recorded_changes(run)) == ("0:4095", [])
        assert not any("changed" in line for line in messages)
    saved = json.loads(run.folder.read(run.CONFIG))
    del saved["run"]["pixel_range"]  # an earlier version did not write it
    run.folder.write(run.CONFIG, json.dumps(saved).encode())
    assert setup(train_config(place))[0].pixel_range == "0:4095" and recorded_changes(run) == []


def test_a_run_of_an_earlier_version_still_squeezes_its_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.random.default_rng(0).integers(0, 256, (40, 16, 24), dtype=np.uint8))
    config = tiny_config(data=str(tmp_path / "a.npz"), image_size=16, storage=str(tmp_path / "runs"), name="run")
    _, squeezed, _ = setup(config.override({"fit": "squeeze"}, "the test"))
    file = tmp_path / "runs" / "run" / "config.json"
    saved = json.loads(file.read_text())
    del saved["run"]["fit"], saved["run"]["pixel_range"]
    file.write_text(json.dumps(saved))
    run = RunDirectory(open_storage(config.storage) / "run")
    prepared, images, messages = setup(own_settings(run))
    assert prepared.fit == "squeeze" and torch.equal(images.images, squeezed.images)
    assert not any("have changed" in line for line in messages)


def test_a_run_of_an_earlier_version_keeps_its_held_out_images(npz: Path, tmp_path: Path) -> None:
    config = tiny_config(data=str(npz), storage=str(tmp_path), name="run")
    earlier = config.override({"hold_out": "every_seventh"}, "the test")
    images = check_data(earlier, ROOM)
    assert (images.count, check_data(config, ROOM).count) == (83, 81)
    _, run = prepare_run(earlier, images, ROOM, lambda report: None)
    saved = json.loads(run.folder.read(run.CONFIG))
    del saved["run"]["hold_out"]  # that version did not write it
    run.folder.write(run.CONFIG, json.dumps(saved).encode())

    resumed = own_settings(run)
    again = check_data(resumed, ROOM)
    assert again.test_images is not None and images.test_images is not None
    assert torch.equal(again.images, images.images) and torch.equal(again.test_images, images.test_images)
    for_workers, _ = prepare_run(resumed, again, ROOM, lambda report: None)
    assert for_workers.hold_out == "every_seventh" == run.read_config()["run"]["hold_out"]
    other = resumed.override({"hold_out": "none"}, "the test")
    with pytest.raises(ValueError, match="hold_out is none, and was every_seventh"):
        prepare_run(other, check_data(other, ROOM), ROOM, lambda report: None)


def test_what_cannot_be_measured_is_said_before_the_start(tmp_path: Path) -> None:
    labels = [0] * 40 + [1] * 3 + [2]
    np.savez(tmp_path / "a.npz", images=np.zeros((44, 16, 16), np.uint8), labels=labels)
    config = tiny_config(data=str(tmp_path / "a.npz"), storage=str(tmp_path))
    say: list[str] = []
    check_data(config.override({"metric": "nmi"}, "the test"), ROOM, say.append)
    assert "data: agreement with labels does not test 1 class of one image: 2" in say
    assert not any("not measured: agreement" in line for line in say)
    np.savez(tmp_path / "a.npz", images=np.zeros((44, 16, 16), np.uint8), labels=[0] * 42 + [1] * 2)
    config = config.override({"hold_out": "every_seventh"}, "the test")
    check_data(config, ROOM, say.append)
    reason = "the test part, 6 images, has none of 1 of the 2 classes: 1 (2 to train on)"
    assert f"not measured: agreement with labels: {reason}" in say
    with pytest.raises(ValueError, match="metric is 'nmi', which is not measured: the test part, 6 images, has none"):
        check_data(config.override({"metric": "nmi"}, "the test"), ROOM)


@pytest.mark.parametrize(
    ("game", "r1", "r2", "told"),
    [("logistic", 0, 0, False), ("relativistic", 0.1, 0.1, False), ("relativistic", 0.1, 0, True)],
)
def test_a_relativistic_game_without_its_penalties_is_said(
    game: str, r1: float, r2: float, told: bool, npz: Path, tmp_path: Path
) -> None:
    changes = {"objective": {"game": game}, "stability": {"r1": r1, "r2": r2}}
    say: list[str] = []
    check_data(
        tiny_config(data=str(npz), storage=str(tmp_path), name="run").override(changes, "the test"), ROOM, say.append
    )
    line = "objective: the relativistic game may diverge if a penalty is 0; stability.r1 is 0.1 and stability.r2 is 0; "
    assert (line + "0.1 is usual for both" in say) is told
    assert any("may diverge" in text for text in say) is told


@pytest.mark.parametrize(
    ("codes", "continuous", "told"),
    [
        ("noise=2 uniform=1", 0.0, ["consistency.weight 1, stability.resplit_every 9"]),
        ("noise=2 uniform=1", 0.5, ["stability.resplit_every 9"]),
        ("noise=2 bernoulli=1", 0.0, ["stability.resplit_every 9"]),
        ("noise=2 cat=3", 0.0, []),
    ],
)
def test_settings_for_categories_without_effect_are_said(
    codes: str, continuous: float, told: list[str], npz: Path, tmp_path: Path
) -> None:
    changes = {"consistency": {"weight": 1, "continuous": continuous}, "stability": {"resplit_every": 9}}
    config = tiny_config(data=str(npz), storage=str(tmp_path), name="run", codes=codes).override(changes, "the test")
    say: list[str] = []
    check_data(config, ROOM, say.append)
    assert [line.partition("so no effect of: ")[2] for line in say if "no effect" in line] == told


def test_a_disk_without_room_is_known_before_the_run(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five checkpoints of 1 MB are kept, and one is in flight."""
    config = tiny_config(data=str(npz), name="run", steps=30)
    images = check_data(config, ROOM)
    with small_disk(tmp_path / "disk", "size=3m") as disk:
        messages: list[str] = []
        config = config.override({"storage": str(disk)}, "the test")
        prepare_run(config, images, ROOM, lambda report: messages.append(report["say"]))
        expected = (
            f"{disk}/run has 3.1 MB free, and up to 6.2 MB more will be written: give a --keep below 5, delete other "
            "files on this disk, or name another folder with --storage"
        )
        assert expected in messages
        few = config.override({"keep": 1, "steps": 6, "name": "few"}, "the test")
        prepare_run(few, images, ROOM, lambda report: messages.append(report["say"]))
        assert not [line for line in messages if f"{disk}/few has" in line], "two checkpoints fit"
        words = ["train", "--data", str(npz), "--codes", "noise=4 cat=3 uniform=1", "--network.width", "8",
                 "--batch-size", "16", "--steps", "30", "--checkpoint-every", "3", "--storage", str(disk),
                 "--name", "other", "--dry-run"]  # fmt: skip
        assert main(words) == DONE
        assert f"infogan: {disk}/other has 3.1 MB free, and up to 6.2 MB more" in capsys.readouterr().err
        (disk / "filler").write_bytes(bytes(2_200_000))
        refusal = rf"{disk}/other has \d+.* kB free, and one checkpoint takes 1.0 MB; delete files there, or name"
        with pytest.raises(ValueError, match=refusal):
            prepare_run(config.override({"name": "other"}, "the test"), images, ROOM, lambda report: None)
        assert not (disk / "other").exists()
        assert main(words) == USAGE


def test_a_resumed_run_needs_no_room_for_what_is_there(npz: Path, tmp_path: Path) -> None:
    config = tiny_config(data=str(npz), name="run", steps=30, keep=2)
    images = check_data(config, ROOM)
    size = checkpoint_size(config, images)
    with small_disk(tmp_path / "disk", "size=3400k") as disk:
        run = RunDirectory(open_storage(disk) / "run")
        for step in range(2):
            (run.checkpoints / f"step_{step:08d}").write("model.safetensors", bytes(size))
        run.set_status("interrupted", 1, stored=1)
        assert run_warning(config, 30, size, run) == "", "of three checkpoints, two are there"
        assert "up to 2.1 MB more" in run_warning(config.override({"keep": 3}, "the test"), 30, size, run)
        (run.checkpoints / "step_00000002").write("model.safetensors", bytes(size))
        assert run_warning(config, 30, size, run) == "", "the oldest is deleted first"
        with pytest.raises(ValueError, match="one checkpoint takes"):
            run_warning(config.override({"keep": 9}, "the test"), 30, size, run)
        assert run_warning(config.override({"keep": 9}, "the test"), 1, size, run) == "", "all are stored"
    bucket = RunDirectory(open_storage("s3://bucket/runs?region=a") / "run")
    assert run_warning(config, 30, size, bucket) == "", "nothing is requested"


def test_a_search_is_compared_with_the_free_space(npz: Path, tmp_path: Path) -> None:
    config = tiny_config(data=str(npz), name="trial", steps=30)
    images = check_data(config, ROOM)
    with small_disk(tmp_path / "disk", "size=3m") as disk:
        line = search_warning([config] * 4, images, open_storage(disk) / "search")
        assert line.startswith(f"{disk}/search has 3.1 MB free, and up to 21.8 MB more will be written: give fewer")
        assert search_warning([config.override({"keep": 1, "steps": 3}, "the test")], images, open_storage(disk)) == ""
        (disk / "filler").write_bytes(bytes(2_200_000))
        with pytest.raises(ValueError, match="one checkpoint takes"):
            search_warning([config], images, open_storage(disk) / "search")
