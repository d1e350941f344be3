"""InfoGAN on Ray: learns interpretable factors from images without labels.

``load(path)`` opens a trained model, ``train(RunConfig(...))`` trains one, ``search(Recipe(...))`` ranks many.
Importing this package has no side effects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["InfoGAN", "Recipe", "RunConfig", "UserError", "__version__", "load", "search", "train"]

if TYPE_CHECKING:
    from infogan_ray.distributed.train.trainer import train
    from infogan_ray.distributed.tune.search import search
    from infogan_ray.models.infogan import InfoGAN
    from infogan_ray.searches.recipe import Recipe
    from infogan_ray.training.config import RunConfig
    from infogan_ray.training.load_model import load


class UserError(ValueError):
    """The user's request is not valid. The message is one line: field, value, valid choices, next step.

    Every other exception is a bug, and commands show its traceback.
    """


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package loads neither torch nor Ray."""
    import importlib

    modules = {
        "InfoGAN": "models.infogan", "load": "training.load_model", "RunConfig": "training.config",
        "train": "distributed.train.trainer", "Recipe": "searches.recipe", "search": "distributed.tune.search",
    }  # fmt: skip
    if name not in modules:
        raise AttributeError(f"module 'infogan_ray' has no attribute '{name}'")
    return getattr(importlib.import_module(f"infogan_ray.{modules[name]}"), name)
