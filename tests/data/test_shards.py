"""Shard plan, shard files and progress log, without Ray. Run: pytest tests/data/test_shards.py"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infogan_ray.cli.main import FAILED, USAGE, main
from infogan_ray.data.datasets import DataConfig, load_images
from infogan_ray.data.preparation import shard_source
from infogan_ray.data.preparation.progress_log import ProgressLog
from infogan_ray.data.preparation.shard_plan import ShardPlan, plan_shards
from infogan_ray.data.preparation.shard_source import open_source
from infogan_ray.data.preparation.shard_writer import write_shards
from infogan_ray.data.shards.dataset import ENCODED, PROGRESS, RAW, TEST, TRAIN, check, open_shards
from infogan_ray.storage.file_system import Storage, open_storage
from tests.conftest import small_disk
from tests.servers import Proxy

KINDS, EACH = 3, 28


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders of PNG files. The grey value identifies each file; one file is broken."""
    for kind in range(KINDS):
        folder = tmp_path / "photos" / f"kind{kind}"
        folder.mkdir(parents=True)
        for number in range(EACH):
            Image.new("L", (16, 16), kind * EACH + number).save(folder / f"{number:03d}.png")
    (tmp_path / "photos" / "kind1" / "005.png").write_bytes(b"\x89PNG nothing more")
    return tmp_path / "photos"


def job_of(source: Path, encoding: str = RAW, labels: str | None = None) -> ShardPlan:
    opened = open_source(str(source), DataConfig(image_size=16, channels=1, labels=labels), say=lambda line: None)
    return plan_shards(opened, encoding, 16, 1, rows_per_shard=20, rows_per_group=8)


def prepare(job: ShardPlan, folder: Storage, backwards: bool = False) -> None:
    log, tasks = ProgressLog(folder), job.tasks()
    log.begin(job.request, overwrite=False)
    records = log.done(tasks)
    for task in reversed(tasks) if backwards else tasks:
        if task.number not in records:
            records[task.number] = write_shards(job, task, folder)
            log.add(records[task.number])
    log.write_manifest(job, records.values())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("encoding", [RAW, ENCODED])
def test_every_image_is_in_one_shard_with_its_label_and_its_path(photos: Path, tmp_path: Path, encoding: str) -> None:
    prepare(job_of(photos, encoding), open_storage(tmp_path / "dest"))
    shards = open_shards(open_storage(tmp_path / "dest"))
    seen: dict[str, tuple[int, int]] = {}
    for shard in (*shards.train, *shards.test):
        table = pq.read_table(tmp_path / "dest" / shard.file)
        for row in table.to_pylist():
            content = row["image"] if encoding == RAW else np.asarray(Image.open(io.BytesIO(row["image"]))).tobytes()
            assert len(set(content)) == 1 and row["path"] not in seen
            seen[row["path"]] = (content[0], row["label"])
    assert len(seen) == KINDS * EACH - 1
    for path, (value, label) in seen.items():
        kind, _, file = path.partition("/")
        assert (value, label) == (int(kind[4:]) * EACH + int(file[:3]), int(kind[4:]))
    assert shards.classes == ("kind0", "kind1", "kind2")
    assert shards.about["broken"] == 1 and list(shards.about["broken_files"]) == ["kind1/005.png"]
    assert shards.count(TRAIN) + shards.count(TEST) == len(seen)
    assert abs(shards.count(TEST) - len(seen) / 7) <= 1
    assert not [wrong for shard in (*shards.train, *shards.test) if (wrong := check(shards, shard))]


def test_sorted_classes_are_mixed_in_the_shards(photos: Path, tmp_path: Path) -> None:
    prepare(job_of(photos), open_storage(tmp_path / "dest"))
    shards = open_shards(open_storage(tmp_path / "dest"))
    for shard in shards.train[:-1]:
        assert set(pq.read_table(tmp_path / "dest" / shard.file)["label"].to_pylist()) == {0, 1, 2}


def test_the_bytes_depend_neither_on_task_order_nor_on_earlier_work(photos: Path, tmp_path: Path) -> None:
    job = job_of(photos)
    prepare(job, open_storage(tmp_path / "one"))
    prepare(job, open_storage(tmp_path / "two"), backwards=True)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    whole = files(tmp_path / "two")
    (tmp_path / "two" / "train-00001.parquet").unlink()  # lost
    (tmp_path / "two" / "train-00002.parquet").write_bytes(b"cut off")
    (tmp_path / "two" / PROGRESS / "00003.json").write_text("{")
    prepare(job_of(photos), open_storage(tmp_path / "two"))
    assert files(tmp_path / "two") == whole


