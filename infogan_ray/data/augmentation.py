"""Augmentation of real images in training: random changes that make no difference to the user. All are off by default.

G learns to generate what augmentation makes, and a code may come to stand for it. So no preset uses it, not even flip:
the direction of a face or a chair is a factor that InfoGAN is to find, and in mirrored images it is random.
Shapes: B this rank's share of the global batch, (B, C, H, W) images.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.affine import affine_maps, transform
from infogan_ray.data.feeds.memory import share

DRAWS = 7  # numbers per image: turn, size, right, down; mirror; brightness; contrast
MOST = {"shift": 0.5, "degrees": 180.0, "scale": 0.9, "brightness": 1.0, "contrast": 1.0}


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of the real images, new at each step, off at 0. G learns to generate what they make."""

    flip: bool = False
    """Mirror half of the images, left to right. Leave it off where the direction of objects is a factor to be found."""
    shift: float = 0.0
    """Shifts of up to so many image widths, right or left and up or down."""
    degrees: float = 0.0
    """Turns of up to so many degrees."""
    scale: float = 0.0
    """Sizes from 1 - scale to 1 + scale."""
    brightness: float = 0.0
    """Brighter or darker by up to this share of the whole range, 0 to 1."""
    contrast: float = 0.0
    """Distances from an image's own mean times 1 - contrast to 1 + contrast, 0 to 1."""

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise UserError(f"augment.{name} is {value}; it must lie between 0 and {most:g}")

    @property
    def on(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


def draw(batch_size: int, generator: torch.Generator, rank: int = 0, world_size: int = 1) -> Tensor:
    """(DRAWS, B) numbers in [-1, 1]: this rank's rows of the step's random numbers, the same for any world size."""
    draws = torch.rand(DRAWS, batch_size, generator=generator, device=generator.device) * 2 - 1
    return draws[:, share(batch_size, rank, world_size)]


def augment(images: Tensor, config: AugmentationConfig, draws: Tensor) -> Tensor:
    """uint8 images (B, C, H, W), changed by draws (DRAWS, B) in [-1, 1]; uint8 again, so that their range stays.

    Pixels from outside the image are those of its nearest border.
    """
    if config.flip:
        images = torch.where((draws[4] < 0).view(-1, 1, 1, 1), images.flip(-1), images)
    if not any(getattr(config, name) for name in MOST):
        return images
    levels = images.float()
    if config.degrees or config.scale or config.shift:
        levels = transform(levels, affine_maps(draws[:4], config.degrees, config.scale, config.shift))
    if config.contrast:
        mean = levels.mean((1, 2, 3), keepdim=True)
        levels = mean + (levels - mean) * (1 + config.contrast * draws[6].view(-1, 1, 1, 1))
    if config.brightness:
        levels = levels + 255 * config.brightness * draws[5].view(-1, 1, 1, 1)
    return levels.round().clamp(0, 255).to(torch.uint8)
