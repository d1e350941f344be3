"""Regularisers: each option equals its formula and is off by default.

Run: pytest tests/training/test_regularisers.py
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from infogan_ray.cli.train import train_config
from infogan_ray.data.feeds.memory import InMemoryFeed, to_unit_range
from infogan_ray.data.image_set import ImageSet
from infogan_ray.models.games import GAMES
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.losses import information_bound, weighted_bound
from infogan_ray.models.spectral_norm import SpectralNorm
from infogan_ray.storage import checkpoints
from infogan_ray.training.category_restarts import choose_sources
from infogan_ray.training.config import RunConfig
from infogan_ray.training.ddp import distributed
from infogan_ray.training.load_model import load
from infogan_ray.training.loop import train
from infogan_ray.training.presets import PRESETS
from infogan_ray.training.regularisers import StabilityConfig, gradient_penalties, mean_bias
from infogan_ray.training.step_inputs import StepNoise
from infogan_ray.training.train_command import train_command
from infogan_ray.training.train_state import TrainState
from tests.conftest import make_image_set, tiny_config
from tests.training.steps import step_on
from tests.training.test_step import run_alone

EVERYTHING: dict[str, Any] = {
    "network": {"spectral_norm": True},
    "objective": {"game": "relativistic"},
    "stability": {
        "r1": 1.0, "r2": 0.5, "r1_every": 2, "instance_noise": 0.2, "instance_noise_share": 1.0, "label_smoothing": 0.1,
        "lambda_warmup": 8, "restart_every": 2, "restart_below": 0.99, "mean_bias": True,
    },
}  # fmt: skip


def everything() -> RunConfig:
    return tiny_config().override(EVERYTHING, "test")


def state_of(config: RunConfig, **changes: Any) -> TrainState:
    return TrainState(dataclasses.replace(config, **changes), 16, 1)


def with_options(**options: Any) -> TrainState:
    return state_of(tiny_config().override({"stability": options}, "test"))


def weights_of(*modules: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for module in modules for parameter in module.parameters()])


# Off


@pytest.mark.parametrize("joint", [False, True])
def test_off_is_bit_equal_to_the_papers_step(image_set: ImageSet, joint: bool) -> None:
    """Three steps of the paper's algorithm give the same bits.

    With joint statistics, D always gets real and generated images.
    """
    config = tiny_config().override({"network": {"joint_batchnorm": joint}}, "test")
    state, plain = state_of(config), state_of(config)
    feed = InMemoryFeed(image_set.images, 16, 0)
    rows = list(train(state, feed, steps=3, log_every=1, checkpoint_every=3))
    assert not {"r1_penalty", "restarted"} & rows[0].keys()
    for step in range(3):
        plain.step = step
        latents = plain.latents(16)
        fakes = plain.generator(latents)
        real = to_unit_range(feed.batch(step))
        logits, q = plain.discriminator(torch.cat([real, fakes.detach()]), groups=1 if joint else 2, q_from=16)
        bounds = information_bound(plain.spec.latents, latents, q)
        plain.opt_d.zero_grad()
        (plain.game.discriminator_loss(*logits.chunk(2)) - weighted_bound(bounds, plain.lambdas)).backward()
        plain.opt_d.step()
        plain.discriminator.requires_grad_(False)
        logits, q = plain.discriminator(torch.cat([real, fakes]), q_from=16) if joint else plain.discriminator(fakes)
        logits = logits[-16:]
        plain.opt_g.zero_grad()
        information = weighted_bound(information_bound(plain.spec.latents, latents, q), plain.lambdas)
        (plain.game.generator_loss(None, logits) - information).backward()
        plain.opt_g.step()
        plain.discriminator.requires_grad_(True)
    assert torch.equal(
        weights_of(state.generator, state.discriminator), weights_of(plain.generator, plain.discriminator)
    )
    assert "restarts.usage" not in state.training_tensors()


def test_paper_presets_use_no_regulariser_and_older_runs_are_read() -> None:
    resplit = dict.fromkeys(("mnist_robust", "glyphs"), StabilityConfig(resplit_every=1000))
    expected = {"shapes": StabilityConfig(mean_bias=True), **resplit}
    for name in set(PRESETS) - {"photos"}:
        assert RunConfig(preset=name).stability == expected.get(name, StabilityConfig()), name
    saved = RunConfig().to_dict()
    del saved["stability"], saved["network"]["spectral_norm"]
    assert RunConfig().override(saved, "an older run") == RunConfig()


# Spectral normalisation


def test_the_largest_singular_value_stays_one_during_training(image_set: ImageSet) -> None:
    state = state_of(tiny_config().override({"network": {"spectral_norm": True}}, "test"))
    plain = state_of(tiny_config())
    name = "trunk.0.parametrizations.weight.original"
    assert torch.equal(state.discriminator.state_dict()[name], plain.discriminator.state_dict()["trunk.0.weight"])
    layers = [m for m in state.discriminator.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    normalised = [layer for layer in layers if hasattr(layer, "parametrizations")]
    assert len(normalised) == len(layers) - 2, "all layers except the two of Q"
    before = weights_of(state.discriminator)
    for _ in range(2):
        list(
            train(
                state, InMemoryFeed(image_set.images, 16, 0), steps=state.step + 20, log_every=20, checkpoint_every=99
            )
        )
        state.discriminator.eval()
        for layer in normalised:
            largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
            assert largest == pytest.approx(1, abs=0.05)
            free = torch.linalg.matrix_norm(layer.parametrizations.weight.original.detach().flatten(1), 2)
            assert abs(float(free) - 1) > 0.1, "the weights themselves are not normalised"
        state.discriminator.train()
    assert not torch.equal(before, weights_of(state.discriminator))


def test_spectral_norm_has_the_exact_gradient() -> None:
    """The gradient of W / sigma equals that of W / |W|_2 when the singular vectors have converged."""
    torch.manual_seed(0)
    weight = torch.randn(4, 6, dtype=torch.float64)
    norm = SpectralNorm(weight.float()).double()
    for _ in range(200):
        norm(weight)
    probe = torch.randn(4, 6, dtype=torch.float64)
    variable = weight.clone().requires_grad_()
    (norm(variable) * probe).sum().backward()
    exact = weight.clone().requires_grad_()
    (exact / torch.linalg.matrix_norm(exact, 2) * probe).sum().backward()
    assert torch.allclose(variable.grad, exact.grad, atol=1e-8)


def test_spectral_norm_is_fixed_in_evaluation_and_ignores_autocast() -> None:
    norm = SpectralNorm(torch.randn(8, 5))
    weight, u = torch.randn(8, 5), norm.u.clone()
    norm.eval()
    first = norm(weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(weight), first) and torch.equal(norm.u, u)
    norm.train()
    norm(weight)
    assert not torch.equal(norm.u, u)


# R1


def signs_of(count: int) -> Tensor:
    return 2.0 * torch.randint(2, (count,), generator=torch.Generator().manual_seed(1)) - 1


def r1_of(config: StabilityConfig, signs: Tensor, logits: Tensor, images: Tensor) -> Tensor:
    """R1 of the first half of images (2B, ...), with signs (B,)."""
    return gradient_penalties(config, torch.cat([signs, 0 * signs]), logits, images)["r1_penalty"]


def test_r1_is_the_squared_gradient_of_a_linear_discriminator() -> None:
    """D(x) = <w, x>: for any signs the penalty is gamma / 2 |w|^2, and its gradient in w is gamma w."""
    w = torch.randn(12, requires_grad=True)
    images = torch.randn(8, 1, 3, 4).requires_grad_()
    logits = images.flatten(1) @ w
    penalty = r1_of(StabilityConfig(r1=3.0), signs_of(4), logits, images)
    assert float(penalty.detach()) == pytest.approx(1.5 * float(w.detach().square().sum()), rel=1e-5)
    (slope,) = torch.autograd.grad(penalty, w)
    assert torch.allclose(slope, 3.0 * w, atol=1e-5)


def test_a_lazy_r1_penalty_has_the_same_mean() -> None:
    state, images = with_options(r1=2.0, r1_every=4), torch.randn(4, 1, 2, 2).requires_grad_()
    logits, taken = images.sum((1, 2, 3)), []
    for step in range(8):
        state.step = step
        signs = state.step_noise(2, state.schedule()).signs
        taken.append(float(gradient_penalties(state.stability, signs, logits, images)["r1_penalty"]))
    assert taken == [16, 0, 0, 0, 16, 0, 0, 0], "gamma / 2 * |grad|^2 = 4, every fourth step times 4"


def test_with_batch_norm_r1_is_the_norm_of_the_jacobian(image_set: ImageSet) -> None:
    """The mean over all signs is the squared Jacobian of all logits. With equal signs almost everything cancels."""
    state = state_of(tiny_config().override({"network": {"leaky_slope": 1.0}}, "test"))
    images = to_unit_range(image_set.images[:4]).requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda given: state.discriminator(given)[0], images)
    expected = float(jacobian.square().sum()) / 4 / 2
    both = torch.cat([images, images]).detach().requires_grad_()
    logits, _ = state.discriminator(both, groups=2)
    choices = [torch.tensor(signs) for signs in itertools.product((-1.0, 1.0), repeat=4)]
    found = [float(r1_of(StabilityConfig(r1=1.0), signs, logits, both).detach()) for signs in choices]
    assert sum(found) / 16 == pytest.approx(expected, rel=1e-3)
    assert found[0] < expected / 1000


def test_ranks_share_the_signs_of_the_global_batch() -> None:
    state = with_options(r1=1.0)
    whole = state.step_noise(64, state.schedule()).signs
    assert whole is not None and set(whole[:64].tolist()) == {-1, 1} and set(whole[64:].tolist()) == {0}
    both = with_options(r1=1.0, r2=1.0)
    signs = both.step_noise(64, both.schedule()).signs
    assert signs is not None and torch.equal(signs[:64], whole[:64]) and set(signs[64:].tolist()) == {-1, 1}
    parts = [both.step_noise(64, both.schedule(), rank, 3).signs for rank in range(3)]
    for half in (0, 1):  # real, then generated
        assert torch.equal(torch.cat([p.chunk(2)[half] for p in parts if p is not None]), signs.chunk(2)[half])


def penalty_of(state: TrainState, images: Tensor) -> Tensor:
    """R1 with gamma 1 at uint8 images (B, C, H, W)."""
    both = to_unit_range(torch.cat([images, images])).requires_grad_()
    with state.autocast():
        logits, _ = state.discriminator(both, groups=2)
    return r1_of(StabilityConfig(r1=1.0), signs_of(len(images)), logits, both)


def test_r1_has_the_right_gradient_through_batch_norm(image_set: ImageSet) -> None:
    """Compare its gradient, a second derivative of batch norm, with a finite difference. bf16 has the same direction.

    D is linear between its batch norms (leaky slope 1), because the penalty jumps at the kink of an activation.
    """
    config = tiny_config().override({"network": {"leaky_slope": 1.0}}, "test")
    images, found = image_set.images[:16], {}
    for precision in ("fp32", "bf16"):
        state = state_of(config, precision=precision)
        layers = [*state.discriminator.trunk.parameters(), *state.discriminator.head.parameters()]
        slopes = torch.autograd.grad(penalty_of(state, images), layers, allow_unused=True)
        pairs = [(layer, slope) for layer, slope in zip(layers, slopes, strict=True) if slope is not None]
        found[precision] = torch.cat([slope.flatten() for _, slope in pairs])
        if precision == "fp32":
            norm, values = found[precision].norm(), []
            for change in (1e-3, -2e-3):
                with torch.no_grad():
                    for layer, slope in pairs:
                        layer += change / norm * slope
                values.append(float(penalty_of(state, images).detach()))
            assert values[0] - values[1] == pytest.approx(2e-3 * float(norm), rel=0.02)
    assert torch.cosine_similarity(found["fp32"], found["bf16"], dim=0) > 0.95


def test_r1_lowers_the_gradient_of_the_discriminator(image_set: ImageSet) -> None:
    slopes = {}
    for gamma in (0.0, 50.0):
        state = with_options(r1=gamma)
        list(train(state, InMemoryFeed(image_set.images, 16, 0), steps=15, log_every=15, checkpoint_every=99))
        slopes[gamma] = float(penalty_of(state, image_set.images[:16]).detach())
    assert slopes[50.0] < slopes[0.0] / 2


def test_r2_is_the_penalty_at_generated_images() -> None:
    """Also beside R1, each with its own weight."""
    scale = torch.tensor([1.0, 1.0, 3.0, 3.0])  # D's gradient at generated images is three times as large
    images = torch.randn(4, 1, 2, 2).requires_grad_()
    logits = scale * images.sum((1, 2, 3))
    for config, expected in (
        (StabilityConfig(r2=2.0), {"r2_penalty": 36.0}),
        (StabilityConfig(r1=4.0, r2=1.0), {"r1_penalty": 8.0, "r2_penalty": 18.0}),
    ):
        found = gradient_penalties(config, torch.tensor([1.0, -1.0, -1.0, 1.0]), logits, images)
        assert {name: float(value.detach()) for name, value in found.items()} == pytest.approx(expected)


# Instance noise


def test_instance_noise_has_the_given_deviation_and_falls_to_zero() -> None:
    config = StabilityConfig(instance_noise=0.4, instance_noise_share=0.5)
    assert [config.noise_at(step, 100) for step in (0, 25, 50, 99)] == pytest.approx([0.4, 0.2, 0, 0])
    constant = StabilityConfig(instance_noise=0.4, instance_noise_share=0)
    assert [constant.noise_at(step, 100) for step in (0, 99)] == [0.4, 0.4]
    state = with_options(instance_noise=0.4)
    state.step = 25
    noise = state.step_noise(64, state.schedule(100)).instance_noise
    assert noise is not None and noise.shape == (128, 1, 16, 16)
    assert float(noise.std()) == pytest.approx(0.2, rel=0.03) and abs(float(noise.mean())) < 0.01
    state.step = 50
    assert state.step_noise(64, state.schedule(100)).instance_noise is None


def test_ranks_share_the_noise_of_the_global_batch() -> None:
    state = with_options(instance_noise=0.4)
    whole = state.step_noise(16, state.schedule(100)).instance_noise
    parts = [state.step_noise(16, state.schedule(100), rank, 3).instance_noise for rank in range(3)]
    assert whole is not None
    for half in (0, 1):  # real, then generated
        rows = torch.cat([part.chunk(2)[half] for part in parts if part is not None])
        assert torch.equal(rows, whole.chunk(2)[half])
    assert not torch.equal(*whole.chunk(2))
    state.step += 1
    again = state.step_noise(16, state.schedule(100)).instance_noise
    assert again is not None and not torch.allclose(again / again.std(), whole / whole.std(), atol=0.1)


def test_instance_noise_is_added_in_both_updates(image_set: ImageSet) -> None:
    """If only D's step had noise, G's gradient would be for images without noise."""
    gradients = []
    for level in (0.0, 1.0):
        state = with_options()
        noise = level * torch.ones(32, 1, 16, 16) * torch.linspace(-1, 1, 16)
        seen: list[Tensor] = []
        state.discriminator.register_forward_pre_hook(lambda module, given, seen=seen: seen.append(given[0].detach()))
        step_on(state, image_set.images[:16], state.latents(16), noise=StepNoise(instance_noise=noise))
        gradients.append(seen)
    for without, noisy in zip(*gradients, strict=True):
        assert torch.allclose(noisy - without, noise[-len(without) :], atol=1e-5)
    assert [len(images) for images in gradients[1]] == [32, 16]


# Label smoothing and warm-up


def test_smoothing_is_cross_entropy_with_a_soft_target_only_for_real_images() -> None:
    real, fake = torch.randn(7), torch.randn(7)
    entropy = nn.functional.binary_cross_entropy_with_logits
    expected = entropy(real, torch.full((7,), 0.9)) + entropy(fake, torch.zeros(7))
    assert float(GAMES["logistic"].discriminator_loss(real, fake, 0.1)) == pytest.approx(float(expected), rel=1e-5)
    best = torch.tensor([math.log(0.9 / 0.1)], requires_grad=True)  # the logit for D = 0.9
    (slope,) = torch.autograd.grad(GAMES["logistic"].discriminator_loss(best, fake, 0.1), best)
    assert float(slope) == pytest.approx(0, abs=1e-6)


def test_smoothing_and_warmup_change_the_step(image_set: ImageSet) -> None:
    for options, same in (({}, True), ({"label_smoothing": 0.2}, False), ({"lambda_warmup": 10}, False)):
        state, plain = with_options(**options), with_options()
        for each in (state, plain):
            step_on(each, image_set.images[:16], each.latents(16))
        for mine, theirs in ((state.discriminator, plain.discriminator), (state.generator, plain.generator)):
            assert torch.equal(weights_of(mine), weights_of(theirs)) == same


def test_the_weights_of_the_bound_rise_from_zero(image_set: ImageSet) -> None:
    config, lambdas = StabilityConfig(lambda_warmup=10), {"cat0": 1.0, "uniform0": 0.1}
    assert [config.warmed(lambdas, step)["cat0"] for step in (0, 5, 10, 99)] == [0, 0.5, 1, 1]
    assert config.warmed(lambdas, 5)["uniform0"] == pytest.approx(0.05)
    assert StabilityConfig().warmed(lambdas, 0) is lambdas
    state = with_options(lambda_warmup=10)
    step_on(state, image_set.images[:16], state.latents(16))
    head = state.discriminator.recognition[-1].weight.grad
    assert head is not None and not head.any(), "at the first step Q learns nothing"


# Restarts


def test_unused_categories_are_copied_from_the_most_used_ones() -> None:
    use = torch.tensor([0.0, 3.0, 0.01, 1.0, 0.05, 2.0])
    assert choose_sources(use, use < 0.1).tolist() == [1, 1, 5, 3, 3, 5]
    use = torch.tensor([0.0, 3.0, 0.0, 0.0])
    assert choose_sources(use, use < 0.1).tolist() == [1, 1, 1, 1], "the only used category is copied to all"


def dead_state() -> tuple[TrainState, Tensor]:
    """A state with three categories, of which 0 is used most and 2 is unused, and the Q output that keeps it so."""
    state = state_of(tiny_config(codes="noise=4 uniform=1 cat=3").override({"stability": {"restart_every": 4}}, "test"))
    step_on(state, make_image_set().images[:16], state.latents(16))
    q = torch.zeros(16, 5)
    q[:, 2] = 1.0
    q[:4, 3] = 2.0
    return state, q


def test_an_unused_category_restarts_as_a_copy_of_the_most_used() -> None:
    state, q = dead_state()
    assert state.restarts is not None
    head, first, averaged = state.discriminator.recognition[-1], state.generator.layers[0], state.average.layers[0]
    before = [copy.deepcopy(module.state_dict()) for module in (head, first, averaged)]
    moments = {name: state.opt_g.state[first.weight][name].clone() for name in ("exp_avg", "exp_avg_sq")}
    assert [float(state.restarts.after_step(step, q)) for step in (1, 2, 3)] == [0, 0, 0]
    assert all(
        torch.equal(module.weight, old["weight"]) for module, old in zip((head, first, averaged), before, strict=True)
    )
    assert float(state.restarts.after_step(4, q)) == 1
    # Q: rows are [mean, deviation, cat 0, cat 1, cat 2]. G: columns are [4 noise, uniform, cat 0, cat 1, cat 2].
    old, new = before[0]["weight"], head.weight.detach()
    assert torch.equal(new[:4], old[:4]) and head.bias[4] == before[0]["bias"][2]
    off = (new[4] - old[2]).norm() / old[2].norm()
    assert 0.03 < off < 0.3, "a copy with some noise"
    for module, was in ((first, before[1]["weight"]), (averaged, before[2]["weight"])):
        now = module.weight.detach()
        assert torch.equal(now[:, :7], was[:, :7])
        assert 0.03 < (now[:, 7] - was[:, 5]).norm() / was[:, 5].norm() < 0.3
    after = state.opt_g.state[first.weight]
    assert not after["exp_avg"][:, 7].any() and torch.equal(after["exp_avg"][:, :7], moments["exp_avg"][:, :7])
    assert torch.equal(after["exp_avg_sq"][:, 7], moments["exp_avg_sq"][:, 5])
    assert not state.opt_d.state[head.weight]["exp_avg"][4].any() and not state.opt_d.state[head.bias]["exp_avg"][4]
    assert float(state.restarts.usage[2]) == pytest.approx(1 / 3), "its usage is reset, so that it has time to learn"


def test_a_restart_depends_on_seed_and_step() -> None:
    rows = []
    for step in (4, 4, 8):
        state, q = dead_state()
        assert state.restarts is not None
        for _ in range(3):
            state.restarts.after_step(1, q)
        state.restarts.after_step(step, q)
        rows.append(state.discriminator.recognition[-1].weight[4].detach())
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


# G's first bias


@pytest.mark.parametrize(("shade", "expected_mean"), [(10, 10 / 127.5 - 1), (0, -0.95), (200, 200 / 127.5 - 1)])
def test_the_first_generated_images_have_the_brightness_of_the_data(shade: int, expected_mean: float) -> None:
    state = with_options(mean_bias=True)
    images = torch.full((6, 1, 16, 16), shade, dtype=torch.uint8)
    state.set_mean_bias(images)
    for generator in (state.generator, state.average):
        mean = generator(state.latents(64)).mean().item()
        assert mean == pytest.approx(expected_mean, abs=0.02)
    plain = with_options()
    assert plain.generator(plain.latents(64)).mean().item() == pytest.approx(0, abs=0.02)


def test_the_average_starts_equal_to_the_shared_generator() -> None:
    """DDP sends rank 0's weights to every rank. With streamed images only rank 0 has images for the mean."""

    def weights_of_rank_zero(module: nn.Module) -> nn.Module:
        if module is state.generator:
            state.generator.output_bias.data.fill_(-1)
        return module

    state = with_options(mean_bias=True)
    state.distribute(weights_of_rank_zero)
    assert state.average.output_bias.item() == -1
    state.step = 7  # a resumed run: its average is behind its generator
    state.generator.output_bias.data.fill_(0.5)
    state.distribute(lambda module: module)
    assert state.average.output_bias.item() == -1


