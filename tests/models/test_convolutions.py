"""Stride-2 convolutions for training on a CPU equal PyTorch's up to rounding.

Run: pytest tests/models/test_convolutions.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infogan_ray.models.convolutions import FEW_CHANNELS, Correlate, Double, DoublingConv, Halve, HalvingConv, correlate
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.network_config import NetworkConfig
from infogan_ray.models.networks import Discriminator, ModelSpec, frozen
from infogan_ray.training.regularisers import StabilityConfig, gradient_penalties

CHANNELS = [1, 3, FEW_CHANNELS, FEW_CHANNELS + 4]
SIZES = [(8, 8), (7, 7), (6, 9)]


def results_of(layer: Callable[[Tensor], Tensor], given: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """A layer's output and all its gradients, for a loss with a different weight per output."""
    given = given.clone().requires_grad_()
    output = layer(given)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return [output, *torch.autograd.grad((output * weights).sum(), [given, *parameters])]


def both_layers(channels: int, size: tuple[int, int]) -> list[tuple[torch.nn.Module, Callable[..., Tensor], Tensor]]:
    torch.manual_seed(0)
    height, width = size
    down = HalvingConv(channels, 5)
    up = DoublingConv(5, channels, odd=bool(height % 2))
    x, y = torch.randn(3, channels, height, width), torch.randn(3, 5, height // 2, width // 2)
    up_size = int(height % 2)
    return [
        (down, lambda x, w, b: F.conv2d(x, w, b, 2, 1), x),
        (up, lambda y, w, b: F.conv_transpose2d(y, w, b, 2, 1, output_padding=up_size), y),
    ]


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("size", SIZES)
def test_layers_and_their_gradients_equal_pytorch(channels: int, size: tuple[int, int]) -> None:
    for layer, reference, given in both_layers(channels, size):
        layer, given = layer.double(), given.double()
        parameters = list(layer.parameters())
        ours = results_of(layer, given, parameters)
        theirs = results_of(lambda g, of=reference, p=parameters: of(g, *p), given, parameters)
        for actual, expected in zip(ours, theirs, strict=True):
            assert actual.shape == expected.shape and torch.allclose(actual, expected, atol=1e-10)


@pytest.mark.parametrize("channels", CHANNELS)
def test_bf16_errors_are_as_small_as_pytorchs(channels: int) -> None:
    for layer, reference, given in both_layers(channels, (8, 8)):
        parameters = list(layer.parameters())
        exact = results_of(lambda g, of=reference, p=parameters: of(g, *p), given, parameters)

        def relative_errors(results: list[Tensor], exact: list[Tensor] = exact) -> list[float]:
            return [
                ((actual - expected).norm() / expected.norm()).item()
                for actual, expected in zip(results, exact, strict=True)
            ]

        with torch.autocast("cpu", torch.bfloat16):
            ours = results_of(layer, given, parameters)
            theirs = results_of(lambda g, of=reference, p=parameters: of(g, *p), given, parameters)
        assert [result.dtype for result in ours] == [result.dtype for result in theirs]
        for actual, expected in zip(relative_errors(ours), relative_errors(theirs), strict=True):
            assert 0 < actual < max(1.5 * expected, 0.01)


@pytest.mark.parametrize("channels", [1, FEW_CHANNELS + 1])
def test_gradients_can_be_differentiated_again(channels: int) -> None:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).requires_grad_()

    torch.manual_seed(0)
    x, y, weight = normal(2, channels, 5, 4), normal(2, 2, 2, 2), normal(2, channels, 4, 4)
    maps: list[tuple[Any, tuple[Any, ...]]] = [
        (Halve, (x, weight, normal(2), None)),
        (Double, (y, weight, normal(channels), (5, 4))),
        (Correlate, (x, y, None)),
    ]
    for each, given in maps:
        assert torch.autograd.gradcheck(each.apply, given) and torch.autograd.gradgradcheck(each.apply, given)


