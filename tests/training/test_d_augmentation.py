"""Augmentation in front of D: its policies, its adaptive probability, and what it must not touch.

Run: pytest tests/training/test_d_augmentation.py
test_gradients.py checks the gradients of the whole step, test_ddp.py and test_cuda_graph.py ranks and graphs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.image_set import ImageSet
from infogan_ray.storage import checkpoints
from infogan_ray.training.d_augmentation import POLICIES, UNIFORMS, AdaptiveProbability, augmented
from infogan_ray.training.loop import run_step
from infogan_ray.training.regularisers import StabilityConfig
from infogan_ray.training.train_state import TrainState
from tests.conftest import make_image_set, tiny_config
from tests.training.test_step import run_alone

ALL = "colour translation cutout flip"


def numbers(rows: int, **chosen: float) -> Tensor:
    """Random numbers in which ``u7=0.2`` sets column 7. The others leave an image of size 16 as it is."""
    neutral = torch.full((rows, UNIFORMS), 0.5)
    neutral[:, 11] = 0.9  # not mirrored
    for name, value in chosen.items():
        neutral[:, int(name[1:])] = value
    return neutral


def images_of(rows: int = 3, size: int = 16) -> Tensor:
    return torch.rand(rows, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", ["colour", "translation", "flip"])
def test_neutral_numbers_leave_images_unchanged(name: str) -> None:
    images = images_of()
    assert torch.allclose(POLICIES[name](images, numbers(3)), images, atol=1e-6)


def test_colour_changes_brightness_saturation_and_contrast() -> None:
    images, colour = images_of(), POLICIES["colour"]
    assert torch.allclose(colour(images, numbers(3, u4=0.75)), images + 0.25, atol=1e-6)
    grey = colour(images, numbers(3, u5=0.0))
    assert torch.allclose(grey, images.mean(1, keepdim=True).expand_as(images), atol=1e-6)
    flat = colour(images, numbers(3, u6=0.0))
    mean = images.mean((1, 2, 3), keepdim=True)
    assert torch.allclose(flat - mean, (images - mean) / 2, atol=1e-6)


def test_translation_shifts_by_up_to_an_eighth_and_fills_with_grey() -> None:
    images, move = images_of(), POLICIES["translation"]
    down = move(images, numbers(3, u7=0.0))  # by -2 of 16: the result starts two rows above the image
    assert torch.equal(down[:, :, 2:], images[:, :, :-2]) and not down[:, :, :2].any()
    left = move(images, numbers(3, u8=0.999))
    assert torch.equal(left[:, :, :, :-2], images[:, :, :, 2:]) and not left[:, :, :, -2:].any()


def test_all_shifts_are_equally_frequent() -> None:
    uniforms = torch.rand(5000, UNIFORMS, generator=torch.Generator().manual_seed(1))
    ramp = torch.arange(16.0).view(1, 1, 16, 1).expand(5000, 1, 16, 16)
    shifts = POLICIES["translation"](ramp, uniforms)[:, 0, 8, 8] - 8
    counts = torch.stack([(shifts == shift).sum() for shift in range(-2, 3)])
    centre = (shifts + 8 > 0).sum()  # the columns that came from outside are 0
    assert counts.sum() == centre and (counts > 850).all()


def test_cutout_removes_a_square_of_half_the_size() -> None:
    ones = torch.ones(2, 3, 16, 16)
    cut = POLICIES["cutout"](ones, numbers(2))
    assert (cut == 0).sum() == 2 * 3 * 64 and not cut[:, :, 4:12, 4:12].any()
    corner = POLICIES["cutout"](ones, numbers(2, u9=0.0, u10=0.0))
    assert (corner == 0).sum() == 2 * 3 * 16 and not corner[:, :, :4, :4].any()


def test_flip_mirrors_half_of_the_images() -> None:
    images, uniforms = images_of(2), numbers(2)
    uniforms[0, 11] = 0.4
    flipped = POLICIES["flip"](images, uniforms)
    assert torch.equal(flipped[0], images[0].flip(-1)) and torch.equal(flipped[1], images[1])


def test_the_probability_is_the_share_of_changed_images() -> None:
    uniforms = torch.rand(2000, UNIFORMS, generator=torch.Generator().manual_seed(2))
    images = images_of(1, 8).expand(2000, 3, 8, 8)
    for share in (0.0, 0.3, 1.0):
        found = augmented(images, uniforms, ("colour",), torch.tensor(share))
        changed = (found != images).flatten(1).any(1).float().mean()
        assert float(changed) == pytest.approx(share, abs=0.03)


def test_the_probability_rises_while_d_is_too_good() -> None:
    adaptive = AdaptiveProbability(0.6, images=1000, batch_size=100, device=torch.device("cpu"))
    seen = []
    for accuracy in (0.9, 0.95, 1.0, 0.7, 0.5, 0.5, 0.5):  # 2 * 0.8 - 1 is the target
        adaptive.update(torch.tensor(accuracy))
        seen.append(round(float(adaptive.value), 3))
    assert seen == [0.1, 0.2, 0.3, 0.2, 0.1, 0.0, 0.0]


def test_d_sees_changed_images_in_both_steps_and_q_as_the_flag_says(image_set: ImageSet) -> None:
    for augment_q in (False, True):
        config = tiny_config().override(
            {"stability": {"augment_d": "cutout", "augment_q": augment_q}, "batch_size": 16}, "test"
        )
        state = TrainState(config, 16, 1)
        reads: list[Tensor] = []
        state.discriminator.trunk.register_forward_pre_hook(lambda _, given, reads=reads: reads.append(given[0]))
        run_step(state, image_set.images[:16], 16, 10)
        are_cut = [bool(((images == 0).flatten(1).sum(1) >= 16).all()) for images in reads]
        assert are_cut == ([True, True] if augment_q else [True, False, True, False])  # D's step, then G's step


def test_ranks_share_the_numbers_of_the_global_batch() -> None:
    state = TrainState(tiny_config().override({"stability": {"augment_d": ALL}}, "test"), 16, 1)
    [whole, *parts] = [state.d_augmentation(16, rows) for rows in (slice(0, 16), slice(0, 5), slice(5, 16))]
    assert whole is not None and whole.shape == (32, UNIFORMS)
    for half in (0, 1):
        assert torch.equal(torch.cat([part.chunk(2)[half] for part in parts if part is not None]), whole.chunk(2)[half])


def test_a_resumed_run_continues_with_its_probability(tmp_path: Path) -> None:
    config = tiny_config().override(
        {"stability": {"augment_d": f"{ALL} adaptive", "augment_d_target": 0.01, "augment_d_images": 100}}, "test"
    )
    images = make_image_set()
    whole, _ = run_alone(config, images, tmp_path / "whole")
    cut = iter([False] * 3)
    run_alone(config, images, tmp_path / "half", stop=lambda: next(cut, True))
    half, _ = run_alone(config, images, tmp_path / "half")
    wanted, found = (checkpoints.open_checkpoint(run.checkpoints / "step_00000006") for run in (whole, half))
    for mine, theirs in (
        (wanted.training_tensors(), found.training_tensors()),
        (wanted.model_tensors(), found.model_tensors()),
    ):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    probability = float(wanted.training_tensors()["augment_d.probability"])
    assert 0 < [*whole.read_metrics()][-1]["augment_d_probability"] <= probability < 1  # a row is a mean over its steps


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"augment_d": "color"}, "stability.augment_d has 'color'; valid are colour, translation, cutout, flip and"),
        ({"augment_d": "adaptive"}, "add what D's images are changed by"),
        ({"augment_d_target": 1.0}, "it must lie between 0 and 1"),
        ({"augment_d_images": 0}, "it must be a number of images, 1 or more"),
    ],
)
def test_bad_values_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        StabilityConfig(**values)  # type: ignore[arg-type]


def test_joint_statistics_need_q_to_read_what_d_sees() -> None:
    with pytest.raises(UserError, match="stability.augment_d and network.joint_batchnorm are both on"):
        tiny_config().override({"stability": {"augment_d": ALL}, "network": {"joint_batchnorm": True}}, "test")
