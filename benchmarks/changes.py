"""The effect of each optimisation of the training step: time of the step with one optimisation undone.

    python -m benchmarks.changes --precision fp32   # on an idle machine
    python -m benchmarks.changes --precision bf16 --json changes.json

All variants train in turn, each in its own process (``benchmarks.throughput``). The last column is the ratio of the
step times with and without the change undone: the median over the rounds.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor, nn

from benchmarks.throughput import Arm, package_steps, run_in_turn
from infogan_ray.models import convolutions
from infogan_ray.training import step
from infogan_ray.training.train_state import TrainState

NOTHING = "nothing"


@dataclass
class Changes:
    """Time the training step with one change undone at a time."""

    precision: Literal["fp32", "bf16"] = "bf16"
    device: Literal["cpu", "cuda"] = "cpu"
    batch_size: int = 128
    threads: int | None = None
    """CPU threads; by default all cores."""
    rounds: int = 12
    steps: int = 4
    """Steps of each variant in each round."""
    json: Path | None = None


def not_frozen(state: TrainState) -> None:
    """G's step also computes the unused gradients of D's and Q's weights."""
    step.frozen = contextlib.nullcontext  # type: ignore[assignment]


def adam(**how: bool) -> Callable[[TrainState], None]:
    def change(state: TrainState) -> None:
        for name, optimizer in state.optimizers.items():
            (group,) = optimizer.param_groups
            other = torch.optim.Adam(group["params"], float(group["lr"]), group["betas"], **how)
            state.optimizers[name] = other
            setattr(state, name, other)

    return change


def two_passes(state: TrainState) -> None:
    """D processes real and generated images in two passes."""

    def discriminate(both: Tensor, groups: int, q_from: int) -> tuple[Tensor, Tensor]:
        (logits, _), (fake_logits, q) = (state.discriminator(part) for part in both.chunk(2))
        return torch.cat([logits, fake_logits]), q

    state.discriminate = discriminate  # type: ignore[assignment]


def pytorchs_convolutions(state: TrainState) -> None:
    """Use PyTorch's stride-2 convolutions with its memory layout, channels first."""
    convolutions._trains_on_cpu = lambda layer, x: False


def norms_by_layer(state: TrainState) -> None:
    """Compute gradient norms with PyTorch's function."""
    step.gradient_norm = lambda module: nn.utils.get_total_norm(
        [p.grad for p in module.parameters() if p.grad is not None]
    )


UNDONE: dict[str, dict[str, object]] = {
    NOTHING: {},
    "D and Q frozen in G's step": {"change": not_frozen},
    "one pass of D for real and generated images": {"change": two_passes},
    "convolutions by columns, channels last": {"change": pytorchs_convolutions},
    "gradients' norms by dot products": {"change": norms_by_layer},
    "fused Adam, for PyTorch's default (foreach)": {"change": adam()},
    "fused Adam, for one tensor at a time": {"change": adam(foreach=False)},
    "metrics read every tenth step, for every step": {"read_every": 1},
}


def steps_of(name: str, given: Changes) -> Iterator[float]:
    images = torch.randint(0, 256, (4096, 1, 28, 28), dtype=torch.uint8)
    return package_steps(images, given.batch_size, torch.device(given.device), given.precision, **UNDONE[name])  # type: ignore[arg-type]


def main() -> int:
    given = tyro.cli(Changes)
    with contextlib.ExitStack() as stack:
        took = run_in_turn(
            {name: stack.enter_context(Arm(name, given, steps_of)) for name in UNDONE},
            given.rounds,
            given.steps,
        )
    rows = []
    print(f"MNIST network, {given.precision}, batch {given.batch_size}\n")
    print("| undone | ms a step | a step takes |\n|---|---|---|")
    for name, seconds in took.items():
        longer = statistics.median(mine / whole for mine, whole in zip(seconds, took[NOTHING], strict=True))
        rows.append({"undone": name, "ms": 1000 * statistics.median(seconds) / given.steps, "longer": longer})
        print(f"| {name} | {rows[-1]['ms']:.0f} | {longer:.2f} x |")
    if given.json is not None:
        given.json.write_text(json.dumps({"precision": given.precision, "arms": rows}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
