"""Augmentation of real images: range, options, random numbers. Run: pytest tests/data/test_augmentation.py"""

from __future__ import annotations

import pytest
import torch

from infogan_ray.data.augmentation import LIMITS, UNIFORMS, AugmentationConfig, augment, sample_uniforms
from infogan_ray.data.feeds.memory import InMemoryFeed, to_unit_range
from infogan_ray.data.image_set import ImageSet
from infogan_ray.models.rng import seeded_generator
from infogan_ray.training.config import RunConfig
from infogan_ray.training.loop import train
from infogan_ray.training.presets import PRESETS
from infogan_ray.training.train_state import TrainState
from tests.conftest import tiny_config

EXTREMES = [{"flip": True}, *({name: limit} for name, limit in LIMITS.items()), {"flip": True, **LIMITS}]


def noise(count: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", EXTREMES, ids=lambda options: "+".join(options))
def test_the_range_holds_at_every_extreme(options: dict[str, float]) -> None:
    images = torch.cat([noise(), torch.zeros(4, 3, 16, 16).byte(), torch.full((4, 3, 16, 16), 255).byte()])
    draws = sample_uniforms(len(images), seeded_generator(0, "augment"))
    for chosen in (draws, draws.sign(), torch.ones_like(draws), -torch.ones_like(draws)):
        changed = augment(images, AugmentationConfig(**options), chosen)  # type: ignore[arg-type]
        assert changed.dtype == torch.uint8 and changed.shape == images.shape
        low, high = to_unit_range(changed).aminmax()
        assert low >= -1 and high <= 1
    if options != {"flip": True}:
        assert not torch.equal(augment(images, AugmentationConfig(**options), draws), images)  # type: ignore[arg-type]


def test_each_option_has_its_effect() -> None:
    images, zero = noise(4), torch.zeros(UNIFORMS, 4)

    def only(row: int, value: float, **options: float) -> torch.Tensor:
        draws = zero.clone()
        draws[row] = value
        return augment(images, AugmentationConfig(**options), draws)  # type: ignore[arg-type]

    for name, limit in LIMITS.items():
        apart = augment(images, AugmentationConfig(**{name: limit}), zero).int() - images.int()  # type: ignore[arg-type]
        assert apart.abs().max() <= 1, f"{name}: a random number of 0 changes nothing"
    assert torch.equal(only(4, -0.5, flip=True), images.flip(-1)) and torch.equal(only(4, 0.5, flip=True), images)
    assert torch.equal(only(2, 1, shift=0.25)[..., :12], images[..., 4:]), "a quarter of 16 pixels"
    assert torch.equal(only(3, 1, shift=0.25)[..., :12, :], images[..., 4:, :])
    turned = only(0, 0.5, degrees=180)
    assert any((turned.int() - images.rot90(k, (-2, -1)).int()).abs().max() <= 1 for k in (1, 3))
    assert only(5, 1, brightness=1).min() == 255 and only(5, -1, brightness=1).max() == 0
    assert only(5, 1, brightness=0.1).float().mean() > images.float().mean() + 15
    flat = only(6, -1, contrast=1)
    assert all(image.unique().numel() == 1 for image in flat) and abs(int(flat[0, 0, 0, 0]) - 127) < 6
    bigger = only(1, -0.5, scale=0.5).float()  # the middle three quarters fill the picture
    assert (bigger - images.float()).abs().mean() > 10


def test_half_of_the_images_are_mirrored() -> None:
    images = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4).expand(2000, 1, 1, 4)
    changed = augment(images, AugmentationConfig(flip=True), sample_uniforms(2000, seeded_generator(7, "augment")))
    assert 900 < int((changed[:, 0, 0, 0] == 3).sum()) < 1100


def test_random_numbers_depend_on_the_global_batch_and_the_step() -> None:
    def random_numbers(seed: int, step: int, *place: int) -> torch.Tensor:
        return sample_uniforms(16, seeded_generator(seed, "augment", step), *place)

    images, options = noise(16), AugmentationConfig(flip=True, **LIMITS)
    whole = augment(images, options, random_numbers(1, 5))
    for world in (2, 3):
        bounds = [16 * rank // world for rank in range(world + 1)]
        parts = [
            augment(images[bounds[rank] : bounds[rank + 1]], options, random_numbers(1, 5, rank, world))
            for rank in range(world)
        ]
        assert torch.equal(torch.cat(parts), whole)
    for seed, step in ((1, 6), (2, 5)):
        assert not torch.equal(augment(images, options, random_numbers(seed, step)), whole)


def test_augmentation_changes_training_only_if_an_option_is_on(image_set: ImageSet) -> None:
    weights = []
    for options in ({}, {"flip": True, "shift": 0.1}, None):
        about = {} if options is None else {"augment": AugmentationConfig(**options)}  # type: ignore[arg-type]
        state = TrainState(tiny_config(**about), 16, 1)
        list(train(state, InMemoryFeed(image_set.images, 16, 0), steps=2, log_every=2, checkpoint_every=2))
        weights.append(torch.cat([p.flatten() for p in state.discriminator.parameters()]))
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])


def test_augmentation_is_off_in_every_preset_and_bad_values_are_refused() -> None:
    assert not RunConfig().augment.on and not any(RunConfig(preset=name).augment.on for name in PRESETS)
    assert RunConfig().override({"augment": {"flip": True}}, "test").augment.on
    for name, value in (("shift", 0.6), ("degrees", -1.0), ("scale", 1.0), ("brightness", float("nan"))):
        with pytest.raises(ValueError, match=rf"augment\.{name} is .*; it must lie between 0 and"):
            AugmentationConfig(**{name: value})  # type: ignore[arg-type]
