"""The interface of every kind of prior, and known values of each kind. Run: pytest tests/models/priors/test_kinds.py"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.priors.base import Prior, Sigma
from infogan_ray.models.priors.bernoulli import Bernoulli
from infogan_ray.models.priors.categorical import Categorical
from infogan_ray.models.priors.gaussian import Gaussian
from infogan_ray.models.priors.registry import KINDS
from infogan_ray.models.priors.uniform import Uniform
from infogan_ray.models.rng import seeded_generator
from infogan_ray.training.config import RunConfig

EVERY = pytest.mark.parametrize("kind", KINDS)


def code_of(kind: str) -> Prior:
    return KINDS[kind].parse(3, ())[0]


def rng() -> torch.Generator:
    return seeded_generator(1, "test")


@EVERY
def test_each_kind_has_a_text_form_and_the_right_shapes(kind: str) -> None:
    spec = LatentSpec.parse(f"noise=2 {kind}=3")
    assert str(spec) == f"noise=2 {kind}=3" and KINDS[kind].form.startswith(f"{kind}=")
    assert spec.dim == 2 + KINDS[kind].width(3) == 2 + sum(code.dim for code in spec.codes)
    for sigma in (Sigma(), Sigma(fixed=0.5)):
        code = spec.codes[0]
        sampled, q = code.sample(7, rng()), torch.randn(7, code.q_dim(sigma), generator=rng())
        assert sampled.shape == (7, code.dim)
        likelihood = code.log_likelihood(q, sampled, sigma)
        assert likelihood.shape == (7,) and likelihood.isfinite().all()
        assert code.estimate(q, sigma).shape == (7,) and code.deviation > 0
        first, second = code.sample_apart(7, 0.5, rng())
        assert first.shape == second.shape == (7, code.dim) and (first != second).any(1).all()


@EVERY
def test_displayed_values_can_be_set(kind: str) -> None:
    """Values from traversals, controls, examples and ``encode`` can be embedded, and give the same value back."""
    code, sigma = code_of(kind), Sigma()
    about, (values, inside) = code.widget(), code.traversal(9)
    assert json.loads(json.dumps(about)) == about
    if code.categories is None:
        assert about["control"] == "slider" and inside is not None and len(values) == 9
        assert about["reach"] == pytest.approx([values[0], values[-1]])
        assert about["inside"] == pytest.approx([values[inside[0]], values[inside[1]]])
    else:
        assert about["choices"] == values == list(range(code.categories)) and inside is None
    q = torch.randn(1, code.q_dim(sigma), generator=rng())
    columns = code.columns(q, sigma)
    found = code.nearest(float(columns[""][0]))
    for value in (*values[1:-1], *code.examples, found):
        embedded = code.embed(value, "it")
        assert embedded.shape == (code.dim,) and float(code.value_of(embedded)) == pytest.approx(value, abs=1e-6)
    output = code.summary("it", {f"it{end}": value[0].tolist() for end, value in columns.items()})
    assert output and all(0 <= row.share <= 1 and row.words for row in output)
    assert found == float(code.estimate(q, sigma)[0])
    assert set(code.outputs(q, sigma)) <= set(columns), "encode writes at least the outputs of an exported graph"


@EVERY
def test_each_kind_has_an_information_weight(kind: str) -> None:
    assert getattr(RunConfig().objective, KINDS[kind].lambda_field) > 0


@EVERY
def test_categories_and_quantiles_follow_the_prior(kind: str) -> None:
    code, n = code_of(kind), 20_000
    found = code.value_of(code.sample(n, rng())).numpy()
    if code.categories is not None:
        assert sum(code.probabilities) == pytest.approx(1)
        assert np.bincount(found.astype(int)) / n == pytest.approx(code.probabilities, abs=0.02)
        q = torch.randn(4, code.q_dim(Sigma()), generator=rng())
        assert torch.allclose(code.log_probabilities(q).exp().sum(1), torch.ones(4))
    else:
        shares = (torch.arange(n) + 0.5)[:, None] / n
        assert stats.ks_2samp(found, code.value_of(code.quantile(shares)).numpy()).pvalue > 1e-3
        assert code.deviation == pytest.approx(found.std(), rel=0.02)


def test_probabilities_of_one_hot_codes_can_be_replaced() -> None:
    for kind in KINDS:
        if (code := code_of(kind)).one_hot:
            assert code.with_probabilities((0.5, 0.3, 0.2)).probabilities == (0.5, 0.3, 0.2)
            assert code.dim == code.q_dim(Sigma()) == code.categories


def test_entropies_agree_with_scipy() -> None:
    assert Categorical(10).entropy() == pytest.approx(math.log(10))
    assert Categorical(3, (0.5, 0.3, 0.2)).entropy() == pytest.approx(stats.entropy([0.5, 0.3, 0.2]))
    assert Bernoulli(0.3).entropy() == pytest.approx(stats.bernoulli(0.3).entropy())
    assert Uniform(-2, 3).entropy() == pytest.approx(stats.uniform(-2, 5).entropy())
    assert Gaussian(1, 2).entropy() == pytest.approx(stats.norm(1, 2).entropy())


def test_log_likelihoods_agree_with_scipy() -> None:
    sigma = Sigma(floor=0.1)
    q = torch.tensor([[0.3, -0.7], [1.0, 2.0]])
    code = torch.tensor([[0.1], [-0.4]])
    deviation = 0.1 + torch.nn.functional.softplus(q[:, 1])
    wanted = stats.norm(q[:, 0].numpy(), deviation.numpy()).logpdf(code[:, 0].numpy())
    assert Uniform().log_likelihood(q, code, sigma).numpy() == pytest.approx(wanted, abs=1e-5)
    coin = Bernoulli().log_likelihood(torch.tensor([[0.4], [0.4]]), torch.tensor([[1.0], [0.0]]), sigma)
    p = 1 / (1 + math.exp(-0.4))
    assert coin.tolist() == pytest.approx([math.log(p), math.log(1 - p)], abs=1e-6)
    logits = torch.tensor([[1.0, 0.0, -1.0]])
    picked = Categorical(3).log_likelihood(logits, torch.tensor([[0.0, 1.0, 0.0]]), sigma)
    assert picked.item() == pytest.approx(math.log(1 / (math.e + 1 + 1 / math.e)), abs=1e-6)


def test_samples_follow_their_priors() -> None:
    n, generator = 20_000, rng()
    assert Categorical(3, (0.5, 0.3, 0.2)).sample(n, generator).mean(0).tolist() == pytest.approx(
        [0.5, 0.3, 0.2], abs=0.02
    )
    assert Bernoulli(0.3).sample(n, generator).mean().item() == pytest.approx(0.3, abs=0.02)
    for prior, law in ((Uniform(-2, 3), stats.uniform(-2, 5)), (Gaussian(1, 2), stats.norm(1, 2))):
        assert stats.kstest(prior.sample(n, generator)[:, 0].numpy(), law.cdf).pvalue > 1e-3


def test_a_traversal_extends_beyond_the_prior() -> None:
    values, inside = Uniform(-1, 1).traversal(9)
    assert values == [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2] and inside == (2, 6)
    values, _ = Gaussian(1, 2).traversal(9)
    assert [values[0], values[-1]] == [-3, 5]


@pytest.mark.parametrize(
    ("code", "value", "message"),
    [
        (Categorical(3), 3, "it is 3; valid are the categories 0 to 2"),
        (Categorical(3), 0.5, "it is 0.5; valid are the categories 0 to 2"),
        (Bernoulli(), 0.5, "it is 0.5; valid are 0 and 1"),
    ],
)
def test_an_impossible_value_of_a_code_is_refused(code: Prior, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        code.embed(value, "it")
