"""Checks a run before its workers start, and writes its configuration to its directory. No Ray."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from infogan_ray import UserError, __version__
from infogan_ray.data.datasets import load_images
from infogan_ray.data.feeds.feed_policy import MemoryBudget, feed_line
from infogan_ray.data.fetch import cache_folder
from infogan_ray.data.image_set import AUTO, MEMORY, ImageSet
from infogan_ray.data.shards.sampling import SAMPLE
from infogan_ray.evaluation.clustering import untested_classes, why_not_measured
from infogan_ray.evaluation.metrics import LABELS, check_needs, lower_is_better, missing_packages, needs
from infogan_ray.models.games import GAMES
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.network_config import check_images
from infogan_ray.models.networks import ModelSpec
from infogan_ray.storage import checkpoints
from infogan_ray.storage.errors import retry_with_room
from infogan_ray.storage.file_system import Storage, open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from infogan_ray.training.disk_room import run_warning
from infogan_ray.training.json_difference import difference
from infogan_ray.training.resume import (
    Change,
    change_text,
    changed_settings,
    epoch_offset,
    own_settings,
    recorded_changes,
    steps_of_epochs,
)
from infogan_ray.training.run_cost import checkpoint_plan, checkpoint_size, steps_plan
from infogan_ray.training.run_outcome import Listener
from infogan_ray.training.tracking.addresses import with_absolute_path

IDENTITY_IMAGES = 1000  # number of images whose pixels identify a run's data


def check_data(
    config: RunConfig, budget: MemoryBudget, say: Callable[[str], None] = print, sample: int = SAMPLE
) -> ImageSet:
    """Load the images and check the configuration with them. Raises UserError, in one line.

    Calls ``say`` with messages, for example about a download. ``sample``: number of images to read of a streamed
    dataset. Workers read their own images.
    """
    config = with_saved_range(config, say)
    if config.name is None:
        raise UserError("name is not set; give the run a --name")
    if config.data is None:
        raise UserError("data is not set; give --data (mnist, fashion_mnist, shapes, or a path) or a --preset")
    if config.image_size is not None:
        check_images(config.image_size, config.channels or 1)
    images = load_images(config.data, config.data_config, say, feed=resolve_feed(config), budget=budget, sample=sample)
    config.total_steps(images.count)
    spec = config.model_spec(images.image_size, images.channels)
    labelled = images.labels is not None and images.test_labels is not None
    categorical = any(code.one_hot for code in spec.latents.codes)
    if categorical and (reason := why_not_measured(images)):
        if needs(config.metric, LABELS):
            raise UserError(f"metric is '{config.metric}', which is not measured: {reason}")
        say(f"not measured: agreement with labels: {reason}")
    if categorical and (untested := untested_classes(images)):
        say(f"data: {untested}")
    check_needs(config.metric, config.data, labelled, categorical)
    if unused := _without_effect(config, spec.latents):
        say(f"codes: '{spec.latents}' has no categorical code (cat=10 adds one), so no effect of: {', '.join(unused)}")
    r1, r2 = config.stability.r1, config.stability.r2
    if GAMES[config.objective.game].needs_penalties and not (r1 and r2):
        say(
            f"objective: the {config.objective.game} game may diverge if a penalty is 0; stability.r1 is {r1:g} and "
            f"stability.r2 is {r2:g}; 0.1 is usual for both"
        )
    for line in missing_packages(labelled and categorical):
        say(f"not measured: {line}")
    return images


def _without_effect(config: RunConfig, latents: LatentSpec) -> list[str]:
    """The settings that are on, and only change codes that ``latents`` does not have."""
    consistency, resplits = config.consistency, config.stability.resplit_every
    unused = []
    if consistency.weight and not consistency.continuous and all(code.categories is None for code in latents.codes):
        unused.append(f"consistency.weight {consistency.weight:g}")
    if resplits and not any(code.one_hot for code in latents.codes):
        unused.append(f"stability.resplit_every {resplits}")
    return unused


def resolve_feed(config: RunConfig) -> str:
    """The configured feed. A resumed run has the feed of its first start, since the order of images depends on it.

    Raises UserError if the configured feed is a different one.
    """
    run = RunDirectory(open_storage(config.storage) / config.name) if config.resume and config.name else None
    if run is None or not run.exists:
        return config.feed
    saved = str(run.read_config()["run"].get("feed", MEMORY))  # earlier versions had only this feed
    if saved == AUTO or config.feed == saved:
        return config.feed
    if config.feed != AUTO:
        raise UserError(
            f"feed is '{config.feed}', and {config.name} has read its images by '{saved}', in another order; "
            "leave --feed out to continue"
        )
    return saved


def with_saved_range(config: RunConfig, say: Callable[[str], None] = lambda line: None) -> RunConfig:
    """``config`` with the pixel range of a resumed run, if it has none, so that the images stay the same."""
    run = RunDirectory(open_storage(config.storage) / config.name) if config.resume and config.name else None
    if run is None or not run.exists or config.pixel_range is not None:
        return config
    saved = own_settings(run).pixel_range
    if saved is not None:
        say(f"data: pixel_range is {saved}, as {config.name} began")
    return dataclasses.replace(config, pixel_range=saved)


def with_feed_and_conversion(config: RunConfig, images: ImageSet) -> RunConfig:
    """``config`` with the feed, the fit and the pixel range of its images: the same for all workers and later runs."""
    how = images.conversion
    found = {"feed": images.feed, "fit": how.fit, "pixel_range": how.range_text or config.pixel_range}
    return config.override(found, "the data")


def prepare_run(
    config: RunConfig, images: ImageSet, budget: MemoryBudget, listen: Listener
) -> tuple[RunConfig, RunDirectory]:
    """Claim the run's directory and write the configuration. Returns the configuration for the workers.

    Raises UserError if the run cannot be resumed with this configuration, and RunExists if the name is in use.
    """
    name = config.name
    assert name is not None, "see check_data"
    feed_message = feed_line(AUTO if config.resume else config.feed, resolve_feed(config), images, budget)
    config = with_feed_and_conversion(with_saved_range(config), images)
    storage, steps = open_storage(config.storage), config.total_steps(images.count)
    size = checkpoint_size(config, images)
    warning = run_warning(config, steps, size, RunDirectory(storage / name))
    run = RunDirectory.claim(storage, name, config.resume)
    status = run.get_status()
    if config.resume and status["state"] == "running":
        age = time.time() - status["time"]
        say = f"{run.name} reported {age:.0f} s ago; if it still runs, it stops: this attempt takes it over"
        listen({"phase": "resuming", "step": status["step"], "say": say})
    changes, messages = recorded_changes(run), list[str]()
    if run.exists:
        check_same_model(run, config, images)
        other_images = has_other_images(run, images)
        new = changed_settings(run, config, status.get("stored", 0), other_images)
        check_same_data(run, config, images)
        changes += new
        messages = [change_text(change) for change in new]
        if other_images:
            messages.append(
                f"the images of {config.data} have changed since {run.name} began; their number is the same"
            )
    epochs, stored = config.epochs, status.get("stored", 0)
    if epochs is not None and changes:
        steps = steps_of_epochs(config, changes, images.count)
        config = config.override({"steps": steps}, "the epochs")
    if config.resume and stored > steps:
        field, value = ("steps", steps) if epochs is None else ("epochs", epochs)
        raise UserError(f"{field} is {value:,}, and {run.name} is at step {stored:,} already; give --{field} more")
    for say in messages:
        listen({"phase": "resuming", "step": status["step"], "say": say})
    config = config.override({"accept_changes": False}, "the run")  # a later --resume accepts nothing
    retry_with_room(lambda: write_config(run, config, images, changes), lambda: _prune(run, config))
    for say in (
        feed_message,
        steps_plan(config, steps, images.count, epoch_offset(changes, images.count)),
        checkpoint_plan(config, steps, size, run.folder),
        *([warning] if warning else []),
    ):
        listen({"phase": "starting", "step": 0, "total_steps": steps, "say": say})
    return config, run


def _prune(run: RunDirectory, config: RunConfig) -> bool:
    """Delete the checkpoints that a resumed run does not keep. Whether there are any."""
    chosen = checkpoints.last_valid(run.checkpoints, warn=lambda line: None)
    better = lower_is_better(config.metric)
    return chosen is not None and bool(
        checkpoints.prune(run.checkpoints, config.keep, config.metric, chosen.step, lower_is_better=better)
    )


def check_same_model(run: RunDirectory, config: RunConfig, images: ImageSet) -> None:
    """Raises UserError if a run that continues has another model, or would lose its learned prior."""
    spec = config.model_spec(images.image_size, images.channels).to_dict()
    # Parsed and converted again, so that fields which are newer than the run have their defaults.
    saved_spec = ModelSpec.from_dict(run.read_config().get("model", {})).to_dict()
    if changed := difference(saved_spec, spec):
        raise UserError(
            f"name '{run.name}' belongs to a model that differs from this one ({changed}); its config is "
            f"{run.folder}/{run.CONFIG}"
        )
    learned = run.read_config().get("run", {}).get("prior", {})
    if learned.get("learn") and (not config.prior.learn or learned.get("method") != config.prior.method):
        raise UserError(
            f"'{run.name}' learns its prior with prior.method {learned.get('method')}, which would be lost; give "
            f"--prior.learn --prior.method {learned.get('method')}, or start a run with another --name"
        )


def has_other_images(run: RunDirectory, images: ImageSet) -> bool:
    """Whether the images of a run that continues have other pixels, in the same number."""
    data = identity(images)
    saved_data = run.read_config().get("data") or data
    same_number = {**saved_data, "sample": ""} == {**data, "sample": ""}
    return same_number and saved_data.get("sample") != data.get("sample")


def check_same_data(run: RunDirectory, config: RunConfig, images: ImageSet) -> None:
    """Raises UserError if the data of a run that continues has another number of images, or was prepared again."""
    data = identity(images)
    saved_data = run.read_config().get("data") or data
    if {**saved_data, "sample": ""} != {**data, "sample": ""}:
        change = "has changed since"
        if "hold_out" not in run.read_config().get("run", {}):
            change = "this version divides otherwise into training and test images, or which has changed since"
        if "manifest" in saved_data and "manifest" in data:
            change = "has been prepared again since"
        counts = (
            f" ({saved_data['images']:,} images, and {data['images']:,} now)"
            if "images" in saved_data and "images" in data
            else ""
        )
        raise UserError(
            f"data is {config.data}, which {change} '{run.name}' began{counts}: its images would have another order; "
            "give the run its first data, or start a run with another --name"
        )


def write_config(run: RunDirectory, config: RunConfig, images: ImageSet, changes: Sequence[Change] = ()) -> None:
    """Save the resolved configuration, the identity of the data, and the changes to the settings."""
    saved = {"model": config.model_spec(images.image_size, images.channels).to_dict(), "run": config.to_dict()}
    recorded = {"changes": list(changes)} if changes else {}
    run.write_config({**saved, "data": identity(images), **recorded, "environment": environment()})


def identity(images: ImageSet) -> dict[str, Any]:
    """Values that identify a run's data.

    ``sample`` is the SHA-256 of some images' pixels. Another version of a library may decode the same files to other
    pixels.
    """
    if images.shards is not None:
        return {"manifest": images.shards.identity}
    sample = images.images[:: max(1, images.count // IDENTITY_IMAGES)].contiguous()
    test_count = 0 if images.test_images is None else len(images.test_images)
    digest = hashlib.sha256(sample.numpy().data).hexdigest()
    return {"images": images.count, "test_images": test_count, "sample": digest}


def environment() -> dict[str, str]:
    """The versions of software that a run uses. No value identifies the machine."""
    return {
        "infogan-ray": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "ray": version("ray"), "system": f"{platform.system()} {platform.machine()}",
    }  # fmt: skip


def log_path(folder: Storage, name: str = "ray.log") -> Path:
    """The log file of Ray and other libraries: in the run's or search's folder, or for a bucket in the user's cache."""
    if folder.is_local:
        return Path(folder.path) / name
    return cache_folder() / "logs" / f"{folder.name}.log"


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """``config`` with absolute paths, since workers run in another folder. The name of a dataset stays unchanged."""
    data = Path(config.data).expanduser() if config.data else None
    return dataclasses.replace(
        config,
        data=str(data.absolute()) if data and data.exists() else config.data,
        data_dir=str(Path(config.data_dir).expanduser().absolute()) if config.data_dir else None,
        labels=str(Path(config.labels).expanduser().absolute()) if config.labels else None,
        mlflow=with_absolute_path(config.mlflow),
    )
