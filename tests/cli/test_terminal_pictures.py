"""Pictures in the terminal. Run: pytest tests/cli/test_terminal_pictures.py"""

from __future__ import annotations

import io
import re

import pytest
import torch

from infogan_ray.cli import terminal_pictures
from infogan_ray.cli.terminal_pictures import PIXELS, print_images, shows_pictures


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    shown = Terminal()
    monkeypatch.setattr(terminal_pictures, "results", lambda: shown)
    for name, value in {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "40"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return shown


def test_each_cell_shows_two_pixels_of_the_image(terminal: Terminal) -> None:
    assert shows_pictures()
    images = torch.zeros(3, 1, PIXELS, PIXELS, dtype=torch.uint8)
    images[1] = 255
    images[2, :, ::2] = 200  # every other line
    print_images(images, most_rows=2)
    lines = terminal.getvalue().splitlines()
    assert len(lines) == 2 * PIXELS // 2, "40 columns have room for two images of 16, so the third begins a second row"
    first, last = (re.findall(r"\x1b\[([\d;]+)m(\u2580+)", line) for line in (lines[0], lines[-1]))
    assert list(dict.fromkeys(colours for colours, _ in first)) == [
        "38;2;0;0;0;48;2;0;0;0",
        "38;2;255;255;255;48;2;255;255;255",
    ]
    assert "".join(cells for _, cells in first) == "\u2580" * (2 * PIXELS)
    print_images(images, most_rows=1)
    assert len(terminal.getvalue().splitlines()) == 3 * PIXELS // 2, "one row more"
    assert {colours for colours, _ in last} == {"38;2;200;200;200;48;2;0;0;0"}


def test_larger_images_in_colour_are_averaged(terminal: Terminal) -> None:
    image = torch.zeros(1, 3, 4 * PIXELS, 4 * PIXELS, dtype=torch.uint8)
    image[:, 0, ::2] = 100
    print_images(image, most_rows=1)
    assert set(re.findall(r"38;2;(\d+;\d+;\d+)", terminal.getvalue())) == {"50;0;0"}


@pytest.mark.parametrize(("name", "value"), [("COLORTERM", ""), ("NO_COLOR", "1"), ("TERM", "dumb")])
def test_other_terminals_show_none(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert not shows_pictures()
