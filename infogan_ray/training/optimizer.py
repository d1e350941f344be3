"""Adam for all networks: configuration, construction and learning rates."""

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
    """Adam's settings. D's step also trains Q: trunk, D head and Q head have the same learning rate."""

    lr_discriminator: float = 2e-4
    """Learning rate of D and Q, between 0 and 1."""
    lr_generator: float = 1e-3
    """Learning rate of G, between 0 and 1."""
    beta1: float = 0.5
    """Adam's decay of the mean gradient, from 0 to below 1."""
    beta2: float = 0.999
    """Adam's decay of the mean squared gradient, from 0 to below 1."""
    ema_decay: float = 0.999
    """Decay per step of the averaged generator. It is smaller in the first steps, to remove the initial weights."""
    lr_decay: float = 0.0
    """Share of steps at the end of the run in which all learning rates fall linearly to 0."""

    wire: str = "fp32"
    """Format of the gradients that workers send: fp32, or bf16 for half the bytes and 8 significant bits."""

    accumulate: int = 1
    """Number of microbatches per worker and step. They are computed one after another, each with its own batch-norm
    statistics. More microbatches need less memory. Workers send gradients once per step."""

    def decay(self, step: int, steps: int) -> float:
        """The factor of all learning rates in the step that follows ``step`` of ``steps`` steps."""
        decay_steps = self.lr_decay * steps
        return min(1.0, (steps - step) / decay_steps) if decay_steps else 1.0

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
    """Fused Adam. On a GPU a CUDA graph can record it (``cuda_graph.py``).

    A recorded step reads the learning rate from a tensor. On a GPU the learning rate is therefore a tensor.
    """
    tensors = list(parameters)
    if not tensors[0].is_cuda:
        return torch.optim.Adam(tensors, lr, betas, fused=True)
    # PyTorch warns if steps are not recorded. The first steps are not.
    warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
    rate = torch.tensor(lr, device=tensors[0].device)
    return torch.optim.Adam(tensors, rate, betas, fused=True, capturable=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
