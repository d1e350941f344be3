"""Adam that leaves PyTorch's compiler unloaded.

PyTorch's optimisers import the compiler only to tell it to pass over them: two seconds on a slow core, in every worker
of every run and trial, for code that is never compiled. The functions underneath are the same, so all numbers are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
from torch import Tensor


class Adam(torch.optim.Adam):
    """``torch.optim.Adam``, fused unless told otherwise, which must not be compiled."""

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))

    # Fused and on a GPU, the learning rate is a tensor there and all is ``capturable``, so that a recorded step
    # (``graphs.py``) reads what is written between replays; others give the same numbers, and no warning.
    _warned_capturable_if_run_uncaptured = True

    def __init__(
        self, params: Iterable[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.999), fused: bool = True
    ) -> None:
        parameters = list(params)
        on_gpu = fused and parameters[0].is_cuda
        rate = torch.tensor(lr, device=parameters[0].device) if on_gpu else lr
        super().__init__(parameters, rate, betas, fused=fused, capturable=on_gpu)

    def set_learning_rate(self, rate: float) -> None:
        """From the next step on."""
        for group in self.param_groups:
            if not isinstance(group["lr"], Tensor):
                group["lr"] = rate
            elif rate != self._written:
                group["lr"].fill_(rate)
        self._written = rate

    _written: float | None = None
