"""A lack of memory is recognised by its text and explained. Run: pytest tests/training/test_out_of_memory.py"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infogan_ray.training.out_of_memory import FOR_A_RUN, FOR_A_TRIAL, is_out_of_memory, out_of_memory
from tests.conftest import tiny_config


def cpu() -> None:
    torch.empty(2**50)


def numpy() -> None:
    np.empty(2**50)


def gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 4 GiB")


@pytest.mark.parametrize(
    ("allocate", "size"), [(cpu, "4,503,599,627,370,496 bytes"), (numpy, "8.00 PiB"), (gpu, "2.00 GiB")]
)
def test_the_message_has_the_settings_and_the_size_of_the_request(allocate: object, size: str) -> None:
    assert callable(allocate)
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    assert is_out_of_memory(caught.value)
    text = out_of_memory(tiny_config(), caught.value)
    settings = "out of memory with batch_size 16 and network.width 8; "
    assert text == f"{settings}{FOR_A_RUN} (a request of {size} failed)"
    # A trial of several workers gets the message of its workers.
    assert out_of_memory(tiny_config(), RuntimeError(text), FOR_A_TRIAL) == (
        f"{settings}{FOR_A_TRIAL} (a request of {size} failed)"
    )


def test_other_errors_are_not_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) @ torch.zeros(3)
    assert not is_out_of_memory(caught.value) and not is_out_of_memory(ValueError("x"))
