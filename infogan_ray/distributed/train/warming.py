"""A worker's process is started before the command has loaded torch, which both then do at the same time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

# Of these arguments each needs no worker, or may need Ray Train.
OTHERWISE = ("-h", "--help", "--dry-run", "--workers", "--ray")


@contextmanager
def warmed_for(arguments: list[str]) -> Iterator[None]:
    """Start a worker's process if the arguments of ``infogan train`` look as if there will be a job for one, here or on
    the cluster of $RAY_ADDRESS. It ends with the block if there has been none.

    Raises UserError where no cluster answers at the address.
    """
    if any(word.startswith(OTHERWISE) for word in arguments):
        yield
        return
    # Ray is imported where there is a cluster alone.
    place: Any = import_module(
        "infogan_ray." + ("distributed.train.relay" if os.environ.get("RAY_ADDRESS") else "distributed.solo.process")
    )
    place.warm(arguments)
    try:
        yield
    finally:
        place.discard()


def discard() -> None:
    """End what was started, for whoever has no job for it and needs its room."""
    for name in ("infogan_ray.distributed.train.relay", "infogan_ray.distributed.solo.process"):
        if name in sys.modules:
            sys.modules[name].discard()
