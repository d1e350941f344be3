"""Mode collapse is measured and said. Run: pytest tests/evaluation/test_spread.py"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from infogan_ray.evaluation.diagnosis import failures, has_collapsed
from infogan_ray.evaluation.measure import measure_spread
from infogan_ray.evaluation.spread import mean_distance
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.traversal import to_bytes
from infogan_ray.searches.selection_rules import RULES, collapsed_text, winner

SPEC = LatentSpec.parse("noise=4 cat=3")
REAL = torch.randint(0, 256, (300, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class Images(nn.Module):
    """A generator of images with a pattern for each category, plus noise for each image."""

    def __init__(self, by_category: float, by_image: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        generator = torch.Generator().manual_seed(1)
        self.patterns = by_category * (2 * torch.rand(3, 256, generator=generator) - 1)
        self.by_image, self.basis = by_image, torch.randn(4, 256, generator=generator)

    def forward(self, latents: Tensor) -> Tensor:
        noise = self.by_image * torch.sin(3 * latents[:, :4] @ self.basis)
        return (latents[:, 4:] @ self.patterns + noise).view(-1, 1, 16, 16)


class Recognition(nn.Module):
    """A Q that predicts the category whose pattern is nearest."""

    def __init__(self, patterns: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(patterns)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images[:, 0, 0, 0], -torch.cdist(images.flatten(1), self.weight)


def measured(generator: Images, real: Tensor = REAL, spec: LatentSpec = SPEC) -> dict[str, float]:
    return measure_spread(spec, generator, Recognition(generator.patterns), real)  # type: ignore[arg-type]


def test_the_mean_distance_is_over_pairs_of_different_images() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert mean_distance(rows) == pytest.approx(10 / 3) and mean_distance(rows[:1]) != mean_distance(rows[:1])


@pytest.mark.parametrize(
    ("by_category", "by_image", "spread", "in_category", "collapsed"),
    [
        (0.0, 0.82, 1.0, 1.0, False),
        (0.0, 0.0, 0.0, 0.0, True),
        (1.0, 0.0, 0.67, 0.0, True),
        (0.0, 0.2, 0.245, 0.245, True),
    ],
)
def test_spread_is_relative_to_real_images(
    by_category: float, by_image: float, spread: float, in_category: float, collapsed: bool
) -> None:
    """Images that differ as real ones, one picture, one picture for each category (2/3 of pairs differ), weak noise."""
    found = measured(Images(by_category, by_image))
    assert found == pytest.approx({"spread": spread, "spread_in_category": in_category}, abs=0.03)
    assert has_collapsed(found) is collapsed and bool(failures(found, {})) is collapsed


def test_without_categories_or_different_real_images_nothing_is_invented() -> None:
    continuous = LatentSpec.parse("noise=4 uniform=3")
    assert measured(Images(0, 1), spec=continuous).keys() == {"spread"}
    assert measured(Images(0, 1), REAL[:1].expand(9, 1, 16, 16)) == {}
    assert measured(Images(0, 1), REAL[:1]) == {}


def test_real_images_that_look_alike_in_each_category_are_no_collapse() -> None:
    """Real images are three patterns with weak noise, and generated images are the same."""
    generator = Images(1.0, 0.05)
    real = to_bytes(generator(SPEC.sample(300, torch.Generator().manual_seed(7))))
    found = measured(generator, real)
    assert found == pytest.approx({"spread": 1, "spread_in_category": 1}, abs=0.05) and not has_collapsed(found)
    found = measured(Images(1.0, 0.0), real)
    assert found["spread"] > 0.9 and found["spread_in_category"] < 0.1 and has_collapsed(found)


def test_failures_are_said_in_words() -> None:
    good: dict[str, Any] = {"spread": 0.95, "spread_in_category": 0.9, "unused_categories": 0.0, "d_accuracy": 0.8}
    assert failures(good, {}) == [] and failures({}, {}) == []
    (text,) = failures({**good, "spread": 0.05}, {})
    assert "makes the same picture again and again: generated images differ 0.05 times as much as real ones" in text
    assert "and the preset photos if" in text
    (text,) = failures({**good, "spread_in_category": 0.1}, {})
    assert "again and again in each category: generated images differ 0.10 times" in text
    (text,) = failures({**good, "unused_categories": 2.0}, {})
    assert text.startswith("2 categories have no real image")
    assert failures({**good, "d_accuracy": 0.99, "d_fake": 0.4}, {}) == [], "with R1 and R2 D is right and uncertain"
    (text,) = failures({**good, "d_accuracy": 0.99, "d_fake": 0.02}, {})
    assert text.startswith("D was right in 99.0% of its decisions")


def test_weak_codes_and_shared_categories_are_said_in_words() -> None:
    ceilings = {"cat0": 2.303, "uniform0": 2.077, "uniform1": 2.077, "cat1": 0.0}
    bounds = {"mi/cat0": 2.29, "mi/uniform0": 1.9, "mi/uniform1": -0.18, "mi/cat1": -0.1}
    (text,) = failures(bounds, ceilings)
    assert text.startswith("Q predicts uniform1 badly: the bound is less than half of the ceiling. More --steps help")
    good: dict[str, Any] = {"clustering_code": "cat0", "confusion": [[9, 1, 0], [0, 8, 2], [1, 0, 7]]}
    assert failures(good, {}) == []
    assert failures({**good, "confusion": [[9, 0, 0], [0, 0, 0], [0, 0, 7]]}, {}) == [], "no image has the second label"
    (text,) = failures({**good, "confusion": [[9, 1, 0], [0, 8, 7], [8, 0, 1]], "classes": ["cat", "dog", "owl"]}, {})
    assert text.startswith("No category of cat0 holds mostly owl, so kinds share categories. Another --seed may")
    (text,) = failures({**good, "confusion": [[90, 80, 0], [80, 90, 0], [0, 0, 70]]}, {})
    assert text.startswith("Categories 0, 1 of cat0 hold two kinds, so kinds share categories. Another")
    (text,) = failures({**good, "confusion": [[90, 40, 0], [0, 90, 0], [0, 0, 70]]}, {})
    assert text.startswith("Category 0 of cat0 holds two kinds, so")
    assert failures({**good, "confusion": [[9, 8, 0], [0, 9, 0], [0, 0, 7]]}, {}) == [], "17 images say little"
    assert failures({**good, "confusion": [[9], [3]]}, {}) == [], "there is one kind of images"
    (text,) = failures({**good, "confusion": [[9, 1, 0], [0, 8, 7]]}, {})
    assert text.startswith("cat0 has 2 categories for 3 kinds of images, so kinds share categories.")


def test_no_rule_picks_a_collapsed_trial_if_there_is_another() -> None:
    row = {"state": "finished", "swd": 20.0, "q_score": 0.5, "agreement": 0.5, "spread": 0.9, "images": 1}
    good, collapsed = {**row, "trial": 0, "mi_fraction": 0.5}, {**row, "trial": 1, "mi_fraction": 0.9, "spread": 0.1}
    for rule in RULES:
        assert winner([{**good, "swd": 29.0}, {**collapsed, "q_score": 0.9}], "mi_fraction", rule)["trial"] == 0  # type: ignore[index]
        assert winner([collapsed], "mi_fraction", rule) is not None, "a search of a few steps has a result, too"
    assert collapsed_text([good]) == ""
    assert collapsed_text([collapsed]).startswith("in all finished trials G makes the same picture again and again")
    assert collapsed_text([good, collapsed]).startswith("no rule picks 1: G makes the same picture again and again")
    assert winner([{k: v for k, v in collapsed.items() if k != "spread"}], "mi_fraction", "bound") is not None, (
        "searches of earlier versions have no spread"
    )
