"""InfoGAN on Ray: interpretable factors out of images without labels.

``load(path)`` opens a trained model, ``train(RunConfig(...))`` makes one, ``search(Recipe(...))`` ranks many.
Importing this package does nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["InfoGAN", "Recipe", "RunConfig", "__version__", "load", "search", "train"]

if TYPE_CHECKING:
    from infogan_ray.config import RunConfig
    from infogan_ray.distributed.search import search
    from infogan_ray.launching import train
    from infogan_ray.model import InfoGAN, load
    from infogan_ray.recipes import Recipe


def __getattr__(name: str) -> Any:
    """Names are resolved when first used, so that importing stays free of torch and Ray."""
    import importlib

    homes = {
        "InfoGAN": "model", "load": "model", "RunConfig": "config", "train": "launching",
        "Recipe": "recipes", "search": "distributed.search",
    }  # fmt: skip
    if name not in homes:
        raise AttributeError(f"module 'infogan_ray' has no attribute '{name}'")
    return getattr(importlib.import_module(f"infogan_ray.{homes[name]}"), name)
