"""Image quality without another network: the sliced Wasserstein distance between patches of real and generated images.

Karras et al. 2018 ("Progressive Growing of GANs", section 5): local patches of a Laplacian pyramid, compared along
random directions. Small is good. It sees what the bound does not: Q may read every code of a generator that makes
blurred images, or one image only.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.feeds.memory import to_unit_range
from infogan_ray.evaluation.bound import BATCH, evaluating
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import Generator
from infogan_ray.models.rng import seeded_generator
from infogan_ray.models.traversal import to_bytes

IMAGES = 2000
PATCH = 7
PATCHES_PER_IMAGE = 64
DIRECTIONS = 128
SMALLEST_LEVEL = 14
SCALE = 1000.0  # as in the paper's tables


@torch.inference_mode()
def images_to_compare(spec: LatentSpec, generator: Generator, images: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Real, generated and other real images, uint8, IMAGES of each or N/2; None for fewer than two images.

    ``images``: uint8 (N, C, H, W) of the data. The distance between real and other real images says what is good.
    """
    count = min(IMAGES, len(images) // 2)
    if count < 1:
        return None
    device = next(generator.parameters()).device
    order = torch.randperm(len(images), generator=seeded_generator(0, "quality"))
    real, other = images[order[:count]], images[order[count : 2 * count]]
    with evaluating(generator):
        latents = spec.sample(count, seeded_generator(0, "quality", 1, device))
        generated = torch.cat([to_bytes(generator(part)).cpu() for part in latents.split(BATCH)])
    return real, generated, other


@torch.inference_mode()
def sliced_wasserstein(real: Tensor, fake: Tensor, seed: int = 0) -> float:
    """The distance, times 1000, between two sets of uint8 images (N, C, H, W) of equal number; mean over the levels.

    Patches of both are scaled by the real ones' mean and deviation per channel, so that a shift in brightness or
    contrast counts, too. Raises UserError for sets that differ in shape.
    """
    if real.shape != fake.shape:
        raise UserError(f"real images are {tuple(real.shape)} and generated ones {tuple(fake.shape)}; they must agree")
    distances = []
    for level, (of_real, of_fake) in enumerate(zip(pyramid(real), pyramid(fake), strict=True)):
        generator = seeded_generator(seed, "patches", level)
        mine, theirs = patches(of_real, generator), patches(of_fake, generator)
        mean = mine.mean((0, 2), keepdim=True)
        deviation = mine.std((0, 2), keepdim=True).clamp_min(1e-6)
        mine, theirs = ((part - mean) / deviation for part in (mine, theirs))
        directions = torch.randn(mine[0].numel(), DIRECTIONS, generator=generator)
        directions /= directions.norm(dim=0)
        gaps = [
            (_sorted(mine, part) - _sorted(theirs, part)).abs().mean() for part in directions.split(DIRECTIONS // 4, 1)
        ]
        distances.append(torch.stack(gaps).mean())
    return SCALE * float(torch.stack(distances).mean())


def pyramid(images: Tensor) -> list[Tensor]:
    """The Laplacian pyramid of uint8 images, finest level first: what each halving loses, and what is left at last."""
    levels, rest = [], to_unit_range(images)
    while min(rest.shape[-2:]) // 2 >= SMALLEST_LEVEL:
        half = functional.avg_pool2d(rest, 2)
        levels.append(rest - functional.interpolate(half, size=rest.shape[-2:], mode="bilinear", align_corners=False))
        rest = half
    return [*levels, rest]


def patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """(N · PATCHES_PER_IMAGE, C, PATCH²) square patches at random places."""
    count, _, height, width = images.shape
    rows = torch.randint(height - PATCH + 1, (count, PATCHES_PER_IMAGE), generator=generator)
    columns = torch.randint(width - PATCH + 1, (count, PATCHES_PER_IMAGE), generator=generator)
    inside = torch.arange(PATCH)
    rows, columns = rows[..., None] + inside, columns[..., None] + inside
    which = torch.arange(count)[:, None, None, None]
    found = images.permute(0, 2, 3, 1)[which, rows[..., :, None], columns[..., None, :]]  # (N, P, PATCH, PATCH, C)
    return found.reshape(count * PATCHES_PER_IMAGE, PATCH * PATCH, -1).transpose(1, 2)


def _sorted(parts: Tensor, directions: Tensor) -> Tensor:
    """(directions, patches), each row sorted. NumPy sorts floats with vector instructions, here 16 times as fast."""
    projected: Tensor = directions.T @ parts.flatten(1).T
    return torch.from_numpy(np.sort(projected.numpy(), axis=1))
