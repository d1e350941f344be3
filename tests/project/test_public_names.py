"""The search for private names. Run: pytest tests/project/test_public_names.py"""

from __future__ import annotations

import pytest

from .public_names import private_names


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import ray._private.worker", ["ray._private.worker"]),
        ("from ray._raylet import AuthenticationTokenLoader", ["ray._raylet.AuthenticationTokenLoader"]),
        ("from ray.train.v2.api.config import FailureConfig", ["ray.train.v2.api.config.FailureConfig"]),
        ("from unittest import mock", ["unittest.mock"]),
        ("import ray\nray._private.worker.init()", ["ray._private"]),
        ("import torch as t\nt._foreach_norm([])", ["torch._foreach_norm"]),
        ("from ray import train\ntrain._internal.x", ["ray.train._internal"]),
        ("import time\ntime.sleep = print", ["time.sleep is replaced"]),
        ("import ray, torch\nray.init(); torch.add; x = object(); x._mine; torch.__version__", []),
        ("from infogan_ray.training import step\nstep._window", []),
    ],
)
def test_only_private_names_of_other_libraries_are_found(source: str, found: list[str]) -> None:
    assert [name for _, name in private_names(source)] == found
