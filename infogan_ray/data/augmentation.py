"""Augmentation: random changes of real images during training. All are off by default.

G learns to generate the changed images, and a code may learn the change. So no preset uses augmentation, not even flip.
The direction of a face or a chair is a factor that InfoGAN should find. In mirrored images it is random.
Shapes: images (B, C, H, W), where B is this rank's part of the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.affine import affine_maps, transform
from infogan_ray.data.feeds.memory import share

UNIFORMS = 7  # random numbers per image: rotation, size, right, down; mirror; brightness; contrast
LIMITS = {"shift": 0.5, "degrees": 180.0, "scale": 0.9, "brightness": 1.0, "contrast": 1.0}


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of the real images, new at each step; 0 is off. G learns to generate the changed images."""

    flip: bool = False
    """Mirror half of the images, left to right. Leave it off if the direction of objects is a factor to find."""
    shift: float = 0.0
    """Largest shift in image widths, left or right and up or down."""
    degrees: float = 0.0
    """Largest rotation in degrees, in both directions."""
    scale: float = 0.0
    """Resize the content by a factor from 1 - scale to 1 + scale."""
    brightness: float = 0.0
    """Largest change of brightness, as a share (0 to 1) of the whole range."""
    contrast: float = 0.0
    """Multiply distances from the image's mean by 1 - contrast to 1 + contrast; 0 to 1."""

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise UserError(f"augment.{name} is {value}; it must lie between 0 and {limit:g}")

    @property
    def on(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


def sample_uniforms(batch_size: int, generator: torch.Generator, rank: int = 0, world_size: int = 1) -> Tensor:
    """This rank's part (UNIFORMS, B) of a step's random numbers in [-1, 1]. They are the same for any world size."""
    uniforms = torch.rand(UNIFORMS, batch_size, generator=generator, device=generator.device) * 2 - 1
    return uniforms[:, share(batch_size, rank, world_size)]


def augment(images: Tensor, config: AugmentationConfig, uniforms: Tensor) -> Tensor:
    """Change uint8 images (B, C, H, W) by random numbers ``uniforms`` (UNIFORMS, B) in [-1, 1]. Returns uint8.

    Pixels outside the image get the value of the nearest border pixel.
    """
    if config.flip:
        images = torch.where((uniforms[4] < 0).view(-1, 1, 1, 1), images.flip(-1), images)
    if not any(getattr(config, name) for name in LIMITS):
        return images
    levels = images.float()
    if config.degrees or config.scale or config.shift:
        levels = transform(levels, affine_maps(uniforms[:4], config.degrees, config.scale, config.shift))
    if config.contrast:
        mean = levels.mean((1, 2, 3), keepdim=True)
        levels = mean + (levels - mean) * (1 + config.contrast * uniforms[6].view(-1, 1, 1, 1))
    if config.brightness:
        levels = levels + 255 * config.brightness * uniforms[5].view(-1, 1, 1, 1)
    return levels.round().clamp(0, 255).to(torch.uint8)
