"""Messages about the length, storage and network traffic of a run."""

from __future__ import annotations

from rich.filesize import decimal

from infogan_ray.data.image_set import ImageSet
from infogan_ray.data.progress import counted
from infogan_ray.storage.file_system import Storage
from infogan_ray.training.config import RunConfig
from infogan_ray.training.train_state import checkpoint_bytes


def checkpoint_count(config: RunConfig, steps: int) -> int:
    return -(-steps // config.checkpoint_every)


def kept_checkpoints(config: RunConfig, steps: int) -> int:
    """The number of checkpoints that stay. At least two: the best and the last."""
    return min(max(config.keep, 2), checkpoint_count(config, steps))


def checkpoint_size(config: RunConfig, images: ImageSet) -> int:
    """The bytes of one checkpoint."""
    return checkpoint_bytes(config.model_spec(images.image_size, images.channels), config.contrastive)


def trials_bytes(configs: list[RunConfig], images: ImageSet) -> int:
    """The bytes of the checkpoints that stay of a search, if no trial is stopped."""
    return sum(kept_checkpoints(config, config.steps or 0) * checkpoint_size(config, images) for config in configs)


def steps_plan(config: RunConfig, steps: int, images: int, epoch_offset: float = 0.0) -> str:
    """The number of steps and epochs, and how many of the ``images`` an epoch leaves out.

    ``epoch_offset``: see ``resume.epoch_offset``.
    """
    each, left_out = divmod(images, config.batch_size)
    count = steps / each + epoch_offset
    epochs = f"{count:,.1f}".removesuffix(".0") if count >= 0.1 else f"{count:.1g}"
    which = f"all {images:,} images"
    if left_out:
        which = f"all but {left_out:,} of {images:,} images; the next epoch leaves out others"
    return (
        f"steps: {steps:,} of {config.batch_size:,} images, {epochs} {'epoch' if epochs == '1' else 'epochs'}; "
        f"an epoch is {counted(each, 'step')} and has {which}"
    )


def checkpoint_plan(config: RunConfig, steps: int, bytes_each: int, storage: Storage) -> str:
    """The number and size of checkpoints."""
    kept = kept_checkpoints(config, steps)
    return (
        f"checkpoints: every {config.checkpoint_every:,} steps, {decimal(bytes_each)} each, {kept} kept: "
        f"{decimal(kept * bytes_each)} in {storage}"
    )


def wire_plan(gradients: dict[str, int], config: RunConfig, workers: int) -> str:
    """The bytes that a worker sends in a step, from the bytes of each network's gradients.

    A ring all-reduce of n bytes over W ranks sends 2 (W - 1) / W n bytes from each rank.
    """
    wire = config.optimizer.wire
    each = ", ".join(f"{name} {decimal(count)}" for name, count in gradients.items())
    if workers == 1:
        return f"gradients in {wire}: {each}; one worker sends nothing"
    sent = decimal(round(sum(gradients.values()) * 2 * (workers - 1) / workers))
    statistics = ", and batch-norm statistics" if config.network.sync_batchnorm else ""
    return f"gradients in {wire}: {each}; each of {workers} workers sends {sent} a step{statistics}"