def test_an_existing_shard_is_not_written_again(photos: Path, tmp_path: Path) -> None:
    prepare(job_of(photos), open_storage(tmp_path / "dest"))
    shard = tmp_path / "dest" / "train-00000.parquet"
    os.utime(shard, (1, 1))
    prepare(job_of(photos), open_storage(tmp_path / "dest"))
    assert shard.stat().st_mtime == 1


def test_prepared_images_equal_the_source(photos: Path, tmp_path: Path) -> None:
    prepare(job_of(photos), open_storage(tmp_path / "dest"))
    config = DataConfig(image_size=16, channels=1, max_bad=0.1)
    source, found = load_images(str(photos), config), load_images(str(tmp_path / "dest"), config)
    assert source.labels is not None and found.labels is not None and found.test_images is not None

    def pairs(images: object, labels: object) -> set[tuple[int, int]]:
        return {(int(image[0, 0, 0]), int(label)) for image, label in zip(images, labels, strict=True)}  # type: ignore

    everything = pairs(source.images, source.labels) | pairs(source.test_images, source.test_labels)
    assert pairs(found.images, found.labels) | pairs(found.test_images, found.test_labels) == everything


def test_another_source_or_other_settings_are_refused_with_the_difference(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = str(tmp_path / "dest")
    command = ["data", "prepare", str(photos), dest, "--image-size", "16", "--channels", "1", "--dry-run"]
    prepare(job_of(photos), open_storage(dest))
    assert main(command) == USAGE
    assert "rows_per_shard is" in capsys.readouterr().err
    command += ["--rows-per-shard", "20", "--rows-per-group", "8"]
    assert main(command) == 0
    assert "already done: 5 tasks" in capsys.readouterr().out
    Image.new("L", (16, 16)).save(photos / "kind0" / "new.png")
    assert main(command) == USAGE
    output = capsys.readouterr().err
    assert (
        "images is 85 and was 84" in output and "files of the source have changed" in output and "--overwrite" in output
    )
    assert len(output.strip().splitlines()) == 1


def test_a_disk_without_room_for_the_shards_is_known_before(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", "size=64k") as disk:
        command = ["data", "prepare", str(photos), str(disk / "dest"), "--channels", "1", "--dry-run", "--image-size"]
        assert main([*command, "64"]) == 0
        line = f"infogan: {disk}/dest has 65.5 kB free, and up to 344.1 kB more will be written: delete other files"
        assert line in capsys.readouterr().err
        assert main([*command, "16"]) == 0
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere", "DEST"], "SRC is 'nowhere': neither a dataset"),
        (["PHOTOS", "DEST"], "image_size is not set; raw images of"),
        (["PHOTOS", "DEST", "--image-size", "16", "--encoding", "encoded"], "encoding is 'encoded', which takes no"),
        (["PHOTOS", "PHOTOS/inside", "--image-size", "16"], "name a folder outside"),
        (["PHOTOS", "OTHER", "--image-size", "16"], "which contains other files (notes.txt)"),
        (["PHOTOS", "DEST", "--image-size", "16", "--rows-per-shard", "0"], "rows_per_shard is 0"),
        (["PHOTOS", "DEST", "--image-size", "16", "--channels", "2"], "channels is 2"),
    ],
)
def test_bad_arguments_of_prepare_are_refused_in_one_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    places = {"PHOTOS": str(photos), "DEST": str(tmp_path / "dest"), "OTHER": str(tmp_path / "other")}
    for word, place in places.items():
        arguments = [argument.replace(word, place) for argument in arguments]
    assert main(["data", "prepare", *arguments]) == USAGE
    output = capsys.readouterr().err.strip().splitlines()
    assert line in output[-1] and not (tmp_path / "dest").exists()


