"""The settings of a run that continues: its own. Others are refused, or accepted and recorded with their step."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from infogan_ray import UserError
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.config import RunConfig, from_saved

FREE = (
    "preset", "data", "data_dir", "labels", "image_size", "channels", "codes", "network", "feed", "max_bad",
    "steps", "epochs", "workers", "threads", "device", "gpus_per_worker", "placement", "wait",
    "resize_every", "cuda_graph", "storage", "name", "resume", "accept_changes", "checkpoint_every", "keep",
    "max_missed_checkpoints", "log_every", "profile", "mlflow", "wandb",
)  # fmt: skip
"""Fields that may change. The images, the model and the feed are compared by their content, elsewhere."""
NO_RANGE = ("pixel_range", None)
"""A run has none if its images have 8 bits, or if an earlier version began it. The range found now is no change."""

Change = dict[str, Any]
"""``field``, its values ``before`` and ``after``, and the ``step`` at which the new value took effect."""


def own_settings(run: RunDirectory) -> RunConfig:
    """The configuration with which a run continues. Raises UserError if the run has none."""
    saved = from_saved(run.read_config(), f"{run.folder}/{run.CONFIG}")
    return dataclasses.replace(saved, storage=run.folder.parent.uri, name=run.name, resume=True, accept_changes=False)


def changed_settings(run: RunDirectory, config: RunConfig, step: int, other_images: bool) -> list[Change]:
    """What ``config`` would change in a run that continues at ``step``. Raises UserError unless it accepts changes.

    ``other_images``: whether the images of ``config.data`` differ from those of the run.
    """
    before, after = _fields(saved := own_settings(run)), _fields(config)
    changes = [
        {"step": step, "field": field, "before": before[field], "after": value}
        for field, value in after.items()
        if field.partition(".")[0] not in FREE and value != before[field] and (field, before[field]) != NO_RANGE
    ]
    if other_images and saved.data != config.data:
        changes.append({"step": step, "field": "data", "before": saved.data, "after": config.data})
    if changes and not config.accept_changes:
        differences = "; ".join(f"{c['field']} is {c['after']}, and was {c['before']}" for c in changes)
        raise UserError(
            f"name '{run.name}' is a run with other settings: {differences}. Leave them out to continue with the run's "
            "own, give --accept-changes to continue with these, or start a run with another --name"
        )
    return changes


def recorded_changes(run: RunDirectory) -> list[Change]:
    """The changes in a run's config.json; empty without one."""
    return list(run.read_config().get("changes", [])) if run.exists else []


def settings_at(config: RunConfig, changes: list[Change], step: int) -> tuple[RunConfig, list[Change]]:
    """The settings with which a run made its checkpoint at ``step``, and the changes before it.

    ``config`` has the settings after all changes.
    """
    for change in reversed(changes):
        if change["step"] >= step:
            *sections, name = change["field"].split(".")
            values = {name: change["before"]}
            for section in reversed(sections):
                values = {section: values}
            config = config.override(values, "the run's changes")
    return config, [change for change in changes if change["step"] < step]


def epoch_offset(changes: list[Change], images: int) -> float:
    """Epochs to add to a step divided by the steps of an epoch, if the batch size was changed; else 0.

    So the epoch rises steadily, although a step has another number of images after a change.
    """
    offset = 0.0
    for change in changes:
        if change["field"] == "batch_size":
            offset += change["step"] / (images // change["before"]) - change["step"] / (images // change["after"])
    return offset


def steps_of_epochs(config: RunConfig, changes: list[Change], images: int) -> int:
    """Number of steps of a run whose length is in epochs, after changes of its batch size."""
    assert config.epochs is not None
    per_epoch = images // config.batch_size
    return max(math.ceil((config.epochs - epoch_offset(changes, images)) * per_epoch - 1e-6), 0)


def change_text(change: Change) -> str:
    """A change in words: 'from step 200 on, batch_size is 32 instead of 64'."""
    return f"from step {change['step']:,} on, {change['field']} is {change['after']} instead of {change['before']}"


def _fields(section: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of a configuration and of its sections, by their path."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        name = f"{prefix}{field.name}"
        found |= _fields(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return found
