"""The von Mises prior, compared with scipy and numerical integration, and in a trained model.

Run: pytest tests/models/priors/test_von_mises.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.losses import information_bound
from infogan_ray.models.priors.base import Sigma
from infogan_ray.models.priors.von_mises import VonMises
from infogan_ray.models.rng import seeded_generator
from infogan_ray.training.load_model import load
from infogan_ray.training.model_card import model_card
from tests.conftest import make_image_set, tiny_config
from tests.training.test_step import run_alone

CODE = VonMises()


def outputs(mean: np.ndarray | float, concentration: float, sigma: Sigma, length: float = 3.0) -> torch.Tensor:
    """Q's output for these means and this concentration: (n, 3)."""
    mean = np.atleast_1d(mean)
    spread = concentration**-0.5 - sigma.floor
    rows = [length * np.cos(mean), length * np.sin(mean), np.full_like(mean, math.log(math.expm1(spread)))]
    return torch.tensor(np.stack(rows, 1), dtype=torch.float32)


def at(angle: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.stack([np.cos(angle), np.sin(angle)], 1), dtype=torch.float32)


@pytest.mark.parametrize("concentration", [0.05, 1.0, 30.0, 2000.0])
def test_the_log_likelihood_equals_scipy_and_integrates_to_one(concentration: float) -> None:
    sigma, mean = Sigma(floor=0.01), 2.5
    angles = np.linspace(-math.pi, math.pi, 20_001)
    q = outputs(mean, concentration, sigma).expand(len(angles), 3)
    found = CODE.log_likelihood(q, at(angles), sigma).numpy()
    wanted = stats.vonmises(concentration, loc=mean).logpdf(angles)
    assert found == pytest.approx(wanted, rel=1e-3, abs=2e-3)
    assert np.trapezoid(np.exp(found), angles) == pytest.approx(1, abs=1e-3)
    columns = CODE.columns(q[:1], sigma)
    assert float(columns[""]) == pytest.approx(mean) and float(columns["_concentration"]) == pytest.approx(
        concentration, rel=1e-3
    )


def test_a_fixed_spread_is_a_fixed_concentration() -> None:
    sigma = Sigma(fixed=0.5)
    found = CODE.log_likelihood(torch.tensor([[0.0, 2.0]]), at(np.array([1.0])), sigma)
    assert float(found) == pytest.approx(stats.vonmises(4.0, loc=math.pi / 2).logpdf(1.0), abs=1e-5)


@pytest.mark.parametrize("concentration", [0.3, 4.0, 50.0])
def test_the_bound_of_an_exact_q_equals_the_closed_form(concentration: float) -> None:
    """x = theta + von Mises noise has the posterior VM(x, kappa): I = H(theta) - H(theta|x) = kappa A - log I0."""
    law, sigma = stats.vonmises(concentration), Sigma(floor=0.05)
    entropy, _ = integrate.quad(lambda angle: -law.pdf(angle) * law.logpdf(angle), -math.pi, math.pi)
    moment, _ = integrate.quad(lambda angle: math.cos(angle) * law.pdf(angle), -math.pi, math.pi)
    information = concentration * moment - math.log(np.i0(concentration))
    assert CODE.entropy() - entropy == pytest.approx(information, abs=1e-6)
    spec = LatentSpec.parse("noise=1 vonmises=1", sigma)
    latents = spec.sample(100_000, seeded_generator(0, "test"))
    seen = CODE.value_of(latents[:, 1:]).numpy() + law.rvs(len(latents), random_state=0)
    bound = information_bound(spec, latents, outputs(seen, concentration, sigma))["vonmises0"]
    assert float(bound) == pytest.approx(information, abs=0.015) and information < CODE.ceiling(sigma)


@pytest.mark.parametrize("sigma", [Sigma(), Sigma(fixed=0.7), Sigma(floor=0.01)])
def test_no_bound_is_above_the_ceiling_and_a_perfect_q_reaches_it(sigma: Sigma) -> None:
    spec = LatentSpec.parse("noise=1 vonmises=1", sigma)
    latents = spec.sample(500, seeded_generator(0, "test"))
    q = torch.cat([7 * latents[:, 1:], torch.full((500, CODE.q_dim(sigma) - 2), -200.0)], 1)
    concentration = sigma.smallest**-2
    ceiling = CODE.ceiling(sigma)
    assert ceiling == pytest.approx(math.log(2 * math.pi) + stats.vonmises(concentration).logpdf(0))
    assert float(information_bound(spec, latents, q)["vonmises0"]) == pytest.approx(ceiling, abs=1e-4)
    if concentration > 50:  # almost a Gaussian with the same spread
        assert ceiling == pytest.approx(math.log(2 * math.pi) - math.log(sigma.smallest) - 0.9189385, abs=2e-3)


