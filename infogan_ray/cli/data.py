"""infogan data: fetches a dataset; inspects, prepares and verifies images (``data_inspect``, ``data_prepare``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from infogan_ray import UserError
from infogan_ray.cli.data_inspect import inspect
from infogan_ray.cli.data_prepare import prepare, verify
from infogan_ray.cli.exit_codes import DONE
from infogan_ray.cli.flags import parse
from infogan_ray.cli.output import print_progress, print_result
from infogan_ray.data.datasets import DataConfig, load_images
from infogan_ray.data.fetch import SOURCES

ACTIONS: dict[str, Callable[[list[str]], int]] = {"inspect": inspect, "prepare": prepare, "verify": verify}


@dataclass
class Data:
    action: tyro.conf.Positional[Literal["fetch", "inspect", "prepare", "verify"]]
    """What to do: fetch a dataset, inspect images, prepare shards, or verify shards."""
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """mnist or fashion_mnist."""
    data_dir: str | None = None
    """Folder to search first."""


def data(arguments: list[str]) -> int:
    if arguments and arguments[0] in ACTIONS:
        return ACTIONS[arguments[0]](arguments[1:])
    given = parse(
        Data,
        "data",
        arguments,
        "Fetch a dataset. To check your own images: infogan data inspect --help.",
        [
            "data fetch mnist",
            "data inspect photos -o contact.png",
            "data prepare photos shards --image-size 64",
        ],
    )
    if given.name not in SOURCES:
        raise UserError(f"data is '{given.name}'; valid are {', '.join(SOURCES)}")
    images = load_images(given.name, DataConfig(given.data_dir), say=print_progress)
    assert images.test_images is not None
    print_result(f"{given.name}: {len(images.images):,} training and {len(images.test_images):,} test images, verified")
    return DONE
