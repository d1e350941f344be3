"""Learned priors: learned values, their effects on bound and model, and their default of off.

Run: pytest tests/training/test_learned_prior.py
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from benchmarks import imbalance
from infogan_ray import Recipe
from infogan_ray.cli.main import main
from infogan_ray.cli.train import train_config
from infogan_ray.data.feeds.memory import InMemoryFeed
from infogan_ray.data.image_set import ImageSet
from infogan_ray.distributed.train import trainer
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.losses import information_bound
from infogan_ray.models.priors.base import Sigma
from infogan_ray.models.priors.categorical import Categorical
from infogan_ray.storage import checkpoints
from infogan_ray.training.config import RunConfig
from infogan_ray.training.ddp import distributed
from infogan_ray.training.learned_prior import (
    GRAIN,
    LearnedPrior,
    PriorConfig,
    round_probabilities,
    with_floor,
    with_measured_prior,
)
from infogan_ray.training.load_model import load
from infogan_ray.training.loop import train
from infogan_ray.training.run_outcome import RunResult
from infogan_ray.training.tracking.curves import curves
from infogan_ray.training.train_state import TrainState
from infogan_ray.web.reports.run import run_report
from tests.conftest import make_image_set, tiny_config, tiny_images
from tests.training.steps import step_on
from tests.training.test_step import run_alone

EARLY: dict[str, Any] = {"learn": True, "start": 0, "every": 2, "rate": 0.2, "lr": 0.1}
REAL, GUMBEL = PriorConfig(**EARLY), PriorConfig(**EARLY, method="gumbel")
BOTH = pytest.mark.parametrize("prior", [REAL, GUMBEL], ids=["real", "gumbel"])


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """For a tiny model, two threads wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def state_with(prior: PriorConfig | None, seed: int = 0) -> TrainState:
    return TrainState(tiny_config(prior=prior or PriorConfig(), seed=seed), 16, 1)


def probs(spec: LatentSpec, name: str = "cat0") -> tuple[float, ...]:
    code = spec[name]
    assert code.parameters, "the probabilities are in the text form"
    return code.parameters


def step_once(state: TrainState) -> dict[str, torch.Tensor]:
    return step_on(state, make_image_set().images[:16], state.latents(16))


def test_probabilities_keep_the_floor_and_their_sum() -> None:
    assert with_floor([0.5, 0.3, 0.2], 0.1) == pytest.approx([0.5, 0.3, 0.2]), "no value is below the floor"
    low = with_floor([1.0, 0.0, 0.0], 0.3)
    assert low == pytest.approx([0.8, 0.1, 0.1]) and sum(low) == pytest.approx(1)


@pytest.mark.parametrize("k", [2, 3, 7, 10, 1000])
def test_the_text_form_of_a_prior_keeps_all_digits(k: int) -> None:
    """Checkpoints and models store it as text. A resumed run must sample the same categories."""
    p = round_probabilities(np.random.default_rng(k).dirichlet(np.full(k, 0.1)).tolist())
    assert round(sum(p) * GRAIN) == GRAIN and min(p) >= 1 / GRAIN
    spec = LatentSpec(2, (Categorical(k, p),))
    assert LatentSpec.parse(str(spec)) == spec
    assert round_probabilities(torch.tensor(p).tolist()) == p, "float32 keeps all digits"


def test_the_average_is_the_mean_of_q_on_real_images() -> None:
    spec = LatentSpec.parse("noise=2 cat=2 uniform=1")
    prior = LearnedPrior(dataclasses.replace(REAL, rate=0.5), spec)
    q = torch.tensor([[math.log(9), 0, 5, 5], [math.log(4), 0, 5, 5]])
    prior.update_average(spec, q, 1.0, step=0)
    assert probs(prior.updated_spec(prior.initial_spec(spec), 2)) == pytest.approx(
        ((0.5 + 0.85) / 2, (0.5 + 0.15) / 2), abs=1e-6
    )


def test_gumbel_samples_follow_the_prior_and_have_its_gradient() -> None:
    """One-hot rows in the prior's proportions; a loss on one category lowers its probability."""
    spec = LatentSpec.parse("noise=2 cat=3@0.7:0.2:0.1 uniform=1")
    prior = LearnedPrior(dataclasses.replace(GUMBEL, every=1), spec)
    generator = torch.Generator().manual_seed(0)
    sampled = spec.sample(20_000, generator)
    latents = prior.gumbel_softmax(spec, sampled, generator, step=0)
    noise, codes = spec.split(latents)
    assert torch.equal(noise, spec.split(sampled)[0]) and torch.equal(
        codes["uniform0"], spec.split(sampled)[1]["uniform0"]
    )
    category = codes["cat0"].detach()
    assert torch.allclose(category.max(1).values, torch.ones(20_000)) and torch.allclose(category.sum(1), torch.ones(1))
    assert category.mean(0).tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.015)
    codes["cat0"][:, 0].mean().backward()
    found = probs(prior.updated_spec(prior.initial_spec(spec), 1))
    assert found[0] < 0.7 and found[1] > 0.2 and found[2] > 0.1


