"""The latent specification. Run: pytest tests/models/test_latents.py"""

import pytest
import torch

from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.rng import seeded_generator

TEXTS = [
    "noise=62 cat=10 uniform=2",
    "noise=124 cat=10x4 uniform=4",
    "noise=0 gaussian=3",
    "noise=8 cat=3@0.5:0.3:0.2 uniform=1@-2:2 gaussian=1@0:2 bernoulli=3@0.3",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_form_round_trips_and_latents_split(text: str) -> None:
    spec = LatentSpec.parse(text)
    assert LatentSpec.parse(str(spec)) == spec
    latents = spec.sample(7, seeded_generator(0, "test"))
    noise, codes = spec.split(latents)
    assert latents.shape == (7, spec.dim) and noise.shape == (7, spec.noise)
    assert {name: part.shape[1] for name, part in codes.items()} == {n: c.dim for n, c in spec.items()}
    for name, code in spec.items():
        assert torch.equal(latents[:, spec.columns(name)], codes[name])
        if code.one_hot:
            assert torch.equal(codes[name].sum(1), torch.ones(7))


def test_codes_are_named_by_kind_and_index() -> None:
    spec = LatentSpec.parse("noise=1 cat=10x2 uniform=1 cat=5 bernoulli=1")
    assert spec.names == ("cat0", "cat1", "uniform0", "cat2", "bernoulli0")
    with pytest.raises(ValueError, match="cat7.*cat0, cat1"):
        spec["cat7"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("noise=1000000000 cat=10", "with 'noise=1000000000' the latent is 1,000,000,000 wide; the maximum is 65,536"),
        ("noise=62 uniform=1000000000x9", "the latent is 9,000,000,062 wide"),
        ("noise=62 dog=3", "'dog=3' is not a prior; valid are noise, cat, uniform, gaussian, bernoulli"),
        ("noise=62 cat=1", "at least 2 categories"),
        ("noise=62", "no code is named"),
        ("noise=62 cat=ten", "cannot read 'cat=ten'"),
        ("noise=62 cat=3@0.5:0.5", "3 positive probabilities"),
        ("uniform=1@2:1", "low must be smaller"),
        ("uniform=1@1:2:3", "cannot read the parameters"),
        ("bernoulli=1@1.5", "between 0 and 1"),
        ("gaussian=1@0:0", "must be positive"),
        ("noise=3@1 cat=2", "cannot read 'noise=3@1'"),
    ],
)
def test_a_bad_specification_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        LatentSpec.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "cat=3@0.3333333:0.3333333:0.3333334", "cat=7@" + ":".join(["0.14285714"] * 6 + ["0.14285716"]),
        "uniform=1@-0.123456789:2", "gaussian=1@0:1.23456789", "bernoulli=1@0.30000001", "cat=2@0.3:0.7",
    ],
)  # fmt: skip
def test_the_text_form_of_a_specification_keeps_all_digits(text: str) -> None:
    spec = LatentSpec.parse(f"noise=2 {text}")
    assert str(spec) == f"noise=2 {text}" and LatentSpec.parse(str(spec)) == spec
