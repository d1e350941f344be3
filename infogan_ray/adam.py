"""Adam that leaves PyTorch's compiler unloaded.

PyTorch's optimisers import the compiler only to tell it to pass over them: two seconds on a slow core, in every worker
of every run and trial, for code that is never compiled. The functions underneath are the same, so all numbers are.
"""

from __future__ import annotations

import inspect

import torch
from torch.optim.optimizer import ParamsT


class Adam(torch.optim.Adam):
    """``torch.optim.Adam``, fused unless told otherwise, which must not be compiled."""

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))

    def __init__(
        self, params: ParamsT, lr: float, betas: tuple[float, float] = (0.9, 0.999), fused: bool = True
    ) -> None:
        super().__init__(params, lr, betas, fused=fused)
