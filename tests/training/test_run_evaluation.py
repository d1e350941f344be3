"""What is measured at checkpoints and how it is shown. Run: pytest tests/training/test_run_evaluation.py"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from infogan_ray.data.image_set import ImageSet
from infogan_ray.evaluation import texts
from infogan_ray.evaluation.metrics import headlines_of
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.latents import LatentSpec
from infogan_ray.training.load_model import load
from infogan_ray.training.model_card import model_card
from infogan_ray.training.run_evaluation import labelled_rows, measure_agreement
from tests.conftest import make_image_set, tiny_config

LATENTS = LatentSpec.parse("noise=4 cat=3 uniform=1")


@pytest.fixture
def model(finished: Path) -> InfoGAN:
    return load(finished / "model")


def agreement(model: InfoGAN, images: ImageSet) -> dict[str, object]:
    return measure_agreement(model.spec.latents, model.discriminator, images)


def test_the_first_labels_are_measured_only_if_they_resemble_all() -> None:
    mixed = torch.arange(600) % 3
    assert labelled_rows(mixed, 100) == slice(100) and labelled_rows(mixed, None) == slice(None)
    by_class = mixed.sort()[0]
    rows = labelled_rows(by_class, 90)
    assert by_class[rows].bincount().tolist() == [30, 30, 30]


def test_unbalanced_labels_have_the_balanced_error_and_that_of_one_category(model: InfoGAN) -> None:
    images = make_image_set()
    assert images.test_labels is not None and images.labels is not None
    balanced = agreement(model, images)
    assert "one_category_error" not in balanced and "balanced_error" in balanced
    assert "one category" not in texts.clustering_text(balanced, LATENTS)

    rare = dataclasses.replace(
        images, labels=(torch.arange(len(images.labels)) % 11 == 10).long(),
        test_labels=(torch.arange(len(images.test_labels)) % 11 == 10).long(),
    )  # fmt: skip
    found = agreement(model, rare)
    share = float(rare.test_labels.float().mean()) if rare.test_labels is not None else 0.0
    assert found["one_category_error"] == pytest.approx(share)
    wanted = f"one category for everything would have {share:.1%}"
    assert texts.clustering_text(found, LATENTS).endswith(wanted) and "balanced error" in texts.clustering_text(
        found, LATENTS
    )
    row = headlines_of(found)
    assert row["balanced_error"] == found["balanced_error"] and wanted in " ".join(texts.headline_texts(row))
    card = model_card(model, tiny_config(data="bars"), {"step": 6, **found})
    assert card.count(wanted) == 1 + (float(str(found["clustering_error"])) > 0.1)


def test_a_test_part_without_a_class_gives_a_reason_and_no_number(model: InfoGAN) -> None:
    images = make_image_set()
    assert images.test_labels is not None and images.test_images is not None
    zeros = images.test_labels == 0
    found = agreement(
        model, dataclasses.replace(images, test_images=images.test_images[zeros], test_labels=images.test_labels[zeros])
    )
    assert list(found) == ["clustering_not_measured"]
    assert texts.clustering_text(found, LATENTS).startswith("not measured: the test part, ")
    card = model_card(model, tiny_config(data="bars"), {"step": 6, **found})
    assert "Nothing was compared with labels: the test part, " in card
    assert "the data has no labels" in texts.clustering_text(agreement(model, ImageSet("a", images.images)), LATENTS)