def test_brightness_is_computed_per_channel() -> None:
    images = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    images[:, 0], images[:2, 1], images[:, 2] = 51, 255, 204
    assert mean_bias(images).tanh().tolist() == pytest.approx([-0.6, 1 / 3, 0.6], abs=1e-6)


@pytest.mark.parametrize("on", [False, True])
def test_mean_bias_sets_the_brightness_of_a_new_run(image_set: ImageSet, tmp_path: Path, on: bool) -> None:
    """Adam changes a bias by its learning rate, 0.001, in each of three steps."""
    config = tiny_config().override({"stability": {"mean_bias": on}, "steps": 3}, "test")
    run, _ = run_alone(config, image_set, tmp_path / "run")
    tensors = checkpoints.open_checkpoint(run.checkpoints / "step_00000003").training_tensors()
    [bias] = [v for k, v in tensors.items() if k.startswith("generator.") and k.endswith(".bias") and v.shape == (1,)]
    start = mean_bias(image_set.images) if on else torch.zeros(1)
    assert abs(float(mean_bias(image_set.images))) > 0.1
    assert bias.item() == pytest.approx(start.item(), abs=0.01)


# All at once


def test_a_resumed_run_with_all_options_is_bit_equal_and_its_model_loads(image_set: ImageSet, tmp_path: Path) -> None:
    # The interruption splits an interval of restarts.
    config = everything().override({"stability": {"restart_every": 5}}, "test")
    whole, reports = run_alone(config, image_set, tmp_path / "whole")
    # The noise falls over all six steps, so the run that is interrupted at step 3 is configured with six.
    cut = iter([False] * 3)
    half, _ = run_alone(config, image_set, tmp_path / "half", stop=lambda: next(cut, True))
    assert half.get_status()["state"] == "interrupted"
    assert [entry.name for entry in half.checkpoints.entries()] == ["step_00000003"]
    run_alone(config, image_set, tmp_path / "half")
    wanted, found = (checkpoints.open_checkpoint(run.checkpoints / "step_00000006") for run in (whole, half))
    for mine, theirs in (
        (wanted.model_tensors(), found.model_tensors()),
        (wanted.training_tensors(), found.training_tensors()),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert "restarts.usage" in wanted.training_tensors()
    rows = whole.read_metrics()
    assert any(row["r1_penalty"] > 0 for row in rows) and any(row["restarted"] > 0 for row in rows)
    model = load(whole.model.uri)
    assert model.spec.network.spectral_norm and model.sample(3).shape == (3, 1, 16, 16)
    encoded = model.encode(image_set.images[:8])
    assert encoded["cat0_probabilities"].shape == (8, 3)
    assert reports[-1].metrics["mi_bound"] == pytest.approx(
        reports[-1].metrics["mi/cat0"] + reports[-1].metrics["mi/uniform0"]
    )


def run_rank(rank: int, world_size: int, folder: str, joint: bool) -> None:
    """Run two steps with all options on. Rank 0 saves its tensors and metrics."""
    torch.set_num_threads(1)
    config = everything().override({"network": {"sync_batchnorm": True, "joint_batchnorm": joint}}, "test")
    state = state_of(config)
    if world_size > 1:
        dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world_size)
        state.distribute(distributed)
    feed = InMemoryFeed(make_image_set().images, 16, 0, rank, world_size)
    [row] = train(
        state, feed, steps=2, log_every=2, checkpoint_every=2, rank=rank, world_size=world_size
    )  # fmt: skip
    if rank == 0:
        tensors = {f"model.{k}": v.clone() for k, v in state.discriminator.state_dict().items()} | {
            k: v.clone() for k, v in state.training_tensors().items()
        }
        named = {k: torch.tensor(row[k]) for k in ("d_loss", "g_loss", "r1_penalty", "restarted", "d_grad_norm")}
        from safetensors.torch import save_file

        save_file(tensors | named, f"{folder}/{world_size}.safetensors")
    if world_size > 1:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("joint", [False, True])
