"""Pulling a model: it is verified, complete or absent, and never executes content from storage.

Run: pytest tests/training/test_publish.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from infogan_ray.cli.main import DONE, FAILED, USAGE, main
from infogan_ray.data.image_set import ImageSet
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import Storage, open_storage
from infogan_ray.storage.run_directory import STALE_AFTER_S, RunDirectory
from infogan_ray.training.load_model import load
from infogan_ray.web.reports.run import write_run_report
from tests.conftest import tiny_config
from tests.servers import Proxy
from tests.storage.test_checkpoints import Bomb
from tests.training.test_checkpoint_uploader import run_on
from tests.training.test_step import run_alone

FALSE_HEADER = b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b"{}"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunDirectory:
    return RunDirectory(open_storage(shutil.copytree(finished, tmp_path / "store" / "tiny")))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def reseal(folder: Storage, **changed: bytes) -> None:
    """Replace files and update the manifest, as an attacker with access to the storage can do."""
    files = {name: folder.read(name) for name in manifests.Manifest.load(folder, required=()).files}
    manifests.write_with_manifest(
        folder, files | {name.replace("__", "."): content for name, content in changed.items()}
    )


def test_names_that_are_no_text_stop_no_run(image_set: ImageSet, tmp_path: Path) -> None:
    """The data's path and the storage's have a byte that is not UTF-8 and a line break; a resumed run reads them."""
    odd = os.fsdecode(b"caf\xe9\nx|")
    images = dataclasses.replace(image_set, name=odd, classes=("a\udcff", "b\nb", "c"))
    run, _ = run_alone(tiny_config(data=f"/{odd}/bars.npz", steps=3), images, tmp_path / odd / "tiny")
    write_run_report(run)
    card = run.model.read("README.md").decode()
    assert "# InfoGAN on /caf\\xe9\\nx|/bars.npz\n" in card
    assert "--data $'/caf\\xe9\\x0ax|/bars.npz'" in card
    assert yaml.safe_load(card.split("---")[1])["model-index"][0]["name"] == "InfoGAN on /caf\\xe9\\nx|/bars.npz"
    assert r"caf\xe9" in run.folder.read("report.html").decode()
    assert load(run.folder.uri).sample(1).shape == (1, 1, 16, 16)
    assert run.read_config()["run"]["data"] == f"/{odd}/bars.npz"


def test_eight_concurrent_pulls_give_equal_bytes(run: RunDirectory, tmp_path: Path) -> None:
    def pull(destination: Path) -> int:
        return main(["pull", run.folder.path, str(destination)])

    targets = [tmp_path / "same"] * 4 + [tmp_path / f"own{i}" for i in range(4)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(pull, targets)) == [DONE] * 8
    contents = [bytes_of(target) for target in set(targets)]
    assert all(content == contents[0] for content in contents)
    assert {path.name for path in tmp_path.iterdir()} == {"store", *(target.name for target in targets)}


def test_a_second_pull_keeps_names_and_refuses_other_folders(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pull", run.folder.path, str(tmp_path / "model")]
    assert main(words) == DONE == main(["name", str(tmp_path / "model"), "uniform0=width"])
    before = bytes_of(tmp_path / "model")
    capsys.readouterr()
    assert main(words) == DONE and "has this model already" in capsys.readouterr().err
    assert bytes_of(tmp_path / "model") == before and load(str(tmp_path / "model")).names == {"uniform0": "width"}
    assert main([*words, "--checkpoint", "step_00000003"]) == USAGE
    assert "model exists and has another model; name another folder" in capsys.readouterr().err
    checkpoint = max(Path(run.checkpoints.path).iterdir())
    assert main(["pull", run.folder.path, str(checkpoint)]) == USAGE, (
        "a checkpoint with the same weights is no model folder"
    )
    assert f"{checkpoint} exists and is not a whole model folder" in capsys.readouterr().err
    (tmp_path / "model" / "model.safetensors").write_bytes(b"rotten")
    assert main(words) == USAGE and "model exists and is not a whole model folder" in capsys.readouterr().err


def test_an_object_store_works_like_a_folder(
    image_set: ImageSet,
    proxy: Proxy,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, _ = run_on(proxy.uri("my runs"), image_set, {})
    assert main(["pull", run.folder.uri, proxy.uri("elsewhere")]) == USAGE, "a destination is a folder"
    capsys.readouterr()
    assert main(["runs", proxy.uri("my runs"), "--json"]) == DONE
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["name"], row["state"], row["last"]) for row in rows] == [("run", "finished", "step_00000006")]
    assert main(["runs", run.folder.uri]) == DONE
    assert "step_00000003" in capsys.readouterr().out
    assert main(["pull", run.folder.uri, str(tmp_path / "model")]) == DONE
    published = {entry.name: run.model.read(entry.name) for entry in run.model.entries()}
    assert bytes_of(tmp_path / "model") == published
    assert load(run.folder.uri).sample(2).equal(load(tmp_path / "model").sample(2))
    proxy.become("reset")
    monkeypatch.setattr("infogan_ray.storage.file_system.retry", lambda action, seconds: action())
    assert main(["runs", proxy.uri("my runs")]) == FAILED
    assert capsys.readouterr().err.count("\n") == 1, "an outage is one line"
    proxy.become("cut")
    assert main(["pull", run.folder.uri, str(tmp_path / "again"), "--checkpoint", "last"]) == DONE, (
        "nothing is uploaded"
    )


@pytest.mark.parametrize("content", [pickle.dumps(Bomb()), FALSE_HEADER], ids=["pickle", "false header"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "metrics.json", "samples.png", "weights.pkl"])
def test_a_published_file_with_wrong_content_is_refused_by_name(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    reseal(run.model, **{name.replace(".", "__"): content})
    code = main(["pull", run.folder.path, str(tmp_path / "model")])
    if name == checkpoints.MODEL:  # it differs from the checkpoint, so the model folder is rebuilt from the checkpoint
        assert code == DONE and load(tmp_path / "model").sample(1).shape == (1, 1, 16, 16)
        return
    assert code == FAILED and name in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["store"], "nothing is left at the destination"


@pytest.mark.parametrize("content", [pickle.dumps(Bomb()), FALSE_HEADER], ids=["pickle", "false header"])
@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_checkpoint_file_with_wrong_content_is_refused_by_name(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    for step in ("step_00000003", "step_00000006"):
        reseal(run.checkpoints / step, **{name.replace(".", "__"): content})
    assert main(["pull", run.folder.path, str(tmp_path / "model")]) != DONE
    assert name in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("folder", ["model", "step_00000003", "step_00000006"])
def test_a_manifest_with_a_file_outside_its_folder_is_skipped(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    (tmp_path / "store" / "x").write_bytes(b"outside")
    where = run.model if folder == "model" else run.checkpoints / folder
    manifest = json.loads(where.read(manifests.MANIFEST))
    manifest["files"]["../../x"] = {"bytes": 7, "sha256": "0"}
    where.write(manifests.MANIFEST, json.dumps(manifest).encode())
    assert main(["pull", run.folder.path, str(tmp_path / "model"), "--checkpoint", "last"]) == DONE
    output = capsys.readouterr()
    expected = "step 3" if folder == "step_00000006" else "step 6"
    assert expected in output.out and "'../../x', which is not a plain file name" in output.err
    assert "x" not in bytes_of(tmp_path / "model")


def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used(
    run: RunDirectory, image_set: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(run.checkpoints.path) / "step_00000006" / checkpoints.TRAINING
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    assert main(["pull", run.folder.path, str(tmp_path / "model"), "--checkpoint", "last"]) == DONE
    output = capsys.readouterr()
    assert "step 3" in output.out and "skipped" in output.err and "step_00000006/training.safetensors" in output.err
    _, reports = run_alone(tiny_config(steps=6), image_set, tmp_path / "store" / "tiny")
    assert "step_00000006/training.safetensors" in reports[0].say and "resumed from step 3" in reports[1].say
    assert len(checkpoints.list_checkpoints(run.checkpoints)[0]) == 2, "the damaged checkpoint has been written again"


def test_listing_runs_reads_no_weights_and_listing_one_run_finds_damage(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(run.checkpoints.path) / "step_00000006" / checkpoints.TRAINING
    path.write_bytes(bytes(len(path.read_bytes())))
    assert main(["runs", run.folder.path]) == DONE
    assert "broken: " in capsys.readouterr().err
    read: list[str] = []
    chunks = Storage.read_chunks
    monkeypatch.setattr(Storage, "read_chunks", lambda storage, name: read.append(name) or chunks(storage, name))
    assert main(["runs", run.folder.parent.path]) == DONE
    assert checkpoints.STATE in read and not [name for name in read if name.endswith(".safetensors")]


def test_runs_shows_incomplete_runs_with_their_state(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_storage(tmp_path / "store")
    for name, state in (("at-start", "starting"), ("in-midst", "running")):
        RunDirectory(store / name).set_status(state, 4, restarts=2)
    midst = RunDirectory(store / "in-midst")
    midst.write_config(run.read_config())
    (midst.checkpoints / "step_00000004").write(checkpoints.MODEL, b"half")
    (store / "no-run-at-all").write("notes.txt", b"")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + STALE_AFTER_S["running"] + 1)
    assert main(["runs", store.path, "--json"]) == DONE
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert set(rows) == {"at-start", "in-midst", "tiny"}
    assert rows["at-start"]["state"] == "starting, without config.json", "it may wait for room in a cluster"
    midst_row = rows["in-midst"]
    assert (midst_row["state"], midst_row["unfinished_checkpoints"], midst_row["best"]) == ("killed", 1, None)
    assert main(["runs", store.path]) == DONE
    assert "1 unfinished checkpoint, 2 restarts" in capsys.readouterr().out
    assert main(["runs", midst.folder.path]) == DONE
    assert "unfinished: " in capsys.readouterr().err
    assert main(["runs", (store / "at-start").path]) == DONE, "a run without config.json is shown, too"
    (store / "at-start").write("status.json", b"{}")
    (tmp_path / "store" / "linked").mkdir()
    (store / "linked").write("status.json", b"{}")
    (tmp_path / "store" / "linked" / "checkpoints").symlink_to(tmp_path)
    assert main(["runs", store.path]) == DONE, "a broken run does not hide the others"
    assert "tiny\tfinished" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["pull", "nowhere/x"], ["runs", "nowhere"], ["sample", "nowhere"]])
def test_a_missing_path_is_refused(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == USAGE
    assert "does not exist" in capsys.readouterr().err


def test_pull_succeeds_if_the_chosen_checkpoint_is_pruned(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[str] = []
    real: Callable[..., checkpoints.Checkpoint] = checkpoints.choose

    def choose(*arguments: object, **options: object) -> checkpoints.Checkpoint:
        found = real(*arguments, **options)
        chosen.append(found.name)
        if len(chosen) == 1:
            checkpoints.delete_checkpoint(found.folder)
            run.model.delete_all()
        return found

    monkeypatch.setattr(checkpoints, "choose", choose)
    assert main(["pull", run.folder.path, str(tmp_path / "model"), "--checkpoint", "last"]) == DONE
    assert chosen == ["step_00000006", "step_00000003"]
