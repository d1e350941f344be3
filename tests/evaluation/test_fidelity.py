"""Distances, precision and recall with known results, the cached classifier, and a model through the command.

Run: pytest tests/evaluation/test_fidelity.py
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.cli.main import DONE, FAILED, USAGE, main
from infogan_ray.data.image_set import ImageSet
from infogan_ray.evaluation.fidelity import classifier
from infogan_ray.evaluation.fidelity.classifier import WEIGHTS, ClassifierConfig, Labelled, build, load_or_train, train
from infogan_ray.evaluation.fidelity.distances import BLOCK, frechet_distance, kernel_distance
from infogan_ray.evaluation.fidelity.inception import open_inception
from infogan_ray.evaluation.fidelity.manifolds import precision, recall
from infogan_ray.evaluation.measure_fidelity import FidelityConfig, generate, measure_fid, measure_fidelity, split_data
from infogan_ray.evaluation.metrics import FIDELITY, compared
from infogan_ray.models.rng import seeded_generator
from infogan_ray.training.load_model import load
from tests.conftest import tiny_images

QUICK = ClassifierConfig(width=8, features=8, steps=40, batch_size=16, learning_rate=0.01)


def normal(seed: int, rows: int, columns: int = 4) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_moments(seed: int, mean: Tensor, covariance: Tensor, rows: int = 50) -> Tensor:
    """Features with exactly this mean and covariance."""
    raw = normal(seed, rows, len(mean))
    raw -= raw.mean(0)
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(raw.T.cov())).T
    return mean + white @ torch.linalg.cholesky(covariance).T


def test_frechet_distance_equals_the_formula_for_two_gaussians() -> None:
    means = normal(0, 2)
    covariances = [raw.T @ raw / 6 for raw in (normal(1, 6), normal(2, 6) * 2)]  # they do not commute
    assert not torch.allclose(covariances[0] @ covariances[1], covariances[1] @ covariances[0])
    first, second = (of_moments(i + 3, means[i], covariances[i], 50 + i) for i in (0, 1))
    cross = sqrtm((covariances[0] @ covariances[1]).numpy()).real
    expected = float((means[0] - means[1]).square().sum() + (sum(covariances)).trace() - 2 * np.trace(cross))
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_one_feature() -> None:
    """One feature: (m1 - m2)^2 + (s1 - s2)^2, with deviations sqrt(2) and 2 sqrt(2)."""
    first, second = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [9.0]])
    assert frechet_distance(first, second) == pytest.approx(36 + 2)


@pytest.mark.parametrize("rows", [(5, 6), (5, 30), (30, 40)])
def test_frechet_distance_of_fewer_and_more_images_than_features(rows: tuple[int, int]) -> None:
    first, second = normal(0, rows[0], 12), normal(1, rows[1], 12) * 2 + 1
    covariances = [part.T.cov() for part in (first, second)]
    cross = np.sqrt(np.linalg.eigvals((covariances[0] @ covariances[1]).numpy()).astype(complex)).real.sum()
    expected = (first.mean(0) - second.mean(0)).square().sum() + sum(covariances).trace() - 2 * cross
    assert frechet_distance(first, second) == pytest.approx(float(expected), rel=1e-6)


def test_equal_sets_have_zero_distance_for_any_number_of_images() -> None:
    for features in (normal(0, 400, 16), normal(0, 10, 64), torch.ones(5, 3)):
        assert frechet_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-9)
    wide = normal(0, 300, 16)
    assert abs(kernel_distance(wide, normal(1, 300, 16))) < 0.01 < 0.1 < kernel_distance(wide, wide + 1)


def test_kernel_distance_is_the_sum_over_pairs() -> None:
    first, second = normal(0, 6, 3), normal(1, 5, 3) + 0.5

    def kernel(a: Tensor, b: Tensor) -> float:
        return (sum(float(x * y) for x, y in zip(a, b, strict=True)) / 3 + 1) ** 3

    within = [
        sum(kernel(a, b) for i, a in enumerate(part) for j, b in enumerate(part) if i != j) / n / (n - 1)
        for part, n in ((first, 6), (second, 5))
    ]
    across = sum(kernel(a, b) for a in first for b in second) / 30
    assert kernel_distance(first, second) == pytest.approx(sum(within) - 2 * across, rel=1e-12)


def test_kernel_distance_is_computed_in_blocks_and_unbiased() -> None:
    first, second = normal(0, BLOCK + 100), normal(1, BLOCK + 1)
    inner = [(x @ y.T / 4 + 1) ** 3 for x, y in ((first, first), (second, second), (first, second))]
    within = [(k.sum() - k.trace()) / len(k) / (len(k) - 1) for k in inner[:2]]
    assert kernel_distance(first, second) == pytest.approx(float(sum(within) - 2 * inner[2].mean()), abs=1e-12)
    many = [kernel_distance(normal(2 * i, 10), normal(2 * i + 1, 10)) for i in range(600)]
    assert abs(np.mean(many)) < 3 * np.std(many) / 600**0.5, "the mean is 0 also for ten images"


def clouds(seed: int, modes: list[int], each: int = 200) -> Tensor:
    """Features around one centre per mode. The centres are far apart."""
    noise = normal(seed, each * len(modes), 3)
    noise[:, 0] += 100.0 * torch.tensor(modes).repeat_interleave(each)
    return noise


def test_dropped_modes_lower_recall_and_strange_images_lower_precision() -> None:
    real = clouds(0, [0, 1, 2, 3])
    assert precision(real, real.flip(0)) == recall(real, real.flip(0)) == 1
    alike = clouds(1, [0, 1, 2, 3])
    assert min(precision(real, alike), recall(real, alike)) > 0.85
    half = clouds(1, [0, 1], 400)
    assert precision(real, half) > 0.85 and 0.4 < recall(real, half) <= 0.5, "half of the real images are not covered"
    strange = clouds(1, [0, 1, 2, 3, 7, 8, 9, 10])
    assert 0.4 < precision(real, strange) <= 0.5 and recall(real, strange) > 0.85, (
        "half of the images are not like any real image"
    )
    single = real[:1].expand(100, -1)
    assert precision(real, single) == 1 and recall(real, single) <= 1 / len(real)


def test_precision_and_recall_in_blocks_equal_their_definition() -> None:
    real, generated = normal(0, BLOCK + 50, 8), normal(1, BLOCK + 1, 8) * 1.2
    for k in (1, 3):
        reach = [torch.cdist(part, part).sort(1).values[:, k] for part in (real, generated)]
        apart = torch.cdist(generated, real)
        expected = (apart <= reach[0]).any(1).double().mean(), (reach[1] >= apart.T).any(1).double().mean()
        shares = precision(real, generated, k), recall(real, generated, k)
        assert shares == pytest.approx([float(share) for share in expected])
        assert min(expected) > 0.1 and max(expected) < 0.98, "the expected values are neither 0 nor 1"


def test_bad_features_are_refused() -> None:
    good = normal(0, 10)
    for distance in (frechet_distance, kernel_distance, precision, recall):
        with pytest.raises(ValueError, match="two images or more"):
            distance(good[:1], good)
        with pytest.raises(ValueError, match="NaN or infinite"):
            distance(good, good * torch.inf)
    with pytest.raises(ValueError, match="need more than 3 images of each kind; there are 10 real and 3 generated"):
        precision(good, good[:3])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFOGAN_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def bars(count: int = 400) -> ImageSet:
    images, labels = (torch.from_numpy(part) for part in tiny_images(count))
    images = images.unsqueeze(1)
    cut = count * 3 // 4
    return ImageSet("bars", images[:cut], labels[:cut], images[cut:], labels[cut:])


def test_a_classifier_is_trained_once_per_dataset(cache: Path) -> None:
    messages: list[str] = []
    data, rest = split_data(bars(), 0)
    before = torch.get_rng_state()
    first = load_or_train(data, QUICK, messages.append)
    assert torch.equal(torch.get_rng_state(), before), "the global random state is unchanged"
    assert first.accuracy > 0.98 and first.chance == pytest.approx(1 / 3, abs=0.02) and not first.is_poor
    assert "training a classifier of 3 classes on 150 images" in messages[0]
    assert messages[-1].endswith(f"right on {first.accuracy:.1%} of held-out images")
    (folder,) = (cache / "classifiers").iterdir()
    assert {file.suffix for file in folder.iterdir()} == {".safetensors", ".json"}
    assert json.loads((folder / "classifier.json").read_text())["accuracy"] == first.accuracy

    messages.clear()
    again = load_or_train(data, QUICK, messages.append)
    assert not messages, "it was cached"
    assert (again.fingerprint, again.accuracy) == (first.fingerprint, first.accuracy)
    assert torch.equal(again.features(rest), first.features(rest))

    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1] + b"x")
    third = load_or_train(data, QUICK, messages.append)
    assert messages and third.fingerprint == first.fingerprint, (
        "a damaged classifier is trained again with the same result"
    )


@pytest.mark.parametrize("change", ["pixel", "label", "held-out label", "config", "size"])
def test_changed_data_or_config_gets_a_new_classifier(change: str, cache: Path) -> None:
    config = dataclasses.replace(QUICK, steps=4)
    data, output = split_data(bars(60), 0)[0], []
    load_or_train(data, config, output.append)
    parts = {field.name: getattr(data, field.name).clone() for field in dataclasses.fields(data)}
    if change == "pixel":
        parts["images"][3, 0, 5, 5] += 1
    elif change == "label":
        parts["labels"][3] = (parts["labels"][3] + 1) % 3
    elif change == "held-out label":
        parts["test_labels"][3] = (parts["test_labels"][3] + 1) % 3
    elif change == "config":
        config = dataclasses.replace(config, seed=1)
    else:
        parts |= {name: parts[name].repeat(1, 1, 2, 2) for name in ("images", "test_images")}
    before = len(output)
    load_or_train(Labelled(**parts), config, output.append)
    assert len(output) > before and len(list((cache / "classifiers").iterdir())) == 2


def test_features_of_training_images_have_mean_zero_and_variance_one(cache: Path) -> None:
    data = split_data(bars(), 0)[0]
    features = load_or_train(data, QUICK, lambda line: None).features(data.images)
    assert features.mean(0).abs().max() < 1e-4
    assert float(features.var(0).mean()) == pytest.approx(1, abs=1e-4)


def test_an_unwritable_cache_gives_a_message_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INFOGAN_DATA", str(tmp_path / "file"))
    messages: list[str] = []
    assert load_or_train(split_data(bars(), 0)[0], QUICK, messages.append).accuracy > 0.98
    assert "the classifier is not cached: cannot write to" in messages[-1]


@pytest.mark.parametrize(("size", "channels"), [(16, 3), (28, 1), (64, 1), (128, 3)])
def test_a_classifier_accepts_images_of_any_size(size: int, channels: int) -> None:
    images = torch.randint(256, (6, channels, size, size), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 4, 0, 1, 4])
    data = Labelled(images, labels, images, labels)
    network = build(data, dataclasses.replace(QUICK, steps=1, batch_size=2))
    train(network, data, dataclasses.replace(QUICK, steps=1, batch_size=2), lambda line: None)
    assert network(images.float()).shape == (6, 5) and data.classes == 5


def test_faults_of_generated_images_are_detected(cache: Path) -> None:
    """Real images take the place of generated images, first unchanged, then with one fault each."""
    data, rest = split_data(bars(1600), 0)
    classifier = load_or_train(data, QUICK, lambda line: None)
    real, other, generated = rest[:200], rest[200:400], rest[400:600]

    def seen(images: Tensor) -> dict[str, float]:
        return compared(FIDELITY, *(classifier.features(part) for part in (real, images, other)))

    good = seen(generated)
    assert good["frechet_distance"] < 2 * good["frechet_distance_data"] + 0.1
    assert abs(good["kernel_distance"]) < 0.1
    one_kind = generated[generated[:, 0, 3].float().mean(1) > 100]  # images with the bar at the top
    noise = torch.randint(256, generated.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for name, fault in (("one kind", one_kind), ("noise", noise), ("dark", generated // 4)):
        found = seen(fault)
        assert found["frechet_distance"] > 5 * good["frechet_distance"], name
        assert found["kernel_distance"] > 0.1, name
    assert seen(one_kind)["recall"] < 0.5 < good["recall"] and seen(one_kind)["precision"] > 0.5
    assert good["feature_spread"] == pytest.approx(1, abs=0.1) and seen(one_kind)["feature_spread"] < 0.9
    assert seen(generated[:1].expand_as(generated))["feature_spread"] == 0
    assert seen(noise)["precision"] < 0.2 < 0.5 < good["precision"]


def test_meaningless_labels_are_reported(cache: Path, finished: Path) -> None:
    data = bars()
    assert data.labels is not None and data.test_labels is not None
    mixed = dataclasses.replace(
        data, labels=torch.arange(len(data.labels)) // 3 % 3, test_labels=torch.arange(len(data.test_labels)) // 3 % 3
    )
    messages: list[str] = []
    found = measure_fidelity(load(finished), mixed, FidelityConfig(samples=10), QUICK, messages.append)
    assert found["images"] == 10 and found["classifier_accuracy"] < 0.66
    assert any("of held-out images (guessing: 3" in line for line in messages), messages
    with pytest.raises(ValueError, match="two classes or more to learn features from, and the data has one"):
        alone = dataclasses.replace(data, labels=data.labels * 0, test_labels=data.test_labels * 0)
        measure_fidelity(load(finished), alone, FidelityConfig(), QUICK, messages.append)
    few = dataclasses.replace(data, images=data.images[:15], labels=data.labels[:15])
    with pytest.raises(ValueError, match="16 labelled training images or more, best 40,000; bars has 15"):
        measure_fidelity(load(finished), few, FidelityConfig(), QUICK, messages.append)
    with pytest.raises(ValueError, match="quality_samples is 3; it must be at least 4"):
        FidelityConfig(samples=3)


def test_fidelity_is_reproducible(cache: Path, finished: Path) -> None:
    model, data = load(finished), bars()
    found = measure_fidelity(model, data, FidelityConfig(), QUICK, lambda line: None)
    assert found == measure_fidelity(model, data, FidelityConfig(), QUICK, lambda line: None)
    assert found["images"] == 75, "the classifier was trained on half of the 300 training images"
    assert found["frechet_distance"] > 3 * found["frechet_distance_data"], "the model was trained for only six steps"
    labelled, rest = split_data(data, 0)
    assert len(rest) == len(labelled.images) == 150
    assert not {part.numpy().tobytes() for part in rest} & {part.numpy().tobytes() for part in labelled.images}
    assert len({part.numpy().tobytes() for part in generate(model, 75, 0)}) > 60


def test_the_command_measures_quality(
    cache: Path, finished: Path, npz: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "ClassifierConfig", lambda: QUICK)
    words = ["evaluate", str(finished), "--samples", "50", "--data", str(npz), "--quality", "--quality-samples", "16"]
    assert main([*words, "--json"]) == DONE
    found = json.loads(capsys.readouterr().out)
    scores = found["quality"]
    assert "swd" in found and "mi_bound" in found
    assert set(scores) == {
        "frechet_distance", "kernel_distance", "precision", "recall", "frechet_distance_data", "kernel_distance_data",
        "precision_data", "recall_data", "feature_spread", "feature_spread_data", "images", "features", "classifier",
        "classifier_accuracy", "classifier_chance",
    }  # fmt: skip
    assert scores["images"] == 16
    assert main(words) == DONE
    output = capsys.readouterr()
    assert f"Fréchet distance {scores['frechet_distance']:.3f} (two halves" in output.out
    assert "on the features of a classifier of these labels" in output.out and "FID" not in output.out
    assert "training" not in output.err, "the classifier was cached"


def test_data_without_labels_and_a_model_without_data_are_refused_in_one_line(
    cache: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain.npz"
    np.savez(plain, images=tiny_images()[0])
    words = ["evaluate", str(finished), "--samples", "50"]
    assert main([*words, "--data", str(plain), "--quality"]) == USAGE
    output = capsys.readouterr().err
    assert (
        output.count("\n") == 1
        and "labels to learn features from, and a test part with labels; plain has no labels;" in output
    )
    for images, has in (
        (dataclasses.replace(bars(), test_images=None, test_labels=None), "labels, but no test part"),
        (dataclasses.replace(bars(), test_labels=None), "labels, but none in its test part"),
    ):
        with pytest.raises(UserError, match=f"; bars has {has}; name other data by --data"):
            split_data(images, 0)
    assert main([*words, "--data", str(plain)]) == DONE, "nothing else needs labels"
    capsys.readouterr()
    assert main(["evaluate", str(finished / "model"), "--samples", "50", "--quality"]) == USAGE
    output = capsys.readouterr().err
    assert output.endswith("model is unknown; give it with --data\n")
    assert output.count("\n") == 1


def random_inception(path: Path) -> Path:
    """Random weights with the right shapes, because the trained weights need a download.

    They test the arithmetic and the calls into the library. A value computed with them is no FID.
    """
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class Untrained(inception.FeatureExtractorInceptionV3):  # type: ignore[name-defined, misc]
        def load_state_dict(self, *_: object) -> None:
            """Keep the random weights of the modules."""

    buffer = io.BytesIO()
    torch.save({}, buffer)
    buffer.seek(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Untrained("inception", ["2048"], feature_extractor_weights_path=buffer)
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
    save_file(network.state_dict(), path)
    return path


def test_fid_and_kid_with_random_weights_equal_torch_fidelity(tmp_path: Path, finished: Path) -> None:
    path = random_inception(tmp_path / "inception.safetensors")
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kernel_mmd

    inception, model, images = open_inception(path), load(finished), bars().images[:9]
    found = measure_fid(model, images, inception, FidelityConfig(samples=4), lambda line: None)
    assert found["images"] == 4
    assert found["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    order = torch.randperm(9, generator=seeded_generator(0, "fid"))
    real, generated = (inception.features(part) for part in (images[order[:4]], generate(model, 4, 0)))
    assert real.shape == (4, 2048) and float(real.std()) > 0
    assert found["fid"] == pytest.approx(frechet_distance(real, generated), rel=1e-9)
    # torch-fidelity computes the eigenvalues of all features, which takes long.
    few = [part[:, :100].double() for part in (real, generated)]
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(part) for part in few), False)
    assert frechet_distance(*few) == pytest.approx(theirs[KEY_METRIC_FID], rel=1e-4)
    assert found["kid"] == pytest.approx(float(kernel_mmd(real.double().numpy(), generated.double().numpy())), rel=1e-6)
    assert found["fid"] > 0 and found["fid_data"] > 0


def test_missing_or_wrong_weights_are_refused_with_their_source(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled, strange = tmp_path / "weights.pth", tmp_path / "strange.safetensors"
    torch.save({"a": torch.ones(2)}, pickled)
    save_file({"fc.weight": torch.ones(1000, 2048)}, strange)
    cases = [(tmp_path / "none", "which is not a file"), (pickled, "which is not a .safetensors file")]
    if importlib.util.find_spec("torch_fidelity"):
        cases.append((strange, "whose tensors do not fit this network"))
    for path, reason in cases:
        assert main(["evaluate", str(finished), "--fid", str(path)]) == USAGE
        output = capsys.readouterr().err
        assert reason in output and "weights-inception-2015-12-05-6726825d.pth" in output and output.count("\n") == 1
        assert "https://github.com/toshas/torch-fidelity/releases" in output and "save_file" in output


def test_a_missing_package_names_the_extra(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "any.safetensors")
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert main(["evaluate", str(finished), "--fid", str(tmp_path / "any.safetensors")]) == FAILED
    output = capsys.readouterr().err.strip()
    assert "--fid needs torch_fidelity" in output and output.endswith("pip install 'infogan-ray[fid]'")
