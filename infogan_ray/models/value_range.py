"""Conversion of images between bytes and the value range of the networks."""

from __future__ import annotations

from torch import Tensor


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 in [0, 255] to float32 in [-1, 1], the range of the generator's tanh."""
    return images.float().div_(127.5).sub_(1.0)


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] to uint8, the inverse of ``to_unit_range``."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).byte()
