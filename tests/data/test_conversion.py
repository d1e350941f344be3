"""How images become square. Run: pytest tests/data/test_conversion.py"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from infogan_ray.data.conversion import CROP, FITS, PAD, SQUEEZE, Conversion, border_colours, to_squares
from infogan_ray.data.decoding import decode
from infogan_ray.data.load_in_memory import to_images


def striped() -> np.ndarray:
    """A wide RGB image (16, 24, 3): a red border of one pixel, blue inside, and a green column on the left."""
    image = np.zeros((16, 24, 3), np.uint8)
    image[..., 0] = 255
    image[1:-1, 1:-1] = (0, 0, 255)
    image[1:-1, 1] = (0, 255, 0)
    return image


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize("turned", [False, True])
def test_images_are_cropped_padded_or_squeezed(turned: bool) -> None:
    image = striped().transpose(1, 0, 2) if turned else striped()
    images = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    cropped, padded, squeezed = (to_squares(images, fit) for fit in (CROP, PAD, SQUEEZE))
    assert torch.equal(cropped, images[:, :, 4:20] if turned else images[..., 4:20])
    assert padded.shape == (1, 3, 24, 24)
    assert torch.equal(padded[..., 4:20] if turned else padded[:, :, 4:20], images)
    assert (padded[0, :, 0, 0] == torch.tensor([255, 0, 0])).all()
    assert torch.equal(squeezed, images)


def test_padding_continues_the_border_of_each_image() -> None:
    images = np.zeros((2, 1, 4, 6), np.uint8)
    images[0, 0, :, 0], images[1] = 9, 200  # the first border is black but for one side
    assert border_colours(images).tolist() == [[0], [200]]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_and_an_array_become_the_same_pixels(fit: str, channels: int) -> None:
    """24 x 24, so that only squeezing resizes. Pillow and torch round differently there."""
    size = 16 if fit == CROP else 24
    how = Conversion(fit)
    pixels, facts = decode(png(striped()), size, channels, how=how)
    array = to_images(striped()[None], size, channels, how)[0].numpy()
    off = np.abs(pixels.astype(int) - array)
    assert off.max() <= (2 if fit == SQUEEZE or channels == 1 else 0)
    assert FITS[fit] in facts.conversions(size, channels)


@pytest.mark.parametrize("channels", [2, 4])
def test_transparent_arrays_are_composited_on_white_as_files_are(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, channels), dtype=np.uint8)
    wanted = 1 if channels == 2 else 3
    pixels, _ = decode(png(image), 16, wanted)
    assert np.array_equal(to_images(image[None], None, None, Conversion())[0].numpy(), pixels)


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="fit is 'cut'; valid are crop, pad, squeeze"):
        Conversion.of("cut", None)
