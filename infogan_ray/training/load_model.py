"""Opens a trained model: a model folder, a run (its best checkpoint) or one checkpoint."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

from infogan_ray import UserError
from infogan_ray.evaluation.metrics import lower_is_better
from infogan_ray.models.code_names import NAMES, parse_names, read_names
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.networks import ModelSpec
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import from_saved


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=3)


def load(path: str | Path, warn: Callable[[str], None] = _warn) -> InfoGAN:
    """Open and verify a model folder, a run (its best checkpoint) or one checkpoint, on disk or in an object store.

    Calls ``warn`` with a message for each broken checkpoint of a run, which is skipped. Raises UserError, with the
    file's name, if a file is missing, broken or not safetensors.
    """
    folder, run = open_storage(path), None
    names = {entry.name for entry in folder.entries()}
    if not names:
        problem = "is a file" if folder.path_is_file else "does not exist"
        raise UserError(f"model {folder} {problem}; name a model folder, a run (STORAGE/NAME) or a checkpoint")
    if "checkpoints" in names:
        run = RunDirectory(folder)
        metric = from_saved(run.read_config(), f"{folder}/{run.CONFIG}").metric
        better = lower_is_better(metric)
        checkpoint = checkpoints.choose(run.checkpoints, "best", metric, warn, lower_is_better=better)
        folder, manifest, description = checkpoint.folder, checkpoint.manifest, checkpoint.state
    elif checkpoints.STATE in names or re.fullmatch(checkpoints.STEP_FOLDER, folder.name):
        checkpoint = checkpoints.open_checkpoint(folder)
        manifest, description = checkpoint.manifest, checkpoint.state
        run = RunDirectory(folder.parent.parent)
    elif "config.json" in names:
        manifest = manifests.Manifest.load(folder, required=(checkpoints.MODEL, "config.json"))
        manifest.verify()
        description = manifest.read_json("config.json")
    else:
        raise UserError(
            f"model {folder} has neither config.json nor {checkpoints.STATE}; it is not a model of infogan_ray"
        )
    try:
        spec = ModelSpec.from_dict(description["model"])
    except (KeyError, UserError) as error:
        raise UserError(f"model {folder}: {error}") from None
    model = InfoGAN.from_tensors(spec, manifest.read_tensors(checkpoints.MODEL), folder)
    saved = description if run is None else run.read_config() if run.exists else {}
    if "run" in saved:
        trained = from_saved(saved, f"{folder}/{RunDirectory.CONFIG}")
        model.pixel_range, model.fit = trained.pixel_range, trained.fit
    if run is not None:
        model.names = read_names(run.folder, model.codes)
    elif NAMES in manifest.files:
        model.names = parse_names(manifest.read(NAMES), model.codes, f"{folder}/{NAMES}")
    return model
