"""Precision of matrix products: bf16 under autocast, or fp32; on GPUs also TF32, with 10 bits of mantissa."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

PRECISIONS = ("auto", "fp32", "tf32", "bf16")


def resolve_precision(precision: str, device: torch.device) -> str:
    """``auto`` is bf16 where the hardware multiplies it natively: CPUs with AMX, GPUs from Ampere on."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The context of a forward pass, for a precision that ``resolve_precision`` returned."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def set_matrix_products(precision: str) -> None:
    """How this process multiplies fp32 matrices on a GPU: in TF32 for ``tf32``, else in full.

    Convolutions take TF32 in any case, which is PyTorch's default. GPUs before Ampere have none, and compute in full.
    """
    torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
