"""Generator, discriminator, batch norm. Run: pytest tests/models/test_networks.py"""

import pytest
import torch

from infogan_ray.models.batch_norm import BatchNorm
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import SIZES, ModelSpec, NetworkConfig, plan

SPEC = LatentSpec.parse("noise=4 cat=3 uniform=1")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_size_gives_images_of_that_size(size: int, channels: int) -> None:
    spec = ModelSpec(SPEC, size, channels, NetworkConfig(width=4))
    generator, discriminator = spec.build()
    images = generator(SPEC.sample(2, torch.Generator().manual_seed(0)))
    assert images.shape == (2, channels, size, size) and images.abs().max() <= 1
    logits, q = discriminator(images)
    assert logits.shape == (2,) and q.shape == (2, SPEC.q_dim)


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


@pytest.mark.parametrize("size", [12, 30, 132, 0])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"image size is {size}; valid sizes are the multiples of 4 from 16 to 128"):
        plan(size, 1)
    with pytest.raises(ValueError, match="channels is 2; valid are 1"):
        plan(28, 2)


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
    spec = ModelSpec(SPEC, 20, 3, NetworkConfig(width=4, sigma_min=0.2))
    again = ModelSpec.from_dict(spec.to_dict())
    assert again.to_dict() == spec.to_dict() and again.latents.sigma.floor == 0.2
    with pytest.raises(ValueError, match="not a description of a model"):
        ModelSpec.from_dict({"codes": "cat=3"})
