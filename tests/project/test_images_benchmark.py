"""The sets and forms of ``benchmarks.images`` are valid, and letters are drawn. The benchmark itself trains for hours.

Run: pytest tests/project/test_images_benchmark.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import ImageFont

from benchmarks.image_data import SIDE, draw, fonts
from benchmarks.images import FORMS, SETS, Run
from infogan_ray.cli.train import train_config


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SETS)
def test_every_form_trains_on_every_set(name: str, form: str) -> None:
    run = Run(name, form, seed=3, steps=10, more=("--network.width", "16"))
    config = train_config([*run.flags, "--data", "images"])
    spec = config.model_spec(config.image_size, config.channels)
    assert (config.steps, config.seed, spec.network.width) == (10, 3, 16)
    assert config.objective.game == ("relativistic" if form == "photos" else "logistic")
    assert spec.latents.q_dim and f"{spec.image_size}" in SETS[name][1], "the set's flags come after the preset's"


def test_many_flags_make_a_short_name() -> None:
    flags = ("--network.width", "16", "--objective.lambda-categorical", "0.25", "--stability.augment-d", "translation")
    long, other = ([*flags * 3, "--stability.r1", value] for value in ("0.1", "0.2"))
    names = [Run("emoji64", "photos", 0, 2500, tuple(more)).name for more in (flags[:2], long, other)]
    assert names[0] == "emoji64-photos-network.width-16-2500-seed0"
    assert len(set(names)) == 3 and max(map(len, names)) < 200


def test_letters_are_drawn_large_and_in_the_middle(tmp_path: Path) -> None:
    built_in = ImageFont.load_default(SIDE)
    assert isinstance(built_in, ImageFont.FreeTypeFont)
    (tmp_path / "bold").mkdir()
    for name in ("Aileron.ttf", "bold/Aileron.ttf"):
        (tmp_path / name).write_bytes(built_in.path.getvalue())  # type: ignore[union-attr]
    assert [(path.name, weight, slant) for path, weight, slant in fonts(tmp_path)] == [
        ("Aileron.ttf", "regular", "upright")
    ], "a font comes once"
    picture = draw(tmp_path / "Aileron.ttf", "H")
    assert picture is not None and picture.size == (SIDE, SIDE) and picture.getextrema() == (0, 255)
    left, top, right, bottom = picture.point(lambda value: 255 - value).getbbox() or (0, 0, 0, 0)
    assert abs(left - (SIDE - right)) <= 1 and abs(top - (SIDE - bottom)) <= 1 and bottom - top > 0.85 * SIDE
