"""The contrastive term: its pairs, the schedule of the gap, the accuracy of H, and its default of off.

Run: pytest tests/training/test_contrastive.py
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from infogan_ray.cli.train import train_config
from infogan_ray.data.feeds.memory import InMemoryFeed, share
from infogan_ray.data.image_set import ImageSet
from infogan_ray.models.latents import LatentSpec
from infogan_ray.storage import checkpoints
from infogan_ray.training.config import RunConfig
from infogan_ray.training.contrastive import ContrastiveConfig, Pairs, sample_pairs
from infogan_ray.training.ddp import distributed
from infogan_ray.training.loop import train
from infogan_ray.training.step_inputs import StepNoise
from infogan_ray.training.train_command import train_command
from infogan_ray.training.train_state import TrainState, checkpoint_bytes
from tests.conftest import make_image_set, tiny_config
from tests.training.steps import step_on
from tests.training.test_step import run_alone

ON = ContrastiveConfig(weight=1.0, start=0)
MIXED = "noise=4 cat=3@0.5:0.3:0.2 uniform=1@-2:2 gaussian=1@1:3 bernoulli=1@0.3"


def state_with(
    contrastive: ContrastiveConfig | None, codes: str = "noise=4 cat=3 uniform=1", **more: object
) -> TrainState:
    return TrainState(tiny_config(codes=codes, contrastive=contrastive or ContrastiveConfig(), **more), 16, 1)


def pairs_of(text: str, gap: float, n: int = 4000, config: ContrastiveConfig = ON) -> tuple[LatentSpec, Pairs]:
    spec = LatentSpec.parse(text)
    return spec, sample_pairs(spec, config.codes(spec), gap, n, torch.Generator().manual_seed(0))


def share_between(name: str, low: Tensor, high: Tensor) -> Tensor:
    """The prior's probability between two values of a code of MIXED."""
    if name == "uniform0":
        return (low - high).abs() / 4
    return (torch.special.ndtr((low - 1) / 3) - torch.special.ndtr((high - 1) / 3)).abs()


@pytest.mark.parametrize("gap", [0.0, 0.5, 0.95])
def test_a_pair_shares_one_code_and_differs_in_the_others(gap: float) -> None:
    spec, pairs = pairs_of(MIXED, gap)
    (noise, first), (other_noise, second) = spec.split(pairs.first), spec.split(pairs.second)
    assert torch.equal(noise, other_noise) and noise.std() == pytest.approx(1, abs=0.05)
    for number, name in enumerate(spec.names):
        same = pairs.shared == number
        assert 0.2 < same.float().mean() < 0.3
        assert torch.equal(first[name][same], second[name][same])
        low, high = first[name][~same], second[name][~same]
        if name in ("cat0", "bernoulli0"):
            assert (low != high).any(1).all()
        else:
            between = share_between(name, low, high)
            assert between.min() >= gap - 1e-4
            assert between.min() < gap + 0.02 and between.max() > gap + 0.9 * (1 - gap), "the gap is a minimum"


def test_values_follow_their_priors() -> None:
    spec, pairs = pairs_of(MIXED, 0.0, n=20_000)
    _, codes = spec.split(torch.cat([pairs.first, pairs.second]))
    assert torch.allclose(codes["cat0"].sum(1), torch.ones(40_000))
    assert codes["uniform0"].aminmax().max < 2 and codes["uniform0"].std() == pytest.approx(4 / math.sqrt(12), abs=0.03)
    assert codes["gaussian0"].mean() == pytest.approx(1, abs=0.06)
    assert codes["gaussian0"].std() == pytest.approx(3, abs=0.06)
    apart = pairs.shared != 0
    p = [0.5 * 0.5, 0.3 * 0.7, 0.2 * 0.8]  # P(a) P(not a)
    found = spec.split(pairs.second)[1]["cat0"][apart].mean(0)
    assert found.tolist() == pytest.approx([value / sum(p) for value in p], abs=0.02)


def test_discrete_codes_can_be_excluded() -> None:
    config = dataclasses.replace(ON, discrete=False)
    spec, pairs = pairs_of(MIXED, 0.5, config=config)
    (_, first), (_, second) = spec.split(pairs.first), spec.split(pairs.second)
    assert config.codes(spec) == ("uniform0", "gaussian0") and set(pairs.shared.tolist()) == {0, 1}
    assert torch.equal(first["cat0"], second["cat0"]) and torch.equal(first["bernoulli0"], second["bernoulli0"])
    assert torch.equal(first["gaussian0"] == second["gaussian0"], (pairs.shared == 1)[:, None])


def test_the_gap_falls_after_start() -> None:
    config = ContrastiveConfig(weight=1.0, start=100, gap=0.9, gap_end=0.1, gap_steps=400)
    found = [config.gap_at(step) for step in (0, 100, 300, 500, 9000)]
    assert found == pytest.approx([0.9, 0.9, 0.5, 0.1, 0.1])


