"""Scores of codes with a known result, and of a model through the command.

Run: pytest tests/evaluation/test_disentanglement.py
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from infogan_ray.cli import evaluate as command
from infogan_ray.cli.main import DONE, FAILED, USAGE, main
from infogan_ray.evaluation.disentanglement.encoded import Encoded, Representation, model_representation
from infogan_ray.evaluation.disentanglement.information import bin_indices, gaps, mig, shares
from infogan_ray.evaluation.disentanglement.prediction import dci, disentanglement, explained_variance, sap
from infogan_ray.evaluation.disentanglement.vae_scores import beta_vae, factor_vae, variances
from infogan_ray.evaluation.measure_disentanglement import DisentanglementConfig, measure
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.network_config import NetworkConfig
from infogan_ray.models.networks import ModelSpec
from infogan_ray.storage.checkpoints import MODEL
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.manifests import write_with_manifest
from tests.data.test_factors import write

SIZES = (3, 4, 5, 6)
CHANCE = 1 / len(SIZES)
SCORES = ("mig", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness", "factor_vae", "beta_vae")
NOISE = 4000


def classes(stream: int, count: int = NOISE) -> np.ndarray:
    return np.random.default_rng([7, stream]).integers(SIZES, size=(count, len(SIZES)))


def encoded(codes: np.ndarray, known: np.ndarray, categories: tuple[int, ...] = ()) -> Encoded:
    kinds = categories or (0,) * codes.shape[1]
    return Encoded(codes.astype(float), kinds, known, SIZES, (False, True, True, True))


def pair(make: object, categories: tuple[int, ...] = ()) -> tuple[Encoded, Encoded]:
    """Codes of a train and a test split; ``make`` has (classes, rng)."""
    return tuple(  # type: ignore[return-value]
        encoded(make(classes(part), np.random.default_rng([8, part])), classes(part), categories)  # type: ignore[operator]
        for part in (0, 1)
    )


def scores(train: Encoded, test: Encoded) -> dict[str, float]:
    return {
        "mig": mig(train),
        "sap": sap(train, test),
        "factor_vae": factor_vae(train, test, np.random.default_rng(0)),
        "beta_vae": beta_vae(train, test, np.random.default_rng(1)),
        **dci(train, test, rounds=4),
    }


def perfect(known: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return known / (np.array(SIZES) - 1)


# The shape (3 kinds) is predicted without error from its code, and at chance level 1/3 from any other.
BEST_SAP = (1 - 1 / 3 + 3) / 4


def test_codes_equal_to_the_factors_get_the_best_scores() -> None:
    train, test = pair(lambda known, rng: known, (3, 0, 0, 0))  # the shape is a category, as in an InfoGAN
    found = scores(train, test)
    assert found["mig"] == pytest.approx(1, abs=0.01)
    assert found["sap"] == pytest.approx(BEST_SAP, abs=0.02)
    assert found["factor_vae"] == found["beta_vae"] == found["dci_informativeness"] == 1
    assert found["dci_disentanglement"] == pytest.approx(1, abs=0.01)
    assert found["dci_completeness"] == pytest.approx(1, abs=0.01)


def test_scores_do_not_depend_on_order_units_and_category_numbers() -> None:
    noisy = lambda known, rng: known + rng.normal(0, 0.5, known.shape) * [0, 1, 1, 1]  # noqa: E731
    plain = scores(*pair(noisy, (3, 0, 0, 0)))

    def changed(known: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        codes = noisy(known, rng)
        codes[:, 0] = np.array([2, 0, 1])[codes[:, 0].astype(int)]
        return (codes * [1, -100, 3, 0.5] + [0, 7, 0, -1])[:, [3, 1, 0, 2]]

    for name, value in scores(*pair(changed, (0, 0, 3, 0))).items():
        assert value == pytest.approx(plain[name], abs=0.02), name
    assert plain["mig"] < 0.9, "the scores are not at their maximum"


def test_sap_does_not_depend_on_the_units_of_a_continuous_code() -> None:
    """A classifier with bounded weights could not use a code with small values."""
    found = [sap(*pair(lambda known, rng, unit=unit: known * unit)) for unit in (1.0, 0.001)]
    assert found[0] == pytest.approx(found[1]) and found[0] > 0.75


def test_category_numbers_are_not_distances() -> None:
    def unsure(known: np.ndarray, rng: np.random.Generator, names: tuple[int, ...]) -> np.ndarray:
        output = np.where(rng.random(len(known)) < 0.5, known[:, 3], rng.integers(6, size=len(known)))
        return np.stack([np.array(names)[output], known[:, 1] + rng.normal(0, 2, len(known))], 1)

    found = [
        beta_vae(*pair(lambda known, rng, names=names: unsure(known, rng, names), (6, 0)), np.random.default_rng(0))
        for names in ((0, 1, 2, 3, 4, 5), (5, 0, 3, 1, 4, 2))
    ]
    assert found[0] == found[1] < 0.9


def test_uninformative_codes_get_zero_or_chance() -> None:
    found = scores(*pair(lambda known, rng: rng.normal(size=known.shape)))
    assert found["mig"] < 0.01 and found["sap"] < 0.03
    assert found["factor_vae"] == pytest.approx(CHANCE, abs=0.05)
    assert found["beta_vae"] == pytest.approx(CHANCE, abs=0.05)
    assert found["dci_disentanglement"] < 0.2
    assert found["dci_informativeness"] == pytest.approx(np.mean([1 / size for size in SIZES]), abs=0.05)
    constant = scores(*pair(lambda known, rng: np.ones(known.shape)))
    assert constant["mig"] == constant["sap"] == constant["factor_vae"] == constant["dci_disentanglement"] == 0
    assert constant["beta_vae"] == pytest.approx(CHANCE, abs=0.03)


def test_a_duplicate_code_makes_the_gap_zero_and_keeps_codes_disentangled() -> None:
    found = scores(*pair(lambda known, rng: np.hstack([perfect(known, rng)] * 2)))
    assert found["mig"] == found["sap"] == 0
    assert found["dci_disentanglement"] == pytest.approx(1, abs=0.01), "each code depends on one factor only"
    assert found["factor_vae"] == 1, "each code depends on one factor only"
    nearly = pair(lambda known, rng: np.hstack([known + rng.normal(0, 1e-9, known.shape) for _ in range(2)]))
    assert 0.5 < dci(*nearly, rounds=4)["dci_completeness"] < 0.9, "each factor is spread over two codes"


def test_a_code_that_mixes_two_factors_is_not_disentangled() -> None:
    def mixed(known: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.stack([known[:, 0], known[:, 1], known[:, 2] * SIZES[3] + known[:, 3]], 1)

    train, test = pair(mixed)
    found, clean = scores(train, test), scores(*pair(perfect))
    assert found["dci_informativeness"] > 0.75 and clean["dci_informativeness"] == 1
    assert found["dci_disentanglement"] < clean["dci_disentanglement"] - 0.2
    assert found["factor_vae"] < 0.9 and clean["factor_vae"] == 1
    table = shares(encoded(mixed(classes(0), np.random.default_rng(0)), classes(0), (3, 4, 30)))
    assert table[2] == pytest.approx([0, 0, 1, 1], abs=0.01), (
        "as 30 categories it has all information about both factors"
    )


def test_mutual_information_of_a_small_example() -> None:
    """Factor a in {0, 1}; code 0 equals a; code 1 equals a in three of four rows."""
    known = np.array([[0, 0], [0, 1], [0, 0], [0, 1], [1, 0], [1, 1], [1, 0], [1, 1]])
    codes = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [1, 1], [1, 1], [1, 1], [1, 0]])
    table = shares(Encoded(codes.astype(float), (2, 0), known, (2, 2), (True, True)))
    quarter = 1 + 0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)
    assert table[:, 0] == pytest.approx([1, quarter])
    assert table[:, 1] == pytest.approx([0, 0], abs=1e-12)
    assert gaps(table) == pytest.approx([1 - quarter, 0], abs=1e-12)
    assert gaps(np.array([[0.3, 0.4]])) == pytest.approx([0.3, 0.4]), "a single code has no second-best code"


def test_bins_equal_those_of_disentanglement_lib() -> None:
    """There, bins are np.digitize over the left edges of np.histogram(values, 20), counted from 1 instead of 0."""
    values = np.random.default_rng(0).normal(size=500)
    left = np.histogram(values, 20)[1][:-1]
    np.testing.assert_array_equal(bin_indices(values), np.digitize(values, left) - 1)
    assert bin_indices(np.full(5, 3.0)).tolist() == [0] * 5


def test_twenty_bins_lose_information_about_thirty_two_values() -> None:
    known = np.stack([np.repeat(np.arange(32), 4), np.tile(np.arange(4), 32)], 1)
    table = shares(Encoded(known.astype(float), (0, 0), known, (32, 4), (True, True)))
    twos, ones = 12, 8  # a bin has 31/20 values on average: twelve bins have two, eight have one
    entropy = twos / 16 * math.log(16) + ones / 32 * math.log(32)
    assert table[0, 0] == pytest.approx(entropy / math.log(32))
    assert f"{table[0, 0]:.2f}" == "0.85", "the value in the module's docstring"
    assert table[1, 1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("importance", "rows", "columns"),
    [
        ([[1.0, 0], [0, 1]], 1.0, 1.0),
        ([[0.5, 0.5], [0.5, 0.5]], 0.0, 0.0),
        # One code for both factors: complete, not disentangled; the other code has no weight.
        ([[1.0, 1.0], [0, 0]], 0.0, 1.0),
        ([[0.5, 0], [0.5, 0], [0, 1]], 1.0, (1 - math.log(2) / math.log(3) + 1) / 2),
        ([[3.0, 1], [0, 4]], (4 * (1 - 0.8112781244591328) + 4) / 8, None),
        ([[0.0, 0], [0, 0]], 0.0, 0.0),
        ([[2.0, 1.0]], None, 1.0),
    ],
)
def test_disentanglement_and_completeness_of_small_examples(
    importance: list[list[float]], rows: float | None, columns: float | None
) -> None:
    table = np.array(importance)
    if rows is not None:
        assert disentanglement(table) == pytest.approx(rows)
    if columns is not None:
        assert disentanglement(table.T) == pytest.approx(columns)


def test_explained_is_squared_correlation_or_variance_between_categories() -> None:
    known = classes(3)
    rng = np.random.default_rng(0)
    codes = np.stack([known[:, 2] + rng.normal(size=len(known)), known[:, 2] // 2], 1)
    both = encoded(codes, known, (0, 3))
    values = known[:, 2].astype(float)
    assert explained_variance(both, 0, values) == pytest.approx(np.corrcoef(codes[:, 0], values)[0, 1] ** 2)
    onehot = both.columns(1)
    fit = onehot @ np.linalg.lstsq(onehot, values, rcond=None)[0]
    assert explained_variance(both, 1, values) == pytest.approx(1 - (values - fit).var() / values.var())


def test_spread_of_two_categories_is_their_variance() -> None:
    coins = np.random.default_rng(0).integers(2, size=(5, 64, 1)).astype(float)
    assert variances(coins, (2,)) == pytest.approx(coins.var(1, ddof=1))
    three = np.array([[[0.0], [1], [2]]])
    assert variances(three, (3,)) == pytest.approx(np.array([[0.5]])), "all pairs differ"
    assert variances(three * 0, (3,)) == pytest.approx(np.array([[0.0]]))


def test_a_nearly_constant_code_gets_no_votes() -> None:
    def nearly_constant(known: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        codes = perfect(known, rng) * 3
        codes[:, 1] *= 0.01  # its standard deviation is 0.01 of the prior's
        return codes

    assert factor_vae(*pair(nearly_constant), np.random.default_rng(0)) == pytest.approx(0.75, abs=0.03)


class PixelFactors:
    """A factor set whose pixels are the classes."""

    names = ("kind", "a", "b", "c")
    sizes, ordered = SIZES, (False, True, True, True)

    def images(self, classes: Tensor) -> Tensor:
        return classes.byte().view(-1, 1, 1, len(SIZES))


REPRESENTATION = Representation(
    ("cat0", "uniform0", "uniform1", "uniform2"), (3, 0, 0, 0), lambda images: images[:, 0, 0].double().numpy()
)
SMALL = DisentanglementConfig(train=2000, test=1000, tree_images=1000, tree_rounds=3)


def test_measure_returns_all_scores_and_is_reproducible() -> None:
    messages: list[str] = []
    state, torch_state = np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[union-attr, index]
    found = measure(REPRESENTATION, PixelFactors(), SMALL, messages.append)
    assert np.random.get_state()[1].tolist() == state, "the global random state is unchanged"  # type: ignore[union-attr, index]
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert found == measure(REPRESENTATION, PixelFactors(), SMALL, messages.append)
    assert found != measure(REPRESENTATION, PixelFactors(), dataclasses.replace(SMALL, seed=1), messages.append)
    assert found["mig"] > 0.99 and found["factor_vae"] == 1 and found["dci_disentanglement"] > 0.99
    assert found["information"]["uniform1"]["b"] > 0.99 > 0.01 > found["information"]["uniform1"]["a"]
    assert list(found["mig_by_factor"]) == list(PixelFactors.names)
    assert any("images encoded in" in line for line in messages)


def test_bad_representations_are_refused() -> None:
    broken = dataclasses.replace(REPRESENTATION, read=lambda images: np.full((len(images), 4), np.nan))
    with pytest.raises(ValueError, match="predicts NaN or infinity for some images"):
        measure(broken, PixelFactors(), SMALL, lambda line: None)
    with pytest.raises(ValueError, match="needs two factors or more; there is 1"):
        Encoded(np.zeros((2, 1)), (0,), np.zeros((2, 1), int), (2,), (True,))
    with pytest.raises(ValueError, match="tree_rounds, which is 0, at least 1"):
        DisentanglementConfig(tree_rounds=0)


def test_codes_of_a_model_are_categories_and_means_in_units_of_the_prior(tmp_path: Path) -> None:
    latents = LatentSpec.parse("noise=2 cat=3 uniform=1@-2:2 gaussian=1@1:5 bernoulli=1")
    spec = ModelSpec(latents, 16, 3, NetworkConfig(width=4))
    model = InfoGAN(spec, *spec.build(), open_storage(tmp_path))
    torch.nn.init.normal_(model.discriminator.recognition[-1].weight)
    representation = model_representation(model)
    assert representation.names == ("cat0", "uniform0", "gaussian0", "bernoulli0")
    assert representation.categories == (3, 0, 0, 2)
    images = torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8)
    codes, encoded = representation.read(images), model.encode(images)
    np.testing.assert_array_equal(codes[:, 0], encoded["cat0"])
    np.testing.assert_allclose(codes[:, 1] * 4 / math.sqrt(12), encoded["uniform0"], rtol=1e-5)
    np.testing.assert_allclose(codes[:, 2] * 5, encoded["gaussian0"], rtol=1e-5)
    np.testing.assert_array_equal(codes[:, 3], encoded["bernoulli0"] > 0.5)
    grey = torch.randint(256, (2, 1, 64, 64), dtype=torch.uint8)
    assert representation.read(grey).shape == (2, 4), "images are converted to the model's size and channels"


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    """A model folder as ``pull`` writes it."""
    spec = ModelSpec(LatentSpec.parse("noise=4 cat=3 uniform=1"), 16, 1, NetworkConfig(width=4))
    modules = dict(zip(("generator", "discriminator"), spec.build(), strict=True))
    tensors = {f"{part}.{k}": v for part, module in modules.items() for k, v in module.state_dict().items()}
    described = json.dumps({"model": spec.to_dict(), "run": {}}).encode()
    write_with_manifest(open_storage(tmp_path / "model"), {MODEL: save(tensors), "config.json": described})
    return tmp_path / "model"


def test_the_command_prints_information_per_code_and_factor(
    untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "DisentanglementConfig", lambda: SMALL)
    file = write(tmp_path / "dsprites.npz")
    words = ["evaluate", str(untrained), "--samples", "100", "--disentanglement", str(file)]
    assert main([*words, "--json"]) == DONE
    found = json.loads(capsys.readouterr().out)
    scores = found["disentanglement"]
    assert scores["factors_of"] == str(file) and scores["tree_rounds"] == 3 and "mi_bound" in found
    assert list(scores["information"]) == ["cat0", "uniform0"]
    assert list(scores["information"]["cat0"]) == ["shape", "scale", "orientation", "x", "y"]
    for name in SCORES:
        assert 0 <= scores[name] <= 1, name
    assert main(words) == DONE
    output = capsys.readouterr()
    assert f"MIG {scores['mig']:.3f}, SAP {scores['sap']:.3f}, DCI" in output.out and "beta-VAE: 0.200)" in output.out
    assert "disentanglement: 3,000 images encoded in" in output.err


def test_the_command_refuses_a_missing_package_and_missing_factors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["evaluate", "model", "--disentanglement", "shape"]) == USAGE
    assert "disentanglement is 'shape', which does not exist; valid are shapes and" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(["evaluate", "model", "--disentanglement", "shapes"]) == FAILED
    output = capsys.readouterr().err.strip()
    assert output.endswith("--disentanglement needs sklearn; install it with: pip install 'infogan-ray[eval]'")
    assert "\n" not in output
