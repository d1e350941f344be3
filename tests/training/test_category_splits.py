"""Re-splits of two categories that share two kinds of images. Run: pytest tests/training/test_category_splits.py"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from infogan_ray.data.image_set import ImageSet
from infogan_ray.storage import checkpoints
from infogan_ray.training import category_splits
from infogan_ray.training.category_splits import (
    Split,
    Splits,
    fit_columns,
    fit_rows,
    new_divisions,
    spectral_divisions,
)
from infogan_ray.training.consistency import ConsistencyConfig
from infogan_ray.training.start import make_state
from infogan_ray.training.train_state import TrainState
from tests.conftest import make_image_set, tiny_config
from tests.training.steps import step_on
from tests.training.test_step import run_alone

N = 600


def two_kinds(noise: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, 3) of two kinds of images in two slants, the kinds (N,) and the slants (N,), as booleans."""
    rng = torch.Generator().manual_seed(0)
    kind, slant = torch.rand(N, generator=rng) < 0.5, torch.rand(N, generator=rng) < 0.5
    signs = torch.stack([2.0 * kind - 1, 1.5 * (2.0 * slant - 1), torch.ones(N)], 1)
    return signs + noise * torch.randn(N, 3, generator=rng), kind, slant


def agreement(first: Tensor, second: Tensor) -> float:
    same = float((first == second).float().mean())
    return max(same, 1 - same)


def test_the_candidates_have_both_the_kind_and_the_slant() -> None:
    features, kind, slant = two_kinds()
    divisions = spectral_divisions(features)
    for truth in (kind, slant):
        assert max(agreement(division, truth) for division in divisions) > 0.97


def test_a_candidate_has_the_share_of_the_prior() -> None:
    features, _, _ = two_kinds()
    for share in (0.5, 0.2):
        for division in spectral_divisions(features, share):
            assert float(division.float().mean()) == pytest.approx(share, abs=1 / N)


def divisions_of(own: Tensor, moved: Tensor, features: Tensor, copies: Tensor) -> list[Split]:
    """The new divisions if Q divides images by ``own`` (N,) and their copies by ``moved`` (N,)."""
    logits = [torch.stack([6.0 * side, 6.0 * ~side, torch.full((N,), -6.0)], 1) for side in (own, moved)]
    return list(new_divisions(features, (features, logits[0]), (copies, logits[1]), torch.full((3,), 1 / 3)))


def test_categories_that_divide_two_kinds_by_slant_divide_them_by_kind() -> None:
    """The transformation changes the slant of a tenth of the images, and no kind."""
    features, kind, slant = two_kinds()
    turned = torch.arange(N) % 10 == 0
    moved, copies = slant ^ turned, features.clone()
    copies[turned, 1] *= -1
    [split] = divisions_of(slant, moved, features, copies)
    assert set(split.pair) == {0, 1} and split.before == int(turned.sum()) and split.after < split.before / 4
    new = nn.functional.linear(features, split.weight, split.bias)
    assert agreement(new[:, 0] > new[:, 1], kind) > 0.97
    assert str(split).startswith("categories 0 and 1 shared two kinds of images")


def test_categories_that_divide_two_kinds_by_kind_stay() -> None:
    features, kind, _ = two_kinds()
    copies = features.clone()
    copies[torch.arange(N) % 10 == 0, 1] *= -1
    assert divisions_of(kind, kind, features, copies) == []


def test_a_division_that_is_better_by_chance_alone_is_not_taken() -> None:
    """With 8 images on the other side before and none after, the difference is less than three deviations."""
    features, _, slant = two_kinds(noise=0.01)
    turned, copies = torch.arange(N) < 8, features.clone()
    copies[turned, 1] *= -1
    assert category_splits.SIGMAS * math.sqrt(8) > 8
    assert divisions_of(slant, slant ^ turned, features, copies) == []


def test_fitted_rows_predict_the_target_and_leave_other_categories_their_images() -> None:
    features, kind, _ = two_kinds()
    other = torch.arange(N) % 3 == 0
    features[other] += torch.tensor([0.0, 0.0, -6.0])
    target = torch.where(other, 2, kind.long())
    logits = torch.stack([torch.zeros(N), torch.zeros(N), torch.where(other, 4.0, -4.0)], 1)
    weight, bias = fit_rows(features, logits, target, (0, 1))
    logits[:, :2] = nn.functional.linear(features, weight, bias)
    assert float((logits.argmax(1) == target).float().mean()) > 0.97


