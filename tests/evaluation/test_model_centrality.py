"""ModelCentrality on models with known similarity, and its command.

Run: pytest tests/evaluation/test_model_centrality.py
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from infogan_ray.cli.main import DONE, USAGE, main
from infogan_ray.evaluation import model_centrality
from infogan_ray.evaluation.model_centrality import LEVELS, centralities, cross_scores, sample_levels, sizes_of
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.network_config import NetworkConfig
from infogan_ray.models.networks import ModelSpec
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import open_storage
from tests.web.test_search_report import make_search, run_trial

SPEC = LatentSpec.parse("noise=2 uniform=4", NetworkConfig(sigma_fixed=0.5).sigma)


class BarGenerator(nn.Module):
    """A generator of four bars (B, 1, 16, 16). The brightness of a bar is a linear combination of the codes."""

    def __init__(self, mixture: Tensor) -> None:
        super().__init__()
        self.mixture = nn.Parameter(mixture)

    def forward(self, latents: Tensor) -> Tensor:
        bars = latents[:, 2:] @ self.mixture.T / self.mixture.abs().sum(1)
        return bars.repeat_interleave(4, 1)[:, None, :, None].expand(-1, 1, 16, 16)


class BarEncoder(nn.Module):
    """A recognition network that inverts ``BarGenerator``: its means are the codes of the images."""

    def __init__(self, mixture: Tensor) -> None:
        super().__init__()
        self.mixture = nn.Parameter(mixture)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        bars = images[:, 0, 1::4, 0] * self.mixture.abs().sum(1)
        return bars[:, 0], bars @ torch.linalg.inv(self.mixture).T


def model(mixture: Tensor) -> InfoGAN:
    spec = ModelSpec(SPEC, 16, 1, NetworkConfig(width=4, sigma_fixed=0.5))
    return InfoGAN(spec, BarGenerator(mixture), BarEncoder(mixture), open_storage("nowhere"))  # type: ignore[arg-type]


def ordered(seed: int) -> Tensor:
    """A mixture with one bar per code, in a random order and with random signs."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (4,), generator=generator) * 2.0 - 1
    return torch.eye(4)[torch.randperm(4, generator=generator)] * signs


HALF_TURN = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
PAIRS_MIXED = torch.block_diag(HALF_TURN, HALF_TURN)
ALL_MIXED = torch.kron(HALF_TURN, HALF_TURN)


def test_models_that_found_the_same_codes_are_central() -> None:
    """The other two models mix codes in two different ways.

    They encode their own images without error, so only images from other models show the difference. Each of their
    codes depends equally on several factors, so its votes are random.
    """
    models = [model(mixture) for mixture in (ALL_MIXED, ordered(2), ordered(3), PAIRS_MIXED, ordered(5))]
    scores = cross_scores(models)
    same = [1, 2, 4]
    found = centralities(scores)
    assert np.isnan(scores.diagonal()).all()
    assert all(scores[i, j] > 0.97 for i in same for j in same if i != j)
    assert min(found[same]) > max(found[[0, 3]]) + 0.1
    assert np.array_equal(scores, cross_scores(models), equal_nan=True)


def test_centrality_is_the_mean_of_both_directions() -> None:
    scores = np.array([[np.nan, 0.8, 0.2], [0.6, np.nan, 0.4], [0.0, 1.0, np.nan]])
    assert centralities(scores).tolist() == pytest.approx([(0.7 + 0.1) / 2, (0.7 + 0.7) / 2, (0.1 + 0.7) / 2])
    with pytest.raises(ValueError, match="models are 2; centrality needs three or more"):
        centralities(scores[:2, :2])


