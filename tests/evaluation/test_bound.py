"""The bound, measured outside training, and traversals. Run: pytest tests/evaluation/test_bound.py"""

import pytest
import torch

from infogan_ray.evaluation.bound import EvaluationConfig
from infogan_ray.evaluation.measure import measure_bound
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.network_config import NetworkConfig
from infogan_ray.models.networks import ModelSpec
from infogan_ray.models.traversal import draw, traverse


def small_model() -> ModelSpec:
    return ModelSpec(LatentSpec.parse("noise=4 cat=3 uniform=1 bernoulli=1"), 16, 1, NetworkConfig(width=4))


def test_the_bound_is_reproducible_and_keeps_training_mode() -> None:
    spec = small_model()
    generator, discriminator = spec.build()
    first = measure_bound(spec.latents, generator, discriminator, EvaluationConfig(samples=700))
    assert first == measure_bound(spec.latents, generator, discriminator, EvaluationConfig(samples=700))
    assert discriminator.training and generator.training

    def give_up() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_bound(spec.latents, generator, discriminator, EvaluationConfig(samples=700), before_batch=give_up)
    assert discriminator.training and generator.training, "also after an interrupted measurement"
    assert set(first) == {"mi_bound", "mi_fraction", "mi/cat0", "mi/uniform0", "mi/bernoulli0"}


def test_the_bound_does_not_depend_on_batch_norm_statistics_from_training() -> None:
    spec, samples = small_model(), EvaluationConfig(samples=700)
    generator, discriminator = spec.build()
    with torch.no_grad():
        for parameter in discriminator.recognition.parameters():
            parameter.mul_(20)  # so that Q's predictions differ from uniform
    discriminator(generator(spec.latents.sample(64, torch.Generator().manual_seed(0))))
    first = measure_bound(spec.latents, generator, discriminator, samples)
    for name, buffer in discriminator.named_buffers():
        buffer.add_(3) if name.endswith("mean") else buffer.mul_(9)  # as real images that look different may do
    left = {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
    assert measure_bound(spec.latents, generator, discriminator, samples) == first
    calls: list[None] = []

    def give_up() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_bound(spec.latents, generator, discriminator, samples, before_batch=give_up)
    for name, buffer in discriminator.named_buffers():
        assert torch.equal(buffer, left[name]), f"{name} must keep the value from training, which checkpoints store"


@pytest.mark.parametrize(("code", "rows"), [("cat0", 3), ("uniform0", 3), ("bernoulli0", 2)])
def test_a_traversal_has_a_named_row_per_category(code: str, rows: int) -> None:
    spec = small_model()
    generator, _ = spec.build()
    grid = traverse(spec.latents, generator.eval(), code)
    assert grid.images.shape == (rows, 9, 1, 16, 16) and len(grid.rows) == rows
    assert not torch.equal(grid.images[0], grid.images[1])
    picture = draw(grid)
    assert picture.width > 9 * 16 and picture.height > rows * 16
    with pytest.raises(ValueError, match="cat9.*cat0, uniform0, bernoulli0"):
        traverse(spec.latents, generator, "cat9")
