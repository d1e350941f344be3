"""The package as a notebook uses it. Run: pytest tests/project/test_python_interface.py"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

import infogan_ray
from tests.conftest import tiny_config


def test_a_notebook_trains_and_sees_a_model(npz: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = infogan_ray.train(
        tiny_config(data=str(npz), storage=str(tmp_path)),
        lambda report: said.append(report["phase"]),
        steps=2,
        network={"width": 8},
        codes="noise=4 cat=3 uniform=1",
    )
    assert result.state == "finished" and result.metrics["step"] == 2 and "training" in said
    assert re.fullmatch(r"RunResult\(.+, finished, step 2, mi_bound .+\)", repr(result))
    model = result.model
    assert model.spec.network.width == 8 and list(model.codes) == ["cat0", "uniform0"]
    model.names["uniform0"] = "slant"
    size = model.spec.image_size
    assert repr(model).startswith(f"InfoGAN({size}x{size}x1, codes cat0, uniform0 (slant), from ")
    (picture,) = re.findall(r"base64,([\w+/=]+)", model._repr_html_())
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        assert image.width > 8 * size and image.getextrema()[0] != (255, 255)
    assert repr(result) in result._repr_html_()
    traversal = model.traverse("slant")
    assert repr(traversal) == "Traversal(slant (uniform0), 3 rows of 9 images)"
    with Image.open(io.BytesIO(traversal._repr_png_())) as image:
        assert image.width > 9 * size


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(infogan_ray.UserError, match=r"train: unknown field 'stepz'; did you mean 'steps'\?"):
        infogan_ray.train(stepz=3)
