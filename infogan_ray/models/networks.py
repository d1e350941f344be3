"""The generator, and the discriminator and recognition heads on one trunk.

Shapes: B batch, C channels, H = W image size, L width of a latent, P width of Q's output. Images are (B, C, H, W) in
[-1, 1], the range of tanh. ``plan`` has the architectures of Chen et al. 2016 (arXiv:1606.03657, appendix C), and a
rule for all other sizes. ``Generator`` and ``Discriminator`` build the networks of a plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from infogan_ray import UserError
from infogan_ray.models.batch_norm import BatchNorm
from infogan_ray.models.convolutions import DoublingConv, Flatten, HalvingConv
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.priors.base import Sigma
from infogan_ray.models.spectral_norm import normalise_spectrally

SIZES = tuple(range(16, 129, 4))


LARGEST_WIDTH = 10**7  # the number of weights still fits in 64 bits


@dataclass(frozen=True)
class NetworkConfig:
    """Settings of the networks. The layout depends on the image size (see ``plan``)."""

    width: int = 64
    """Channels of D's first convolution. All other layers scale with it. The paper uses 64."""
    leaky_slope: float = 0.1
    sync_batchnorm: bool = False
    """Compute batch-norm statistics over all workers, not over each worker's part of the batch."""
    joint_batchnorm: bool = False
    """Compute D's and Q's batch-norm statistics over real and generated images together, also in G's step. Separate
    statistics hide from D what all generated images have in common, for example their brightness."""
    sigma_min: float = 0.1
    """Smallest standard deviation that Q can predict for continuous codes."""
    sigma_fixed: float | None = None
    """A constant standard deviation for continuous codes, in place of a learned one."""
    spectral_norm: bool = False
    """Divide each weight of the trunk and of D's head by its largest singular value. Q shares the trunk."""

    def __post_init__(self) -> None:
        if not 4 <= self.width <= LARGEST_WIDTH:
            raise UserError(
                f"network.width is {self.width}; it must be at least 4 (the paper's is 64) and at most {LARGEST_WIDTH}"
            )
        if not 0 <= self.leaky_slope <= 1:
            raise UserError(f"network.leaky_slope is {self.leaky_slope:g}; it must lie between 0 and 1")
        _ = self.sigma  # raises UserError for values that are not positive

    @property
    def sigma(self) -> Sigma:
        return Sigma(self.sigma_min, self.sigma_fixed)


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


def plan(image_size: int, channels: int) -> Plan:
    """The architecture for an image size. Raises UserError for an unsupported size or channel count."""
    if image_size not in SIZES:
        raise UserError(
            f"image size is {image_size}; valid sizes are the multiples of 4 from {SIZES[0]} to {SIZES[-1]}"
        )
    if channels not in (1, 3):
        raise UserError(f"channels is {channels}; valid are 1 (grey) and 3 (RGB)")
    if (image_size, channels) in ((28, 1), (32, 1)):  # MNIST, faces
        return Plan(down=(1, 2), flat=(), hidden=16, base=2, up_flat=(), up=(1,))
    if (image_size, channels) == (32, 3):  # SVHN, CelebA: G starts from 2x2x448
        return Plan(down=(1, 2, 4), flat=(), hidden=0, base=7, up_flat=(), up=(4, 2, 1))
    if (image_size, channels) == (64, 1):  # chairs
        return Plan(down=(1, 2, 4), flat=(4, 4), hidden=16, base=4, up_flat=(4, 4), up=(2, 1))
    halvings = len(halves(image_size))
    down = tuple(min(2**i, 8) for i in range(halvings))
    return Plan(down=down, flat=(), hidden=16, base=down[-1], up_flat=(), up=tuple(reversed(down[:-1])))


def halves(size: int, times: int | None = None) -> list[int]:
    """The image size after each of ``times`` stride-2 layers. None: as many layers as leave at least 4 pixels."""
    sizes: list[int] = []
    while len(sizes) < times if times is not None else size // 2 >= 4:
        size //= 2
        sizes.append(size)
    return sizes


class Stack(nn.Sequential):
    """A sequence of layers that passes ``groups`` to its batch-norm layers."""

    def forward(self, x: Tensor, groups: int = 1) -> Tensor:
        for layer in self:
            x = layer(x, groups) if isinstance(layer, BatchNorm) else layer(x)
        return x


class Generator(nn.Module):
    """x = G(z, c): (B, L) -> (B, C, H, W) in [-1, 1]."""

    def __init__(self, latent_dim: int, image_size: int, channels: int, config: NetworkConfig) -> None:
        super().__init__()
        arch, width, sync = plan(image_size, channels), config.width, config.sync_batchnorm
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
        layers += [DoublingConv(features, channels), nn.Tanh()]
        self.layers = Stack(*layers)
        initialise(self)

    @property
    def output_bias(self) -> Tensor:
        """(C,) the bias before the tanh."""
        last = self.layers[-2]
        assert isinstance(last, nn.ConvTranspose2d) and last.bias is not None
        return last.bias

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


