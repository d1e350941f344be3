"""What a run takes of storage and of the network, in words."""

from __future__ import annotations

from rich.filesize import decimal

from infogan_ray.storage.file_system import Storage
from infogan_ray.training.config import RunConfig


def checkpoint_plan(config: RunConfig, steps: int, bytes_each: int, where: Storage) -> str:
    """How many checkpoints there will be and what they take. At least two are kept: the best and the last."""
    kept = min(max(config.keep, 2), -(-steps // config.checkpoint_every))
    return (
        f"checkpoints: every {config.checkpoint_every:,} steps, {decimal(bytes_each)} each, {kept} kept: "
        f"{decimal(kept * bytes_each)} in {where}"
    )


def wire_plan(gradients: dict[str, int], config: RunConfig, workers: int) -> str:
    """What a worker sends in a step, from the bytes of each network's gradients.

    In a ring of W ranks each rank sends 2 (W - 1) / W of what is reduced, and receives as much.
    """
    wire = config.optimizer.wire
    each = ", ".join(f"{name} {decimal(count)}" for name, count in gradients.items())
    if workers == 1:
        return f"gradients in {wire}: {each}; one worker sends nothing"
    sent = decimal(round(sum(gradients.values()) * 2 * (workers - 1) / workers))
    more = ", and batch-norm statistics" if config.network.sync_batchnorm else ""
    return f"gradients in {wire}: {each}; each of {workers} workers sends {sent} a step{more}"
