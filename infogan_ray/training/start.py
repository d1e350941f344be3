"""The start of a worker: all ranks agree on a checkpoint, and each builds its training state. No Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from infogan_ray import UserError
from infogan_ray.data.image_set import ImageSet
from infogan_ray.storage import checkpoints
from infogan_ray.storage.checkpoints import Checkpoint
from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.run_directory import RunDirectory, step_name
from infogan_ray.training.category_splits import Splits
from infogan_ray.training.checkpoint_uploader import CheckpointUploader, StorageFailed
from infogan_ray.training.config import RunConfig
from infogan_ray.training.train_state import TrainState


@dataclass(frozen=True)
class Start:
    """The checkpoint to start from, if there is one. On rank 0 also the uploader, and messages for people."""

    checkpoint: Checkpoint | None
    uploader: CheckpointUploader | None
    warnings: list[str]


def agree_on_start(
    config: RunConfig, run: RunDirectory, steps: int, rank: int, world_size: int, device: torch.device, restarts: int
) -> Start | None:
    """Choose the same checkpoint to start from on all ranks.

    Rank 0 chooses the checkpoint and takes the run over. Then it broadcasts the checkpoint's step, -1 for no
    checkpoint, or -2 for a failure. Without this message the other ranks would wait for a rank that has ended. After a
    failure, rank 0 raises StorageFailed, and the other ranks get None.
    """
    chosen, uploader, failure = None, None, ""
    warnings: list[str] = []
    if rank == 0:
        try:
            chosen = checkpoints.last_valid(run.checkpoints, warnings.append)
            if chosen is not None and chosen.step > steps:
                raise StorageFailed(f"steps is {steps:,}, and the run is at step {chosen.step:,}; give --steps more")
            uploader = CheckpointUploader(
                run, step=chosen.step if chosen else 0, keep=config.keep, metric=config.metric,
                max_misses=config.max_missed_checkpoints, restarts=restarts,
            )  # fmt: skip
        except (StorageError, StorageFailed, UserError) as error:
            failure = str(error)
    if world_size > 1:
        message = torch.tensor([-2 if failure else chosen.step if chosen else -1], device=device)
        dist.broadcast(message, src=0)
        if rank > 0 and message.item() == -2:
            return None
        if rank > 0 and message.item() >= 0:
            chosen = checkpoints.open_checkpoint(run.checkpoints / step_name(int(message.item())))
    if failure:
        raise StorageFailed(failure)
    return Start(chosen, uploader, warnings)


def make_state(
    config: RunConfig, images: ImageSet, start: Checkpoint | None, device: torch.device,
    wrap: Callable[[nn.Module], nn.Module] | None,
) -> TrainState:  # fmt: skip
    """The training state of a checkpoint, or a new one."""
    tensors = None if start is None else (start.model_tensors(), start.training_tensors())
    state = TrainState(config, images.image_size, images.channels, device)
    if start is not None and tensors is not None:
        state.restore(start.step, *tensors)
    elif config.stability.mean_bias and len(images.images):  # with streaming, only rank 0 has a sample of images
        state.set_mean_bias(images.images)
    if config.stability.resplit_every and any(code.one_hot for code in state.spec.latents.codes):
        networks, optimizers = (state.generator, state.average, state.discriminator), (state.opt_g, state.opt_d)
        state.splits = Splits(
            config.stability.resplit_every, images.images, config.consistency, networks, optimizers
        )  # fmt: skip
    if wrap is not None:
        state.distribute(wrap)
    return state


def resume_message(config: RunConfig, state: TrainState, start: Start, world_size: int) -> str:
    """A message about the step from which training continues; empty for a new run."""
    assert start.uploader is not None
    restarts = start.uploader.restarts
    cause = f" after restart {restarts} of the workers" if restarts else ""
    if start.checkpoint is None:
        again = bool(restarts) or config.resume
        return f"started again from step 0{cause}: there is no whole checkpoint" if again else ""
    previous = start.checkpoint.state.get("world_size", world_size)
    workers = f"; world size {world_size}, before {previous}" if previous != world_size else ""
    return f"resumed from step {state.step:,}{cause}{workers}"
