"""Random streams by name: what is drawn at a step depends on (seed, stream, step), never on what was drawn before.

So a resumed run continues exactly without saved generator states, and every rank can draw the global batch and keep
its own share, whatever the number of workers.
"""

from __future__ import annotations

import hashlib

import torch


def seeded_generator(seed: int, stream: str, index: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose at one moment. Streams of different names or indices are unrelated (SHA-256)."""
    digest = hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