def test_the_divergence_equals_the_integral() -> None:
    sigma = Sigma(floor=0.05)
    for first, second in (((0.4, 3.0), (1.9, 8.0)), ((-3.0, 60.0), (3.0, 20.0)), ((1.0, 5.0), (1.0, 5.0))):
        p, q = stats.vonmises(first[1], loc=first[0]), stats.vonmises(second[1], loc=second[0])
        wanted, _ = integrate.quad(
            lambda angle, p=p, q=q: p.pdf(angle) * (p.logpdf(angle) - q.logpdf(angle)), -math.pi, math.pi, limit=200
        )
        found = CODE.divergence(outputs(*first, sigma), outputs(*second, sigma), sigma)
        assert found.shape == (1, 1) and float(found) == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_gradients_are_finite_for_any_output_of_q() -> None:
    for sigma in (Sigma(), Sigma(fixed=1.0)):
        q = torch.cat([torch.zeros(1, 3), torch.randn(50, 3), 1e3 * torch.randn(50, 3)])[:, : CODE.q_dim(sigma)]
        q.requires_grad_()
        code = CODE.sample(len(q), seeded_generator(0, "test"))
        loss = CODE.log_likelihood(q, code, sigma).sum() + CODE.divergence(q, q.flip(0), sigma).sum()
        [gradient] = torch.autograd.grad(loss, q)
        assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("gap", [0.0, 0.5, 0.95])
def test_pairs_are_at_least_the_gap_apart_on_the_circle(gap: float) -> None:
    first, second = CODE.sample_apart(20_000, gap, seeded_generator(0, "test"))
    arc = torch.acos((first * second).sum(1).clamp(-1, 1)) / math.pi
    assert arc.min() >= gap - 1e-3 and arc.min() < gap + 0.01 and arc.max() > 0.999
    for values in (first, second):
        angles = CODE.value_of(values).numpy()
        assert stats.kstest(angles, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3


def test_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot read the parameters of 'vonmises=1@2'; .*vonmises=N"):
        LatentSpec.parse("noise=1 vonmises=1@2")
    with pytest.raises(ValueError, match="the latent is 80,000 wide"):
        LatentSpec.parse("vonmises=40000")


def test_a_trained_model_supports_angles_everywhere(tmp_path: Path) -> None:
    consistency = {"weight": 1.0, "start": 0, "full": 1, "continuous": 0.5}
    more = {"consistency": consistency, "contrastive": {"weight": 1.0, "start": 0}}
    config = tiny_config(codes="noise=4 cat=3 vonmises=2").override(more, "test")
    run, _ = run_alone(config, make_image_set(), tmp_path)
    model = load(run.model.uri)
    metrics = json.loads(run.model.read("metrics.json"))
    assert math.isfinite(metrics["mi/vonmises1"]) and metrics["mi/vonmises1"] <= CODE.ceiling(Sigma())
    assert "| vonmises0 |  | VonMises(1) |" in model_card(model, config, metrics)
    grid = model.traverse("vonmises0")
    assert torch.equal(grid.images[:, 0], grid.images[:, -1]), "the traversal is a full circle"
    assert not torch.equal(grid.images[:, 0], grid.images[:, 4]) and grid.inside == (0, 8)
    turned = [model.sample(3, {"vonmises0": angle}) for angle in (1.57, 1.57 + 2 * math.pi, 0.0)]
    assert torch.equal(turned[0], turned[1]) and not torch.equal(turned[0], turned[2])
    codes = model.encode(make_image_set().images[:5])
    assert list(codes)[-2:] == ["vonmises1", "vonmises1_concentration"]
    assert np.abs(codes["vonmises0"]).max() <= math.pi and 0 < codes["vonmises0_concentration"].max() <= 100
