"""Sliced Wasserstein distance of images with known quality. Run: pytest tests/evaluation/test_sliced_wasserstein.py"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from infogan_ray.evaluation.measure import measure_image_quality
from infogan_ray.evaluation.sliced_wasserstein import patches, pyramid, sliced_wasserstein
from infogan_ray.models.traversal import to_bytes
from tests.conftest import tiny_config
from tests.training.test_step import make_state


def strokes(seed: int, count: int = 300, size: int = 28) -> Tensor:
    """Dark images with one bright bar at a random place: uint8 (count, 1, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 1, size, size)
    for image, row, column in zip(images, *torch.randint(4, size - 8, (2, count), generator=generator), strict=True):
        image[0, row : row + 3, column - 4 : column + 6] = 220
    return images.byte()


def test_worse_images_have_a_larger_distance_than_similar_images() -> None:
    real, other = strokes(0), strokes(1)
    near = sliced_wasserstein(real, other)
    soft, softer = (functional.avg_pool2d(other.float(), k, 1, k // 2).byte() for k in (3, 5))
    assert near < sliced_wasserstein(real, soft) / 2 < sliced_wasserstein(real, softer) / 2
    noise = torch.randint(0, 120, other.shape, generator=torch.Generator().manual_seed(0))
    assert near < sliced_wasserstein(real, (other.int() + noise).clamp(0, 255).byte()) / 2
    assert near < sliced_wasserstein(real, other // 2) / 2, "contrast matters"
    assert near < sliced_wasserstein(real, other[:1].expand_as(other)), "one image generated every time"
    assert sliced_wasserstein(real, other) == near, "the same directions and patch positions each time"


def test_the_distance_of_shifted_images_is_known() -> None:
    """The distance between images that differ by a constant d, in deviations, is E|<d, direction>|."""
    real = torch.randint(0, 256, (400, 1, 16, 16), generator=torch.Generator().manual_seed(0)).clamp(40, 200).byte()
    shifted = real + 20
    deviation = (real.float() / 127.5).std()
    length = float(20 / 127.5 / deviation) * 7  # length of the shift in a space of 49 dimensions
    expected = 1000 * length * (2 / (torch.pi * 49)) ** 0.5  # projections on random unit directions are almost normal
    assert sliced_wasserstein(real, shifted) == pytest.approx(expected, rel=0.15)


def test_pyramid_and_patches() -> None:
    images = strokes(0, count=5)
    fine, rest = pyramid(images)
    assert fine.shape == (5, 1, 28, 28) and rest.shape == (5, 1, 14, 14)
    again = fine + functional.interpolate(rest, size=(28, 28), mode="bilinear", align_corners=False)
    assert torch.equal(to_bytes(again), images), "the sum of all levels is the image"
    numbers = torch.arange(28 * 28, dtype=torch.float32).view(1, 1, 28, 28)
    found = patches(numbers, torch.Generator().manual_seed(0)).view(-1, 7, 7)
    assert torch.equal(found[:, 0, 0] + 28 * 6 + 6, found[:, 6, 6]), "each patch is a complete square"
    with pytest.raises(ValueError, match="they must agree"):
        sliced_wasserstein(images, images[:4])


def test_an_untrained_generator_has_a_larger_distance_than_the_data() -> None:
    state = make_state(tiny_config())
    images = strokes(0, size=16)
    measured = measure_image_quality(state.spec.latents, state.averaged_generator(), images)
    assert measured["swd"] > 3 * measured["swd_data"] > 0
    assert measure_image_quality(state.spec.latents, state.averaged_generator(), images[:1]) == {}
