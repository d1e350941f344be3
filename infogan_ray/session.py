"""One worker's part of a run: build or resume, train, evaluate, write checkpoints, publish. torch only: no Ray.

The same generator runs under Ray Train on every rank and alone in tests. Rank 0 owns all files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from infogan_ray import checkpoints
from infogan_ray.checkpoints import Checkpoint
from infogan_ray.config import RunConfig
from infogan_ray.data import ImageSet, InMemoryFeed
from infogan_ray.evaluation import measure_bound, measure_clustering
from infogan_ray.networks import ModelSpec
from infogan_ray.publishing import publish
from infogan_ray.runs import RunDirectory
from infogan_ray.training import TrainState, train
from infogan_ray.traversal import draw, tile, to_bytes, traverse


@dataclass(frozen=True)
class Report:
    """What a worker has to say at a step. ``due``: a checkpoint is due here, on every rank alike; rank 0 wrote it."""

    metrics: dict[str, Any]
    due: bool = False
    checkpoint: Checkpoint | None = None
    phase: str = field(default="training")


def run_worker(
    config: RunConfig, images: ImageSet, run: RunDirectory, *,
    device: torch.device, rank: int = 0, world_size: int = 1, wrap: Callable[[nn.Module], nn.Module] | None = None,
) -> Iterator[Report]:  # fmt: skip
    """Train to the configured step, from the last whole checkpoint if the run has one. Raises Diverged."""
    steps = config.total_steps(len(images.images))
    spec = config.model_spec(images.image_size, images.channels)
    state = TrainState(
        spec, config.objective, config.optimizer, seed=config.seed, device=device, precision=config.precision
    )
    good, _ = checkpoints.list_checkpoints(run.checkpoints)
    start = checkpoints.last(good)
    if start is not None:
        state.restore(start.step, start.model_tensors(), start.training_tensors())
    if rank == 0:
        run.forget_metrics_after(state.step)
        run.set_status("running", state.step)
        yield Report({"step": state.step}, phase="training" if start is None else f"resumed from step {state.step}")
    if wrap is not None:
        state.distribute(wrap)
    feed = InMemoryFeed(images.images.to(device), config.batch_size, config.seed, rank, world_size)
    progress = train(
        state, feed, steps=steps, log_every=config.log_every, checkpoint_every=config.checkpoint_every,
        rank=rank, world_size=world_size,
    )  # fmt: skip
    for metrics in progress:
        due = state.step % config.checkpoint_every == 0 or state.step == steps
        checkpoint = None
        if due and rank == 0:
            yield Report(metrics, phase="evaluating")
            metrics |= evaluate_state(state, images, config)
            checkpoint = save(state, spec, run, config, metrics, world_size)
        if rank == 0:
            run.append_metrics(metrics)
        yield Report(metrics, due, checkpoint)
    if rank == 0:
        yield Report({"step": steps}, phase="evaluating the best checkpoint on all data")
        chosen = checkpoints.choose(run.checkpoints, "best", config.metric)
        full = chosen.metrics | evaluate_checkpoint(chosen, spec, images, config, device)
        publish(chosen, config, run.model, full)
        run.set_status("finished", steps, best=chosen.step)
        yield Report(full, phase="finished")


def evaluate_state(state: TrainState, images: ImageSet, config: RunConfig) -> dict[str, Any]:
    """The bound on fresh codes, and agreement with the first ``evaluation.labelled`` labels where there are any."""
    latents = state.spec.latents
    metrics = measure_bound(latents, state.averaged_generator(), state.discriminator, config.evaluation)
    if images.labels is not None and images.test_images is not None and images.test_labels is not None:
        some = config.evaluation.labelled
        metrics |= measure_clustering(
            latents, state.discriminator,
            images.images[:some], images.labels[:some], images.test_images, images.test_labels,
        )  # fmt: skip
    return metrics


def evaluate_checkpoint(
    checkpoint: Checkpoint, spec: ModelSpec, images: ImageSet, config: RunConfig, device: torch.device
) -> dict[str, Any]:
    """Agreement of a saved checkpoint with all labels. Empty without labels."""
    if images.labels is None or images.test_images is None or images.test_labels is None:
        return {}
    _, discriminator = spec.build()
    tensors = checkpoint.model_tensors()
    prefix = "discriminator."
    discriminator.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return measure_clustering(
        spec.latents, discriminator.to(device), images.images, images.labels, images.test_images, images.test_labels
    )


def save(
    state: TrainState, spec: ModelSpec, run: RunDirectory, config: RunConfig, metrics: dict[str, Any], world_size: int
) -> Checkpoint:
    """Write a checkpoint and its pictures, then prune."""
    checkpoint = checkpoints.write_checkpoint(
        run.checkpoints, state.step, state.model_tensors(), state.training_tensors(),
        {"model": spec.to_dict(), "metrics": metrics, "seed": config.seed, "world_size": world_size},
    )  # fmt: skip
    generator = state.averaged_generator()
    samples = run.samples(state.step)
    samples.parent.mkdir(exist_ok=True)
    with torch.inference_mode():
        latents = spec.latents.sample(64, torch.Generator(state.device).manual_seed(0))
        tile(to_bytes(generator(latents)).cpu(), columns=8, scale=2).save(samples)
    for name in spec.latents.names:
        picture = run.traversal(state.step, name)
        picture.parent.mkdir(exist_ok=True)
        draw(traverse(spec.latents, generator, name)).save(picture)
    checkpoints.prune(run.checkpoints, config.keep, config.metric)
    run.set_status("running", state.step)
    return checkpoint
