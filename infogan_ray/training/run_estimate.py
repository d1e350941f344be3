"""The time and memory of a run before it starts: from the arithmetic of its networks, or from timed steps. No Ray."""

from __future__ import annotations

import resource
import time
import warnings
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from infogan_ray.data.feeds.memory import InMemoryFeed
from infogan_ray.data.progress import counted, duration
from infogan_ray.models.games import GAMES
from infogan_ray.models.precision import resolve_precision
from infogan_ray.training.config import RunConfig
from infogan_ray.training.loop import train
from infogan_ray.training.train_state import TrainState, checkpoint_bytes

# FLOP/s in whole steps, from docs/speed.md: of one CPU thread, and of one NVIDIA H200.
CPU_THREAD = {"fp32": 60e9, "bf16": 150e9}
GPU, GPU_NAME = 20e12, "an NVIDIA H200"
LIBRARIES = 80e6  # bytes of working memory of PyTorch and its libraries
MEASURED_S = 10.0  # steps are timed for this long, and at least once
MANY_EPOCHS = 1000
DAY_S = 86_400.0


@dataclass(frozen=True)
class StepCost:
    """The time (s) and the memory (bytes, without images) of a step in each worker."""

    seconds: float
    memory: float
    source: str
    """Where the figures are from."""


def computed_cost(
    config: RunConfig, image_size: int, channels: int, device: str, threads: int, workers: int
) -> StepCost:  # fmt: skip
    """The cost of a step from its arithmetic. The time is right within a factor of about two."""
    flop, memory = step_arithmetic(config, image_size, channels, config.batch_size / workers)
    if device == "cuda":
        return StepCost(flop / GPU, memory, f"if each GPU is like {GPU_NAME}")
    speed = threads * CPU_THREAD[resolve_precision(config.precision, torch.device("cpu"))]
    return StepCost(
        flop / speed, memory, f"on {counted(threads, 'CPU thread')} of an idle machine, within a factor of about two"
    )


def step_arithmetic(config: RunConfig, image_size: int, channels: int, rows: float) -> tuple[float, float]:
    """The multiplications and additions of a mean step, and its memory in bytes, with ``rows`` images of a worker.

    A backward pass costs twice its forward pass, or as much with frozen weights. Penalties need gradients of gradients,
    which cost another five passes. Memory holds what the backward passes need, and five copies of the weights.
    """
    spec, stability = config.model_spec(image_size, channels), config.stability
    with torch.device("meta"), warnings.catch_warnings():  # shapes alone: no memory, no arithmetic
        warnings.simplefilter("ignore")  # of PyTorch, about the speed of a padding
        generator, discriminator = spec.build()
        g_flop, g_saved = _forward_of_one(generator, (spec.latents.dim,))
        d_flop, d_saved = _forward_of_one(discriminator, (channels, image_size, image_size))
    q_alone = bool(stability.d_policies) and not stability.augment_q
    joint = config.network.joint_batchnorm
    d_passes = 3.0 * (2 + q_alone) + 2.0 * (1 + joint + q_alone)
    d_passes += GAMES[config.objective.game].needs_real_in_g_step and not joint
    has_penalty = bool(stability.r1 or stability.r2)
    d_passes += 2 * 5 / stability.r1_every * has_penalty
    g_passes = 3.0 + (config.optimizer.accumulate > 1)  # accumulation generates the images once more
    if config.contrastive.weight:  # two images of each pair, and a network like D that sees both
        g_passes, d_passes = g_passes + 6.0, d_passes + 5.0
    flop = rows * (g_passes * g_flop + d_passes * d_flop)
    part = rows / config.optimizer.accumulate
    saved = part * (g_saved + (2 + q_alone) * d_saved) * (1.8 if has_penalty else 1.2)
    return flop, LIBRARIES + saved + 5 / 4 * checkpoint_bytes(spec, config.contrastive)


def _forward_of_one(network: nn.Module, shape: tuple[int, ...]) -> tuple[float, float]:
    """For one image: FLOP of the forward pass, and bytes that it saves for the backward pass, without weights."""
    (flop, saved), (more_flop, more_saved) = (_forward(network, torch.empty(rows, *shape)) for rows in (2, 4))
    return (more_flop - flop) / 2, (more_saved - saved) / 2


def _forward(network: nn.Module, inputs: torch.Tensor) -> tuple[int, int]:
    saved = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += tensor.nbytes
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(count, lambda tensor: tensor):
        network(inputs)
    return counter.get_total_flops(), saved


def measured_cost(
    config: RunConfig, image_size: int, channels: int, device: str, threads: int, workers: int
) -> StepCost:  # fmt: skip
    """The cost of a step, from some steps of one worker in this process. The images are noise, which takes as long."""
    torch.set_num_threads(threads)
    where, rows, cycle = torch.device(device), config.batch_size // workers, config.stability.r1_every
    before = _peak(where)
    state = TrainState(config, image_size, channels, where)
    images = torch.randint(0, 256, (2 * rows, channels, image_size, image_size), dtype=torch.uint8)
    loop = train(state, InMemoryFeed(images, rows, seed=0), steps=2**31, log_every=cycle, checkpoint_every=2**31)
    next(loop)  # the first steps are slower
    started, cycles = time.monotonic(), 0
    while not cycles or time.monotonic() - started < MEASURED_S:
        next(loop)  # waits for the device
        cycles += 1
    seconds = (time.monotonic() - started) / (cycles * cycle)
    here = counted(threads, "CPU thread") if device == "cpu" else torch.cuda.get_device_name(where)
    return StepCost(seconds, _peak(where) - before, f"measured here on {here}")


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def cost_text(cost: StepCost, steps: int) -> str:
    """One line with the time of ``steps`` and the memory."""
    each = f"{cost.seconds:.2g} s" if cost.seconds >= 0.1 else f"{1000 * cost.seconds:.2g} ms"
    return f"time: about {duration(cost.seconds * steps)}, {each} a step {cost.source}; {memory_text(cost)}"


def memory_text(cost: StepCost) -> str:
    return f"memory: about {cost.memory / 1e9:.1f} GB in each worker, without its images"


def cost_warnings(config: RunConfig, cost: StepCost, steps: int, images: int) -> list[str]:
    """Warnings about a run that takes days, or has too few images."""
    found = []
    if (seconds := cost.seconds * steps) > DAY_S:
        found.append(
            f"the run takes about {seconds / DAY_S:,.1f} days; fewer --steps, a smaller --image-size or "
            "--network.width, or a GPU make it shorter"
        )
    if (epochs := steps * config.batch_size / images) > MANY_EPOCHS:
        help = "use fewer --steps" if config.stability.d_policies else "try --stability.augment-d 'colour translation'"
        found.append(f"G and D see each of {images:,} images {epochs:,.0f} times; D may learn them by heart; {help}")
    return found