def test_two_ranks_equal_one(tmp_path: Path, joint: bool) -> None:
    """With synchronised statistics only the order of sums differs. R1's double backward also uses all ranks."""
    from safetensors.torch import load_file

    run_rank(0, 1, str(tmp_path), joint)
    mp.spawn(run_rank, (2, str(tmp_path), joint), nprocs=2)
    single, double = (load_file(tmp_path / f"{world}.safetensors") for world in (1, 2))
    assert single.keys() == double.keys() and single["restarted"] > 0 and single["r1_penalty"] > 0
    assert torch.equal(single["restarts.usage"], double["restarts.usage"]), "usage is counted in integers"
    for name in single:
        if name.endswith(("exp_avg", ".u", "norm", "loss", "penalty", "restarted")):
            assert torch.allclose(single[name], double[name], atol=1e-4, rtol=1e-3), name


# Flags and bad values


def test_the_regulariser_flags() -> None:
    config = train_config(["--preset", "mnist", "--stability.r1", "1", "--network.spectral-norm"])
    assert config.stability == StabilityConfig(r1=1.0) and config.network.spectral_norm
    assert "--network.spectral-norm --stability.r1 1.0" in train_command(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r1": -1.0}, "stability.r1 is -1.0; it must be a number of at least 0"),
        ({"r1_every": 0}, "stability.r1_every is 0; it must be a number of steps, 1 or more"),
        ({"instance_noise_share": 1.5}, "stability.instance_noise_share is 1.5; it must lie between 0 and 1"),
        ({"label_smoothing": 0.5}, "stability.label_smoothing is 0.5; it must be at least 0 and less than 0.5"),
        ({"restart_below": 1.0}, "stability.restart_below is 1.0; it must lie between 0 and 1"),
    ],
)
def test_bad_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StabilityConfig(**values)


def test_restarts_need_categories() -> None:
    assert LatentSpec.parse("noise=2 uniform=1").names == ("uniform0",)
    with pytest.raises(ValueError, match="restart_every is 5, and codes is 'noise=2 uniform=1', without a categorical"):
        dataclasses.replace(RunConfig(codes="noise=2 uniform=1"), stability=StabilityConfig(restart_every=5))
