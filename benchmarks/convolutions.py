"""Time of stride-2 convolutions, forward and backward: oneDNN and matrix products over columns.

    python -m benchmarks.convolutions --precision bf16   # on an idle machine

Bold: the implementation in ``infogan_ray/models/convolutions.py``. Each call starts with cold caches, as in a training
step, because the benchmark writes other memory before it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from torch.nn.grad import conv2d_weight

from infogan_ray.distributed.cluster.threads import cores
from infogan_ray.models.convolutions import FEW_CHANNELS, columns, fold

OTHER_FLOATS = 40_000_000


@dataclass
class Convolutions:
    """Time a layer's forward pass, weight gradient and input gradient."""

    precision: Literal["fp32", "bf16"] = "bf16"
    images: int = 256
    threads: int | None = None
    """CPU threads; by default all cores."""
    rounds: int = 20


def main() -> int:
    given = tyro.cli(Convolutions)
    torch.set_num_threads(given.threads or cores())
    kind = torch.bfloat16 if given.precision == "bf16" else torch.float32
    print(f"{given.precision}, {given.images} images, {torch.get_num_threads()} threads; milliseconds\n")
    print(
        "| layer | | oneDNN, channels first | oneDNN, channels last | a product over columns |\n|---|---|---|---|---|"
    )
    for channels, features, size in ((1, 64, 28), (3, 64, 32), (64, 128, 14)):
        for what, times in layer(channels, features, size, kind, given).items():
            used = chosen(what, channels, kind)
            cells = [f"**{ms:.1f}**" if number == used else f"{ms:.1f}" for number, ms in enumerate(times)]
            print(f"| {channels} to {features} channels, {size} x {size} | {what} | " + " | ".join(cells) + " |")
    return 0


def chosen(what: str, channels: int, kind: torch.dtype) -> int:
    """The index of the implementation that the package's layers use."""
    if what == "gradient in its input":
        return 2 if channels <= FEW_CHANNELS and kind == torch.float32 else 1
    wide_weight = channels > FEW_CHANNELS and kind == torch.bfloat16 and what == "gradient in its weight"
    by_columns = channels == 1 or wide_weight
    return 2 if by_columns else 1


def layer(channels: int, features: int, size: int, kind: torch.dtype, given: Convolutions) -> dict[str, list[float]]:
    x = torch.randn(given.images, channels, size, size).to(kind)
    y = torch.randn(given.images, features, size // 2, size // 2).to(kind)
    weight = torch.randn(features, channels, 4, 4).to(kind)
    x_last, y_last, weight_last = (t.contiguous(memory_format=torch.channels_last) for t in (x, y, weight))
    matrix = weight.permute(0, 2, 3, 1).reshape(features, -1)
    rows = y_last.permute(0, 2, 3, 1).reshape(-1, features)

    def forwards(x: Tensor, weight: Tensor) -> Callable[[], object]:
        return lambda: F.conv2d(x, weight, None, 2, 1)

    def to_weight(x: Tensor, y: Tensor) -> Callable[[], object]:
        return lambda: conv2d_weight(x, weight.shape, y, 2, 1)

    def to_input(y: Tensor, weight: Tensor) -> Callable[[], object]:
        return lambda: F.conv_transpose2d(y, weight, None, 2, 1)

    ways: dict[str, list[Callable[[], object]]] = {
        "pass": [forwards(x, weight), forwards(x_last, weight_last), lambda: columns(x_last) @ matrix.T],
        "gradient in its weight": [
            to_weight(x, y),
            to_weight(x_last, y_last),
            lambda: rows.T @ columns(x_last),
        ],
        "gradient in its input": [
            to_input(y, weight),
            to_input(y_last, weight_last),
            lambda: fold(rows @ matrix, x.shape).contiguous(),
        ],
    }
    return {what: [milliseconds(way, given.rounds) for way in calls] for what, calls in ways.items()}


def milliseconds(way: Callable[[], object], rounds: int) -> float:
    other_memory = torch.empty(OTHER_FLOATS)
    took = []
    for _ in range(rounds + 3):
        other_memory.fill_(1.0)
        start = time.perf_counter()
        way()
        took.append(time.perf_counter() - start)
    return 1000 * statistics.median(took[3:])


if __name__ == "__main__":
    raise SystemExit(main())
