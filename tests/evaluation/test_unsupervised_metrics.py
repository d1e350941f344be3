"""Scores without labels, on sortings with known answers. Run: pytest tests/evaluation/test_unsupervised_metrics.py"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score, normalized_mutual_info_score

from infogan_ray.evaluation.measure import measure_sorting
from infogan_ray.evaluation.metrics import SORTING, of_group, values_of
from infogan_ray.evaluation.unsupervised_metrics import (
    Sorting,
    agreement,
    information,
    kappa,
    nearest_other,
    nmi,
    rank_correlation,
    share_of_information,
    slightly_moved,
)
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import ModelSpec, NetworkConfig
from infogan_ray.models.priors.categorical import Categorical
from tests.conftest import tiny_images


class Oracle(torch.nn.Module):
    """Stands for Q: category by where the bright bar is, as sure of it as ``sharpness`` says; or by chance."""

    def __init__(self, sharpness: float, by_chance: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.sharpness, self.by_chance = sharpness, by_chance

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = images.mean((1, 3))  # (B, H)
        logits = torch.stack([rows[:, 4 * bar + 2 : 4 * bar + 5].mean(1) for bar in range(3)], 1)
        if self.by_chance:
            logits = torch.randn(logits.shape, generator=torch.Generator().manual_seed(len(images)))
        return logits[:, 0], logits * self.sharpness


SPEC = LatentSpec.parse("noise=4 cat=3")


def scores(oracle: Oracle) -> dict[str, float]:
    images = torch.from_numpy(tiny_images(300)[0]).unsqueeze(1)
    return measure_sorting(SPEC, oracle, images)[0]  # type: ignore[arg-type]


def test_information_is_a_share_of_what_the_prior_can_tell() -> None:
    """A sorting that is sure and uses categories as unevenly as the prior does has all of it, not a share of log k."""
    even, uneven = torch.eye(4).repeat(25, 1), torch.eye(4)[[0] * 70 + [1] * 10 + [2] * 10 + [3] * 10]
    assert share_of_information(even, Categorical(4)) == pytest.approx(1)
    assert share_of_information(uneven, Categorical(4, (0.7, 0.1, 0.1, 0.1))) == pytest.approx(1)
    assert share_of_information(uneven, Categorical(4)) == pytest.approx(0.678, abs=1e-3)
    assert share_of_information(even, Categorical(4, (0.7, 0.1, 0.1, 0.1))) == 1.0, "more than the prior has is no gain"


def test_a_model_that_sorts_by_what_is_in_the_images_scores_and_others_do_not() -> None:
    good, unsure, chance = scores(Oracle(50.0)), scores(Oracle(0.0)), scores(Oracle(50.0, by_chance=True))
    assert set(good) == {metric.name for metric in of_group(SORTING)}
    assert good["q_information"] == pytest.approx(1.0, abs=1e-3) and good["q_neighbours"] > 0.99
    assert good["q_consistency"] > 0.9
    for name in ("q_information", "q_consistency", "q_neighbours", "q_score"):
        assert unsure[name] == pytest.approx(0, abs=1e-5)
    assert chance["q_information"] > 0.9, "a sure and balanced sorting by chance: information alone does not see it"
    assert chance["q_neighbours"] < 0.2 and chance["q_score"] < 0.5 < 0.95 < good["q_score"]
    product = good["q_information"] * good["q_consistency"] * good["q_neighbours"]
    assert good["q_score"] == pytest.approx(product ** (1 / 3))


def test_usage_is_a_share_of_log_k() -> None:
    def usage(counts: list[int]) -> float:
        logits = torch.eye(4).repeat_interleave(torch.tensor(counts), 0)
        unused = torch.zeros(len(logits), dtype=torch.long)
        return values_of(SORTING, Sorting(Categorical(4), logits, unused, unused))["q_usage"]

    assert usage([5, 5, 5, 5]) == pytest.approx(1) and usage([0, 9, 0, 0]) == 0
    assert usage([8, 8, 0, 0]) == pytest.approx(0.5), "two categories of four are dead"


def test_scores_agree_with_their_definitions() -> None:
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.5, 0.5]])
    assert information(q) == pytest.approx(math.log(2) - 0.5 * math.log(2))
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    other[:120] = one[:120]
    assert kappa(torch.from_numpy(one), torch.from_numpy(other), 4) == pytest.approx(cohen_kappa_score(one, other))
    assert nmi(one.tolist(), other.tolist()) == pytest.approx(normalized_mutual_info_score(one, other))
    ties = [3.0, 1.0, 1.0, 2.0, 5.0], [1.0, 2.0, 0.5, 0.5, 9.0]
    assert rank_correlation(*ties) == pytest.approx(spearmanr(*ties).statistic)
    assert math.isnan(rank_correlation([1.0, 1.0], [1.0, 2.0]))


def test_agreement_is_a_models_median_likeness_to_the_others() -> None:
    digits = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    renamed = [{0: 2, 1: 0, 2: 1}[digit] for digit in digits]
    halves = [0] * 6 + [1] * 6
    found = agreement([{"cat0": digits}, {}, {"cat0": renamed}, {"cat0": halves}, {"cat0": halves, "cat1": digits}])
    assert found == [pytest.approx(1), None, pytest.approx(1), pytest.approx(0, abs=1e-9), pytest.approx(1)], (
        "names of categories do not matter, and the better code counts"
    )
    assert agreement([{}, {"cat0": digits}]) == [None, None]
    one_heap, another = [3] * 12, [7] * 12
    assert agreement([{"cat0": one_heap}, {"cat0": another}]) == [0.0, 0.0], "to sort nothing is not to agree"
    with pytest.raises(ValueError, match="sortings of 2 and 3 images do not compare"):
        nmi([0, 1], [0, 1, 1])


def test_neighbours_and_moved_copies() -> None:
    images = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
    images[1, :, :16], images[2, :, :15], images[3] = 255, 255, 10
    assert nearest_other(images).tolist() == [3, 2, 1, 0]
    picture = torch.zeros(50, 3, 32, 32, dtype=torch.uint8)
    picture[:, :, 12:20, 12:20] = 200
    moved = slightly_moved(picture)
    assert moved.dtype == torch.uint8 and moved.shape == picture.shape
    assert torch.equal(moved, slightly_moved(picture)), "alike for every model"
    assert not torch.equal(moved[0], moved[1]) and (moved.float().sum((1, 2, 3)) > 0).all()
    shares = (moved.float() - picture.float()).abs().sum((1, 2, 3)) / picture[0].float().sum()
    assert 0 < shares.mean() < 0.8, "slightly"


def test_a_model_without_categories_has_no_scores() -> None:
    spec = LatentSpec.parse("noise=4 uniform=1")
    _, discriminator = ModelSpec(spec, 16, 1, NetworkConfig(width=8)).build()
    images = torch.from_numpy(tiny_images()[0]).unsqueeze(1)
    assert measure_sorting(spec, discriminator, images) == ({}, {})


def test_moved_copies_are_alike_under_an_autocast() -> None:
    images = torch.randint(0, 256, (16, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = slightly_moved(images)
    assert torch.equal(inside, slightly_moved(images))
