"""Losses and the bound, and known mistakes of other implementations. Run: pytest tests/models/test_losses.py"""

import math
import subprocess
import sys

import pytest
import torch

from infogan_ray.models.games import GAMES
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.losses import (
    ObjectiveConfig,
    information_bound,
    mi_fraction,
    weighted_bound,
)
from infogan_ray.models.priors.base import Sigma
from infogan_ray.models.rng import seeded_generator


def test_losses_equal_their_definitions_and_accept_large_logits() -> None:
    game = GAMES["logistic"]
    real, fake = torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0])
    wanted = -(real.sigmoid().log().mean() + (1 - fake.sigmoid()).log().mean())
    assert game.discriminator_loss(real, fake).item() == pytest.approx(wanted.item(), abs=1e-6)
    assert game.generator_loss(None, fake).item() == pytest.approx(-fake.sigmoid().log().mean().item(), abs=1e-6)
    assert game.discriminator_loss(torch.tensor([-200.0]), torch.tensor([200.0])).item() == pytest.approx(400)


def test_the_relativistic_game_compares_the_images_of_each_pair() -> None:
    """The losses equal their definitions, and do not change if all logits change by the same number."""
    game = GAMES["relativistic"]
    real, fake = torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0])
    assert game.discriminator_loss(real, fake).item() == pytest.approx(-(real - fake).sigmoid().log().mean().item())
    assert game.generator_loss(real, fake).item() == pytest.approx(-(fake - real).sigmoid().log().mean().item())
    assert game.discriminator_loss(real + 5, fake + 5).item() == pytest.approx(
        game.discriminator_loss(real, fake).item()
    )
    assert game.discriminator_loss(torch.tensor([-200.0]), torch.tensor([200.0])).item() == pytest.approx(400)
    target = torch.tensor([0.9, 0.9])
    soft = torch.nn.functional.binary_cross_entropy_with_logits(real - fake, target)
    assert game.discriminator_loss(real, fake, smoothing=0.1).item() == pytest.approx(soft.item())
    for_real, for_generated = game.decisions(real, fake)
    assert torch.equal(for_real, -for_generated) and for_real.tolist() == pytest.approx([-0.2, -3.0])


def test_a_perfect_q_reaches_the_categorical_entropy_and_no_more() -> None:
    """With softmax before cross-entropy the bound would be at most log 10 - 1.461."""
    spec = LatentSpec.parse("noise=2 cat=10")
    latents = spec.sample(500, seeded_generator(0, "test"))
    bound = information_bound(spec, latents, 100 * latents[:, 2:])["cat0"].item()
    assert bound == pytest.approx(math.log(10), abs=1e-5) and bound <= math.log(10) + 1e-6


def test_a_constant_q_has_bound_zero() -> None:
    spec = LatentSpec.parse("noise=2 cat=7 bernoulli=1")
    latents = spec.sample(500, seeded_generator(0, "test"))
    bounds = information_bound(spec, latents, torch.zeros(500, spec.q_dim))
    assert bounds["cat0"].item() == pytest.approx(0, abs=1e-6)
    assert bounds["bernoulli0"].item() == pytest.approx(0, abs=1e-6)


def test_sigma_has_a_floor_and_the_ceiling_follows_from_it() -> None:
    """Without a floor, sigma -> 0 on known codes would make the bound infinite."""
    spec = LatentSpec.parse("noise=2 uniform=1", Sigma(floor=0.1))
    latents = spec.sample(500, seeded_generator(0, "test"))
    q = torch.cat([latents[:, 2:], torch.full((500, 1), -100.0)], dim=1)
    bound = information_bound(spec, latents, q)["uniform0"].item()
    ceiling = spec["uniform0"].ceiling(spec.sigma)
    assert ceiling == pytest.approx(math.log(2) - math.log(0.1) - 0.5 * math.log(2 * math.pi))
    assert bound == pytest.approx(ceiling, abs=1e-4)
    fixed = LatentSpec.parse("noise=2 uniform=1", Sigma(fixed=1.0))
    assert fixed["uniform0"].ceiling(fixed.sigma) == pytest.approx(math.log(2) - 0.9189385, abs=1e-6)
    assert fixed.q_dim == 1


