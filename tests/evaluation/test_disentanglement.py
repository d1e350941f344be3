"""Scores of codes whose score is known beforehand, and of a model through the command.

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
from infogan_ray.evaluation.disentanglement.encoded import Encoded, Representation, of_model
from infogan_ray.evaluation.disentanglement.information import gaps, in_bins, mig, shares
from infogan_ray.evaluation.disentanglement.prediction import dci, disentanglement, explained, sap
from infogan_ray.evaluation.disentanglement.vae_scores import beta_vae, factor_vae, spreads
from infogan_ray.evaluation.measure_disentanglement import DisentanglementConfig, measure
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import ModelSpec, NetworkConfig
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
    """Codes to learn from and to be judged on; ``make`` has (classes, rng)."""
    return tuple(  # type: ignore[return-value]
        encoded(make(classes(part), np.random.default_rng([8, part])), classes(part), categories)  # type: ignore[operator]
        for part in (0, 1)
    )


def scores(learn: Encoded, judge: Encoded) -> dict[str, float]:
    return {
        "mig": mig(learn),
        "sap": sap(learn, judge),
        "factor_vae": factor_vae(learn, judge, np.random.default_rng(0)),
        "beta_vae": beta_vae(learn, judge, np.random.default_rng(1)),
        **dci(learn, judge, rounds=4),
    }


def perfect(known: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return known / (np.array(SIZES) - 1)


# The shape (3 kinds): told without error from its code, and by chance, 1/3, from any other.
MOST_SAP = (1 - 1 / 3 + 3) / 4


def test_codes_that_are_the_factors_have_the_most() -> None:
    learn, judge = pair(lambda known, rng: known, (3, 0, 0, 0))  # the shape as a category, as an InfoGAN would
    found = scores(learn, judge)
    assert found["mig"] == pytest.approx(1, abs=0.01)
    assert found["sap"] == pytest.approx(MOST_SAP, abs=0.02)
    assert found["factor_vae"] == found["beta_vae"] == found["dci_informativeness"] == 1
    assert found["dci_disentanglement"] == pytest.approx(1, abs=0.01)
    assert found["dci_completeness"] == pytest.approx(1, abs=0.01)


def test_order_units_and_numbers_of_categories_do_not_matter() -> None:
    noisy = lambda known, rng: known + rng.normal(0, 0.5, known.shape) * [0, 1, 1, 1]  # noqa: E731
    plain = scores(*pair(noisy, (3, 0, 0, 0)))

    def changed(known: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        codes = noisy(known, rng)
        codes[:, 0] = np.array([2, 0, 1])[codes[:, 0].astype(int)]
        return (codes * [1, -100, 3, 0.5] + [0, 7, 0, -1])[:, [3, 1, 0, 2]]

    for name, value in scores(*pair(changed, (0, 0, 3, 0))).items():
        assert value == pytest.approx(plain[name], abs=0.02), name
    assert plain["mig"] < 0.9, "and there was something to lose"


def test_units_do_not_matter_where_a_kind_is_told_from_a_continuous_code() -> None:
    """A classifier whose weights are bounded could not use a code of small numbers."""
    found = [sap(*pair(lambda known, rng, unit=unit: known * unit)) for unit in (1.0, 0.001)]
    assert found[0] == pytest.approx(found[1]) and found[0] > 0.75


def test_numbers_of_categories_are_no_distances() -> None:
    def unsure(known: np.ndarray, rng: np.random.Generator, names: tuple[int, ...]) -> np.ndarray:
        said = np.where(rng.random(len(known)) < 0.5, known[:, 3], rng.integers(6, size=len(known)))
        return np.stack([np.array(names)[said], known[:, 1] + rng.normal(0, 2, len(known))], 1)

    found = [
        beta_vae(*pair(lambda known, rng, names=names: unsure(known, rng, names), (6, 0)), np.random.default_rng(0))
        for names in ((0, 1, 2, 3, 4, 5), (5, 0, 3, 1, 4, 2))
    ]
    assert found[0] == found[1] < 0.9


def test_codes_that_say_nothing_have_nothing_or_chance() -> None:
    found = scores(*pair(lambda known, rng: rng.normal(size=known.shape)))
    assert found["mig"] < 0.01 and found["sap"] < 0.03
    assert found["factor_vae"] == pytest.approx(CHANCE, abs=0.05)
    assert found["beta_vae"] == pytest.approx(CHANCE, abs=0.05)
    assert found["dci_disentanglement"] < 0.2
    assert found["dci_informativeness"] == pytest.approx(np.mean([1 / size for size in SIZES]), abs=0.05)
    constant = scores(*pair(lambda known, rng: np.ones(known.shape)))
    assert constant["mig"] == constant["sap"] == constant["factor_vae"] == constant["dci_disentanglement"] == 0
    assert constant["beta_vae"] == pytest.approx(CHANCE, abs=0.03)


def test_a_second_code_of_the_same_factor_closes_the_gap_and_leaves_codes_pure() -> None:
    found = scores(*pair(lambda known, rng: np.hstack([perfect(known, rng)] * 2)))
    assert found["mig"] == found["sap"] == 0
    assert found["dci_disentanglement"] == pytest.approx(1, abs=0.01), "each code is of one factor alone"
    assert found["factor_vae"] == 1, "the same"
    nearly = pair(lambda known, rng: np.hstack([known + rng.normal(0, 1e-9, known.shape) for _ in range(2)]))
    assert 0.5 < dci(*nearly, rounds=4)["dci_completeness"] < 0.9, "and each factor is spread over two codes"


def test_a_code_that_mixes_two_factors_is_not_pure() -> None:
    def mixed(known: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.stack([known[:, 0], known[:, 1], known[:, 2] * SIZES[3] + known[:, 3]], 1)

    learn, judge = pair(mixed)
    found, clean = scores(learn, judge), scores(*pair(perfect))
    assert found["dci_informativeness"] > 0.75 and clean["dci_informativeness"] == 1
    assert found["dci_disentanglement"] < clean["dci_disentanglement"] - 0.2
    assert found["factor_vae"] < 0.9 and clean["factor_vae"] == 1
    table = shares(encoded(mixed(classes(0), np.random.default_rng(0)), classes(0), (3, 4, 30)))
    assert table[2] == pytest.approx([0, 0, 1, 1], abs=0.01), "as 30 categories it tells both in full"


def test_mutual_information_of_a_case_by_hand() -> None:
    """Factor a in {0, 1}; code 0 is a; code 1 is right of three in four."""
    known = np.array([[0, 0], [0, 1], [0, 0], [0, 1], [1, 0], [1, 1], [1, 0], [1, 1]])
    codes = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [1, 1], [1, 1], [1, 1], [1, 0]])
    table = shares(Encoded(codes.astype(float), (2, 0), known, (2, 2), (True, True)))
    quarter = 1 + 0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)
    assert table[:, 0] == pytest.approx([1, quarter])
    assert table[:, 1] == pytest.approx([0, 0], abs=1e-12)
    assert gaps(table) == pytest.approx([1 - quarter, 0], abs=1e-12)
    assert gaps(np.array([[0.3, 0.4]])) == pytest.approx([0.3, 0.4]), "of one code there is no second"


def test_bins_are_those_of_disentanglement_lib() -> None:
    """Its digitize over the left edges of np.histogram(values, 20), counted from 0 here and from 1 there."""
    values = np.random.default_rng(0).normal(size=500)
    left = np.histogram(values, 20)[1][:-1]
    np.testing.assert_array_equal(in_bins(values), np.digitize(values, left) - 1)
    assert in_bins(np.full(5, 3.0)).tolist() == [0] * 5


def test_twenty_bins_cannot_hold_thirty_two_values() -> None:
    known = np.stack([np.repeat(np.arange(32), 4), np.tile(np.arange(4), 32)], 1)
    table = shares(Encoded(known.astype(float), (0, 0), known, (32, 4), (True, True)))
    twos, ones = 12, 8  # 31/20 of a value in each bin: twelve bins with two and eight with one
    entropy = twos / 16 * math.log(16) + ones / 32 * math.log(32)
    assert table[0, 0] == pytest.approx(entropy / math.log(32))
    assert f"{table[0, 0]:.2f}" == "0.85", "as the module says"
    assert table[1, 1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("importance", "rows", "columns"),
    [
        ([[1.0, 0], [0, 1]], 1.0, 1.0),
        ([[0.5, 0.5], [0.5, 0.5]], 0.0, 0.0),
        ([[1.0, 1.0], [0, 0]], 0.0, 1.0),  # one code for both factors: complete, not pure; the other weighs nothing
        ([[0.5, 0], [0.5, 0], [0, 1]], 1.0, (1 - math.log(2) / math.log(3) + 1) / 2),
        ([[3.0, 1], [0, 4]], (4 * (1 - 0.8112781244591328) + 4) / 8, None),
        ([[0.0, 0], [0, 0]], 0.0, 0.0),
        ([[2.0, 1.0]], None, 1.0),
    ],
)
def test_disentanglement_and_completeness_by_hand(
    importance: list[list[float]], rows: float | None, columns: float | None
) -> None:
    table = np.array(importance)
    if rows is not None:
        assert disentanglement(table) == pytest.approx(rows)
    if columns is not None:
        assert disentanglement(table.T) == pytest.approx(columns)


def test_explained_is_the_squared_correlation_and_the_share_between_categories() -> None:
    known = classes(3)
    rng = np.random.default_rng(0)
    codes = np.stack([known[:, 2] + rng.normal(size=len(known)), known[:, 2] // 2], 1)
    both = encoded(codes, known, (0, 3))
    values = known[:, 2].astype(float)
    assert explained(both, 0, values) == pytest.approx(np.corrcoef(codes[:, 0], values)[0, 1] ** 2)
    onehot = both.columns(1)
    fit = onehot @ np.linalg.lstsq(onehot, values, rcond=None)[0]
    assert explained(both, 1, values) == pytest.approx(1 - (values - fit).var() / values.var())


def test_spread_of_a_category_is_its_variance_where_it_is_a_coin() -> None:
    coins = np.random.default_rng(0).integers(2, size=(5, 64, 1)).astype(float)
    assert spreads(coins, (2,)) == pytest.approx(coins.var(1, ddof=1))
    three = np.array([[[0.0], [1], [2]]])
    assert spreads(three, (3,)) == pytest.approx(np.array([[0.5]])), "all pairs differ"
    assert spreads(three * 0, (3,)) == pytest.approx(np.array([[0.0]]))


def test_votes_of_a_code_that_hardly_moves_do_not_count() -> None:
    def asleep(known: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        codes = perfect(known, rng) * 3
        codes[:, 1] *= 0.01  # its deviation is 0.01 of the prior's
        return codes

    assert factor_vae(*pair(asleep), np.random.default_rng(0)) == pytest.approx(0.75, abs=0.03)


class Written:
    """A factor set whose images have the classes for pixels."""

    names = ("kind", "a", "b", "c")
    sizes, ordered = SIZES, (False, True, True, True)

    def images(self, classes: Tensor) -> Tensor:
        return classes.byte().view(-1, 1, 1, len(SIZES))


READ = Representation(
    ("cat0", "uniform0", "uniform1", "uniform2"), (3, 0, 0, 0), lambda images: images[:, 0, 0].double().numpy()
)
SMALL = DisentanglementConfig(learn=2000, judge=1000, tree_images=1000, tree_rounds=3)


def test_everything_is_measured_and_the_same_again() -> None:
    said: list[str] = []
    state, torch_state = np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[union-attr, index]
    found = measure(READ, Written(), SMALL, said.append)
    assert np.random.get_state()[1].tolist() == state, "no global generator is touched"  # type: ignore[union-attr, index]
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert found == measure(READ, Written(), SMALL, said.append)
    assert found != measure(READ, Written(), dataclasses.replace(SMALL, seed=1), said.append)
    assert found["mig"] > 0.99 and found["factor_vae"] == 1 and found["dci_disentanglement"] > 0.99
    assert found["information"]["uniform1"]["b"] > 0.99 > 0.01 > found["information"]["uniform1"]["a"]
    assert list(found["mig_by_factor"]) == list(Written.names)
    assert any("images read in" in line for line in said)


def test_what_cannot_be_measured_is_refused() -> None:
    broken = dataclasses.replace(READ, read=lambda images: np.full((len(images), 4), np.nan))
    with pytest.raises(ValueError, match="says NaN or infinity of some images"):
        measure(broken, Written(), SMALL, lambda line: None)
    with pytest.raises(ValueError, match="needs two factors or more; there is 1"):
        Encoded(np.zeros((2, 1)), (0,), np.zeros((2, 1), int), (2,), (True,))
    with pytest.raises(ValueError, match="tree_rounds, which is 0, at least 1"):
        DisentanglementConfig(tree_rounds=0)


def test_codes_of_a_model_are_categories_and_means_in_units_of_the_prior(tmp_path: Path) -> None:
    latents = LatentSpec.parse("noise=2 cat=3 uniform=1@-2:2 gaussian=1@1:5 bernoulli=1")
    spec = ModelSpec(latents, 16, 3, NetworkConfig(width=4))
    model = InfoGAN(spec, *spec.build(), open_storage(tmp_path))
    torch.nn.init.normal_(model.discriminator.recognition[-1].weight)
    representation = of_model(model)
    assert representation.names == ("cat0", "uniform0", "gaussian0", "bernoulli0")
    assert representation.categories == (3, 0, 0, 2)
    images = torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8)
    codes, said = representation.read(images), model.encode(images)
    np.testing.assert_array_equal(codes[:, 0], said["cat0"])
    np.testing.assert_allclose(codes[:, 1] * 4 / math.sqrt(12), said["uniform0"], rtol=1e-5)
    np.testing.assert_allclose(codes[:, 2] * 5, said["gaussian0"], rtol=1e-5)
    np.testing.assert_array_equal(codes[:, 3], said["bernoulli0"] > 0.5)
    grey = torch.randint(256, (2, 1, 64, 64), dtype=torch.uint8)
    assert representation.read(grey).shape == (2, 4), "images of another size and channels are brought to the model's"


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    """A model folder as ``pull`` leaves one."""
    spec = ModelSpec(LatentSpec.parse("noise=4 cat=3 uniform=1"), 16, 1, NetworkConfig(width=4))
    modules = dict(zip(("generator", "discriminator"), spec.build(), strict=True))
    tensors = {f"{part}.{k}": v for part, module in modules.items() for k, v in module.state_dict().items()}
    described = json.dumps({"model": spec.to_dict(), "run": {}}).encode()
    write_with_manifest(open_storage(tmp_path / "model"), {MODEL: save(tensors), "config.json": described})
    return tmp_path / "model"


def test_the_command_says_which_code_tells_what(
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
    said = capsys.readouterr()
    assert f"MIG {scores['mig']:.3f}, SAP {scores['sap']:.3f}, DCI" in said.out and "chance is 0.200" in said.out
    assert "disentanglement: 3,000 images read in" in said.err


def test_the_command_without_the_package_and_without_factors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["evaluate", "model", "--disentanglement", "shape"]) == USAGE
    assert "disentanglement is 'shape', which does not exist; valid are shapes and" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(["evaluate", "model", "--disentanglement", "shapes"]) == FAILED
    said = capsys.readouterr().err.strip()
    assert said.endswith("--disentanglement needs sklearn; install it with: pip install 'infogan-ray[eval]'")
    assert "\n" not in said
