"""Checks of a run before a worker starts, and what is written into its directory then. No Ray."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import time
from collections.abc import Callable
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
from infogan_ray.evaluation.metrics import check_needs, missing_packages
from infogan_ray.models.networks import ModelSpec, plan
from infogan_ray.storage.file_system import Storage, open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig
from infogan_ray.training.json_difference import difference
from infogan_ray.training.run_cost import checkpoint_plan
from infogan_ray.training.run_outcome import Listener
from infogan_ray.training.tracking.addresses import with_absolute_path
from infogan_ray.training.train_state import checkpoint_bytes

SAMPLED = 1000  # images whose pixels identify a run's data


def check_data(
    config: RunConfig, room: MemoryBudget, say: Callable[[str], None] = print, sample: int = SAMPLE
) -> ImageSet:
    """Load the images, and refuse what does not fit them. Raises UserError, in one line.

    ``say`` is told of a download. ``sample``: how many images of a streamed dataset are read; workers read their own.
    """
    if config.name is None:
        raise UserError("name is not set; give the run a --name")
    if config.data is None:
        raise UserError("data is not set; give --data (mnist, fashion_mnist, shapes, or a path) or a --preset")
    if config.image_size is not None:
        plan(config.image_size, config.channels or 1)
    images = load_images(config.data, config.data_config, say, feed=kept_feed(config), budget=room, sample=sample)
    config.total_steps(images.count)
    spec = config.model_spec(images.image_size, images.channels)
    labelled = images.labels is not None and images.test_labels is not None
    categorical = any(code.one_hot for code in spec.latents.codes)
    check_needs(config.metric, config.data, labelled, categorical)
    for line in missing_packages(labelled and categorical):
        say(f"not measured: {line}")
    return images


def kept_feed(config: RunConfig) -> str:
    """The feed that is asked for. A resumed run keeps its own, since feeds return the images in different orders.

    Raises UserError where another is asked for.
    """
    run = RunDirectory(open_storage(config.storage) / config.name) if config.resume and config.name else None
    if run is None or not run.exists:
        return config.feed
    kept = str(run.read_config()["run"].get("feed", MEMORY))  # runs of earlier versions had their images in memory
    if kept == AUTO or config.feed == kept:
        return config.feed
    if config.feed != AUTO:
        raise UserError(
            f"feed is '{config.feed}', and {config.name} has read its images by '{kept}', in another order; "
            "leave --feed out to continue"
        )
    return kept


def prepare_run(
    config: RunConfig, images: ImageSet, room: MemoryBudget, listen: Listener
) -> tuple[RunConfig, RunDirectory]:
    """Claim the run's directory and write its configuration; returns the configuration that its workers get.

    Raises UserError for a run that cannot be resumed with it, and RunExists for a name that is taken.
    """
    name = config.name
    assert name is not None, "see check_data"
    line = feed_line(kept_feed(config), images, room)
    config = config.override({"feed": images.feed}, "the data")  # all workers, and whoever resumes the run, do the same
    run = RunDirectory.claim(open_storage(config.storage), name, config.resume)
    before = run.get_status()
    if config.resume and before["state"] == "running":
        ago = time.time() - before["time"]
        say = f"{run.name} reported {ago:.0f} s ago; if it still runs, it stops: this attempt takes it over"
        listen({"phase": "resuming", "step": before["step"], "say": say})
    steps = config.total_steps(images.count)
    if config.resume and before.get("stored", 0) > steps:
        raise UserError(
            f"steps is {steps:,}, and {run.name} is at step {before['stored']:,} already; give --steps more"
        )
    config = as_begun(config, run)
    sample = (run.read_config().get("data") or {}).get("sample") if run.exists else None
    write_config(run, config, images)
    if sample not in (None, identity(images).get("sample")):
        say = f"the images of {config.data} are as many as when {run.name} began, but they are not the same"
        listen({"phase": "resuming", "step": before["step"], "say": say})
    size = checkpoint_bytes(config.model_spec(images.image_size, images.channels), config.contrastive)
    for say in (line, checkpoint_plan(config, steps, size, run.folder)):
        listen({"phase": "starting workers", "step": 0, "say": say})
    return config, run


def as_begun(config: RunConfig, run: RunDirectory) -> RunConfig:
    """Settings that matter at the first step alone, which a resumed run keeps."""
    if not run.exists:
        return config
    begun = run.read_config()["run"].get("stability", {})
    return config.override({"stability": {"mean_bias": begun.get("mean_bias", False)}}, "the run")


def write_config(run: RunDirectory, config: RunConfig, images: ImageSet) -> None:
    """Save the resolved configuration. Raises UserError where a resumed run has another model or other data."""
    spec = config.model_spec(images.image_size, images.channels).to_dict()
    if run.exists:
        # Read and written again: what did not exist yet when the run began has its default.
        before = ModelSpec.from_dict(run.read_config().get("model", {})).to_dict()
        if found := difference(before, spec):
            raise UserError(
                f"name '{run.name}' belongs to a model that differs from this one ({found}); its config is "
                f"{run.folder}/{run.CONFIG}"
            )
        learned = run.read_config().get("run", {}).get("prior", {})
        if learned.get("learn") and (not config.prior.learn or learned.get("method") != config.prior.method):
            raise UserError(
                f"'{run.name}' learns its prior by prior.method {learned.get('method')}, which would be lost; give "
                f"--prior.learn --prior.method {learned.get('method')}, or start a run of another --name"
            )
    data = identity(images)
    begun = (run.read_config().get("data") if run.exists else None) or data
    if {**begun, "sample": ""} != {**data, "sample": ""}:
        how = "is not what it was when"
        if "manifest" in begun and "manifest" in data:
            how = "has been prepared anew since"
        counts = (
            f" ({begun['images']:,} images, and {data['images']:,} now)"
            if "images" in begun and "images" in data
            else ""
        )
        raise UserError(
            f"data is {config.data}, which {how} '{run.name}' began{counts}: its images would come in another order; "
            "give it the data that it had, or start a run of another --name"
        )
    run.write_config({"model": spec, "run": config.to_dict(), "data": data, "environment": environment()})


def identity(images: ImageSet) -> dict[str, Any]:
    """Identifies a run's data. ``sample``: SHA-256 over some of the pixels, which another version of a library may
    decode differently."""
    if images.shards is not None:
        return {"manifest": images.shards.identity}
    some = images.images[:: max(1, images.count // SAMPLED)].contiguous()
    tests = 0 if images.test_images is None else len(images.test_images)
    return {"images": images.count, "test_images": tests, "sample": hashlib.sha256(some.numpy().data).hexdigest()}


def environment() -> dict[str, str]:
    """The versions that a run uses; nothing in it identifies the machine."""
    return {
        "infogan-ray": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "ray": version("ray"), "system": f"{platform.system()} {platform.machine()}",
    }  # fmt: skip


def log_path(folder: Storage, name: str = "ray.log") -> Path:
    """The file for log lines of Ray and other libraries: in the run's or search's folder, or for a bucket in the user's
    cache."""
    if folder.is_local:
        return Path(folder.path) / name
    return cache_folder() / "logs" / f"{folder.name}.log"


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Workers run in another folder, where a relative path has another meaning. A dataset's name stays a name."""
    data = Path(config.data).expanduser() if config.data else None
    return dataclasses.replace(
        config,
        data=str(data.absolute()) if data and data.exists() else config.data,
        data_dir=str(Path(config.data_dir).expanduser().absolute()) if config.data_dir else None,
        labels=str(Path(config.labels).expanduser().absolute()) if config.labels else None,
        mlflow=with_absolute_path(config.mlflow),
    )
