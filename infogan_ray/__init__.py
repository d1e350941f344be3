"""InfoGAN on Ray: learns interpretable factors from images without labels.

``train(preset="mnist_robust")`` trains a model, ``load(path)`` opens one, ``search(Recipe(...))`` ranks many.
Importing this package has no side effects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "InfoGAN", "Recipe", "RunConfig", "UserError", "__version__", "compare", "encode", "evaluate", "export", "load",
    "preset", "pull", "runs", "search", "train",
]  # fmt: skip

if TYPE_CHECKING:
    from infogan_ray.api import compare, encode, evaluate, export, preset, pull, runs, search, train
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
        "InfoGAN": "models.infogan", "RunConfig": "training.config", "Recipe": "searches.recipe",
        "load": "training.load_model",
    }  # fmt: skip
    if name not in __all__:
        raise AttributeError(f"module 'infogan_ray' has no attribute '{name}'")
    return getattr(importlib.import_module(f"infogan_ray.{modules.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    """The public names, also those that are not imported yet."""
    return [*__all__]
