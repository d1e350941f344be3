"""The inputs of a training step: images, latents, random numbers, and the numbers of the schedule.

Shapes: B rows, images (B, C, H, W), latents (B, L).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from infogan_ray.data.feeds.memory import share
from infogan_ray.training.contrastive import Pairs

Number = float | Tensor  # a Python float, or a scalar tensor on the device


class Schedule(NamedTuple):
    """The numbers that depend on the step. A part that is off is None."""

    lambdas: Mapping[str, Number]
    """The bound's weights, by code name."""
    consistency: Number
    """Weight of the consistency term."""
    noise: Number | None = None
    """Standard deviation of instance noise."""
    gap: Number | None = None
    """The gap of the contrastive term's pairs."""
    has_penalty: bool = False
    """Whether this step has the penalties R1 and R2, as far as they are on."""


class StepNoise(NamedTuple):
    """A step's random numbers other than its latents, for this rank's B rows. A part that is off is None."""

    transformations: Tensor | None = None
    """(B, 2, 3) affine transformations of the consistency term."""
    pairs: Pairs | None = None
    """Pairs of latents for the contrastive term."""
    instance_noise: Tensor | None = None
    """(2B, C, H, W), added to D's inputs: B rows for real images, then B rows for generated images."""
    signs: Tensor | None = None
    """(2B,) for R1 and R2: B rows for real images, then B rows for generated images."""
    augmentation: Tensor | None = None
    """(2B, UNIFORMS) in [0, 1) for D's augmentation: B rows for real images, then B rows for generated images."""

    def rows(self, indices: slice) -> StepNoise:
        """The numbers for some of the B rows."""
        transformations, pairs, noise, signs, augmentation = self
        return StepNoise(
            None if transformations is None else transformations[indices],
            None if pairs is None else pairs.rows(indices),
            _rows_of_both(noise, indices),
            _rows_of_both(signs, indices),
            _rows_of_both(augmentation, indices),
        )


def _rows_of_both(values: Tensor | None, indices: slice) -> Tensor | None:
    """Some of the B rows for real images and the same rows for generated images, from values (2B, ...)."""
    return None if values is None else values.unflatten(0, (2, -1))[:, indices].flatten(0, 1)


class Microbatch(NamedTuple):
    """This rank's rows of the global batch. With gradient accumulation, some of these rows."""

    images: Tensor
    """uint8 (B, C, H, W)."""
    latents: Tensor
    """(B, L)."""
    noise: StepNoise = StepNoise()
    weight: float = 1.0
    """B divided by the mean number of rows of a rank. Gradients are multiplied by it, summed over microbatches and
    averaged over ranks. The result is the mean over all rows."""

    def split(self, count: int) -> list[Microbatch]:
        """Split into ``count`` microbatches of nearly equal size."""
        if count == 1:
            return [self]
        rows = len(self.images)
        slices = [share(rows, number, count) for number in range(count)]
        return [
            Microbatch(self.images[s], self.latents[s], self.noise.rows(s), self.weight * (s.stop - s.start) / rows)
            for s in slices
        ]
