"""The bound of each code, measured apart from training; and reading real images with Q.

Shapes: (N, C, H, W) images, (B, L) latents. Bounds are in nats. Everything runs with batch norm in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infogan_ray import UserError
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.losses import information_bound
from infogan_ray.models.networks import Discriminator, Generator, calibrate
from infogan_ray.models.recognition import BATCH, evaluating
from infogan_ray.models.rng import seeded_generator

STATISTICS_IMAGES = 2000  # generated images that batch norm takes its statistics from


@dataclass(frozen=True)
class EvaluationConfig:
    samples: int = 10_000
    """Fresh codes on which the bound is measured."""
    labelled: int = 10_000
    """Labelled training images that are read at each checkpoint; the final evaluation reads all."""
    sorting: bool = False
    """Measure at each checkpoint how Q sorts real images; the final evaluation always does."""
    seed: int = 20160612
    """Of the fresh codes: the same for every run, so that bounds compare."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.labelled < 1:
            raise UserError(f"evaluation.samples is {self.samples} and labelled {self.labelled}; both must be positive")


def no_callback() -> None:
    """The default of ``before_batch``, which is called before every batch and may raise to end a measurement."""


@contextmanager
def batch_statistics_of(module: nn.Module, batches: Iterable[Tensor]) -> Iterator[None]:
    """Inside, batch norm has the statistics of these batches of input; afterwards it has its own again."""
    kept = [buffer.clone() for buffer in module.buffers()]
    try:
        calibrate(module, batches)
        yield
    finally:
        for buffer, before in zip(module.buffers(), kept, strict=True):
            buffer.copy_(before)


@torch.inference_mode()
def bound_by_code(
    spec: LatentSpec, generator: Generator, discriminator: Discriminator, config: EvaluationConfig,
    before_batch: Callable[[], None] = no_callback,
) -> dict[str, float]:  # fmt: skip
    """L_I of each code in nats, on fresh codes of a fixed seed.

    Batch norm uses statistics of images that this generator makes of other fresh codes. The statistics that D collects
    in training are of real and generated images together. Q learns from generated images alone; where the two kinds
    differ, D's statistics make it read them wrongly: on ``shapes`` a bound of 6.8 nats was measured as -9.
    Real images are still read with D's own statistics. Statistics of real images alone changed clustering errors and
    disentanglement scores by less than another seed does. With ``network.joint_batchnorm`` Q learns with D's own
    statistics, so they are used here as well.
    """
    device = next(generator.parameters()).device

    def codes(samples: int, stream: str) -> Iterator[Tensor]:
        for index, start in enumerate(range(0, samples, BATCH)):
            before_batch()
            yield spec.sample(min(BATCH, samples - start), seeded_generator(config.seed, stream, index, device))

    totals = dict.fromkeys(spec.names, 0.0)
    generated = (generator(latents) for latents in codes(STATISTICS_IMAGES, "statistics"))
    statistics = nullcontext() if discriminator.joint_batchnorm else batch_statistics_of(discriminator, generated)
    with evaluating(generator, discriminator), statistics:
        for latents in codes(config.samples, "evaluate"):
            _, q = discriminator(generator(latents))
            for name, bound in information_bound(spec, latents, q).items():
                totals[name] += float(bound) * len(latents)
    return {name: total / config.samples for name, total in totals.items()}
