"""Names that users give to codes, and the model card that shows them. Run: pytest tests/models/test_code_names.py"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from infogan_ray.cli.main import DONE, FAILED, USAGE, main
from infogan_ray.evaluation.metrics import REGISTRY
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.network_config import NetworkConfig
from infogan_ray.models.networks import ModelSpec
from infogan_ray.models.traversal import traverse
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import Storage, open_storage
from infogan_ray.training.load_model import load
from infogan_ray.training.publish import name_codes
from tests.servers import Proxy


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "store" / "tiny")


def test_a_name_is_stored_with_the_model_and_used_in_card_images_and_flags(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    assert main(["pull", str(run), str(model)]) == DONE
    before = (model / "traversal_uniform0.png").read_bytes()
    assert main(["name", str(model), "uniform0=slant", "cat0=  which   digit "]) == DONE
    assert capsys.readouterr().out.splitlines()[-2:] == ["cat0 which digit", "uniform0 slant"]
    manifests.Manifest.load(open_storage(model), required=()).verify()
    card = (model / "README.md").read_text()
    assert "| uniform0 | slant | Uniform" in card and "![traversal of slant](traversal_uniform0.png)" in card
    assert "codes={'which digit': 1}" in card
    assert (model / "traversal_uniform0.png").read_bytes() != before, "the title contains the name"
    named = load(model)
    assert torch.equal(named.sample(4, {"Slant": 0.5}), named.sample(4, {"uniform0": 0.5}))
    assert main(["sample", str(model), "--set", "slant=0.5", "-o", str(tmp_path / "a.npz")]) == DONE
    assert main(["traverse", str(model), "--code", "slant", "-o", str(tmp_path / "a.png")]) == DONE
    assert main(["name", str(model), "uniform0="]) == DONE
    assert (model / "traversal_cat0.png").is_file() and load(model).names == {"cat0": "which digit"}
    assert main(["sample", str(model), "--set", "slant=0.5"]) == USAGE
    assert "this model has cat0 (which digit), uniform0" in capsys.readouterr().err


def test_names_of_a_run_apply_to_its_checkpoints_and_pulled_models(run: Path, tmp_path: Path) -> None:
    assert main(["name", str(run / "checkpoints" / "step_00000003"), "uniform0=slant"]) == DONE
    for path in (run, run / "checkpoints" / "step_00000006", run / "model"):
        assert load(path).names == {"uniform0": "slant"}, path
    assert main(["pull", str(run), str(tmp_path / "best")]) == DONE
    assert main(["pull", str(run), str(tmp_path / "third"), "--checkpoint", "step_00000003"]) == DONE
    shutil.rmtree(run)
    for path in (tmp_path / "best", tmp_path / "third"):
        assert load(path).names == {"uniform0": "slant"} and "| slant |" in (path / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["uniform7=slant"], "code 'uniform7' does not exist; this model has cat0, uniform0"),
        (["slant"], "names is 'slant'; write CODE=NAME"),
        (["uniform0=cat3"], "'cat3', which is reserved for codes"),
        (["uniform0=Width", "cat0=width"], "the name of cat0 is 'width', but uniform0 has the same name"),
        (["uniform0=a|b"], "at most 40 letters, without"),
        (["uniform0=" + "x" * 41], "at most 40 letters, without"),
    ],
)
def test_an_invalid_name_is_refused_and_nothing_changes(
    run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["name", str(run), *words]) == USAGE
    assert message in capsys.readouterr().err and load(run).names == {}


def test_a_kill_while_names_are_written_leaves_a_valid_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_storage(run / "model")
    name_codes(model, {"uniform0": "slant"})
    for writes in range(8):
        count, real = 0, Storage.write

        def write_then_interrupt(
            self: Storage, name: str, content: bytes, limit: int = writes, real: Callable[..., None] = real
        ) -> None:
            nonlocal count
            count += 1
            if count > limit:
                raise KeyboardInterrupt
            real(self, name, content)

        with monkeypatch.context() as patch:
            patch.setattr(Storage, "write", write_then_interrupt)
            try:
                name_codes(model, {"uniform0": f"width {writes}"})
            except KeyboardInterrupt:
                manifests.Manifest.load(model, required=(checkpoints.MODEL, "config.json")).verify()
                load(model.uri)
    assert name_codes(model, {"uniform0": "end"}) == load(model.uri).names == {"uniform0": "end"}
    assert {"README.md", "names.json", "traversal_cat0.png"} <= set(manifests.Manifest.load(model, required=()).files)


def test_a_broken_names_file_is_reported_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "names.json").write_text("[1")
    assert main(["sample", str(run)]) in (USAGE, FAILED)
    output = capsys.readouterr().err.strip()
    assert f"{run}/names.json" in output and len(output.splitlines()) == 1


def test_names_are_stored_in_a_bucket(finished: Path, proxy: Proxy) -> None:
    folder = open_storage(proxy.uri("named"))
    for path in (finished / "model").iterdir():
        folder.write(path.name, path.read_bytes())
    name_codes(folder, {"cat0": "height"})
    assert load(folder.uri).names == {"cat0": "height"}


def test_the_card_starts_with_metadata_for_model_hubs(run: Path) -> None:
    card = (run / "model" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["library_name"] == "infogan_ray" and about["pipeline_tag"] == "unconditional-image-generation"
    [entry] = about["model-index"]
    [result] = entry["results"]
    metrics = json.loads((run / "model" / "metrics.json").read_text())
    listed = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert listed == {name: round(metrics[name], 4) for name in REGISTRY if name in metrics}
    assert {"mi_fraction", "clustering_error", "nmi", "swd"} <= set(listed)
    for heading in ("## Codes", "## Measured", "infogan evaluate .", "## Limits", "## How it was made"):
        assert heading in text
    for picture in ("samples.png", "traversal_cat0.png", "traversal_uniform0.png"):
        assert f"]({picture})" in text and (run / "model" / picture).is_file()


def test_an_image_title_omits_names_that_its_font_cannot_write() -> None:
    spec = LatentSpec.parse("noise=4 cat=3 uniform=1")
    generator, _ = ModelSpec(spec, 16, 1, NetworkConfig(width=8)).build()
    for name, title in (("slant", "slant (uniform0)"), ("größe", "uniform0"), ("数字", "uniform0")):
        assert traverse(spec, generator, "uniform0", names={"uniform0": name}).title == title
