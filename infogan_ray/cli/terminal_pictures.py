"""Pictures in a terminal with 24-bit colours: each character cell shows two pixels, one above the other."""

from __future__ import annotations

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text
from torch import Tensor

from infogan_ray.cli.output import results

PIXELS = 16  # of an image's side; an even number
UPPER_HALF = "\u2580"


def shows_pictures() -> bool:
    """Whether stdout is a terminal with 24-bit colours."""
    console = Console(file=results())
    return console.is_terminal and console.color_system == "truecolor" and not console.no_color


def print_images(images: Tensor, most_rows: int) -> None:
    """Print uint8 images (N, C, H, W) side by side, in at most ``most_rows`` rows of the terminal's width."""
    console = Console(file=results())
    in_a_row = max(1, (console.width + 1) // (PIXELS + 1))
    for first in range(0, min(len(images), most_rows * in_a_row), in_a_row):
        pixels = [_small(image) for image in images[first : first + in_a_row]]
        for line in range(0, PIXELS, 2):
            console.print(Text(" ").join(_line(image[line], image[line + 1]) for image in pixels), soft_wrap=True)


def _small(image: Tensor) -> np.ndarray:
    """An image (C, H, W) as RGB (PIXELS, PIXELS, 3)."""
    rgb = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return np.asarray(Image.fromarray(rgb).resize((PIXELS, PIXELS), Image.Resampling.BOX))


def _line(upper: np.ndarray, lower: np.ndarray) -> Text:
    text = Text()
    for above, below in zip(upper, lower, strict=True):
        style = Style(color=Color.from_rgb(*map(int, above)), bgcolor=Color.from_rgb(*map(int, below)))
        text.append(UPPER_HALF, style)
    return text
