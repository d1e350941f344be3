"""Generated shapes: their grid, their pixels, and which images are equal. Run: pytest tests/data/test_shapes.py"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from infogan_ray.data.datasets import DataConfig, load_images
from infogan_ray.data.shapes import FIRST, KINDS, SIZES, SUBSET, Shapes


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes()


def classes(shape: int, scale: int = 5, orientation: int = 0, x: int = 16, y: int = 16) -> torch.Tensor:
    return torch.tensor([[shape, scale, orientation, x, y]])


def place(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre of the white pixels: column and row, each (N,)."""
    white = images[:, 0].double() / 255
    at = torch.arange(white.shape[-1], dtype=torch.float64)
    total = white.sum((1, 2))
    return (white.sum(1) * at).sum(1) / total, (white.sum(2) * at).sum(1) / total


def test_count_classes_and_values_equal_dsprites(shapes: Shapes) -> None:
    assert len(shapes) == 737_280
    found = shapes.classes(torch.tensor([0, 1, 32, 32 * 32, 40 * 32 * 32, 737_279]))
    assert found.tolist() == [
        [0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [2, 5, 39, 31, 31],
    ]  # fmt: skip
    values = shapes.values(found)
    assert values[-1].tolist() == pytest.approx([2, 1, 2 * math.pi, 1, 1])
    assert values[3].tolist() == pytest.approx([0, 0.5, 0.16110732, 0, 0], abs=1e-8)
    with pytest.raises(ValueError, match="indices reach from -1 to 5; valid are 0 to 737279"):
        shapes.classes(torch.tensor([5, -1]))


def test_images_are_black_and_white_complete_and_reproducible(shapes: Shapes) -> None:
    some = shapes.classes(torch.randint(len(shapes), (2000,), generator=torch.Generator().manual_seed(0)))
    images = shapes.images(some)
    assert images.shape == (2000, 1, 64, 64) and images.dtype == torch.uint8
    assert images.unique().tolist() == [0, 255]
    assert torch.equal(images, Shapes().images(some))
    assert torch.equal(shapes.images(some[7:8]), images[7:8]), "an image does not depend on the rest of the request"
    middle = some.clone()
    middle[:, 3:] = 16
    assert torch.equal(images.sum((1, 2, 3)), shapes.images(middle).sum((1, 2, 3))), "no image is cut off"


def test_x_and_y_move_the_same_sprite_by_a_pixel(shapes: Shapes) -> None:
    at = shapes.images(classes(2, x=3, y=20))
    assert torch.equal(shapes.images(classes(2, x=4, y=20)), at.roll(1, 3))
    assert torch.equal(shapes.images(classes(2, x=3, y=21)), at.roll(1, 2))
    column, row = place(shapes.images(classes(1, x=0, y=31)))
    assert (float(column), float(row)) == pytest.approx((FIRST, FIRST + 31))


def test_scale_is_proportional_and_shapes_stay_inside_their_circle(shapes: Shapes) -> None:
    turns = torch.arange(40)
    for shape, area in ((0, 2.0), (1, math.pi / 1.8)):  # areas of a square and an ellipse in a circle of radius 1
        for scale in range(6):
            every = classes(shape, scale).repeat(40, 1)
            every[:, 2] = turns
            white = (shapes.images(every) > 0).sum() / 40
            reach = 15.5 * (0.5 + 0.1 * scale)
            assert float(white) == pytest.approx(area * reach**2, rel=0.02), (KINDS[shape], scale)
    grey = Shapes(antialias=True)
    far = (torch.arange(64) - FIRST - 16).abs().double()
    outside = torch.hypot(far.view(-1, 1), far.view(1, -1)) > 15.5 + math.sqrt(0.5)
    for shape in range(3):
        every = torch.tensor([[shape, 5, orientation, 16, 16] for orientation in range(40)])
        images = grey.images(every)
        assert images[:, 0][:, outside].max() == 0, KINDS[shape]
        assert images.unique().numel() > 10, "antialiased"


def test_orientation_turns_counter_clockwise_and_the_heart_points_down(shapes: Shapes) -> None:
    heart = shapes.images(classes(2))[0, 0]
    assert torch.equal(heart, heart.flip(1).roll(1, 1)), "symmetric about pixel 32"
    rows = (heart > 0).sum(1)
    rows = rows[rows > 0]
    assert rows[-1] < 4 and rows[: len(rows) // 2].sum() > rows[len(rows) // 2 :].sum()
    ellipse = shapes.images(classes(1, orientation=5))[0, 0]  # turned by 46 degrees: from lower left to upper right
    assert ellipse[22, 42] == 255 and ellipse[42, 42] == 0


def test_different_orientations_that_give_the_same_image(shapes: Shapes) -> None:
    """No code can distinguish these images; the module's docstring counts them."""
    for shape in range(3):
        assert torch.equal(shapes.images(classes(shape, 3, 0)), shapes.images(classes(shape, 3, 39)))
    turned = shapes.images(classes(0, 5, 0))
    assert torch.equal(turned[0, 0], turned[0, 0].rot90(1).roll(1, 0)), "a square after a quarter turn"
    for shape, scale in itertools.product(range(3), range(6)):
        every = classes(shape, scale).repeat(SIZES[2], 1)
        every[:, 2] = torch.arange(SIZES[2])
        different = len(shapes.images(every).flatten(1).unique(dim=0))
        assert different <= 39 if shape == 0 else different == 39, (
            "only the two ends, and quarter turns of a small square"
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.tensor([[0, 6, 0, 0, 0]]), "scale is from 6 to 6; valid are the classes 0 to 5"),
        (torch.tensor([[0, 0, 0, 0, -1]]), "y is from -1 to -1; valid are the classes 0 to 31"),
        (torch.zeros(3, 4, dtype=torch.int64), r"classes are torch.int64 \(3, 4\); they must be int64 \(N, 5\)"),
        (torch.zeros(3, 5), "classes are torch.float32"),
    ],
)
def test_classes_outside_the_grid_are_refused(shapes: Shapes, wrong: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shapes.images(wrong)


def test_the_dataset_is_a_subset_of_the_grid_with_shapes_as_labels(shapes: Shapes) -> None:
    messages: list[str] = []
    found = load_images("shapes", DataConfig(), messages.append)
    assert found.test_images is not None and found.labels is not None and found.test_labels is not None
    assert len(found.images) + len(found.test_images) == SUBSET and len(found.images) == 48_000
    assert found.images.shape[1:] == (1, 64, 64) and not messages
    assert found.labels.bincount().tolist() == pytest.approx([16_000] * 3, rel=0.02)
    ellipses = torch.cartesian_prod(torch.tensor([1]), torch.arange(6), torch.arange(40), torch.tensor([16]))
    ellipses = torch.cat([ellipses, torch.full((len(ellipses), 1), 16)], 1)
    areas = (shapes.images(ellipses) > 0).sum((1, 2, 3))
    assert torch.isin((found.images[found.labels == 1] > 0).sum((1, 2, 3)), areas).all(), "labels belong to the images"
