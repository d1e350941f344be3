"""Random numbers that depend on (seed, purpose, step) alone, not on earlier random numbers.

So a resumed run continues exactly without saved generator states. With any number of workers, every rank can generate
the numbers of the global batch and use its own rows.
"""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, purpose: str, index: int = 0) -> int:
    """The seed for one purpose at one step. SHA-256 makes it independent of those of other purposes or steps."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seeded_generator(seed: int, purpose: str, index: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose at one step."""
    return torch.Generator(device).manual_seed(derived_seed(seed, purpose, index))


class StepGenerators:
    """The generators of a training step, on its device: a new one for each purpose and step."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device
        self.used: set[str] = set()

    def at(self, purpose: str, step: int) -> torch.Generator:
        self.used.add(purpose)
        return seeded_generator(self.seed, purpose, step, self.device)


class RecordedGenerators(StepGenerators):
    """The same numbers, but from persistent generator objects. A recorded CUDA graph needs them (``cuda_graph.py``)."""

    def __init__(self, like: StepGenerators) -> None:
        super().__init__(like.seed, like.device)
        self.generators = {purpose: torch.Generator(like.device) for purpose in sorted(like.used)}

    def at(self, purpose: str, step: int) -> torch.Generator:
        """The generator as seeded by ``seed_for``. Generators cannot be seeded while a step is recorded."""
        return self.generators[purpose]

    def seed_for(self, step: int) -> None:
        """Seed all generators for one step."""
        for purpose, generator in self.generators.items():
            generator.manual_seed(derived_seed(self.seed, purpose, step))
