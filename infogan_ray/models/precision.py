"""Precision of matrix products: bf16 under autocast, or fp32. GPUs also have TF32, with 10 bits of mantissa."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

PRECISIONS = ("auto", "fp32", "tf32", "bf16")


def resolve_precision(precision: str, device: torch.device) -> str:
    """Replace ``auto``: bf16 if the hardware supports it (CPUs with AMX, GPUs since Ampere), otherwise fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if torch.cpu.get_capabilities().get("amx_tile") else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The context of a forward pass, for a precision from ``resolve_precision``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def widen(values: Tensor) -> Tensor:
    """The values in float32, or in float64 if they have that type."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def set_matrix_products(precision: str) -> None:
    """Set how this process multiplies fp32 matrices on a GPU: in TF32 for ``tf32``, otherwise in full fp32.

    Convolutions always use TF32, which is PyTorch's default. GPUs before Ampere have no TF32 and use full fp32.
    """
    torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
