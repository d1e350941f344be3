"""The time and memory of a run before it starts: from the arithmetic of its networks, or from timed steps. No Ray."""

from __future__ import annotations

import json
import resource
import time
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from rich.filesize import decimal
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from infogan_ray import UserError
from infogan_ray.data.feeds.memory import InMemoryFeed
from infogan_ray.data.progress import counted, duration
from infogan_ray.models.games import GAMES
from infogan_ray.models.networks import ModelSpec
from infogan_ray.models.precision import resolve_precision, set_matrix_products
from infogan_ray.training.accumulation import train_on_batch
from infogan_ray.training.config import RunConfig
from infogan_ray.training.cuda_graph import WARM_UP, GraphedStep
from infogan_ray.training.loop import Update, train
from infogan_ray.training.train_state import TrainState, checkpoint_bytes

# One CPU thread: FLOP/s, and bytes/s of what a step saves for its backward passes, in the precision of the products.
# Convolutions of few channels wait for memory. Fitted to docs/speed.md, whose rows it meets within a factor of 1.6.
CPU_FLOP = {"fp32": 130e9, "bf16": 350e9}
CPU_SAVED, CPU_WEIGHTS = {"fp32": 0.52e9, "bf16": 1.04e9}, 2.6e9
# One NVIDIA H200, FLOP/s in whole steps with and without a CUDA graph (docs/speed.md).
GPU_WITH_GRAPH, GPU, GPU_NAME = 20e12, 3e12, "an NVIDIA H200"
LIBRARIES = 80e6  # bytes of working memory of PyTorch and its libraries
MEASURED_S = 10.0  # steps are timed for at least this long
MANY_EPOCHS = 1000
DAY_S = 86_400.0
GUESS = "within a factor of about two"


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
    step = step_arithmetic(config, image_size, channels, config.batch_size / workers)
    if device == "cuda":
        has_graph = config.cuda_graph and workers == 1 and not config.prior.learn
        speed = GPU_WITH_GRAPH if has_graph else GPU
        return StepCost(step.flop / speed, step.memory, f"if a GPU is like {GPU_NAME}, {GUESS}")
    has_amx = resolve_precision("auto", torch.device("cpu")) == "bf16"
    is_bf16 = has_amx and resolve_precision(config.precision, torch.device("cpu")) == "bf16"
    precision = "bf16" if is_bf16 else "fp32"
    seconds = step.flop / CPU_FLOP[precision] + step.saved / CPU_SAVED[precision] + step.weights / CPU_WEIGHTS
    return StepCost(seconds / threads, step.memory, f"on {counted(threads, 'CPU thread')} of an idle machine, {GUESS}")


class Arithmetic(NamedTuple):
    """A mean step of one worker: additions and multiplications, and bytes."""

    flop: float
    saved: float
    """Bytes that all forward passes save for the backward passes, in fp32."""
    weights: float
    """Bytes of weights and moments."""
    parts: int
    """Number of parts of the batch, of which memory holds one."""

    @property
    def memory(self) -> float:
        return LIBRARIES + self.saved / self.parts + 5 / 4 * self.weights


def step_arithmetic(config: RunConfig, image_size: int, channels: int, rows: float) -> Arithmetic:
    """The arithmetic of a mean step with ``rows`` images of a worker.

    A backward pass costs twice its forward pass, or as much with frozen weights. Penalties need gradients of gradients,
    which cost another five passes. Memory holds what the backward passes need, and five copies of the weights.
    """
    spec, stability = config.model_spec(image_size, channels), config.stability
    (g_flop, g_saved), (d_flop, d_saved) = _forward_passes(json.dumps(spec.to_dict()))
    joint = config.network.joint_batchnorm
    reads_real = bool(config.consistency.weight or stability.restart_every or config.prior.learn)
    q_alone = (1 + reads_real) * (bool(stability.d_policies) and not stability.augment_q)  # Q's own images, in batches
    d_passes = 3.0 * (2 + q_alone) + 2.0 * (1 + joint + (q_alone > 0))
    d_passes += GAMES[config.objective.game].needs_real_in_g_step and not joint
    has_penalty = bool(stability.r1 or stability.r2)
    d_passes += 2 * 5 / stability.r1_every * has_penalty
    g_passes = 3.0 + (config.optimizer.accumulate > 1)  # accumulation generates the images once more
    saved = (g_saved + (2 + q_alone) * d_saved) * (1.8 if has_penalty else 1.2)
    if config.contrastive.weight:  # two images of each pair, and a network like D that sees both
        g_passes, d_passes, saved = g_passes + 6.0, d_passes + 5.0, saved + 2 * g_saved + d_saved
    flop = rows * (g_passes * g_flop + d_passes * d_flop)
    return Arithmetic(flop, rows * saved, checkpoint_bytes(spec, config.contrastive), config.optimizer.accumulate)


