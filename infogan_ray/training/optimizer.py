"""Adam for both networks: its configuration, how it is made, and how its learning rate is set."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infogan_ray import UserError

WIRES = ("fp32", "bf16")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam for both networks. D's step also trains Q: trunk, D head and Q head share its learning rate."""

    lr_discriminator: float = 2e-4
    lr_generator: float = 1e-3
    beta1: float = 0.5
    beta2: float = 0.999
    ema_decay: float = 0.999
    """Decay per step of the averaged generator; shorter in the first steps, so that it forgets where it started."""
    lr_decay: float = 0.0
    """Share of all steps, the last ones, over which both learning rates fall linearly to 0."""

    wire: str = "fp32"
    """What several workers send their gradients as: fp32, or bf16 for half the bytes at 8 significant bits."""

    accumulate: int = 1
    """Microbatches into which a worker splits its images of a step. They are computed one after another, each with
    batch-norm statistics of its own. That takes less memory, and gradients are sent once for all."""

    def decay(self, step: int, steps: int) -> float:
        """What learning rates are multiplied by in the step after ``step`` of ``steps``."""
        falling = self.lr_decay * steps
        return min(1.0, (steps - step) / falling) if falling else 1.0

    def __post_init__(self) -> None:
        for name in ("lr_discriminator", "lr_generator"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(
                    f"optimizer.{name} is {getattr(self, name)}; it must lie between 0 and 1, both excluded"
                )
        if self.accumulate < 1:
            raise UserError(f"optimizer.accumulate is {self.accumulate}; it must be at least 1")
        if self.wire not in WIRES:
            raise UserError(f"optimizer.wire is '{self.wire}'; valid are {', '.join(WIRES)}")
        if not 0 <= self.lr_decay <= 1:
            raise UserError(f"optimizer.lr_decay is {self.lr_decay}; it must lie between 0 and 1")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}; it must be at least 0 and less than 1")


def make_adam(parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    """Fused Adam. On a GPU it can be recorded in a CUDA graph (``cuda_graph.py``).

    A recorded step reads the learning rate from a tensor, so the rate is one there.
    """
    given = list(parameters)
    if not given[0].is_cuda:
        return torch.optim.Adam(given, lr, betas, fused=True)
    # The first steps are not recorded, which PyTorch would warn of.
    warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
    rate = torch.tensor(lr, device=given[0].device)
    return torch.optim.Adam(given, rate, betas, fused=True, capturable=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """From the next step on."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
