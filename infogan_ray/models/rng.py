"""Random streams by name: what is drawn at a step depends on (seed, stream, step), never on what was drawn before.

So a resumed run continues exactly without saved generator states, and every rank can draw the global batch and keep
its own share, whatever the number of workers.
"""

from __future__ import annotations

import hashlib

import torch


def number_of(seed: int, stream: str, index: int = 0) -> int:
    """What a generator for one purpose at one moment is seeded with. Of different names or indices, they are unrelated
    (SHA-256)."""
    digest = hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seeded_generator(seed: int, stream: str, index: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose at one moment."""
    return torch.Generator(device).manual_seed(number_of(seed, stream, index))


class Streams:
    """The streams that training steps draw from on their device: each a generator for the step."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device
        self.used: set[str] = set()

    def at(self, stream: str, step: int) -> torch.Generator:
        self.used.add(stream)
        return seeded_generator(self.seed, stream, step, self.device)


class LastingStreams(Streams):
    """The same numbers from generators that stay the same objects, as a recorded step needs them (``graphs.py``)."""

    def __init__(self, like: Streams) -> None:
        super().__init__(like.seed, like.device)
        self.generators = {name: torch.Generator(like.device) for name in sorted(like.used)}

    def at(self, stream: str, step: int) -> torch.Generator:
        """As ``seek`` has left it: while a step is recorded, no generator can be seeded."""
        return self.generators[stream]

    def seek(self, step: int) -> None:
        """To where a step finds them."""
        for name, generator in self.generators.items():
            generator.manual_seed(number_of(self.seed, name, step))
