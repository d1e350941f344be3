"""What Q says of real images. Shapes: (N, C, H, W) images, P width of Q's output."""

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
    """Evaluation mode inside; each module is given back in the mode it came in."""
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


@torch.inference_mode()
def recognise(discriminator: Discriminator, images: Tensor, each: Callable[[], None] = lambda: None) -> Tensor:
    """Q's outputs (N, P) for uint8 images, on the CPU. ``each`` is called before every batch, and may raise."""
    device = next(discriminator.parameters()).device
    parts = []
    with evaluating(discriminator):
        for part in images.split(BATCH):
            each()
            parts.append(discriminator(to_unit_range(part.to(device)))[1].cpu())
    return torch.cat(parts)