@BOTH
def test_off_is_bit_equal_and_a_learned_prior_starts_at_the_given_one(prior: PriorConfig) -> None:
    off, plain = state_with(dataclasses.replace(prior, learn=False)), state_with(None)
    for state in (off, plain):
        metrics = [step_once(state) for _ in range(3)][-1]
        assert not [name for name in metrics if name.startswith("prior")]
    for name, tensor in plain.training_tensors().items():
        assert torch.equal(tensor, off.training_tensors()[name]), name
    assert off.training_tensors().keys() == plain.training_tensors().keys()
    assert off.spec == plain.spec == tiny_config().model_spec(16, 1)
    learned = state_with(dataclasses.replace(prior, start=100))
    for _ in range(3):
        step_once(learned)
    assert probs(learned.spec.latents) == pytest.approx([1 / 3] * 3, abs=1e-6)


@BOTH
def test_bound_and_metrics_use_the_learned_prior(prior: PriorConfig) -> None:
    state = state_with(prior)
    for _ in range(2):
        step_once(state)
    spec = state.spec.latents
    p = probs(spec)
    assert p != pytest.approx([1 / 3] * 3, abs=1e-4), "the prior has changed"
    entropy = -sum(probability * math.log(probability) for probability in p)
    assert spec["cat0"].probabilities == pytest.approx(p)
    latents, q = state.latents(16).detach(), torch.randn(16, spec.q_dim, generator=torch.Generator().manual_seed(0))
    likelihood = float(spec.log_likelihood(q, latents)["cat0"].mean())
    assert float(information_bound(spec, latents, q)["cat0"]) == pytest.approx(entropy + likelihood, rel=1e-5)
    metrics = {name: float(value) for name, value in step_once(state).items()}
    assert metrics["prior/cat0/entropy"] == pytest.approx(entropy, rel=1e-4)
    assert [metrics[f"prior/cat0/{category}"] for category in range(3)] == pytest.approx(p, abs=1e-6)
    assert curves(metrics)["prior/cat0/entropy"] == metrics["prior/cat0/entropy"]


def test_non_finite_probabilities_do_not_change_the_prior() -> None:
    state = state_with(REAL)
    state.prior.average["cat0"].fill_(math.nan)
    assert state.prior.updated_spec(state.spec.latents, 2) is state.spec.latents


