"""The model folder: weights, config, metrics, pictures, a model card and a manifest. ``pull`` fetches it."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infogan_ray import UserError
from infogan_ray.evaluation.metrics import lower_is_better
from infogan_ray.models.code_names import NAMES, check_names, read_names
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.networks import ModelSpec
from infogan_ray.models.traversal import draw, png, tile
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.checkpoints import Checkpoint
from infogan_ray.storage.file_system import Storage, StorageError, open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig, from_saved
from infogan_ray.training.load_model import load
from infogan_ray.training.model_card import SAMPLES, model_card, traversal_file
from infogan_ray.training.resume import Change, recorded_changes, settings_at

METRICS, CARD, CONFIG = "metrics.json", "README.md", "config.json"
CATEGORIES = "categories.json"


def model_files(checkpoint: Checkpoint, config: RunConfig, metrics: dict[str, Any]) -> dict[str, bytes]:
    """The files of a model folder, by name. Equal checkpoints, metrics and code names give equal bytes."""
    spec = ModelSpec.from_dict(checkpoint.state["model"])
    weights = checkpoint.manifest.read(checkpoints.MODEL)
    tensors = manifests.parse_tensors(f"{checkpoint.folder}/{checkpoints.MODEL}", weights)
    model = InfoGAN.from_tensors(spec, tensors, checkpoint.folder)
    with contextlib.suppress(ValueError):  # the model matters more than a broken file of code names; ``load`` checks it
        model.names = read_names(checkpoint.folder.parent.parent, model.codes)
    metrics = {"step": checkpoint.step, **metrics}
    categories = metrics.pop("categories", {})
    changes = recorded_changes(RunDirectory(checkpoint.folder.parent.parent))
    config, changes = settings_at(config, changes, checkpoint.step)
    description = {"model": spec.to_dict(), "step": checkpoint.step, "run": config.to_dict()}
    description |= {"changes": changes} if changes else {}
    files = {
        checkpoints.MODEL: weights,
        CONFIG: json.dumps(description, indent=1).encode(),
        METRICS: json.dumps(metrics, indent=1).encode(),
        SAMPLES: png(tile(model.sample(64), columns=8, scale=max(1, round(56 / spec.image_size)))),
    }
    if categories:
        files[CATEGORIES] = json.dumps(categories).encode()
    return files | _with_names(model, config, metrics, changes)


def _with_names(
    model: InfoGAN, config: RunConfig, metrics: dict[str, Any], changes: list[Change]
) -> dict[str, bytes]:  # fmt: skip
    """The files of a model folder that contain code names."""
    files = {CARD: model_card(model, config, metrics, changes).encode()}
    if model.names:
        files[NAMES] = json.dumps(model.names, indent=1).encode()
    return files | {traversal_file(name): png(draw(model.traverse(name))) for name in model.codes}


def name_codes(folder: Storage, names: Mapping[str, str]) -> dict[str, str]:
    """Set and save names for codes of a model folder, a run or a run's checkpoint. Returns all names.

    An empty name deletes a name. Updates the card and pictures of the model folder, or of the run's model folder.
    Models that the run or ``pull`` creates later also have the names. Raises UserError for an unknown code or an
    invalid name, BadCheckpoint for a broken folder.
    """
    model = load(folder.uri)
    all_names = check_names({**model.names, **names}, model.codes)
    if is_model(folder):
        _rename_in(folder, model, all_names)
        return all_names
    run = RunDirectory(folder.parent.parent if folder.parent.name == "checkpoints" else folder)
    run.folder.write(NAMES, json.dumps(all_names, indent=1).encode())
    if is_model(run.model):
        _rename_in(run.model, load(run.model.uri), all_names)
    return all_names


def is_model(folder: Storage) -> bool:
    """Whether a folder is a model folder. A run has its manifests in subfolders."""
    return folder.is_file(manifests.MANIFEST) and folder.is_file(CONFIG)


def _rename_in(folder: Storage, model: InfoGAN, names: dict[str, str]) -> None:
    manifest = manifests.Manifest.load(folder, required=(checkpoints.MODEL, CONFIG, METRICS))
    saved = manifest.read_json(CONFIG)
    config = from_saved(saved, f"{folder}/{CONFIG}")
    model.names = names
    files = _with_names(model, config, manifest.read_json(METRICS), saved.get("changes", []))
    manifests.replace_files(manifest, {NAMES: b"{}", **files})


def pull(
    run: RunDirectory, which: str, metric: str, config: RunConfig, destination: Path, warn: Callable[[str], None]
) -> Checkpoint:
    """Fetch and verify a checkpoint as a model folder. Writes it beside ``destination``, then renames it.

    If the run's model folder has the chosen checkpoint, ``pull`` fetches that folder, since its metrics are of all
    data. If ``destination`` already has the same model, with its own code names, ``pull`` succeeds without changes.
    So several processes can fetch at the same time. Raises UserError if ``destination`` has other content,
    BadCheckpoint if a file's content does not match its type.
    """
    for tries_left in (2, 1, 0):
        chosen = checkpoints.choose(run.checkpoints, which, metric, warn, lower_is_better=lower_is_better(metric))
        try:
            files = _published(run, chosen, warn) or model_files(chosen, config, chosen.metrics)
            break
        except manifests.BadCheckpoint:  # a run that continues may have pruned it since it was chosen
            if not tries_left or chosen.folder.is_file(manifests.MANIFEST):
                raise
    for name, content in files.items():
        check_content(name, content)
    if not _holds(destination, files, warn):
        temporary = open_storage(destination.parent) / f".{destination.name}.{uuid.uuid4().hex[:8]}"
        try:
            manifests.write_with_manifest(temporary, files)
            try:
                os.rename(temporary.path, destination)
            except OSError:  # another pull was faster, or ``destination`` has other content
                if not _holds(destination, files, warn):
                    raise
        finally:
            temporary.delete_all()
    return chosen


def _published(run: RunDirectory, chosen: Checkpoint, warn: Callable[[str], None]) -> dict[str, bytes] | None:
    """The files of the run's model folder, if it is whole and has this checkpoint's weights."""
    try:
        manifest = manifests.Manifest.load(run.model, required=(checkpoints.MODEL, CONFIG, METRICS, CARD))
        if manifest.files[checkpoints.MODEL] != chosen.manifest.files[checkpoints.MODEL]:
            return None
        return {name: manifest.read(name) for name in manifest.files}
    except manifests.IncompleteCheckpoint:
        return None
    except manifests.BadCheckpoint as error:
        warn(f"skipped: {error}")
        return None


def _holds(destination: Path, files: dict[str, bytes], warn: Callable[[str], None]) -> bool:
    """Whether a folder exists and has this model, whole. Raises UserError if it has other content."""
    if not os.path.lexists(destination):
        return False
    problem = "is not a whole model folder"
    try:
        manifest = manifests.Manifest.load(
            open_storage(destination), required=(checkpoints.MODEL, CONFIG, METRICS, CARD)
        )
        found = {name: manifest.read(name) for name in manifest.files}
        if found == files:
            return True
        if found[checkpoints.MODEL] == files[checkpoints.MODEL]:
            warn(f"{destination} has this model already, so its names, metrics and card stay unchanged")
            return True
        problem = "has another model"
    except (manifests.BadCheckpoint, StorageError):
        pass
    raise UserError(f"destination {destination} exists and {problem}; name another folder")


def check_content(name: str, content: bytes) -> None:
    """Check a file of a model folder. Raises BadCheckpoint if its content does not match the ending of its name."""
    ending = name.rpartition(".")[2]
    if ending == "safetensors":
        manifests.parse_tensors(name, content)
    elif ending == "json":
        manifests.parse_json(name, content)
    elif ending == "png":
        if not content.startswith(b"\x89PNG\r\n\x1a\n"):
            raise manifests.BadCheckpoint(f"{name} is not a PNG picture")
    elif ending == "md":
        try:
            content.decode()
        except UnicodeDecodeError:
            raise manifests.BadCheckpoint(f"{name} is not text") from None
    else:
        raise manifests.BadCheckpoint(f"{name} is not a file of a model folder; it is refused")