def last_of(state: TrainState) -> nn.Linear:
    """Q's last layer."""
    last = state.discriminator.recognition[-1]
    assert isinstance(last, nn.Linear)
    return last


def trained_state(steps: int = 3) -> TrainState:
    state = TrainState(tiny_config(codes="noise=4 uniform=1 cat=3"), 16, 1)
    for _ in range(steps):
        step_on(state, make_image_set().images[:16], state.latents(16))
    return state


def splits_of(
    state: TrainState, images: Tensor | None = None, transformation: ConsistencyConfig | None = None
) -> Splits:
    images = make_image_set().images if images is None else images
    networks = (state.generator, state.average, state.discriminator)
    return Splits(1, images, transformation or ConsistencyConfig(), networks, (state.opt_g, state.opt_d))


def planned(monkeypatch: pytest.MonkeyPatch, state: TrainState) -> Split:
    """The next re-split is this one, of the categories 0 and 2."""
    rng = torch.Generator().manual_seed(1)
    weight = torch.randn(2, last_of(state).in_features, generator=rng)
    split = Split((0, 2), weight, torch.tensor([0.5, -0.5]), 9, 1)
    monkeypatch.setattr(Splits, "find", lambda self, spec: {"cat0": [split]})
    return split


def test_a_split_changes_the_rows_and_columns_of_its_categories_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    state = trained_state()
    split, splits = planned(monkeypatch, state), splits_of(state)
    last, first, averaged = last_of(state), state.generator.first_layer, state.average.first_layer
    before = {name: value.clone() for name, value in state.training_tensors().items()}
    q, g, a = (layer.weight.detach().clone() for layer in (last, first, averaged))
    said = splits.divide(state.spec.latents)
    # Q: rows are [mean, deviation, cat 0, cat 1, cat 2]. G: columns are [4 noise, uniform, cat 0, cat 1, cat 2].
    assert torch.equal(last.weight[[2, 4]], split.weight) and torch.equal(last.bias[[2, 4]], split.bias)
    assert torch.equal(last.weight[[0, 1, 3]], q[[0, 1, 3]])
    for layer, old in ((first, g), (averaged, a)):
        assert torch.equal(layer.weight[:, [0, 1, 2, 3, 4, 6]], old[:, [0, 1, 2, 3, 4, 6]])
        assert not torch.equal(layer.weight[:, [5, 7]], old[:, [5, 7]])
    assert torch.equal(first.weight[:, [5, 7]], averaged.weight[:, [5, 7]])
    moments = state.opt_d.state[last.weight]["exp_avg"]
    assert not moments[[2, 4]].any() and moments[[0, 1, 3]].any()
    assert not state.opt_g.state[first.weight]["exp_avg"][:, [5, 7]].any()
    changed = {name for name, value in state.training_tensors().items() if not torch.equal(value, before[name])}
    assert len(changed) == 4, "the weight of G's first layer, and three moments"
    assert said == [f"cat0: {split}"]


def test_g_generates_what_the_new_rows_predict() -> None:
    state = trained_state(steps=100)
    spec, last = state.spec.latents, last_of(state)
    with torch.no_grad():  # Q exchanges two categories
        last.weight[[2, 4]], last.bias[[2, 4]] = last.weight[[4, 2]], last.bias[[4, 2]]

    def loss(columns: Tensor) -> float:
        weight = state.generator.first_layer.weight
        with torch.no_grad():
            weight[:, [5, 7]] = columns
            latents = spec.sample(300, torch.Generator().manual_seed(5))
            category = torch.arange(300) % 2 * 2
            latents[:, spec.columns("cat0")] = nn.functional.one_hot(category, 3).float()
            state.generator.eval()
            state.discriminator.eval()
            logits = spec.split_q(state.discriminator(state.generator(latents))[1])["cat0"]
        return float(nn.functional.cross_entropy(logits, category))

    old = state.generator.first_layer.weight.detach()[:, [5, 7]].clone()
    mean = old.mean(1, keepdim=True).expand(-1, 2)
    state.opt_g.zero_grad()
    state.opt_d.zero_grad()
    fitted = fit_columns(spec, "cat0", [0, 2], state.generator, state.discriminator)
    assert loss(fitted) < 0.8 * loss(mean) < 0.8 * loss(old)
    for module in (state.generator, state.discriminator):
        assert all(weight.requires_grad and weight.grad is None for weight in module.parameters())