def images_of(pairs: Pairs, entangled: bool) -> Tensor:
    """(B, 2, 16, 16): three bars with the brightness of the three codes, or of the codes' mean if entangled."""
    parts = []
    for latents in (pairs.first, pairs.second):
        codes = latents.sum(1, keepdim=True).expand(-1, 3) / 3 if entangled else latents
        parts.append(codes.repeat_interleave(5, 1)[:, None, :, None].expand(-1, 1, 15, 16))
    return nn.functional.pad(torch.cat(parts, 1), (0, 0, 0, 1))


@pytest.mark.parametrize("entangled", [False, True])
def test_h_recognises_only_codes_that_are_visible_separately(entangled: bool) -> None:
    """The sum of three codes does not show which code was shared: no H is better than chance, 1/3."""
    state = state_with(ON, "uniform=3")
    contrastive = state.contrastive
    assert contrastive is not None
    contrastive.adam = torch.optim.Adam(contrastive.discriminator.parameters(), 5e-3, betas=(0.5, 0.999))
    measured = []
    for step in range(100):
        pairs = contrastive.sample_pairs(state.spec.latents, ON.gap, 64, torch.Generator().manual_seed(step))
        measured.append(contrastive.learn(images_of(pairs, entangled), pairs.shared))
    accuracy = sum(float(row["contrastive_accuracy"]) for row in measured[-20:]) / 20
    loss = sum(float(row["contrastive_loss"].detach()) for row in measured[-20:]) / 20
    if entangled:
        assert accuracy < 0.45 and loss > math.log(3) - 0.1
    else:
        assert accuracy > 0.95 and loss < 0.3


def test_the_weight_changes_only_the_gradients_of_g() -> None:
    images = make_image_set().images[:16]
    gradients = []
    for weight in (0.5, 2.0):
        state = state_with(dataclasses.replace(ON, weight=weight))
        step_on(state, images, state.latents(16), noise=StepNoise(pairs=state.step_noise(16, state.schedule()).pairs))
        assert state.contrastive is not None
        modules = (state.generator, state.discriminator, state.contrastive.discriminator)
        gradients.append([torch.cat([p.grad.flatten() for p in module.parameters()]) for module in modules])  # type: ignore[union-attr]
    (g, d, h), (more, same_d, same_h) = gradients
    assert not torch.allclose(g, more) and torch.equal(d, same_d) and torch.equal(h, same_h)
    assert h.abs().sum() > 0


def weights_of(state: TrainState) -> Tensor:
    return torch.cat(
        [p.detach().flatten() for module in (state.generator, state.discriminator) for p in module.parameters()]
    )


def test_before_its_start_and_when_off_the_weights_are_bit_equal() -> None:
    feed = InMemoryFeed(make_image_set().images, 16, 0)
    found, kept = [], []
    for config in (None, ContrastiveConfig(), ContrastiveConfig(weight=1.0, start=9)):
        state = state_with(config)
        rows = list(train(state, feed, steps=3, log_every=1, checkpoint_every=9))
        assert (
            not any(name.startswith("contrastive") for row in rows for name in row)
            and state.step_noise(16, state.schedule()).pairs is None
        )
        found.append(weights_of(state))
        kept.append(set(state.training_tensors()))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert kept[0] == kept[1] and all(name.startswith("contrast.") for name in kept[2] - kept[0])


def test_a_term_that_starts_within_a_log_window_is_reported_from_the_next_one() -> None:
    feed = InMemoryFeed(make_image_set().images, 16, 0)
    state = state_with(ContrastiveConfig(weight=1.0, start=1))
    early, late = train(state, feed, steps=4, log_every=2, checkpoint_every=9)
    assert "contrastive_loss" not in early
    assert late["contrastive_loss"] == pytest.approx(math.log(2), abs=0.5) and 0 <= late["contrastive_accuracy"] <= 1


def test_ranks_share_the_pairs_of_the_global_batch_and_have_equal_gradients() -> None:
    """Three ranks share a batch of 16: the mean of their gradients is the gradient of all rows.

    Networks are in evaluation mode, because batch statistics differ.
    """

    def gradients(rank: int, world_size: int) -> tuple[Pairs, Tensor]:
        state = state_with(ON)
        assert state.contrastive is not None
        for module in (state.generator, state.contrastive.discriminator):
            module.eval()
        pairs = state.step_noise(16, state.schedule(), rank, world_size).pairs
        assert pairs is not None
        weight = len(pairs.shared) * world_size / 16
        stacked = pairs.images(state.generate)
        (weight * state.contrastive.loss(stacked, pairs.shared)).backward()
        state.contrastive.learn(stacked, pairs.shared, weight)
        modules = (state.generator, state.contrastive.discriminator)
        return pairs, torch.cat([p.grad.flatten() for module in modules for p in module.parameters()])  # type: ignore[union-attr]

    whole, wanted = gradients(0, 1)
    parts = [gradients(rank, 3) for rank in range(3)]
    for name in Pairs._fields:
        assert torch.equal(torch.cat([getattr(pairs, name) for pairs, _ in parts]), getattr(whole, name))
    assert [len(pairs.shared) for pairs, _ in parts] == [len(range(16)[share(16, rank, 3)]) for rank in range(3)]
    assert torch.allclose(sum(found for _, found in parts) / 3, wanted, atol=1e-6)  # type: ignore[arg-type]


