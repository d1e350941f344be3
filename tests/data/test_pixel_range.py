"""The range of numbers of more than eight bits. Run: pytest tests/data/test_pixel_range.py"""

from __future__ import annotations

import numpy as np
import pytest

from infogan_ray.data.pixel_range import NotFinite, PixelRange, Values, measure


@pytest.mark.parametrize(
    ("low", "high", "whole", "wanted"),
    [
        (0, 1, True, "0:1"), (0, 200, True, "0:255"), (3, 1000, True, "0:1023"), (0, 4095, True, "0:4095"),
        (0, 4096, True, "0:16383"), (0, 16384, True, "0:65535"), (7, 65536, True, "7:65536"),
        (-1024, 3071, True, "-1024:3071"), (0.2, 0.9, False, "0:1"), (-0.2, 0.9, False, "-1:1"),
        (0, 1.5, False, "0:255"), (-1, 2, False, "-1:2"), (0, 255.5, False, "0:255.5"), (0, 0, False, "0:1"),
        (300, 300, False, "300:301"), (-5, -5, True, "-5:-4"),
    ],
)  # fmt: skip
def test_the_range_holds_all_values_of_the_dataset(low: float, high: float, whole: bool, wanted: str) -> None:
    found = Values(low, high, whole).range
    assert str(found) == wanted and PixelRange.parse(wanted) == found
    assert not found.clips(Values(low, high, whole))


@pytest.mark.parametrize("text", ["", "5", "a:b", "3:1", "1:1", "0:inf", "nan:1", "0:1:2", "0,5:1"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"pixel_range is '{text}'; it must be LOW:HIGH.*for example 0:4095"):
        PixelRange.parse(text)


def test_exact_text_gives_the_same_range_again() -> None:
    found = Values(0.1 + 0.2, 1000.7, False).range
    assert PixelRange.parse(str(found)) == found


def test_pixels_are_rounded_and_clipped() -> None:
    values = np.array([[-9, 0, 2047, 2048, 4095, 9000]], np.int32)
    assert PixelRange(0, 4095).to_pixels(values).tolist() == [[0, 0, 127, 128, 255, 255]]


def test_eight_bit_values_stay_the_same_under_their_own_range() -> None:
    values = np.arange(256, dtype=np.uint16)[None]
    assert PixelRange(0, 255).to_pixels(values).tolist() == values.tolist()


def test_alpha_has_its_own_range_and_does_not_count() -> None:
    image = np.zeros((1, 3, 4), np.uint16)
    image[0, :, :3], image[0, :, 3] = 4000, (0, 32768, 65535)
    assert measure(image).range == PixelRange(0, 4095)
    pixels = PixelRange(0, 4095).to_pixels(image)
    assert pixels[0, :, 3].tolist() == [0, 128, 255] and (pixels[..., :3] == 249).all()
    floats = np.array([[[-1.0, 0.5], [1.0, 1.0]]])  # grey and alpha
    assert PixelRange(-1, 1).to_pixels(floats).tolist() == [[[0, 128], [255, 255]]]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_noticed(wrong: float) -> None:
    image = np.zeros((4, 4, 4), np.float32)
    image[2, 2, 3] = wrong
    with pytest.raises(NotFinite):
        measure(image)


def test_the_values_of_images_are_joined() -> None:
    both = Values(0, 9, True) | Values(3, 70, True)
    assert both == Values(0, 70, True, 2) and not (both | Values(0.5, 1, False)).whole
