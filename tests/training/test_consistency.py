"""The consistency term: known values, its transformations, and its default of off.

Run: pytest tests/training/test_consistency.py
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from infogan_ray.cli.train import train_config
from infogan_ray.data.affine import affine_maps, transform
from infogan_ray.data.feeds.memory import InMemoryFeed
from infogan_ray.models.latents import LatentSpec
from infogan_ray.training.consistency import (
    ConsistencyConfig,
    affine_transformations,
    consistency_loss,
    transform_half,
    with_copies,
)
from infogan_ray.training.loop import train
from infogan_ray.training.optimizer import OptimizerConfig
from infogan_ray.training.train_command import train_command
from infogan_ray.training.train_state import TrainState
from tests.conftest import make_image_set, tiny_config
from tests.training.steps import step_on

ON = ConsistencyConfig(weight=1.0, start=0, full=1)


def state_with(consistency: ConsistencyConfig, seed: int = 0) -> TrainState:
    return TrainState(tiny_config(consistency=consistency, seed=seed), 16, 1)


def logits_of(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows).clamp_min(1e-30).log()


def test_a_confident_balanced_and_consistent_sorting_has_loss_zero() -> None:
    spec = LatentSpec.parse("noise=2 cat=2")
    q = logits_of([[1, 0], [0, 1], [1, 0], [0, 1]])  # two images, then their copies
    assert float(consistency_loss(spec, q, ON)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # Q is always uniform: log 2 for the copies, 0.1 log 2 for the entropy, 0 for balance.
        ([[0.5, 0.5]] * 4, 1.1 * math.log(2)),
        # All images in one category: only the balance, KL((1, 0) || (1/2, 1/2)) = log 2.
        ([[1.0, 0.0]] * 4, math.log(2)),
        # 0.9 and 0.1 for both: -E log q and the entropy, with balanced categories.
        (
            [[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]],
            1.1 * -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)),
        ),
    ],
)
def test_the_loss_has_known_values(rows: list[list[float]], expected: float) -> None:
    spec = LatentSpec.parse("noise=2 cat=2")
    assert float(consistency_loss(spec, logits_of(rows), ON)) == pytest.approx(expected, rel=1e-5)


def test_a_different_category_for_the_copy_has_a_large_loss() -> None:
    spec = LatentSpec.parse("noise=2 cat=2")
    same = logits_of([[0.99, 0.01], [0.01, 0.99], [0.99, 0.01], [0.01, 0.99]])
    other = logits_of([[0.99, 0.01], [0.01, 0.99], [0.01, 0.99], [0.99, 0.01]])
    assert consistency_loss(spec, other, ON) > consistency_loss(spec, same, ON) + 4


def test_balance_compares_with_the_prior() -> None:
    rows = [[1.0, 0.0], [1, 0], [1, 0], [0, 1]]
    uneven, even = LatentSpec.parse("noise=2 cat=2@0.75:0.25"), LatentSpec.parse("noise=2 cat=2")
    q = logits_of(rows + rows)
    assert float(consistency_loss(uneven, q, ON)) == pytest.approx(0, abs=1e-5)
    assert float(consistency_loss(even, q, ON)) > 0.1


def test_a_bernoulli_code_equals_a_categorical_code_with_two_values() -> None:
    coin, choice = LatentSpec.parse("noise=2 bernoulli=1@0.3"), LatentSpec.parse("noise=2 cat=2@0.7:0.3")
    logit = torch.tensor([[1.5], [-0.5], [1.0], [0.25]])
    pair = torch.cat([torch.zeros_like(logit), logit], dim=1)
    assert float(consistency_loss(coin, logit, ON)) == pytest.approx(
        float(consistency_loss(choice, pair, ON)), rel=1e-5
    )


def test_continuous_codes_are_ignored_by_default() -> None:
    spec = LatentSpec.parse("noise=2 uniform=1")
    q = torch.tensor([[0.0, 0.5], [1.0, 0.5], [0.5, 0.5], [1.0, 0.5]], requires_grad=True)
    assert float(consistency_loss(spec, q, ON)) == 0
    continuous = dataclasses.replace(ON, continuous=2.0)
    deviation = 0.1 + math.log1p(math.exp(0.5))
    expected = 2.0 * (0.5**2 / (2 * deviation**2)) / 2  # KL for equal deviations; the second pair has equal means
    assert float(consistency_loss(spec, q, continuous).detach()) == pytest.approx(expected, rel=1e-5)


def test_transformations_are_small_and_follow_their_random_numbers() -> None:
    images = torch.zeros(1, 1, 33, 33)
    images[0, 0, 16, 26] = 1.0
    right = transform(images, affine_maps(torch.tensor([[0.0], [0], [1], [0]]), 10, 0.1, 0.06))
    assert right[0, 0].argmax() == 16 * 33 + 24, "0.06 widths of 33 pixels"
    still = transform(images, affine_maps(torch.zeros(4, 1), 10, 0.1, 0.06))
    assert torch.allclose(still, images, atol=1e-5)
    quarter = transform(images, affine_maps(torch.tensor([[1.0], [0], [0], [0]]), 90, 0.1, 0.06))
    assert quarter[0, 0].argmax() in (6 * 33 + 16, 26 * 33 + 16)


def test_a_mirrored_copy_is_the_transformed_image_flipped() -> None:
    config = dataclasses.replace(ON, flip=True)
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    turned = torch.tensor([0.3, -0.2, 0.1, 0.4])
    draws = torch.cat([turned.repeat(2, 1).T, torch.tensor([[1.0, -1.0]])])
    maps = affine_transformations(draws, config)
    assert torch.equal(maps[:1], affine_maps(draws[:4, :1], config.degrees, config.scale, config.shift))
    still = affine_transformations(torch.tensor([[0.0], [0], [0], [0], [-1]]), config)
    assert torch.allclose(transform(images[:1], still), images[:1].flip(3), atol=1e-6)
    assert config.num_random == 5 and ON.num_random == 4


def test_shear_moves_rows_sideways_and_stretch_changes_the_width() -> None:
    """A vertical bar: shear moves each row sideways in proportion to its height; the middle row stays."""
    config = dataclasses.replace(ON, shear=0.5, stretch=0.5)
    bar = torch.zeros(1, 1, 33, 33)
    bar[..., 8:25, 16] = 1.0
    still = [[0.0]] * 4
    slanted = transform(bar, affine_transformations(torch.tensor([*still, [0], [1]]), config))[0, 0]
    assert slanted[8].argmax() == 20 and slanted[16].argmax() == 16 and slanted[24].argmax() == 12
    assert torch.allclose(slanted.sum(1), bar[0, 0].sum(1), atol=1e-4), "the sum of each row stays the same"
    dot = torch.zeros(1, 1, 33, 33)
    dot[..., 10, 22] = 1.0
    narrow = transform(dot, affine_transformations(torch.tensor([*still, [0.5], [0]]), config))[0, 0]
    assert narrow[10].argmax() == 21 and narrow[10].sum() == narrow.sum(), "6 pixels / 1.25 are 4.8; rows stay"
    assert config.num_random == 6 and dataclasses.replace(config, flip=True).num_random == 7


def test_shear_and_stretch_are_applied_first() -> None:
    """After a quarter turn, a horizontal shear is a vertical one. The mirror stays the fifth random number."""
    config = dataclasses.replace(ON, shear=0.5, degrees=90.0, flip=True)
    both = affine_transformations(torch.tensor([[1.0], [0], [0], [0], [1], [0], [1]]), config)
    quarter = affine_maps(torch.tensor([[1.0], [0], [0], [0]]), 90.0, 0.1, 0.06)[0, :, :2]
    assert torch.allclose(both[0, :, :2], quarter @ torch.tensor([[1.0, 0.5], [0.0, 1.0]]), atol=1e-6)


def test_half_of_the_real_batch_is_copies_of_the_other_half() -> None:
    real = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 4, 4)
    maps = affine_maps(torch.zeros(4, 5), 10, 0.1, 0.06)
    assert with_copies(real, maps)[:, 0, 0, 0].tolist() == [0, 2, 0, 2, 4]
    assert transform_half(real, maps)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_the_weight_rises_from_start_to_full() -> None:
    config = ConsistencyConfig(weight=2.0, start=300, full=800)
    assert [config.weight_at(step) for step in (0, 300, 550, 800, 5000)] == [0, 0, 1, 2, 2]


def test_training_on_the_term_lowers_it() -> None:
    """Bars at three heights. With a late start, the term is only measured and does not fall."""
    last = {}
    for start in (0, 10_000):
        state = state_with(ConsistencyConfig(weight=1.0, start=start, full=start + 1))
        feed = InMemoryFeed(make_image_set().images, 16, 0)
        rows = list(train(state, feed, steps=250, log_every=50, checkpoint_every=1000))
        last[start] = rows[-1]["consistency_loss"]
    assert last[0] < last[10_000] - 0.1


def test_the_term_is_off_by_default() -> None:
    state = state_with(ConsistencyConfig())
    feed = InMemoryFeed(make_image_set().images, 16, 0)
    [row] = train(state, feed, steps=1, log_every=1, checkpoint_every=1)
    assert "consistency_loss" not in row and state.step_noise(16, state.schedule()).transformations is None


def test_before_its_start_the_term_is_measured_and_has_no_effect() -> None:
    images = make_image_set().images[:16]
    weights = []
    for balance in (0.0, 5.0):
        state = state_with(ConsistencyConfig(weight=1.0, balance=balance))
        step_on(state, images, state.latents(16), noise=state.step_noise(16, state.schedule(100)))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in state.discriminator.parameters()]))
    assert torch.equal(*weights)


def test_ranks_share_the_transformations_of_the_global_batch() -> None:
    state = state_with(ON)
    whole = state.step_noise(16, state.schedule()).transformations
    parts = [state.step_noise(16, state.schedule(), rank, 4).transformations for rank in range(4)]
    assert whole is not None and torch.equal(torch.cat([part for part in parts if part is not None]), whole)
    state.step += 1
    again = state.step_noise(16, state.schedule()).transformations
    assert again is not None and not torch.equal(again, whole)


def test_learning_rates_fall_over_the_last_steps() -> None:
    config = OptimizerConfig(lr_decay=0.5)
    assert [config.decay(step, 100) for step in (0, 50, 75, 99)] == [1, 1, 0.5, 0.02]
    assert OptimizerConfig().decay(99, 100) == 1
    state = state_with(ConsistencyConfig())
    state.optimizer = OptimizerConfig(lr_generator=1e-3, lr_decay=1.0)
    state.step = 25
    state.set_learning_rates(100)
    assert state.opt_g.param_groups[0]["lr"] == pytest.approx(0.75e-3)


@pytest.mark.parametrize("words", [["--consistency", "0.5"], ["--consistency=0.5"], ["--consistency.weight", "0.5"]])
def test_the_consistency_flags(words: list[str]) -> None:
    config = train_config(["--preset", "mnist", *words, "--consistency.degrees", "5"])
    assert config.consistency == ConsistencyConfig(weight=0.5, degrees=5)
    assert "--consistency.weight 0.5 --consistency.degrees 5.0" in train_command(config)
    assert train_config(["--preset", "mnist_robust"]).consistency.weight == 1
    assert train_config(["--preset", "mnist"]).consistency.weight == 0, "as in the paper"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": -1.0}, "consistency.weight is -1.0; it must be a number of at least 0"),
        ({"start": 9, "full": 9}, "0 <= start < full must hold"),
        ({"degrees": 200.0}, "consistency.degrees is 200.0; it must lie between 0 and 180"),
    ],
)
def test_bad_values_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConsistencyConfig(**values)  # type: ignore[arg-type]


def test_transformations_are_computed_in_fp32_in_a_bf16_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 the error would be a tenth of a pixel."""
    config = tiny_config().override({"consistency": {"weight": 1.0}, "precision": "bf16"}, "test")
    state = TrainState(config, 16, 1)
    seen: list[tuple[bool, torch.dtype]] = []
    grid = torch.nn.functional.affine_grid

    def recording_grid(maps: torch.Tensor, *more: object, **options: object) -> torch.Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), maps.dtype))
        return grid(maps, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "affine_grid", recording_grid)
    step_on(state, make_image_set().images[:16], state.latents(16), noise=state.step_noise(16, state.schedule(10)))
    assert seen == [(False, torch.float32)] * 2
