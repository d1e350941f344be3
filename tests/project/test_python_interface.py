"""The package as a notebook uses it. Run: pytest tests/project/test_python_interface.py"""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

import infogan_ray
from infogan_ray.api import fields_for_flags
from infogan_ray.cli.main import main
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
    with pytest.raises(infogan_ray.UserError, match="preset is 'mnst'"):
        infogan_ray.preset("mnst")
    assert infogan_ray.preset("photos", image_size=64).image_size == 64
    for function in (infogan_ray.evaluate, infogan_ray.pull):
        with pytest.raises(infogan_ray.UserError, match="does not exist"):
            function("nowhere/at-all")


def test_messages_name_fields_in_python_and_flags_in_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(infogan_ray.UserError) as found:
        infogan_ray.train(preset="photos", name="x")
    assert str(found.value) == "data is not set; give data (mnist, fashion_mnist, shapes, or a path) or a preset"
    assert main(["train", "--preset", "photos", "--name", "x"]) == 2
    assert "give --data (mnist" in capsys.readouterr().err
    text = "give --optimizer.lr-discriminator 1 or --no-cuda-graph; see a--b, --keep 2, runs/--no-x and s3://a/--x"
    assert fields_for_flags(text) == (
        "give optimizer.lr_discriminator 1 or cuda_graph=False; see a--b, keep 2, runs/--no-x and s3://a/--x"
    )


def test_all_public_names_are_listed_and_found() -> None:
    assert dir(infogan_ray) == sorted(infogan_ray.__all__)
    for name in infogan_ray.__all__:
        assert getattr(infogan_ray, name)
    with pytest.raises(AttributeError, match="has no attribute 'trane'"):
        infogan_ray.trane  # noqa: B018
    assert (Path(infogan_ray.__file__).parent / "py.typed").exists()


def test_a_model_opens_without_ray(npz: Path, tmp_path: Path) -> None:
    source = trained_model(npz, tmp_path).source.uri
    code = f"import sys, infogan_ray; infogan_ray.load({source!r}).sample(2); sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_codes_become_a_table(npz: Path, tmp_path: Path) -> None:
    model = trained_model(npz, tmp_path / "a").to("cpu")
    images = model.sample(5)
    codes = model.encode(images)
    assert repr(codes).startswith("Codes(5 images: cat0, cat0_probability, cat0_probabilities, uniform0")
    frame = codes.to_pandas()
    assert len(frame) == 5 and list(frame.columns[:5]) == [
        "cat0", "cat0_probability", "cat0_probabilities_0", "cat0_probabilities_1", "cat0_probabilities_2"
    ]  # fmt: skip
    assert frame["cat0_probabilities_1"].to_numpy() == pytest.approx(codes["cat0_probabilities"][:, 1])
    assert "<table" in codes._repr_html_()


def test_functions_are_the_commands(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = tmp_path / "runs"
    models = [trained_model(npz, storage, seed=seed, name=f"seed{seed}") for seed in range(3)]
    assert [row["name"] for row in infogan_ray.runs(str(storage))] == ["seed0", "seed1", "seed2"]
    assert infogan_ray.runs(str(storage / "seed1"))[0]["state"] == "finished"
    capsys.readouterr()

    measured = infogan_ray.evaluate(models[0], samples=200)
    assert main(["evaluate", str(storage / "seed0"), "--samples", "200", "--json"]) == 0
    assert measured == json.loads(capsys.readouterr().out)
    with pytest.raises(infogan_ray.UserError, match="evaluate: unknown field 'sample'; did you mean 'samples'"):
        infogan_ray.evaluate(models[0], sample=3)

    with pytest.raises(infogan_ray.UserError, match="evaluate: 'json' is not an option"):
        infogan_ray.evaluate(models[0], json=True)

    encoded = infogan_ray.encode(models[0], npz)
    assert len(encoded["image"]) == 96 and list(encoded["image"][:2]) == ["train/0", "train/1"]
    assert main(["encode", str(storage / "seed0"), str(npz), "-o", str(tmp_path / "codes.parquet")]) == 0
    written = pq.read_table(tmp_path / "codes.parquet")
    assert written.column_names == list(encoded)
    assert written["uniform0"].to_pylist() == encoded["uniform0"].tolist()
    capsys.readouterr()

    with pytest.raises(infogan_ray.UserError, match="is given twice"):
        infogan_ray.compare([models[0], models[1], models[0]])
    compared = infogan_ray.compare(models)
    assert main(["compare", *(str(storage / f"seed{seed}") for seed in range(3)), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(compared["centrality"].values()) == list(shown["centrality"].values())
    assert compared["pick"].rpartition("/")[0] and shown["pick"].rpartition("/")[2] in compared["pick"]

    pulled = infogan_ray.pull(str(storage / "seed0"), tmp_path / "model", checkpoint="last")
    assert pulled.source.path == str(tmp_path / "model") and pulled.sample(2).shape == models[0].sample(2).shape
    assert infogan_ray.export(pulled, tmp_path / "graphs", format="torch") < 1e-3
    assert (tmp_path / "graphs" / "example.py").exists()


def test_training_shows_progress(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    infogan_ray.train(tiny_config(data=str(npz), storage=str(tmp_path)), steps=2)
    assert "training" in capsys.readouterr().err


def trained_model(npz: Path, storage: Path, **changes: object) -> infogan_ray.InfoGAN:
    config = tiny_config(data=str(npz), storage=str(storage), **changes)
    return infogan_ray.train(config, lambda report: None, steps=2).model