def test_the_term_trains_with_ddp(tmp_path: Path) -> None:
    """G generates images twice per step, which DDP must support. DDP also synchronises the gradients of H."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        feed, found = InMemoryFeed(make_image_set().images, 16, 0), []
        for wrapped in (False, True):
            state = state_with(ON)
            if wrapped:
                state.distribute(distributed)
            list(train(state, feed, steps=2, log_every=1, checkpoint_every=9))
            assert state.contrastive is not None
            assert isinstance(state.contrastive.compare, DistributedDataParallel) == wrapped
            found.append({name: value.clone() for name, value in state.training_tensors().items()})
        assert all(torch.allclose(found[0][name], found[1][name], atol=1e-7) for name in found[0])
    finally:
        dist.destroy_process_group()


def test_a_resumed_run_equals_an_uninterrupted_one(image_set: ImageSet, tmp_path: Path) -> None:
    contrastive = ContrastiveConfig(weight=1.0, start=1, gap_steps=4)

    whole, _ = run_alone(tiny_config(contrastive=contrastive), image_set, tmp_path / "whole")
    run_alone(tiny_config(steps=3, contrastive=contrastive), image_set, tmp_path / "half")
    half, _ = run_alone(tiny_config(contrastive=contrastive), image_set, tmp_path / "half")
    wanted, found = (checkpoints.open_checkpoint(run.checkpoints / "step_00000006") for run in (whole, half))
    assert wanted.model_tensors().keys() == found.model_tensors().keys()
    mine, theirs = wanted.training_tensors(), found.training_tensors()
    assert mine.keys() == theirs.keys() and {"contrast.head.3.weight", "opt_h.0.exp_avg"} <= mine.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    both = sum(value.numel() for values in (mine, wanted.model_tensors()) for name, value in values.items()
               if "running" not in name and not name.endswith("step"))  # fmt: skip
    assert checkpoint_bytes(tiny_config().model_spec(16, 1), contrastive) == 4 * both


def test_a_run_without_the_term_continues_with_a_new_h() -> None:
    before, state = state_with(None), state_with(ON)
    list(train(before, InMemoryFeed(make_image_set().images, 16, 0), steps=1, log_every=1, checkpoint_every=1))
    state.restore(1, before.model_tensors(), before.training_tensors())
    assert state.contrastive is not None and not state.optimizers["opt_h"].state_dict()["state"]
    assert torch.equal(weights_of(state), weights_of(before))


def test_the_contrastive_flags() -> None:
    words = ["--preset", "shapes", "--contrastive.weight", "2", "--contrastive.start", "50"]
    config = train_config([*words, "--contrastive.no-discrete"])
    assert config.contrastive == ContrastiveConfig(weight=2, start=50, discrete=False)
    assert "--contrastive.weight 2.0 --contrastive.start 50 --contrastive.no-discrete" in train_command(config)
    assert train_config(["--preset", "mnist"]).contrastive.weight == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": -1.0}, "contrastive.weight is -1.0; it must be a number of at least 0"),
        ({"gap": 1.0}, "contrastive.gap is 1.0 and contrastive.gap_end is 0.0; 0 <= gap_end <= gap < 1 must hold"),
        ({"gap_end": 0.96}, "0 <= gap_end <= gap < 1 must hold"),
        ({"gap_steps": 0}, "contrastive.gap_steps is 0; it must be at least 1"),
    ],
)
def test_bad_values_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContrastiveConfig(**values)  # type: ignore[arg-type]


def test_a_single_code_is_refused() -> None:
    message = "contrastive.weight is 1, which needs two codes or more, and codes is 'noise=4 cat=3'; add some"
    with pytest.raises(ValueError, match=message):
        RunConfig(codes="noise=4 cat=3", contrastive=ON)
    with pytest.raises(ValueError, match="needs two continuous codes .contrastive.discrete is off. or more"):
        RunConfig(codes="cat=3 uniform=1", contrastive=dataclasses.replace(ON, discrete=False))
    RunConfig(codes="noise=4 cat=3")
