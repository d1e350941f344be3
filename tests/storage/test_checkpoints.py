"""Checkpoints and model folders: only complete ones are read, and nothing is unpickled.

Run: pytest tests/storage/test_checkpoints.py
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.network_config import NetworkConfig
from infogan_ray.models.networks import ModelSpec
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.checkpoints import list_checkpoints, open_checkpoint
from infogan_ray.storage.file_system import Storage, open_storage
from infogan_ray.storage.manifests import MANIFEST, BadCheckpoint
from infogan_ray.storage.run_directory import step_name
from infogan_ray.training.config import RunConfig
from infogan_ray.training.load_model import load
from infogan_ray.training.publish import model_files
from infogan_ray.training.train_command import train_command
from tests.conftest import tiny_config

SPEC = ModelSpec(LatentSpec.parse("noise=4 cat=3 uniform=1"), 16, 1, NetworkConfig(width=4))


def write(folder: Path | Storage, step: int, **metrics: float) -> checkpoints.Checkpoint:
    generator, discriminator = SPEC.build()
    tensors = {f"generator.{k}": v for k, v in generator.state_dict().items()}
    tensors |= {f"discriminator.{k}": v for k, v in discriminator.state_dict().items()}
    state = {"model": SPEC.to_dict(), "metrics": metrics}
    folder = folder if isinstance(folder, Storage) else open_storage(folder)
    manifests.write_with_manifest(
        folder / step_name(step), checkpoints.serialize(step, tensors, {"x": torch.ones(2)}, state)
    )
    return open_checkpoint(folder / step_name(step))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('a pickle was executed')",))


def test_a_checkpoint_round_trips(tmp_path: Path) -> None:
    write(tmp_path, 5, mi_fraction=0.5)
    found = open_checkpoint(open_storage(tmp_path / "step_00000005"))
    assert found.step == 5 and found.metrics == {"mi_fraction": 0.5}
    assert load(found.folder.uri).sample(2).shape == (2, 1, 16, 16)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000005"], "no hidden file is left"


@pytest.mark.parametrize("file", [checkpoints.MODEL, checkpoints.TRAINING, checkpoints.STATE])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_file_is_named_and_the_checkpoint_is_not_listed(tmp_path: Path, file: str, damage: str) -> None:
    write(tmp_path, 1)
    path = Path(write(tmp_path, 2).folder.path) / file
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[-1] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-1])
    good, bad = list_checkpoints(open_storage(tmp_path))
    assert [c.step for c in good] == [1] and len(bad) == 1 and file in str(bad[0])
    with pytest.raises(BadCheckpoint, match=file):
        load(path.parent)


def test_a_checkpoint_without_manifest_is_not_listed(tmp_path: Path) -> None:
    write(tmp_path, 1).folder.delete(MANIFEST)
    assert list_checkpoints(open_storage(tmp_path))[0] == []
    with pytest.raises(ValueError, match="no valid checkpoint.*never finished"):
        checkpoints.choose(open_storage(tmp_path), "last", "mi_fraction", lower_is_better=False)


def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    path = Path(write(tmp_path, 1).folder.path) / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"]["../../x"] = {"bytes": 1, "sha256": "0"}
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadCheckpoint, match="not a plain file name"):
        open_checkpoint(open_storage(path.parent))


def test_a_pickle_with_the_name_of_weights_is_refused_and_not_executed(tmp_path: Path) -> None:
    folder = write(tmp_path, 1).folder
    files = {name: folder.read(name) for name in (checkpoints.MODEL, checkpoints.STATE)}
    manifests.write_with_manifest(folder, files | {checkpoints.MODEL: pickle.dumps(Bomb())})
    with pytest.raises(BadCheckpoint, match="model.safetensors is not a safetensors file: it is a pickle"):
        load(folder.uri)
    manifests.write_with_manifest(folder, files | {checkpoints.MODEL: b"\xff" * 8 + b"{}"})
    with pytest.raises(BadCheckpoint, match="not a safetensors file: ") as refused:
        load(folder.uri)
    assert "never read" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (MANIFEST, b'{"files": {"state.json": {"bytes": 1e999, "sha256": "0"}}}'),
        (MANIFEST, b"[" * 100_000),
        (checkpoints.STATE, b"[" * 100_000),
        (checkpoints.STATE, b'{"format": 1}'),
        (checkpoints.STATE, b'{"format": 1, "step": 1, "metrics": 3}'),
    ],
)
def test_malformed_content_gives_a_bad_checkpoint_and_no_traceback(tmp_path: Path, name: str, content: bytes) -> None:
    folder = write(tmp_path, 1).folder
    if name == MANIFEST:
        folder.write(MANIFEST, content)
    else:
        manifests.write_with_manifest(folder, {checkpoints.MODEL: b"", name: content})
    good, bad = list_checkpoints(open_storage(tmp_path))
    assert not good and len(bad) == 1 and name in str(bad[0])


def test_adding_metrics_keeps_the_checkpoint_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write(tmp_path, 1, d_loss=1.0)
    seen: list[int] = []
    real = Storage.write

    def checking_write(self: Storage, name: str, content: bytes) -> None:
        seen.append(len(list_checkpoints(open_storage(tmp_path))[0]))
        real(self, name, content)
        seen.append(len(list_checkpoints(open_storage(tmp_path))[0]))

    monkeypatch.setattr(Storage, "write", checking_write)
    checkpoints.add_metrics(checkpoint, {"mi_fraction": 0.5})
    assert seen == [1, 1, 1, 1], "it is valid before and after each write"
    assert open_checkpoint(checkpoint.folder).metrics == {"d_loss": 1.0, "mi_fraction": 0.5}


def test_nan_metrics_never_rank_and_other_folders_are_never_deleted(tmp_path: Path) -> None:
    write(tmp_path, 1, mi_fraction=0.5)
    write(tmp_path, 2, mi_fraction=float("nan"))
    assert checkpoints.choose(open_storage(tmp_path), "best", "mi_fraction", lower_is_better=False).step == 1
    (tmp_path / "step_backup").mkdir()
    (tmp_path / "step_00000003").mkdir()
    assert checkpoints.delete_incomplete(open_storage(tmp_path)) == ["step_00000003"]
    assert (tmp_path / "step_backup").is_dir()


def test_choose_finds_newer_checkpoints_if_its_choice_was_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step, fraction in ((1, 0.4), (2, 0.6)):
        write(tmp_path, step, mi_fraction=fraction)
    real = manifests.Manifest.verify

    def prune_then_verify(self: manifests.Manifest) -> None:
        if self.folder.name == "step_00000002":
            write(tmp_path, 3, mi_fraction=0.9)
            checkpoints.delete_checkpoint(self.folder)
        real(self)

    monkeypatch.setattr(manifests.Manifest, "verify", prune_then_verify)
    assert checkpoints.choose(open_storage(tmp_path), "best", "mi_fraction", lower_is_better=False).step == 3


def test_best_last_and_pruning(tmp_path: Path) -> None:
    for step, fraction in ((1, 0.9), (2, 0.5), (3, 0.6), (4, 0.4)):
        write(tmp_path, step, mi_fraction=fraction, clustering_error=fraction)
    write(tmp_path, 5)  # without metrics: never best
    assert checkpoints.choose(open_storage(tmp_path), "best", "mi_fraction", lower_is_better=False).step == 1
    lowest = checkpoints.choose(open_storage(tmp_path), "best", "clustering_error", lower_is_better=True)
    assert lowest.step == 4
    assert checkpoints.choose(open_storage(tmp_path), "step_00000002", "mi_fraction", lower_is_better=False).step == 2
    checkpoints.prune(open_storage(tmp_path), keep=3, metric="mi_fraction", stored=5, lower_is_better=False)
    assert [c.step for c in list_checkpoints(open_storage(tmp_path))[0]] == [1, 4, 5]
    checkpoints.prune(open_storage(tmp_path), keep=1, metric="mi_fraction", stored=5, lower_is_better=False)
    assert [c.step for c in list_checkpoints(open_storage(tmp_path))[0]] == [1, 5]
    with pytest.raises(ValueError, match="'step_9'; valid are best, last, step_00000001"):
        checkpoints.choose(open_storage(tmp_path), "step_9", "mi_fraction", lower_is_better=False)
    with pytest.raises(ValueError, match="'nmi', which no checkpoint has"):
        checkpoints.choose(open_storage(tmp_path), "best", "nmi", lower_is_better=False)


def test_without_measurements_the_last_checkpoint_is_chosen(tmp_path: Path) -> None:
    write(tmp_path, 11)
    write(tmp_path, 12)
    messages: list[str] = []
    assert (
        checkpoints.choose(open_storage(tmp_path), "best", "mi_fraction", messages.append, lower_is_better=False).step
        == 12
    )
    assert messages == ["no checkpoint has been measured yet, so this is the last, step_00000012"]


def test_a_model_folder_works_without_its_run(tmp_path: Path) -> None:
    metrics = {"mi/cat0": 0.5, "mi/uniform0": -0.1, "mi_bound": 0.4, "mi_fraction": 0.2}
    checkpoint = write(tmp_path / "run", 7, **metrics)
    config = tiny_config(data="mnist")
    manifests.write_with_manifest(open_storage(tmp_path / "model"), model_files(checkpoint, config, checkpoint.metrics))
    shutil.rmtree(tmp_path / "run")
    model = load(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| cat0 |  | Categorical(3) | 0.500 | 1.099 |" in card
    assert "samples.png" in card and train_command(config) in card
    codes = model.encode(model.sample(5))
    assert list(codes) == ["cat0", "cat0_probability", "cat0_probabilities", "uniform0", "uniform0_std"]
    assert codes["cat0_probabilities"].shape == (5, 3) and len(codes["cat0"]) == 5
    with pytest.raises(ValueError, match="cat0 is 3; valid are the categories 0 to 2"):
        model.sample(1, {"cat0": 3})
    with pytest.raises(ValueError, match="this model needs uint8"):
        model.encode(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match="config.json"):
        load(tmp_path / "model")


def test_the_command_on_the_card_gives_the_same_config() -> None:
    import shlex

    from infogan_ray.cli.train import train_config

    config = RunConfig(preset="mnist", data="mnist", steps=700, seed=3, name="a b").override(
        {"objective": {"lambda_code": {"uniform1": 0.5}}, "network": {"width": 32}}, "test"
    )
    assert train_config(shlex.split(train_command(config))[2:]) == config


def test_pruning_keeps_the_last_stored_checkpoint_if_a_newer_one_is_damaged(tmp_path: Path) -> None:
    """A run ignored the damaged step 3 and continued from step 2. The checkpoints that it stores are kept."""
    store = open_storage(tmp_path)
    for step in (1, 2, 3):
        write(tmp_path, step, mi_fraction=1.0 if step == 3 else 0.5)
    weights = tmp_path / step_name(3) / checkpoints.MODEL
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    messages: list[str] = []
    checkpoints.prune(store, keep=1, metric="mi_fraction", stored=2, lower_is_better=False)
    assert [c.step for c in list_checkpoints(store, verify=False)[0]] == [2, 3]
    found = checkpoints.last_valid(store, messages.append)
    assert found is not None and found.step == 2 and "step_00000003" in messages[0]