def test_the_loss_is_a_sum_over_codes() -> None:
    single, four = LatentSpec.parse("noise=1 cat=10"), LatentSpec.parse("noise=1 cat=10x4")
    config = ObjectiveConfig()
    losses = []
    for spec in (single, four):
        latents = spec.sample(50, seeded_generator(0, "test"))
        bounds = information_bound(spec, latents, 100 * latents[:, 1:])
        losses.append(weighted_bound(bounds, config.weights(spec)).item())
    assert losses[1] == pytest.approx(4 * losses[0], rel=1e-5)


def test_weights_are_set_by_kind_and_by_code() -> None:
    spec = LatentSpec.parse("noise=1 cat=3 uniform=2 gaussian=1 bernoulli=1")
    config = ObjectiveConfig(1.0, 0.1, 0.7, {"uniform1": 0.5})
    assert config.weights(spec) == {
        "cat0": 1.0, "uniform0": 0.1, "uniform1": 0.5, "gaussian0": 0.1, "bernoulli0": 0.7,
    }  # fmt: skip
    with pytest.raises(ValueError, match="cat9.*this model has cat0"):
        ObjectiveConfig(lambda_code={"cat9": 1.0}).weights(spec)


def test_fraction_compares_different_priors() -> None:
    small, large = LatentSpec.parse("noise=1 cat=5"), LatentSpec.parse("noise=1 cat=20")
    assert mi_fraction(small, {"cat0": math.log(5)}) == pytest.approx(mi_fraction(large, {"cat0": math.log(20)}))


@pytest.mark.parametrize("code", ["cat=10", "uniform=1", "uniform=1@-0.1:0.1", "gaussian=1@0:0.05", "bernoulli=1"])
@pytest.mark.parametrize("sigma", [Sigma(), Sigma(fixed=1.0), Sigma(fixed=0.79788)])
def test_a_better_bound_is_never_a_smaller_fraction(code: str, sigma: Sigma) -> None:
    """Also if every bound is negative, as for a wide Q: the best bound has fraction 1, the maximum."""
    spec = LatentSpec.parse(f"noise=1 {code}", sigma)
    [(name, code_prior)] = spec.items()
    ceiling = code_prior.ceiling(spec.sigma)
    fractions = [mi_fraction(spec, {name: ceiling - below}) for below in (0.0, 0.01, 0.3, 2.0, 30.0)]
    assert fractions == sorted(fractions, reverse=True) and fractions[0] == pytest.approx(1.0)
    assert fractions[0] - fractions[1] < 0.11 and fractions[1] - fractions[2] > 0.01


def test_the_bound_has_a_gradient_and_batch_one_works() -> None:
    spec = LatentSpec.parse("noise=2 cat=3 uniform=1")
    q = torch.zeros(1, spec.q_dim, requires_grad=True)
    latents = spec.sample(1, seeded_generator(0, "test"))
    weighted_bound(information_bound(spec, latents, q), ObjectiveConfig().weights(spec)).backward()
    assert q.grad is not None and bool((q.grad != 0).any())


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "ray" or name.startswith("ray."):
            raise ImportError("ray is blocked")
sys.meta_path.insert(0, Block())
import infogan_ray.models.losses, infogan_ray.training.worker, infogan_ray.models.infogan, infogan_ray.cli.main
import infogan_ray.training.publish
import infogan_ray.web.reports.search, infogan_ray.evaluation.unsupervised_metrics
assert "ray" not in sys.modules
"""


def test_all_packages_except_distributed_import_without_ray() -> None:
    subprocess.run([sys.executable, "-c", BLOCKED], check=True, timeout=120)


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from infogan_ray.cli.main import main; main(['--help']); "
        "assert not {'torch', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)