def test_codes_as_factors_take_values_of_their_priors() -> None:
    spec = LatentSpec.parse("noise=1 cat=3@0.6:0.3:0.1 uniform=1@0:2 gaussian=1 bernoulli=1@0.25")
    latents, classes = sample_levels(spec, 4000, torch.Generator().manual_seed(0))
    _, codes = spec.split(latents)
    assert sizes_of(spec) == (3, LEVELS, LEVELS, 2) and (classes.max(0) + 1).tolist() == [3, LEVELS, LEVELS, 2]
    assert np.bincount(classes[:, 0]) / 4000 == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    for name, column in zip(spec.names, classes.T, strict=True):
        values = codes[name].argmax(1, keepdim=True) if name == "cat0" else codes[name]
        for level in np.unique(column):
            assert len(values[torch.from_numpy(column == level)].unique()) == 1
    assert codes["uniform0"].unique() == pytest.approx((np.arange(LEVELS) + 0.5) / LEVELS * 2)
    assert codes["gaussian0"].unique()[LEVELS // 2] == pytest.approx(0.0627, abs=1e-3)  # the 0.525 quantile


def test_a_model_with_one_code_is_refused() -> None:
    spec = ModelSpec(LatentSpec.parse("noise=2 cat=3"), 16, 1, NetworkConfig(width=4))
    alone = InfoGAN(spec, *spec.build(), open_storage("alone"))
    with pytest.raises(ValueError, match="alone has one code; centrality needs two or more in each model"):
        cross_scores([alone, alone, alone])


def copy_with_scaled_weights(finished: Path, path: Path, scale: float) -> str:
    """A copy of a run with scaled weights."""
    shutil.copytree(finished, path)
    for folder in [path / "model", *(path / "checkpoints").iterdir()]:
        stored = open_storage(folder)
        manifest = manifests.Manifest.load(stored, required=())
        tensors = manifest.read_tensors(checkpoints.MODEL)
        changed = {name: value * scale if value.is_floating_point() else value for name, value in tensors.items()}
        files = {name: manifest.read(name) for name in manifest.files}
        manifests.write_with_manifest(stored, files | {checkpoints.MODEL: save(changed)})
    return str(path)


def test_compare_picks_the_most_central_model(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_centrality, "TRAIN_IMAGES", 300)
    monkeypatch.setattr(model_centrality, "TEST_IMAGES", 150)
    paths = [
        copy_with_scaled_weights(finished, tmp_path / name, scale)
        for name, scale in (("a", 1), ("b", 1.01), ("c", 0.99))
    ]
    assert main(["compare", *paths, "--json"]) == DONE
    found = json.loads(capsys.readouterr().out)
    assert set(found["centrality"]) == set(paths) and found["pick"] in paths
    assert [row[number] for number, row in enumerate(found["scores"])] == [None] * 3
    assert main(["compare", *paths]) == DONE
    assert f"most central: {found['pick']}" in capsys.readouterr().out
    assert main(["compare", paths[0], paths[0], paths[1]]) == USAGE
    assert "models: 2; compare needs three or more different ones" in capsys.readouterr().err
    assert main(["compare", paths[0], f"{paths[0]}/", paths[1]]) == USAGE
    assert f"{paths[0]}/ is given twice; name each model once" in capsys.readouterr().err
    assert main(["pull", paths[1], str(tmp_path / "pulled")]) == DONE
    capsys.readouterr()
    assert main(["compare", *paths, str(tmp_path / "pulled"), "--json"]) == DONE
    output = capsys.readouterr()
    assert f"{tmp_path / 'pulled'} is a copy of {paths[1]} and is ignored" in output.err
    assert json.loads(output.out) == found
    assert main(["compare", *paths[:2], str(tmp_path / "pulled")]) == USAGE
    assert "different models: 2; compare needs three or more" in capsys.readouterr().err


def test_the_finished_trials_of_a_search_are_compared(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_centrality, "TRAIN_IMAGES", 300)
    monkeypatch.setattr(model_centrality, "TEST_IMAGES", 150)
    search = make_search(tmp_path, [{}] * 4)
    for number in (0, 2):
        copy_with_scaled_weights(finished, Path(search.trial(number).folder.path), 1 + number / 100)
    run_trial(search, 1, "running", {10: 0.1})
    assert main(["compare", search.folder.uri]) == USAGE
    assert f"finished trials of {search.folder}: 2; compare needs three or more" in capsys.readouterr().err
    copy_with_scaled_weights(finished, Path(search.trial(3).folder.path), 0.98)
    assert main(["compare", search.folder.uri]) == DONE
    output = capsys.readouterr().out
    assert all(f"trial {number}" in output for number in (0, 2, 3)) and "trial 1" not in output
    assert f"next: infogan pull {search.folder.uri} --trial " in output