@lru_cache
def _forward_passes(spec_json: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """For one image, G's and D's FLOP of the forward pass, and the bytes that it saves for the backward pass."""
    spec = ModelSpec.from_dict(json.loads(spec_json))
    with torch.device("meta"), warnings.catch_warnings():  # shapes alone: no memory, no arithmetic
        warnings.simplefilter("ignore")  # of PyTorch, about the speed of a padding
        generator, discriminator = spec.build()
        image = (spec.channels, spec.image_size, spec.image_size)
        return _forward_of_one(generator, (spec.latents.dim,)), _forward_of_one(discriminator, image)


def _forward_of_one(network: nn.Module, shape: tuple[int, ...]) -> tuple[float, float]:
    """The same for one network, without what does not grow with the number of images, such as weights."""
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
    """The cost of a step, from some steps of one worker in this process. The images are noise, which takes as long.

    Raises UserError if the run's device is not on this machine.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--measure needs the run's device, and this machine has no GPU; leave --measure out")
    torch.set_num_threads(threads)
    set_matrix_products(config.precision)
    where, rows, cycle = torch.device(device), config.batch_size // workers, config.stability.r1_every
    before, peak_before = _memory(where), _peak(where)
    state = TrainState(config, image_size, channels, where)
    state.step = config.contrastive.start if config.contrastive.weight else 0  # the term takes part
    images = torch.randint(0, 256, (2 * rows, channels, image_size, image_size), dtype=torch.uint8)
    has_graph = config.cuda_graph and GraphedStep.supports(state, workers)
    update: Update = GraphedStep(state) if has_graph else train_on_batch
    feed = InMemoryFeed(images, rows, seed=0)
    loop = train(state, feed, steps=2**31, log_every=cycle, checkpoint_every=2**31, update=update)
    for _ in range(WARM_UP + 1 if has_graph else 1):  # the first steps are slower
        next(loop)
    started, cycles = time.monotonic(), 0
    while not cycles or time.monotonic() - started < MEASURED_S:
        next(loop)  # waits for the device
        cycles += 1
    seconds = (time.monotonic() - started) / (cycles * cycle)
    memory = float(_peak(where) - before)
    if _peak(where) == peak_before:  # an earlier peak hides that of the steps
        memory = step_arithmetic(config, image_size, channels, rows).memory
    here = counted(threads, "CPU thread") if device == "cpu" else torch.cuda.get_device_name(where)
    alone = ", one worker alone" if workers > 1 else ""
    return StepCost(seconds, memory, f"measured here on {here}{alone}")


def _peak(device: torch.device) -> int:
    """The largest memory of this process so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _memory(device: torch.device) -> int:
    """The memory of this process now, in bytes."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    statistics = Path("/proc/self/statm")
    if not statistics.exists():  # not Linux
        return _peak(device)
    return int(statistics.read_text().split()[1]) * resource.getpagesize()


def cost_text(cost: StepCost, steps: int) -> str:
    """One line with the time of ``steps`` and the memory."""
    each = _each(cost.seconds)
    return f"time: about {duration(cost.seconds * steps)}, {each} a step {cost.source}; {memory_text(cost)}"


def _each(seconds: float) -> str:
    """The time of a step: 41 ms, 0.35 s, 12 s or 2m05s."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.2g} ms"
    return f"{seconds:.2g} s" if seconds < 99.5 else duration(seconds)


def memory_text(cost: StepCost) -> str:
    rounded = float(f"{cost.memory:.2g}")
    return f"memory: about {decimal(round(rounded))} in each worker, without its images"


def cost_warnings(config: RunConfig, cost: StepCost, steps: int, images: int, left: int | None = None) -> list[str]:
    """Warnings about a run that takes days, or has too few images. ``left``: the steps that a resumed run still has."""
    found = []
    if (seconds := cost.seconds * (steps if left is None else left)) > DAY_S:
        found.append(
            f"the run takes about {seconds / DAY_S:,.1f} days; fewer --steps, a smaller --image-size or "
            "--network.width, or a GPU make it shorter"
        )
    if (epochs := steps * config.batch_size / images) > MANY_EPOCHS:
        help = "use fewer --steps" if config.stability.d_policies else "try --stability.augment-d 'colour translation'"
        found.append(f"G and D see each of {images:,} images {epochs:,.0f} times; D may memorise them; {help}")
    return found
