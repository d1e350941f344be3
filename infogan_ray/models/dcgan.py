"""The architecture of the paper: convolutions with stride 2 and batch norm, as in DCGAN.

Shapes: B batch, C channels, H = W image size, L width of a latent. ``paper_plan`` has the layers of Chen et al. 2016
(arXiv:1606.03657, appendix C), and ``doubling_plan`` a rule for all sizes. G's layers and D's trunk follow a plan.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from infogan_ray.models.batch_norm import BatchNorm
from infogan_ray.models.convolutions import DoublingConv, Flatten, HalvingConv
from infogan_ray.models.initialisation import initialise_by_fan_in
from infogan_ray.models.network_config import NetworkConfig, halves


@dataclass(frozen=True)
class Plan:
    """Channel counts as multiples of the width. Stride-2 layers halve (D) or double (G) the image size."""

    down: tuple[int, ...]
    """D's stride-2 convolutions."""
    flat: tuple[int, ...]
    """D's stride-1 convolutions after ``down``."""
    hidden: int
    """The fully connected layer of D and of G. 0 means no layer."""
    base: int
    """Channels of G's first feature map."""
    up_flat: tuple[int, ...]
    """G's stride-1 convolutions before its stride-2 ones."""
    up: tuple[int, ...]
    """G's stride-2 layers without the last one, which makes the image."""


def paper_plan(image_size: int, channels: int) -> Plan | None:
    """The paper's layers. None if the paper has no such images."""
    if (image_size, channels) in ((28, 1), (32, 1)):  # MNIST, faces
        return Plan(down=(1, 2), flat=(), hidden=16, base=2, up_flat=(), up=(1,))
    if (image_size, channels) == (32, 3):  # SVHN, CelebA: G starts from 2x2x448
        return Plan(down=(1, 2, 4), flat=(), hidden=0, base=7, up_flat=(), up=(4, 2, 1))
    if (image_size, channels) == (64, 1):  # chairs
        return Plan(down=(1, 2, 4), flat=(4, 4), hidden=16, base=4, up_flat=(4, 4), up=(2, 1))
    return None


def doubling_plan(image_size: int) -> Plan:
    """Layers for any size: halvings down to 4 to 7 pixels. Each doubles the channels, up to 8 times the width."""
    down = tuple(min(2**halving, 8) for halving in range(len(halves(image_size))))
    return Plan(down=down, flat=(), hidden=16, base=down[-1], up_flat=(), up=tuple(reversed(down[:-1])))


def plan(image_size: int, channels: int, config: NetworkConfig) -> Plan:
    """The layers for an image size and channel count that ``check_images`` accepts."""
    papers = paper_plan(image_size, channels) if config.plan == "paper" else None
    return papers or doubling_plan(image_size)


def generator_layers(latent_dim: int, image_size: int, channels: int, config: NetworkConfig) -> list[nn.Module]:
    """G's layers, from latents (B, L) to images (B, C, H, W) before the output function. The last one has a bias."""
    arch, width, sync = plan(image_size, channels, config), config.width, config.sync_batchnorm
    sizes = [*reversed(halves(image_size, len(arch.up) + 1)), image_size]
    base, at = arch.base * width, sizes[0]
    layers: list[nn.Module] = []
    features = latent_dim
    if arch.hidden:
        layers += [nn.Linear(features, arch.hidden * width, bias=False), BatchNorm(arch.hidden * width, sync)]
        layers += [nn.ReLU()]
        features = arch.hidden * width
    flat = base * at * at
    layers += [nn.Linear(features, flat, bias=False), BatchNorm(flat, sync), nn.ReLU()]
    layers += [nn.Unflatten(1, (base, at, at))]
    features = base
    for multiple in arch.up_flat:
        layers += [nn.Conv2d(features, multiple * width, 4, padding="same", bias=False)]
        layers += [BatchNorm(multiple * width, sync), nn.ReLU()]
        features = multiple * width
    for multiple, size in zip(arch.up, sizes[1:], strict=False):
        layers += [DoublingConv(features, multiple * width, odd=size % 2 == 1, bias=False)]
        layers += [BatchNorm(multiple * width, sync), nn.ReLU()]
        features = multiple * width
    return [*layers, DoublingConv(features, channels)]


def trunk_layers(image_size: int, channels: int, config: NetworkConfig, images: int = 1) -> tuple[list[nn.Module], int]:
    """D's layers before its heads, from ``images`` stacked images (B, images C, H, W) to features (B, F), and F."""
    arch, width = plan(image_size, channels, config), config.width
    bias = config.d_norm == "none"  # batch norm has its own

    def activation(normalised: int = 0) -> list[nn.Module]:
        """The layers after a convolution, with batch norm of ``normalised`` features if there is any."""
        norm = [BatchNorm(normalised, config.sync_batchnorm)] if normalised and config.d_norm == "batch" else []
        return [*norm, nn.LeakyReLU(config.leaky_slope)]

    layers: list[nn.Module] = [HalvingConv(images * channels, arch.down[0] * width), *activation()]
    features = arch.down[0] * width
    for multiple in arch.down[1:]:
        layers += [HalvingConv(features, multiple * width, bias), *activation(multiple * width)]
        features = multiple * width
    for multiple in arch.flat:
        layers += [nn.Conv2d(features, multiple * width, 4, padding="same", bias=bias), *activation(multiple * width)]
        features = multiple * width
    features *= halves(image_size, len(arch.down))[-1] ** 2
    layers += [Flatten()]
    if arch.hidden:
        layers += [nn.Linear(features, arch.hidden * width, bias=bias), *activation(arch.hidden * width)]
        features = arch.hidden * width
    return layers, features


def initialise_generator(layers: nn.Module, config: NetworkConfig) -> None:
    """Nothing: G has batch norm, so the scale of its weights has no effect."""


def initialise_trunk(layers: nn.Module, config: NetworkConfig) -> None:
    """Without batch norm, the scale of the weights must keep that of the features."""
    if config.d_norm == "none":
        initialise_by_fan_in(layers, config.leaky_slope)
