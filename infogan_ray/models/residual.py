"""The residual architecture: residual blocks without normalisation, and bilinear resampling.

It follows R3GAN (Huang et al. 2024, arXiv:2501.05441, section 3 and appendix). A block's branch has a 1 x 1 convolution
that widens, a grouped 3 x 3 convolution, and a 1 x 1 convolution that starts at zero. So each block starts as the
identity, and no normalisation is needed. Sizes are halved down to 4 to 7 pixels, with BLOCKS blocks at each.

Shapes: B batch, C channels, H = W image size, L width of a latent.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from infogan_ray.models.initialisation import initialise_by_fan_in
from infogan_ray.models.network_config import NetworkConfig, halves

BLOCKS = 2  # at each size
WIDEN = 2  # the branch has this many times the block's features
GROUP = 16  # features in a group of the 3 x 3 convolution
MOST = 8  # largest number of features, as a multiple of the width


class ResidualBlock(nn.Module):
    """(B, F, H, W) -> (B, F, H, W): the input plus a branch."""

    def __init__(self, features: int, leaky_slope: float) -> None:
        super().__init__()
        wide = WIDEN * features
        groups = wide // GROUP if wide % GROUP == 0 else 1
        self.branch = nn.Sequential(
            nn.Conv2d(features, wide, 1), nn.LeakyReLU(leaky_slope),
            nn.Conv2d(wide, wide, 3, padding=1, groups=groups), nn.LeakyReLU(leaky_slope),
            nn.Conv2d(wide, features, 1, bias=False),
        )  # fmt: skip

    @property
    def last(self) -> nn.Conv2d:
        """The branch's last convolution."""
        layer = self.branch[-1]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(x)
        return y


class Resample(nn.Module):
    """(B, F, H, W) -> (B, F', size, size): bilinear, with a 1 x 1 convolution if the number of features changes.

    The convolution runs at the smaller of both sizes. Halving an even size bilinearly is the mean of 2 x 2 pixels.
    """

    def __init__(self, features: int, new_features: int, size: int, up: bool) -> None:
        super().__init__()
        self.size, self.up = size, up
        self.change = nn.Conv2d(features, new_features, 1, bias=False) if new_features != features else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            x = self.change(x)
        x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        return x if self.up else self.change(x)


def widths(count: int, width: int) -> list[int]:
    """The features at ``count`` sizes, largest size first: they double up to MOST times the width."""
    return [width * min(2**level, MOST) for level in range(count)]


def generator_layers(latent_dim: int, image_size: int, channels: int, config: NetworkConfig) -> list[nn.Module]:
    """G's layers, from latents (B, L) to images (B, C, H, W) before the output function. The last one has a bias."""
    sizes = [image_size, *halves(image_size)][::-1]
    features, *others = widths(len(sizes), config.width)[::-1]
    layers: list[nn.Module] = [
        nn.Linear(latent_dim, features * sizes[0] ** 2),
        nn.Unflatten(1, (features, sizes[0], sizes[0])),
        *blocks(features, config),
    ]
    for size, new_features in zip(sizes[1:], others, strict=True):
        layers += [Resample(features, new_features, size, up=True), *blocks(new_features, config)]
        features = new_features
    return [*layers, nn.Conv2d(features, channels, 1)]


def trunk_layers(image_size: int, channels: int, config: NetworkConfig, images: int = 1) -> tuple[list[nn.Module], int]:
    """D's layers before its heads, from ``images`` stacked images (B, images C, H, W) to features (B, F), and F."""
    sizes = [image_size, *halves(image_size)]
    features, *others = widths(len(sizes), config.width)
    layers: list[nn.Module] = [nn.Conv2d(images * channels, features, 1), *blocks(features, config)]
    for size, new_features in zip(sizes[1:], others, strict=True):
        layers += [Resample(features, new_features, size, up=False), *blocks(new_features, config)]
        features = new_features
    whole = nn.Conv2d(features, features, sizes[-1], groups=features, bias=False)  # each feature over the whole image
    return [*layers, whole, nn.Flatten()], features


def blocks(features: int, config: NetworkConfig) -> list[ResidualBlock]:
    return [ResidualBlock(features, config.leaky_slope) for _ in range(BLOCKS)]


def initialise_generator(layers: nn.Module, config: NetworkConfig) -> None:
    """As D's trunk. The last convolution keeps its small weights, so that the first images are nearly equal."""
    for layer in layers.children():
        if not isinstance(layer, nn.Conv2d):
            initialise_trunk(layer, config)


def initialise_trunk(layers: nn.Module, config: NetworkConfig) -> None:
    """Initialise by fan-in, the branches' last convolutions with 0."""
    initialise_by_fan_in(layers, config.leaky_slope)
    for layer in layers.modules():
        if isinstance(layer, ResidualBlock) and not layer.last.weight.is_meta:
            nn.init.zeros_(layer.last.weight)
