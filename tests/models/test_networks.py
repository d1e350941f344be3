"""Generator, discriminator, batch norm. Run: pytest tests/models/test_networks.py"""

import dataclasses
from typing import Any

import pytest
import torch

from infogan_ray import UserError
from infogan_ray.models.batch_norm import BatchNorm
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.network_config import SIZES, NetworkConfig, check_images
from infogan_ray.models.networks import ModelSpec
from infogan_ray.models.residual import BLOCKS, ResidualBlock

SPEC = LatentSpec.parse("noise=4 cat=3 uniform=1")


NETWORKS = {
    "the paper's": NetworkConfig(width=4),
    "without batch norm in D": NetworkConfig(width=4, d_norm="none", output="linear"),
    "residual": NetworkConfig(width=4, architecture="residual", d_norm="none"),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size_gives_images_of_that_size(channels: int, network: NetworkConfig) -> None:
    for size in (*SIZES[:6], 64, 100, 128, 252, SIZES[-1]):
        with torch.device("meta"):  # shapes only
            generator, discriminator = ModelSpec(SPEC, size, channels, network).build()
            images = generator(torch.empty(2, SPEC.dim))
            logits, q = discriminator(images)
        assert images.shape == (2, channels, size, size)
        assert logits.shape == (2,) and q.shape == (2, SPEC.q_dim)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_images_are_in_the_value_range_after_training(network: NetworkConfig) -> None:
    """A linear output has no limits in training, so that G gets a gradient there."""
    generator, _ = ModelSpec(SPEC, 20, 3, network).build()
    with torch.no_grad():
        generator.output_bias.fill_(2.0)
    latents = SPEC.sample(4, torch.Generator().manual_seed(0))
    if network.output == "linear":
        assert generator(latents).mean().item() == pytest.approx(2, abs=0.5)
    assert generator.eval()(latents).min() > 0.9 and generator(latents).max() <= 1


@pytest.mark.parametrize(("network", "kind"), [(NETWORKS["without batch norm in D"], 0), (NETWORKS["residual"], 1)])
def test_features_keep_their_variance_without_batch_norm(network: NetworkConfig, kind: int) -> None:
    """From weights of N(0, 0.02), the features of an unnormalised trunk would vanish from layer to layer."""
    torch.manual_seed(0)
    _, discriminator = ModelSpec(SPEC, 64, 3, dataclasses.replace(network, width=16)).build()
    assert not any(isinstance(module, BatchNorm) for module in discriminator.modules())
    features = discriminator.trunk(torch.randn(16, 3, 64, 64))
    assert 0.2 < features.square().mean().sqrt() < 5


def test_residual_blocks_start_as_the_identity() -> None:
    """So does each block of D, and all layers get a gradient after one step."""
    _, discriminator = ModelSpec(SPEC, 16, 1, NETWORKS["residual"]).build()
    block = ResidualBlock(8, 0.1)
    assert not torch.equal(block(torch.ones(1, 8, 4, 4)), torch.ones(1, 8, 4, 4)), "the start is made by ``build``"
    inside = [module for module in discriminator.modules() if isinstance(module, ResidualBlock)]
    given = torch.randn(2, inside[0].last.out_channels, 16, 16)
    assert len(inside) == 3 * BLOCKS and torch.equal(inside[0](given), given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"architecture": "residual"}, "architecture is residual, which has no batch norm; set network.d_norm to none"),
     ({"architecture": "vgg"}, "network.architecture is 'vgg'; valid are dcgan, residual"),
     ({"d_norm": "none", "joint_batchnorm": True}, "network.joint_batchnorm is on and network.d_norm is none"),
     ({"output": "sigmoid"}, "network.output is 'sigmoid'; valid are tanh, linear")],
)  # fmt: skip
def test_networks_that_do_not_exist_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NetworkConfig(**settings)


def test_layers_equal_the_papers_mnist_networks() -> None:
    generator, discriminator = ModelSpec(LatentSpec.parse("noise=62 cat=10 uniform=2"), 28, 1).build()
    shapes = [tuple(p.shape) for p in generator.parameters() if p.dim() > 1]
    assert shapes == [(1024, 74), (6272, 1024), (128, 64, 4, 4), (64, 1, 4, 4)]
    shapes = [tuple(p.shape) for p in discriminator.parameters() if p.dim() > 1]
    assert shapes == [(64, 1, 4, 4), (128, 64, 4, 4), (1024, 6272), (1, 1024), (128, 1024), (14, 128)]


def test_the_papers_svhn_generator_starts_from_2x2x448() -> None:
    generator, _ = ModelSpec(LatentSpec.parse("noise=124 cat=10x4 uniform=4"), 32, 3).build()
    shapes = [tuple(p.shape) for p in generator.parameters() if p.dim() > 1]
    assert shapes == [(4 * 448, 168), (448, 256, 4, 4), (256, 128, 4, 4), (128, 64, 4, 4), (64, 3, 4, 4)]


@pytest.mark.parametrize("size", [12, 30, 260, 0])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"image size is {size}; valid sizes are the multiples of 4 from 16 to 256"):
        check_images(size, 1)
    with pytest.raises(ValueError, match="channels is 2; valid are 1"):
        check_images(28, 2)


def test_groups_equal_separate_passes() -> None:
    """Real and generated images in one pass, normalised separately, equal two passes, including the statistics."""
    torch.manual_seed(0)
    together, apart = BatchNorm(3), BatchNorm(3)
    real, fake = torch.randn(8, 3, 4, 4), 5 + 2 * torch.randn(8, 3, 4, 4)
    out = together(torch.cat([real, fake]), groups=2)
    assert torch.allclose(out, torch.cat([apart(real), apart(fake)]), atol=1e-6)
    assert torch.allclose(together.running_mean, apart.running_mean)
    assert not torch.allclose(out, BatchNorm(3)(torch.cat([real, fake])), atol=1e-2)


def test_evaluation_mode_does_not_depend_on_the_rest_of_the_batch() -> None:
    generator, _ = ModelSpec(SPEC, 16, 1, NetworkConfig(width=4)).build()
    latents = SPEC.sample(8, torch.Generator().manual_seed(0))
    generator(latents)
    generator.eval()
    assert torch.allclose(generator(latents)[:1], generator(latents[:1]), atol=1e-6)


def test_a_description_round_trips() -> None:
    spec = ModelSpec(SPEC, 20, 3, dataclasses.replace(NETWORKS["residual"], sigma_min=0.2))
    again = ModelSpec.from_dict(spec.to_dict())
    assert again.to_dict() == spec.to_dict() and again.latents.sigma.floor == 0.2
    before = spec.to_dict()
    for name in ("architecture", "d_norm", "output"):  # a checkpoint of a version without these settings
        del before["network"][name]
    assert ModelSpec.from_dict(before).network == NetworkConfig(width=4, sigma_min=0.2)
    with pytest.raises(ValueError, match="not a description of a model"):
        ModelSpec.from_dict({"codes": "cat=3"})
