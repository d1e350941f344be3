"""Batch norm over parts of a batch or over all ranks, and its calibration after training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class SumOverRanks(torch.autograd.Function):
    """The sum of all ranks' tensors. A rank's tensor affects the losses of all ranks, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient)  # can be differentiated again, as R1 requires


def sum_over_ranks(local: Tensor) -> Tensor:
    total: Tensor = SumOverRanks.apply(local)
    return total


class BatchNorm(nn.Module):
    """Batch norm over (B, F) or (B, F, H, W), with two options that PyTorch's layer does not have.

    ``groups``: the number of consecutive parts of the batch that are normalised separately. So real and generated
    images can pass through D together and be normalised as in two passes. ``synchronised``: use the statistics over
    all ranks' batches (PyTorch's SyncBatchNorm supports CUDA only).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, synchronised: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.synchronised, self.momentum, self.eps = synchronised, momentum, eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor, groups: int = 1) -> Tensor:
        if self.training and self.synchronised and dist.is_initialized() and dist.get_world_size() > 1:
            normalise = self._over_ranks
        else:
            normalise = self._over_local_batch
        if groups == 1 or not self.training:
            return normalise(x)
        return torch.cat([normalise(part) for part in x.chunk(groups)])

    def _over_local_batch(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )

    def _over_ranks(self, x: Tensor) -> Tensor:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        wide = x.float()
        # Two rounds of communication, the mean first: E[x^2] - E[x]^2 in one round would lose digits for large means.
        # The count is summed too, because ranks can have one row more or less.
        count = wide.new_full((1,), x.numel() // x.shape[1])
        sums = sum_over_ranks(torch.cat([wide.sum(axes), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        shape = [1, -1] + [1] * (x.dim() - 2)
        centred = wide - mean.view(shape)
        variance = sum_over_ranks((centred**2).sum(axes)) / total
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * total / (total - 1).clamp(min=1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


@torch.no_grad()
def calibrate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set a module's batch-norm statistics to the mean over these input batches. Nothing else of the module changes."""
    norms = [layer for layer in module.modules() if isinstance(layer, BatchNorm)]
    settings = [(norm.training, norm.momentum, norm.synchronised) for norm in norms]
    try:
        for index, batch in enumerate(batches):
            for norm in norms:
                norm.training, norm.momentum, norm.synchronised = True, 1 / (index + 1), False
            module(batch)
    finally:
        for norm, (training, momentum, synchronised) in zip(norms, settings, strict=True):
            norm.training, norm.momentum, norm.synchronised = training, momentum, synchronised