@BOTH
def test_a_resumed_run_equals_an_uninterrupted_one(prior: PriorConfig, image_set: ImageSet, tmp_path: Path) -> None:
    """The run is interrupted at step 3, between two changes of the prior."""
    whole, _ = run_alone(tiny_config(prior=prior), image_set, tmp_path / "whole")
    half, _ = run_alone(tiny_config(prior=prior, steps=3), image_set, tmp_path / "half")
    run_alone(tiny_config(prior=prior, steps=6), image_set, tmp_path / "half")
    wanted = checkpoints.open_checkpoint(whole.checkpoints / "step_00000006")
    found = checkpoints.open_checkpoint(half.checkpoints / "step_00000006")
    assert wanted.state["model"] == found.state["model"]
    assert "@" in wanted.state["model"]["codes"]
    for mine, theirs in (
        (wanted.model_tensors(), found.model_tensors()),
        (wanted.training_tensors(), found.training_tensors()),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert any(name.startswith("prior.") for name in wanted.training_tensors())


def test_the_published_model_samples_with_the_learned_probabilities(image_set: ImageSet, tmp_path: Path) -> None:
    """The probabilities are from the chosen checkpoint, not from the last step. The report shows them, too."""
    prior = dataclasses.replace(REAL, rate=0.1)
    config = dataclasses.replace(tiny_config(prior=prior), codes="noise=4 cat=3@0.8:0.15:0.05 uniform=1")
    run, _ = run_alone(config, image_set, tmp_path / "run")
    model, about = load(run.model.uri), json.loads(run.model.read("config.json"))
    chosen = checkpoints.open_checkpoint(run.checkpoints / f"step_{about['step']:08}")
    assert about["model"]["codes"] == chosen.state["model"]["codes"] and about["run"]["codes"] == config.codes
    p = probs(model.spec.latents)
    assert 0.4 < max(p) < 0.79
    category = model.spec.latents.split(model.latents(20_000))[1]["cat0"]
    assert category.mean(0).tolist() == pytest.approx(p, abs=0.015)
    entropy = model.spec.latents["cat0"].entropy()
    measured = json.loads(run.model.read("metrics.json"))
    shares = measured["mi/cat0"] / entropy, measured["mi/uniform0"] / model.spec.latents["uniform0"].ceiling(Sigma())
    assert measured["mi_fraction"] == pytest.approx(sum(shares) / 2), "a fraction of the learned prior's entropy"
    assert "cat=3@0." in run_report(run)


def test_the_end_of_a_run_prints_the_ceiling_of_the_learned_prior(
    image_set: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(tiny_config(prior=dataclasses.replace(REAL, rate=0.1)), codes="cat=3@0.8:0.15:0.05")
    run, reports = run_alone(config, image_set, tmp_path / "run")
    result = RunResult(run, "finished", reports[-1].metrics)
    monkeypatch.setattr(trainer, "train", lambda *given: result)
    words = ["--data", "mnist", "--codes", config.codes, "--storage", str(tmp_path), "--name", "other"]
    assert main(["train", *words, "--prior.learn"]) == 0
    entropy = load(run.model.uri).spec.latents["cat0"].entropy()
    assert f" of {entropy:.3f}" in capsys.readouterr().out and entropy != pytest.approx(0.613, abs=1e-3)


def test_the_report_shows_the_measured_probabilities() -> None:
    spec = LatentSpec.parse("noise=2 cat=2 cat=3 uniform=1")
    measured = with_measured_prior(
        spec, {"prior/cat1/0": 0.5, "prior/cat1/1": 0.3, "prior/cat1/2": 0.2, "mi_bound": 1.0}
    )
    assert str(measured) == "noise=2 cat=2 cat=3@0.5:0.3:0.2 uniform=1" and with_measured_prior(spec, {}) == spec


def train_as_rank(rank: int, folder: str) -> list[dict[str, torch.Tensor]]:
    """Train as one of two ranks, with 8 and 7 rows and synchronised batch norm. Returns the prior of each method."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = []
    for prior in (REAL, GUMBEL):
        state = synchronised(prior)
        state.distribute(distributed)
        feed = InMemoryFeed(make_image_set().images, 15, 0, rank, 2)
        list(train(state, feed, steps=3, log_every=3, checkpoint_every=3, rank=rank, world_size=2))
        found.append(state.prior.tensors())
        save_file(found[-1], f"{folder}/{prior.method}{rank}")
    dist.destroy_process_group()
    return found


def synchronised(prior: PriorConfig) -> TrainState:
    return TrainState(tiny_config(prior=prior).override({"network": {"sync_batchnorm": True}}, "test"), 16, 1)


@pytest.mark.slow
def test_two_ranks_learn_the_same_prior_as_one(tmp_path: Path) -> None:
    """Also between two changes of the prior, when rank 0 may write a checkpoint."""
    other = multiprocessing.get_context("spawn").Process(target=train_as_rank, args=(1, str(tmp_path)))
    other.start()
    mine = train_as_rank(0, str(tmp_path))
    other.join()
    for prior, found in zip((REAL, GUMBEL), mine, strict=True):
        alone = synchronised(prior)
        list(train(alone, InMemoryFeed(make_image_set().images, 15, 0), steps=3, log_every=3, checkpoint_every=3))
        theirs = load_file(tmp_path / f"{prior.method}1")
        for name, tensor in alone.prior.tensors().items():
            assert torch.equal(found[name], theirs[name]), "both ranks must have the same prior"
            assert torch.allclose(found[name], tensor, rtol=5e-3, atol=1e-5), (name, found[name], tensor)


def test_a_checkpoint_of_another_method_is_refused() -> None:
    state, other = state_with(REAL), state_with(GUMBEL)
    with pytest.raises(ValueError, match="by another method than gumbel"):
        other.restore(1, state.model_tensors(), state.training_tensors())


def uneven() -> ImageSet:
    """Bars at three heights with frequencies 6 : 1 : 1."""
    images, labels = tiny_images(240)
    kept = (labels == 0) | (np.arange(240) % 18 < 3)
    return ImageSet("bars", torch.from_numpy(images[kept]).unsqueeze(1), torch.from_numpy(labels[kept]))


def test_the_learned_prior_approaches_the_frequencies_of_uneven_data() -> None:
    prior = PriorConfig(learn=True, start=40, rate=0.05)
    config = tiny_config(prior=prior).override({"optimizer": {"lr_discriminator": 2e-3}}, "test")
    state = TrainState(config, 16, 1)
    images = uneven()
    list(train(state, InMemoryFeed(images.images, 16, 0), steps=200, log_every=200, checkpoint_every=200))
    assert images.labels is not None
    true = torch.bincount(images.labels) / images.count

    def distance(p: tuple[float, ...]) -> float:
        return float((torch.tensor(sorted(p)) - true.sort().values).abs().sum()) / 2

    assert distance(probs(state.spec.latents)) < 0.85 * distance((1 / 3, 1 / 3, 1 / 3))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prior.method", "guess"], "guess"),
        (["--prior.floor", "0"], "prior.floor is 0.0; it must lie between 0 and 1"),
        (["--prior.every", "0"], "prior.every is 0; it must be at least 1"),
        (["--prior.temperature", "-1"], "prior.temperature is -1.0; it must be a positive number"),
        (["--prior.learn", "--metric", "mi_bound"], "metric is 'mi_bound' and prior.learn is on"),
        (["--prior.learn", "--stability.restart-every", "50"], "stability.restart_every and prior.learn are both on"),
        (["--codes", "noise=2 uniform=1", "--prior.learn"], "codes has no categorical code"),
    ],
)
def test_bad_values_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((ValueError, SystemExit)) as refused:
        train_config(["--preset", "mnist", *words])
    assert message in str(refused.value) + "".join(capsys.readouterr())


def test_the_prior_flags_and_the_saved_configuration() -> None:
    config = train_config(["--preset", "mnist_robust", "--prior.learn", "--prior.method", "gumbel"])
    assert config.prior == PriorConfig(learn=True, method="gumbel")
    assert RunConfig().override(config.to_dict(), "saved") == config
    older = {name: value for name, value in config.to_dict().items() if name != "prior"}
    assert not RunConfig().override(older, "saved").prior.learn, "older configurations do not learn the prior"


def test_a_search_can_vary_the_prior_fields() -> None:
    space = {"prior.floor": {"grid_search": [0.05, 0.2]}, "prior.method": {"grid_search": ["real", "gumbel"]}}
    recipe = Recipe(space, 12_800, 1280, preset="mnist_robust", fixed={"prior.learn": True}, searcher="grid")
    found = [recipe.config(trial).prior for trial in range(recipe.count)]
    assert [(prior.learn, prior.floor, prior.method) for prior in found] == [
        (True, 0.05, "real"), (True, 0.05, "gumbel"), (True, 0.2, "real"), (True, 0.2, "gumbel")
    ]  # fmt: skip


def test_the_benchmark_weighs_rare_and_frequent_labels_equally() -> None:
    labels = np.repeat(np.arange(10), 100)
    counts = np.bincount(labels[imbalance.subset(labels, 10, seed=0)])
    assert sorted(counts) == [10] * 5 + [100] * 5
    table = np.array([[0, 90], [9, 10]])  # category 0 is label 1; 9 of 9 and 90 of 100 images are correct
    assert imbalance.balanced_accuracy(table) == pytest.approx(0.95)
    assert imbalance.prior_distance(table, np.array([0.8, 0.2]), np.array([0.1, 0.9])) == pytest.approx(0.1)


def test_a_learned_prior_is_not_dropped_by_a_run_that_does_not_learn() -> None:
    learning, plain = state_with(PriorConfig(learn=True)), state_with(None)
    with pytest.raises(ValueError, match="prior was learned, and prior.learn is off: give --prior.learn as before"):
        plain.restore(1, learning.model_tensors(), learning.training_tensors())


def test_a_metrics_row_has_the_prior_at_the_time_of_reading() -> None:
    prior = LearnedPrior(PriorConfig(learn=True, start=0, every=1, rate=0.5), LatentSpec.parse("noise=2 cat=2"))
    row = prior.metrics()
    spec = LatentSpec.parse("noise=2 cat=2")
    prior.update_average(spec, torch.tensor([[3.0, 0.0]]), 1.0, step=0)
    (code,) = prior.updated_spec(spec, 1).codes
    assert code.parameters and code.probabilities[0] > 0.6
    assert [float(row[f"prior/cat0/{i}"]) for i in (0, 1)] == pytest.approx(code.probabilities)
    assert float(row["prior/cat0/entropy"]) == pytest.approx(code.entropy(), rel=1e-5)
