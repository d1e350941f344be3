"""Random numbers by purpose: what a step generates depends on (seed, purpose, step), never on what came before.

So a resumed run continues exactly without saved generator states. Every rank can generate the numbers of the global
batch and keep its own rows, whatever the number of workers.
"""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, purpose: str, index: int = 0) -> int:
    """The seed of a generator for one purpose at one step. For other purposes or steps it is unrelated (SHA-256)."""
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
    """The same numbers from generators that stay the same objects, which a recorded step needs (``cuda_graph.py``)."""

    def __init__(self, like: StepGenerators) -> None:
        super().__init__(like.seed, like.device)
        self.generators = {purpose: torch.Generator(like.device) for purpose in sorted(like.used)}

    def at(self, purpose: str, step: int) -> torch.Generator:
        """In the state that ``seed_for`` has set: while a step is recorded, no generator can be seeded."""
        return self.generators[purpose]

    def seed_for(self, step: int) -> None:
        """Seed all generators for a step."""
        for purpose, generator in self.generators.items():
            generator.manual_seed(derived_seed(self.seed, purpose, step))