def test_copies_are_those_of_the_consistency_term_and_sheared() -> None:
    """A vertical line stays in place in the middle. Shear moves its ends apart, by up to 0.15 widths."""
    image = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    image[..., 31:33] = 255
    still = ConsistencyConfig(degrees=0, scale=0, shift=0)
    state = trained_state()
    splits = splits_of(state, image, still)
    copies = splits.copies(image.expand(200, -1, -1, -1))
    place = (copies.float() * torch.arange(64)).sum(3) / copies.float().sum(3) - 31.5  # (200, 1, 64), pixels
    top, middle, bottom = place[:, 0, 0], place[:, 0, 31:33], place[:, 0, -1]
    assert float(middle.abs().max()) < 0.5 and float((top + bottom).abs().max()) < 0.5
    assert float(top.abs().max()) == pytest.approx(0.15 * 63, abs=0.5)
    assert torch.equal(copies, splits.copies(image.expand(200, -1, -1, -1)))
    rotated = splits_of(state, image, ConsistencyConfig(degrees=10, scale=0, shift=0)).copies(
        image.expand(200, -1, -1, -1)
    )
    assert not torch.equal(rotated, copies)


def test_a_run_has_the_transformation_of_its_own_settings(image_set: ImageSet) -> None:
    config = tiny_config().override(
        {"stability": {"resplit_every": 3}, "consistency": {"degrees": 2, "shear": 0.4}}, "it"
    )
    splits = make_state(config, image_set, None, torch.device("cpu"), None).splits
    assert splits is not None and (splits.transformation.degrees, splits.transformation.shear) == (2, 0.4)


def test_it_is_due_in_the_first_half() -> None:
    splits = splits_of(trained_state())
    splits.every = 10
    assert [step for step in range(1, 101) if splits.is_due(step, 100)] == [10, 20, 30, 40, 50]


def test_without_a_better_division_a_run_stays_the_same_to_the_bit(image_set: ImageSet, tmp_path: Path) -> None:
    def tensors(every: int) -> dict[str, Tensor]:
        config = tiny_config().override({"stability": {"resplit_every": every}}, "test")
        run, _ = run_alone(config, image_set, tmp_path / str(every))
        return checkpoints.open_checkpoint(run.checkpoints / "step_00000006").training_tensors()

    with_it, without = tensors(1), tensors(0)
    assert all(torch.equal(with_it[name], value) for name, value in without.items())


def test_a_run_says_what_it_divided(image_set: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config().override({"stability": {"resplit_every": 3}}, "test")
    split = Split((0, 2), torch.zeros(2, 16), torch.zeros(2), 9, 1)
    monkeypatch.setattr(Splits, "find", lambda self, spec: {"cat0": [split]})
    _, reports = run_alone(config, image_set, tmp_path / "run")
    assert [report.say for report in reports if "divides them anew" in report.say] == [f"cat0: {split}"]
    assert [report.metrics["step"] for report in reports if report.phase == "dividing categories"] == [3]


def test_without_a_categorical_code_there_are_none(image_set: ImageSet, tmp_path: Path) -> None:
    config = tiny_config(codes="noise=2 uniform=1").override({"stability": {"resplit_every": 3}}, "test")
    _, reports = run_alone(config, image_set, tmp_path / "run")
    assert reports[-1].metrics["step"] == 6 and not any("anew" in report.say for report in reports)


def divide_on(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    state = trained_state()
    with pytest.MonkeyPatch.context() as patch:
        split = planned(patch, state)
        splits = splits_of(state, make_image_set().images if rank == 0 else torch.empty(0, 1, 16, 16))
        if rank == 1:
            patch.setattr(Splits, "find", None)  # rank 0 alone looks for divisions
        said = splits.divide(state.spec.latents, rank, 2)
    assert torch.equal(last_of(state).weight[[2, 4]], split.weight)
    torch.save(state.generator.first_layer.weight.detach(), f"{folder}/{rank}.pt")
    assert len(said) == (1 if rank == 0 else 0)
    dist.destroy_process_group()


def test_all_ranks_get_what_rank_zero_found(tmp_path: Path) -> None:
    mp.spawn(divide_on, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
