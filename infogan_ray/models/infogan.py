"""A trained InfoGAN: sample, encode, traverse."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.models.code_names import resolve
from infogan_ray.models.encoded import Codes
from infogan_ray.models.networks import Discriminator, Generator, ModelSpec
from infogan_ray.models.priors.base import Prior
from infogan_ray.models.recognition import BATCH, recognise
from infogan_ray.models.rng import seeded_generator
from infogan_ray.models.traversal import Traversal, png, tile, traverse
from infogan_ray.models.value_range import to_bytes
from infogan_ray.storage.file_system import Storage

METRIC = "mi_fraction"  # the default metric that selects the best checkpoint of a run


class InfoGAN:
    """The generator, the recognition network, and a specification with the names of their inputs and outputs."""

    def __init__(self, spec: ModelSpec, generator: Generator, discriminator: Discriminator, source: Storage) -> None:
        self.spec, self.source = spec, source
        self.names: dict[str, str] = {}
        """Names that users gave to codes, by code: {"uniform0": "slant"}."""
        self.pixel_range: str | None = None
        self.fit = "crop"
        """How the training images became square pixels of 8 bits, as in the run's configuration."""
        self.generator, self.discriminator = generator.eval(), discriminator.eval()

    @classmethod
    def from_tensors(cls, spec: ModelSpec, tensors: dict[str, Tensor], source: Storage) -> InfoGAN:
        """Raises UserError if the tensors do not fit the specification."""
        generator, discriminator = spec.build()
        for name, module in (("generator", generator), ("discriminator", discriminator)):
            own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
            try:
                module.load_state_dict(own)
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:300]
                raise UserError(f"{source}: the weights do not fit the model's description: {reason}") from None
        return cls(spec, generator, discriminator, source)

    def __repr__(self) -> str:
        size = f"{self.spec.image_size}x{self.spec.image_size}x{self.spec.channels}"
        codes = ", ".join(f"{name} ({self.names[name]})" if name in self.names else name for name in self.codes)
        return f"InfoGAN({size}, codes {codes}, from {self.source})"

    def _repr_html_(self) -> str:
        """32 images and the description, for notebooks."""
        scale = max(1, round(56 / self.spec.image_size))
        picture = base64.b64encode(png(tile(self.sample(32), columns=8, scale=scale))).decode()
        return f'<img src="data:image/png;base64,{picture}"><br>{html.escape(repr(self))}'

    def to(self, device: torch.device | str) -> InfoGAN:
        """Move the networks to a device such as "cuda". Images and codes are on the CPU as before."""
        self.generator.to(device)
        self.discriminator.to(device)
        return self

    @property
    def codes(self) -> dict[str, Prior]:
        """Each code's prior by name."""
        return dict(self.spec.latents.items())

    def resolve(self, word: str) -> str:
        """The code with this name, either its own or one from a user. Raises UserError for an unknown name."""
        return resolve(word, self.codes, self.names)

    def sample(self, n: int = 64, codes: Mapping[str, float | int] | None = None, seed: int = 0) -> Tensor:
        """uint8 images (n, C, H, W). ``codes`` fixes the values of some codes: {"cat0": 3, "slant": 0.5}.

        Raises UserError for an unknown code or an invalid value.
        """
        return self.generate(self.latents(n, codes, seed))

    def latents(self, n: int = 64, codes: Mapping[str, float | int] | None = None, seed: int = 0) -> Tensor:
        """The latents (n, L) of ``sample``. Their noise depends on n and the seed alone."""
        if n < 1:
            raise UserError(f"n is {n}; it must be at least 1")
        latents = self.spec.latents.sample(n, seeded_generator(seed, "sample"))
        for word, value in (codes or {}).items():
            name = self.resolve(word)
            if not np.isfinite(value):
                raise UserError(f"{name} is {value}; it must be a finite number")
            latents[:, self.spec.latents.columns(name)] = self.spec.latents[name].embed(value, name)
        return latents

    @torch.inference_mode()
    def generate(self, latents: Tensor) -> Tensor:
        """uint8 images (N, C, H, W) on the CPU, from latents (N, L)."""
        device = next((p.device for p in self.generator.parameters()), torch.device("cpu"))
        return torch.cat([to_bytes(self.generator(part.to(device))).cpu() for part in latents.split(BATCH)])

    def encode(self, images: Tensor) -> Codes:
        """The codes that Q predicts from uint8 images (N, C, H, W), by column name; ``to_pandas()`` makes a table.

        ``Prior.columns`` defines the columns of each kind of prior. Raises UserError if the images' size, channel count
        or type is not the model's.
        """
        shape = (self.spec.channels, self.spec.image_size, self.spec.image_size)
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != shape:
            raise UserError(f"images are {images.dtype} {tuple(images.shape)}; this model needs uint8 (N, {shape})")
        latents, q = self.spec.latents, recognise(self.discriminator, images)
        return Codes(
            (f"{name}{end}", values.numpy())
            for name, part in latents.split_q(q).items()
            for end, values in latents[name].columns(part, latents.sigma).items()
        )

    def traverse(self, code: str, seed: int = 0) -> Traversal:
        """The traversal grid of one code. ``traversal.draw`` converts it to a picture."""
        return traverse(self.spec.latents, self.generator, self.resolve(code), seed, names=self.names)
