"""Scores without labels, on sortings with known results. Run: pytest tests/evaluation/test_unsupervised_metrics.py"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score, normalized_mutual_info_score

from infogan_ray.evaluation.measure import measure_sorting
from infogan_ray.evaluation.metrics import SORTING, USAGE, of_group, values_of
from infogan_ray.evaluation.unsupervised_metrics import (
    Sorting,
    agreement,
    information,
    kappa,
    nearest_other,
    nmi,
    rank_correlation,
    share_of_information,
    transformed_copies,
)
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.network_config import NetworkConfig
from infogan_ray.models.networks import ModelSpec
from infogan_ray.models.priors.categorical import Categorical
from tests.conftest import tiny_images


class Oracle(torch.nn.Module):
    """Takes the place of Q: predicts the position of the bright bar, or random categories.

    ``sharpness`` scales the logits.
    """

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


def test_information_is_a_fraction_of_the_priors_entropy() -> None:
    """A confident sorting with the prior's frequencies has all information, although that is less than log k."""
    even, uneven = torch.eye(4).repeat(25, 1), torch.eye(4)[[0] * 70 + [1] * 10 + [2] * 10 + [3] * 10]
    assert share_of_information(even, Categorical(4)) == pytest.approx(1)
    assert share_of_information(uneven, Categorical(4, (0.7, 0.1, 0.1, 0.1))) == pytest.approx(1)
    assert share_of_information(uneven, Categorical(4)) == pytest.approx(0.678, abs=1e-3)
    assert share_of_information(even, Categorical(4, (0.7, 0.1, 0.1, 0.1))) == 1.0, (
        "more information than the prior's entropy is cut at 1"
    )


def test_only_a_model_that_sorts_by_image_content_gets_a_high_score() -> None:
    good, unsure, chance = scores(Oracle(50.0)), scores(Oracle(0.0)), scores(Oracle(50.0, by_chance=True))
    assert set(good) == {metric.name for metric in of_group(SORTING, USAGE)} and good["unused_categories"] == 0
    assert good["q_information"] == pytest.approx(1.0, abs=1e-3) and good["q_neighbours"] > 0.99
    assert good["q_consistency"] > 0.9
    for name in ("q_information", "q_consistency", "q_neighbours", "q_score"):
        assert unsure[name] == pytest.approx(0, abs=1e-5)
    assert chance["q_information"] > 0.9, "information alone does not detect a confident, balanced random sorting"
    assert chance["q_neighbours"] < 0.2 and chance["q_score"] < 0.5 < 0.95 < good["q_score"]
    product = good["q_information"] * good["q_consistency"] * good["q_neighbours"]
    assert good["q_score"] == pytest.approx(product ** (1 / 3))


def test_usage_is_a_fraction_of_log_k() -> None:
    def usage(counts: list[int]) -> float:
        logits = torch.eye(4).repeat_interleave(torch.tensor(counts), 0)
        unused = torch.zeros(len(logits), dtype=torch.long)
        return values_of(SORTING, Sorting(Categorical(4), logits, unused, unused))["q_usage"]

    assert usage([5, 5, 5, 5]) == pytest.approx(1) and usage([0, 9, 0, 0]) == 0
    assert usage([8, 8, 0, 0]) == pytest.approx(0.5), "two of four categories are unused"


def test_scores_agree_with_their_definitions() -> None:
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.5, 0.5]])
    assert information(q) == pytest.approx(math.log(2) - 0.5 * math.log(2))
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    second[:120] = first[:120]
    assert kappa(torch.from_numpy(first), torch.from_numpy(second), 4) == pytest.approx(
        cohen_kappa_score(first, second)
    )
    assert nmi(first.tolist(), second.tolist()) == pytest.approx(normalized_mutual_info_score(first, second))
    ties = [3.0, 1.0, 1.0, 2.0, 5.0], [1.0, 2.0, 0.5, 0.5, 9.0]
    assert rank_correlation(*ties) == pytest.approx(spearmanr(*ties).statistic)
    assert math.isnan(rank_correlation([1.0, 1.0], [1.0, 2.0]))


def test_agreement_is_a_models_median_similarity_to_the_others() -> None:
    digits = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    renamed = [{0: 2, 1: 0, 2: 1}[digit] for digit in digits]
    halves = [0] * 6 + [1] * 6
    found = agreement([{"cat0": digits}, {}, {"cat0": renamed}, {"cat0": halves}, {"cat0": halves, "cat1": digits}])
    assert found == [pytest.approx(1), None, pytest.approx(1), pytest.approx(0, abs=1e-9), pytest.approx(1)], (
        "category names do not matter, and the better code counts"
    )
    assert agreement([{}, {"cat0": digits}]) == [None, None]
    one_category, another_category = [3] * 12, [7] * 12
    assert agreement([{"cat0": one_category}, {"cat0": another_category}]) == [0.0, 0.0], (
        "sortings with a single category do not agree"
    )
    with pytest.raises(ValueError, match="sortings of 2 and 3 images cannot be compared"):
        nmi([0, 1], [0, 1, 1])


def test_neighbours_and_transformed_copies() -> None:
    images = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
    images[1, :, :16], images[2, :, :15], images[3] = 255, 255, 10
    assert nearest_other(images).tolist() == [3, 2, 1, 0]
    picture = torch.zeros(50, 3, 32, 32, dtype=torch.uint8)
    picture[:, :, 12:20, 12:20] = 200
    transformed = transformed_copies(picture)
    assert transformed.dtype == torch.uint8 and transformed.shape == picture.shape
    assert torch.equal(transformed, transformed_copies(picture)), "the same copies for every model"
    assert not torch.equal(transformed[0], transformed[1]) and (transformed.float().sum((1, 2, 3)) > 0).all()
    shares = (transformed.float() - picture.float()).abs().sum((1, 2, 3)) / picture[0].float().sum()
    assert 0 < shares.mean() < 0.8, "the change is small"


def test_a_model_without_categories_has_no_scores() -> None:
    spec = LatentSpec.parse("noise=4 uniform=1")
    _, discriminator = ModelSpec(spec, 16, 1, NetworkConfig(width=8)).build()
    images = torch.from_numpy(tiny_images()[0]).unsqueeze(1)
    assert measure_sorting(spec, discriminator, images) == ({}, {})


def test_transformed_copies_are_equal_under_autocast() -> None:
    images = torch.randint(0, 256, (16, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = transformed_copies(images)
    assert torch.equal(inside, transformed_copies(images))