def test_verify_names_each_missing_or_damaged_shard(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / "dest"
    prepare(job_of(photos), open_storage(dest))
    assert main(["data", "verify", str(dest)]) == 0
    damaged = bytearray((dest / "train-00001.parquet").read_bytes())
    damaged[40] ^= 1
    (dest / "train-00001.parquet").write_bytes(damaged)
    (dest / "train-00002.parquet").unlink()
    capsys.readouterr()
    assert main(["data", "verify", str(dest), "--json"]) == FAILED
    wrong = json.loads(capsys.readouterr().out)["wrong"]
    assert len(wrong) == 2
    assert "00001.parquet does not match the manifest" in wrong[0] and "train-00002.parquet is missing" in wrong[1]
    assert check(open_shards(open_storage(dest)), open_shards(open_storage(dest)).train[0]) is None


def test_an_unfinished_dataset_is_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, folder = job_of(photos), open_storage(tmp_path / "dest")
    ProgressLog(folder).begin(job.request, overwrite=False)
    write_shards(job, job.tasks()[0], folder)
    assert main(["data", "verify", str(tmp_path / "dest")]) == USAGE
    assert "infogan data prepare has not finished" in capsys.readouterr().err
    with pytest.raises(ValueError, match="has not finished"):
        load_images(str(tmp_path / "dest"), DataConfig(image_size=16))


@pytest.mark.s3
def test_shards_are_written_to_and_read_from_a_bucket(photos: Path, proxy: Proxy, tmp_path: Path) -> None:
    uri = proxy.uri("prepared")
    prepare(job_of(photos), open_storage(uri))
    prepare(job_of(photos), open_storage(tmp_path / "here"))
    shards = open_shards(open_storage(uri))
    assert [shard.sha256 for shard in shards.train] == [
        s.sha256 for s in open_shards(open_storage(tmp_path / "here")).train
    ]
    assert not [wrong for shard in (*shards.train, *shards.test) if (wrong := check(shards, shard))]
    found = load_images(uri, DataConfig(), feed="stream")
    assert found.count == shards.count(TRAIN) and found.labels is not None


@pytest.mark.parametrize("encoding", [RAW, ENCODED])
def test_the_pixel_range_and_the_fit_are_those_of_training(encoding: str, tmp_path: Path) -> None:
    source = tmp_path / "wide"
    source.mkdir()
    for number in range(30):
        ramp = np.linspace(0, 100 * (number + 1), 16 * 24).reshape(16, 24)
        ramp[:, 8:10] = 0, 100 * (number + 1)  # inside the middle square
        Image.fromarray(ramp.astype(np.uint16)).save(source / f"{number:02d}.png")
    fit = "pad" if encoding == RAW else "crop"
    messages: list[str] = []
    opened = open_source(str(source), DataConfig(image_size=16, channels=1, fit=fit), messages.append)
    prepare(plan_shards(opened, encoding, 16, 1), open_storage(tmp_path / "dest"))
    assert any("pixel range 0:4095, from the values 0...3000 of 30 images" in line for line in messages)
    config = DataConfig(image_size=16, channels=1, fit=fit)
    read, wanted = load_images(str(tmp_path / "dest"), config), load_images(str(source), config)
    assert sorted(map(bytes, read.images.numpy())) == sorted(map(bytes, wanted.images.numpy()))
    assert read.conversion == wanted.conversion
    streamed = load_images(str(tmp_path / "dest"), config, feed="stream")
    assert streamed.conversion == wanted.conversion and streamed.shards is not None
    if encoding == RAW:
        messages.clear()
        load_images(str(tmp_path / "dest"), DataConfig(pixel_range="0:99"), messages.append)
        assert any("pixel_range is 0:99, without effect" in line for line in messages)
    else:
        again = load_images(str(tmp_path / "dest"), DataConfig(None, 16, 1, pixel_range="0:99"))
        assert not np.array_equal(again.images, read.images)


def test_wide_images_that_the_sample_missed_are_broken_and_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "kind1" / "005.png").unlink()
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(photos / "kind1" / "005.png")
    monkeypatch.setattr(shard_source, "sample_values", lambda *settings: None)
    prepare(job_of(photos), open_storage(tmp_path / "dest"))
    broken = open_shards(open_storage(tmp_path / "dest")).about["broken_files"]
    assert broken == {
        "kind1/005.png": "has more than 8 bits, and no image of the sample had; set --pixel-range LOW:HIGH"
    }


def test_settings_of_earlier_datasets_are_the_same_settings(photos: Path) -> None:
    assert not {"fit", "pixel_range"} & job_of(photos).request.keys()