def trunk(image_size: int, channels: int, config: NetworkConfig, images: int = 1) -> tuple[Stack, int]:
    """D's layers before its heads, and their number of output features.

    ``images``: the number of images that are stacked on the channel axis of the input.
    """
    arch, width, sync = plan(image_size, channels), config.width, config.sync_batchnorm

    def activation() -> nn.Module:
        return nn.LeakyReLU(config.leaky_slope)

    layers: list[nn.Module] = [HalvingConv(images * channels, arch.down[0] * width), activation()]
    features = arch.down[0] * width
    for multiple in arch.down[1:]:
        layers += [HalvingConv(features, multiple * width, bias=False), BatchNorm(multiple * width, sync)]
        layers += [activation()]
        features = multiple * width
    for multiple in arch.flat:
        layers += [nn.Conv2d(features, multiple * width, 4, padding="same", bias=False)]
        layers += [BatchNorm(multiple * width, sync), activation()]
        features = multiple * width
    features *= halves(image_size, len(arch.down))[-1] ** 2
    layers += [Flatten()]
    if arch.hidden:
        layers += [nn.Linear(features, arch.hidden * width, bias=False), BatchNorm(arch.hidden * width, sync)]
        layers += [activation()]
        features = arch.hidden * width
    return Stack(*layers), features


def recognition_head(features: int, outputs: int, config: NetworkConfig) -> Stack:
    """The paper's layers of Q on the trunk: a hidden layer of twice the width, and the output layer."""
    width = config.width
    return Stack(
        nn.Linear(features, 2 * width, bias=False), BatchNorm(2 * width, config.sync_batchnorm),
        nn.LeakyReLU(config.leaky_slope), nn.Linear(2 * width, outputs),
    )  # fmt: skip


class Discriminator(nn.Module):
    """D's logit and Q's parameters from one trunk: (B, C, H, W) -> (B,) and (B', P)."""

    def __init__(self, q_dim: int, image_size: int, channels: int, config: NetworkConfig) -> None:
        super().__init__()
        self.joint_batchnorm = config.joint_batchnorm
        self.trunk, features = trunk(image_size, channels, config)
        self.head = nn.Linear(features, 1)
        self.recognition = recognition_head(features, q_dim, config)
        initialise(self)
        if config.spectral_norm:  # not on Q's own layers: its logits must be unlimited to reach the bound's ceiling
            normalise_spectrally(self.trunk, self.head)

    def forward(self, images: Tensor, groups: int = 1, q_from: int = 0) -> tuple[Tensor, Tensor]:
        """D's logits (B,) and Q's parameters (B - q_from, P), both in float32 also under autocast.

        ``groups``: parts of the batch with separate batch-norm statistics. ``q_from``: the first row that Q processes,
        as a single group. So Q can skip the real images if it does not learn from them.
        """
        features = self.trunk(images, groups)
        q = self.recognition(features[q_from:], 1 if q_from else groups)
        return self.head(features).float().flatten(), q.float()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside this context, the module's weights get no gradients. G's step does not use the gradients of D and Q."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def initialise(module: nn.Module) -> None:
    """Initialise weights from N(0, 0.02), as in DCGAN (arXiv:1511.06434, section 3), and biases with 0."""
    for layer in module.modules():
        # Modules on the meta device only serve to count parameters. Sampling there would load PyTorch's compiler (2 s).
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) and not layer.weight.is_meta:
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@dataclass(frozen=True)
class ModelSpec:
    """The specification from which both modules can be built. Every checkpoint contains it."""

    latents: LatentSpec
    image_size: int
    channels: int
    network: NetworkConfig = field(default_factory=NetworkConfig)

    def __post_init__(self) -> None:
        plan(self.image_size, self.channels)

    def build(self) -> tuple[Generator, Discriminator]:
        """New modules. Their initial weights come from PyTorch's global random generator."""
        generator = Generator(self.latents.dim, self.image_size, self.channels, self.network)
        return generator, Discriminator(self.latents.q_dim, self.image_size, self.channels, self.network)

    def parameter_counts(self) -> list[int]:
        """The numbers of parameters of the generator and of the discriminator with Q. Needs no memory for them."""
        with torch.device("meta"):
            return [sum(p.numel() for p in module.parameters()) for module in self.build()]

    def to_dict(self) -> dict[str, Any]:
        return {
            "codes": str(self.latents),
            "image_size": self.image_size,
            "channels": self.channels,
            "network": asdict(self.network),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        """Raises UserError for values that do not describe a model."""
        try:
            network = NetworkConfig(**values["network"])
            latents = LatentSpec.parse(values["codes"], network.sigma)
            return cls(latents, values["image_size"], values["channels"], network)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"this is not a description of a model: {error!r}") from None
