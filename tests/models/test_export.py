"""Exported graphs work without this package, equal the model for any batch size, and contain no pickle."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from infogan_ray.cli.main import DONE, FAILED, USAGE, main
from infogan_ray.models import export as export_module
from infogan_ray.models.export import export
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.network_config import NetworkConfig
from infogan_ray.models.networks import ModelSpec
from infogan_ray.storage.file_system import open_storage

CODES = "noise=4 cat=3 uniform=1 gaussian=1 bernoulli=1"


SMALL = NetworkConfig(width=4)
RESIDUAL = NetworkConfig(width=4, architecture="residual", d_norm="none", output="linear")


def make_model(image_size: int = 28, channels: int = 1, network: NetworkConfig = SMALL) -> InfoGAN:
    """A model with unusual batch-norm statistics, so that a graph that ignores them gives other results."""
    torch.manual_seed(0)
    spec = ModelSpec(LatentSpec.parse(CODES), image_size, channels, network)
    generator, discriminator = spec.build()
    for module in (*generator.modules(), *discriminator.modules()):
        if hasattr(module, "running_var"):
            module.running_var.uniform_(0.001, 0.003)
            module.running_mean.uniform_(-0.01, 0.01)
    return InfoGAN(spec, generator, discriminator, open_storage("none"))


@pytest.mark.parametrize(
    ("format", "image_size", "channels", "network"),
    [("onnx", 28, 1, SMALL), ("torch", 36, 3, RESIDUAL)],
)
def test_both_graphs_equal_the_model_and_the_example_runs_without_this_package(
    format: str, image_size: int, channels: int, network: NetworkConfig, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model, folder = make_model(image_size, channels, network), tmp_path / "first model"
    monkeypatch.setattr("infogan_ray.cli.export.load", lambda path, say: model)
    assert main(["export", "any", "--format", format, "-o", str(folder)]) == DONE
    assert "largest difference from the model" in capsys.readouterr().out
    latents = model.spec.latents.sample(11, torch.Generator().manual_seed(5))
    with torch.no_grad():
        images = (model.generator(latents) + 1) / 2
    assert images.std() > 0.05, "the images differ"
    if format == "onnx":
        import onnxruntime

        def run(name: str, field: str, given: torch.Tensor) -> list[np.ndarray]:
            session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"))
            assert [output.name for output in session.get_outputs()] == (
                described if name == "recognition" else ["images"]
            )
            return session.run(None, {field: given.numpy()})
    else:

        def run(name: str, field: str, given: torch.Tensor) -> list[np.ndarray]:
            found = torch.export.load(folder / f"{name}.pt2").module()(given)
            return [part.detach().numpy() for part in ([found] if isinstance(found, torch.Tensor) else found)]

    about = json.loads((folder / "codes.json").read_text())
    described = about["recognition"]
    assert described == ["cat0", "uniform0", "uniform0_std", "gaussian0", "gaussian0_std", "bernoulli0"]
    assert [entry["columns"] for entry in about["latents"]] == [[0, 4], [4, 7], [7, 8], [8, 9], [9, 10]]
    np.testing.assert_allclose(run("generator", "latents", latents)[0], images.numpy(), atol=1e-4)
    as_bytes = (images * 255).round().byte()
    expected = model.encode(as_bytes)
    found = dict(zip(described, run("recognition", "images", as_bytes.float() / 255), strict=True))
    np.testing.assert_allclose(found["cat0"].max(1), expected["cat0_probability"], atol=1e-4)
    for name in described[1:]:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)
    hide = "import sys; sys.modules['infogan_ray'] = None; import runpy; runpy.run_path(sys.argv[1])"
    ran = subprocess.run(
        [sys.executable, "-c", hide, str(folder / "example.py")], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    printed = dict(line.split(" ", 1) for line in ran.stdout.splitlines())
    assert list(printed) == described
    assert np.allclose(np.sum(json.loads(printed["cat0"]), axis=1), 1, atol=0.02)
    assert main(["export", "any", "--format", format, "-o", str(folder)]) == USAGE
    assert "not an empty folder; name another" in capsys.readouterr().err


def test_a_torch_program_contains_no_pickle(tmp_path: Path) -> None:
    export(make_model(), tmp_path, "torch")
    for path in tmp_path.glob("*.pt2"):
        with zipfile.ZipFile(path) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
        assert len(contents) > 10
        # Weights can be any bytes. No other file may be a pickle or an archive.
        others = {name: content for name, content in contents.items() if "/weights/weight_" not in name}
        assert not [name for name, content in others.items() if content[:2] in (b"PK", b"\x80\x02", b"\x80\x04")]


def test_bad_exports_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("infogan_ray.cli.export.load", lambda path, say: make_model())
    assert main(["export", "any", "--format", "pickle", "-o", str(tmp_path / "x")]) == USAGE
    assert "format is 'pickle'; valid are onnx, torch" in capsys.readouterr().err
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["export", "any", "--format", "torch", "-o", str(place)]) == USAGE
        error = capsys.readouterr().err
        assert f"output is '{place}', which " in error and error.count("\n") == 1
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        assert main(["export", "any", "-o", str(tmp_path / "x")]) == USAGE
        assert "pip install 'infogan-ray[export]'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    monkeypatch.setattr(export_module, "TOLERANCE", -1.0)
    assert main(["export", "any", "--format", "torch", "-o", str(tmp_path / "y")]) == FAILED
    assert "differs from the model by" in capsys.readouterr().err
