"""Q's predictions for images. Shapes: (N, C, H, W) images, P width of Q's output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from infogan_ray.models.networks import Discriminator
from infogan_ray.models.value_range import to_unit_range

BATCH = 500


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Inside this context, the modules are in evaluation mode. Afterwards each has its earlier mode again."""
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


@torch.inference_mode()
def recognise(discriminator: Discriminator, images: Tensor, before_batch: Callable[[], None] = lambda: None) -> Tensor:
    """Q's outputs (N, P) on the CPU, for uint8 images. ``before_batch`` runs before every batch, and may raise."""
    device = next(discriminator.parameters()).device
    parts = []
    with evaluating(discriminator):
        for part in images.split(BATCH):
            before_batch()
            parts.append(discriminator(to_unit_range(part.to(device)))[1].cpu())
    return torch.cat(parts)
