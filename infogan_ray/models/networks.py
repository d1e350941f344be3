"""The generator, and the discriminator and recognition heads on one trunk.

Shapes: B batch, C channels, H = W image size, L width of a latent, P width of Q's output. Images are (B, C, H, W) in
[-1, 1]. Each architecture is a module with the layers of G and of D's trunk. To add one, write such a module and name
it in ``ARCHITECTURES``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from infogan_ray import UserError
from infogan_ray.models import dcgan, residual
from infogan_ray.models.batch_norm import BatchNorm
from infogan_ray.models.initialisation import initialise, initialise_by_fan_in
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.network_config import Architecture, NetworkConfig, check_images
from infogan_ray.models.precision import widen
from infogan_ray.models.spectral_norm import normalise_spectrally


class Layers(Protocol):
    """What an architecture's module has."""

    def generator_layers(
        self, latent_dim: int, image_size: int, channels: int, config: NetworkConfig
    ) -> list[nn.Module]: ...

    def trunk_layers(
        self, image_size: int, channels: int, config: NetworkConfig, images: int = 1
    ) -> tuple[list[nn.Module], int]: ...

    def initialise_generator(self, layers: nn.Module, config: NetworkConfig) -> None: ...

    def initialise_trunk(self, layers: nn.Module, config: NetworkConfig) -> None: ...


ARCHITECTURES: dict[Architecture, Layers] = {"dcgan": dcgan, "residual": residual}


class Stack(nn.Sequential):
    """A sequence of layers that passes ``groups`` to its batch-norm layers."""

    def forward(self, x: Tensor, groups: int = 1) -> Tensor:
        for layer in self:
            x = layer(x, groups) if isinstance(layer, BatchNorm) else layer(x)
        return x


class Generator(nn.Module):
    """x = G(z, c): (B, L) -> (B, C, H, W) in [-1, 1]. In training mode, a linear output has no limits."""

    def __init__(self, latent_dim: int, image_size: int, channels: int, config: NetworkConfig) -> None:
        super().__init__()
        architecture = ARCHITECTURES[config.architecture]
        layers = architecture.generator_layers(latent_dim, image_size, channels, config)
        self.has_tanh = config.output == "tanh"
        self.layers = Stack(*layers, nn.Tanh()) if self.has_tanh else Stack(*layers)
        initialise(self)
        architecture.initialise_generator(self.layers, config)

    @property
    def first_layer(self) -> nn.Linear:
        """The layer whose input are the latents."""
        layer = self.layers[0]
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def output_bias(self) -> Tensor:
        """(C,) the bias of the last convolution."""
        last = self.layers[-2 if self.has_tanh else -1]
        assert isinstance(last, (nn.Conv2d, nn.ConvTranspose2d)) and last.bias is not None
        return last.bias

    def forward(self, latents: Tensor) -> Tensor:
        images: Tensor = self.layers(latents)
        return images if self.has_tanh or self.training else images.clamp(-1, 1)


def trunk(image_size: int, channels: int, config: NetworkConfig, images: int = 1) -> tuple[Stack, int]:
    """D's layers before its heads, and their number of output features.

    ``images``: the number of images that are stacked on the channel axis of the input.
    """
    layers, features = ARCHITECTURES[config.architecture].trunk_layers(image_size, channels, config, images)
    return Stack(*layers), features


def initialise_trunk_and_head(trunk: nn.Module, head: Stack, config: NetworkConfig) -> None:
    """The initial weights of a trunk without normalisation, and of the hidden layer of a head on it."""
    ARCHITECTURES[config.architecture].initialise_trunk(trunk, config)
    if config.d_norm == "none":
        initialise_by_fan_in(head[0], config.leaky_slope)


def recognition_head(features: int, outputs: int, config: NetworkConfig) -> Stack:
    """The paper's layers of Q on the trunk: a hidden layer of twice the width, and the output layer."""
    hidden = 2 * config.width
    norm = [BatchNorm(hidden, config.sync_batchnorm)] if config.d_norm == "batch" else []
    return Stack(
        nn.Linear(features, hidden, bias=not norm), *norm, nn.LeakyReLU(config.leaky_slope), nn.Linear(hidden, outputs)
    )


class Discriminator(nn.Module):
    """D's logit and Q's parameters from one trunk: (B, C, H, W) -> (B,) and (B', P)."""

    def __init__(self, q_dim: int, image_size: int, channels: int, config: NetworkConfig) -> None:
        super().__init__()
        self.joint_batchnorm = config.joint_batchnorm
        self.trunk, features = trunk(image_size, channels, config)
        self.head = nn.Linear(features, 1)
        self.recognition = recognition_head(features, q_dim, config)
        initialise(self)
        initialise_trunk_and_head(self.trunk, self.recognition, config)
        if config.spectral_norm:  # not on Q's own layers: its logits must be unlimited to reach the bound's ceiling
            normalise_spectrally(self.trunk, self.head)

    def forward(
        self, images: Tensor, groups: int = 1, q_from: int = 0, for_q: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """D's logits (B,) and Q's parameters (B - q_from, P), both in float32 also under autocast (``widen``).

        ``groups``: parts of the batch with separate batch-norm statistics. ``q_from``: the first row that Q processes,
        as a single group. So Q can skip the real images if it does not learn from them. ``for_q``: images
        (B, C, H, W) that Q reads in place of ``images``, which D's augmentation has changed.
        """
        q_groups = 1 if q_from else groups
        features = self.trunk(images, groups)
        q_features = features[q_from:] if for_q is None else self.trunk(for_q[q_from:], q_groups)
        return widen(self.head(features)).flatten(), widen(self.recognition(q_features, q_groups))

    def logits(self, images: Tensor) -> Tensor:
        """D's logits (B,) alone, with one group of batch-norm statistics."""
        return widen(self.head(self.trunk(images))).flatten()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside this context, the module's weights get no gradients. G's step does not use the gradients of D and Q."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


@dataclass(frozen=True)
class ModelSpec:
    """The specification from which both modules can be built. Every checkpoint contains it."""

    latents: LatentSpec
    image_size: int
    channels: int
    network: NetworkConfig = field(default_factory=NetworkConfig)

    def __post_init__(self) -> None:
        check_images(self.image_size, self.channels)

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
