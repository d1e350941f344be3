"""What one training step reads: images, latents, random numbers, and the weights that follow a schedule.

Shapes: B rows, (B, C, H, W) images, (B, L) latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from infogan_ray.data.feeds.memory import share
from infogan_ray.training.contrastive import Pairs

Number = float | Tensor  # Python's, or a scalar on the device


class Schedule(NamedTuple):
    """What changes with the number of the step; None for what is off."""

    lambdas: Mapping[str, Number]
    """Weights of the bound by code name."""
    consistency: Number
    """Weight of the consistency term."""
    noise: Number | None = None
    """Standard deviation of instance noise."""
    gap: Number | None = None
    """Of the contrastive term's pairs."""
    has_r1: bool = False
    """Whether this step has the R1 penalty."""


class StepNoise(NamedTuple):
    """Random numbers of a step beside its latents, for this rank's B rows; None for what is off."""

    transformations: Tensor | None = None
    """(B, 2, 3) affine transformations of the consistency term."""
    pairs: Pairs | None = None
    """Latents of the contrastive term."""
    instance_noise: Tensor | None = None
    """(2B, C, H, W), added to all that D sees: B rows for real images, B for generated ones."""
    signs: Tensor | None = None
    """(B,) for R1."""

    def rows(self, some: slice) -> StepNoise:
        """Those of some of the B rows."""
        transformations, pairs, noise, signs = self
        return StepNoise(
            None if transformations is None else transformations[some],
            None if pairs is None else pairs.rows(some),
            None if noise is None else noise.unflatten(0, (2, -1))[:, some].flatten(0, 1),
            None if signs is None else signs[some],
        )


class Microbatch(NamedTuple):
    """This rank's rows of the global batch or, with gradient accumulation, some of them."""

    images: Tensor
    """uint8 (B, C, H, W)."""
    latents: Tensor
    """(B, L)."""
    noise: StepNoise = StepNoise()
    weight: float = 1.0
    """B over the mean number of rows of a rank. Gradients, summed over microbatches and averaged over ranks, are then
    the mean over all rows."""

    def split(self, count: int) -> list[Microbatch]:
        """So many microbatches of nearly the same size."""
        if count == 1:
            return [self]
        rows = len(self.images)
        slices = [share(rows, number, count) for number in range(count)]
        return [
            Microbatch(self.images[s], self.latents[s], self.noise.rows(s), self.weight * (s.stop - s.start) / rows)
            for s in slices
        ]