def test_outside_training_pytorchs_layers_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published model does not depend on the device that trained it."""
    for name in ("halve", "double"):
        monkeypatch.delattr(f"infogan_ray.models.convolutions.{name}")
    for layer, reference, given in both_layers(1, (8, 8)):
        expected = reference(given, *layer.parameters())
        with torch.no_grad():
            assert torch.equal(layer(given), expected)
        with pytest.raises(NameError):
            layer(given)
        assert torch.equal(layer.eval()(given), expected)


def test_autocast_keeps_float64_like_pytorch() -> None:
    for layer, _, given in both_layers(3, (8, 8)):
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.double()(given.double()).dtype == torch.float64


def small_discriminator(channels: int) -> Discriminator:
    torch.manual_seed(0)
    return ModelSpec(LatentSpec.parse("noise=4 cat=3"), 16, channels, NetworkConfig(width=16)).build()[1]


@pytest.mark.parametrize("channels", [1, 3])
def test_r1_equals_that_of_pytorchs_layers(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare penalty and gradients through D with batch norm."""
    discriminator = small_discriminator(channels).double()
    images = torch.randn(8, channels, 16, 16, dtype=torch.float64).requires_grad_()
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, 0, 0, 0, 0], dtype=torch.float64)

    def outcome() -> list[Tensor]:
        logits = discriminator.head(discriminator.trunk(images, 2)).flatten()
        penalty = gradient_penalties(StabilityConfig(r1=1.0), signs, logits, images)["r1_penalty"]
        return [penalty, *torch.autograd.grad(penalty, list(discriminator.trunk.parameters()), allow_unused=True)]

    ours = outcome()
    monkeypatch.setattr("infogan_ray.models.convolutions._trains_on_cpu", lambda layer, x: False)
    for actual, theirs in zip(ours, outcome(), strict=True):
        # A bias before batch norm has no gradient: PyTorch gives None, which equals zeros.
        assert torch.allclose(actual, theirs if theirs is not None else torch.zeros_like(actual), atol=1e-9)


def test_no_unused_weight_gradient_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In G's step D is frozen. R1 first needs only the gradient with respect to the images."""
    calls: list[tuple[int, ...]] = []

    def recording_correlate(x: Tensor, y: Tensor, known: Tensor | None) -> Tensor:
        calls.append(tuple(x.shape))
        return correlate(x, y, known)

    monkeypatch.setattr("infogan_ray.models.convolutions.correlate", recording_correlate)
    discriminator, images = small_discriminator(1), torch.randn(4, 1, 16, 16).requires_grad_()
    with frozen(discriminator):
        discriminator(images)[0].sum().backward()
    assert not calls
    logits, _ = discriminator(images)
    penalty = gradient_penalties(StabilityConfig(r1=1.0), torch.ones(4), logits, images)["r1_penalty"]
    assert not calls
    penalty.backward()
    once = len(calls)
    assert once
    discriminator(images)[0].sum().backward()
    assert len(calls) == once + 2  # D has two such layers


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_no_memory_layout_changes_between_convolutions(precision: torch.dtype, channels: int) -> None:
    """Mixed memory layouts give the same numbers but are several times slower.

    Outputs and gradients are all in channels-last layout.
    """
    spec = ModelSpec(LatentSpec.parse("noise=4 cat=3"), 16, channels, NetworkConfig(width=16))
    generator, discriminator = spec.build()
    found: list[tuple[str, Tensor]] = []

    def watch(module: torch.nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if output.dim() == 4 and output.shape[1] > 1:
            found.append((f"output of {module}", output))
            if output.requires_grad:
                output.register_hook(lambda gradient: found.append((f"gradient of {module}", gradient)))

    for layer in [*generator.layers, *discriminator.trunk]:
        if not isinstance(layer, torch.nn.Unflatten):
            layer.register_forward_hook(watch)
    with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
        logits, _ = discriminator(generator(spec.latents.sample(6, torch.Generator().manual_seed(0))), groups=2)
    logits.sum().backward()
    assert len([name for name, _ in found if name.startswith("gradient")]) >= 5
    for name, tensor in found:
        assert tensor.is_contiguous(memory_format=torch.channels_last), name
