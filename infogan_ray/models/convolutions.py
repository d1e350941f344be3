"""4 x 4 convolutions with stride 2 and padding 1, and their transposes, implemented for fast training on a CPU.

Images x (B, C, H, W), features y (B, O, H // 2, W // 2) and a weight w (O, C, 4, 4) have one trilinear form:
<halve(x, w), y> = <x, double(y, w)> = <w, correlate(x, y)>. The gradients of each function are the two others. So all
can be differentiated any number of times, as the R1 penalty requires. Tensors are channels-last: the pixels of one row
under a kernel are contiguous, and ``columns`` can copy them quickly for a matrix product.

oneDNN is used if it is faster (docs/research/speed.md has the measurements). Matrix products are faster in three cases:

- the forward pass and the weight gradient of a grey image, which share its columns;
- the weight gradient of a wide layer in bf16;
- the gradient with respect to an image in fp32.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

FEW_CHANNELS = 8
"""An image, or two stacked images, have at most this many channels. A layer with more is wide."""


class HalvingConv(nn.Conv2d):
    """(B, C, H, W) -> (B, O, H // 2, W // 2)."""

    def __init__(self, channels: int, features: int, bias: bool = True) -> None:
        super().__init__(channels, features, 4, 2, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if not _trains_on_cpu(self, x):
            return super().forward(x)
        y: Tensor = Halve.apply(*_cast_for_autocast(x, self.weight, self.bias), None)
        return y


class DoublingConv(nn.ConvTranspose2d):
    """(B, O, H', W') -> (B, C, 2 H', 2 W'), or (B, C, 2 H' + 1, 2 W' + 1) if ``odd``."""

    def __init__(self, features: int, channels: int, odd: bool = False, bias: bool = True) -> None:
        super().__init__(features, channels, 4, 2, 1, output_padding=int(odd), bias=bias)

    def forward(self, y: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None or not _trains_on_cpu(self, y):
            return super().forward(y, output_size)
        odd = int(self.output_padding[0])
        size = (2 * y.shape[2] + odd, 2 * y.shape[3] + odd)
        x: Tensor = Double.apply(*_cast_for_autocast(y, self.weight, self.bias), size)
        return x


class Flatten(nn.Flatten):
    """(B, C, H, W) -> (B, C * H * W). The gradient is channels-last, as the images are."""

    def forward(self, x: Tensor) -> Tensor:
        if _trains_on_cpu(self, x) and x.requires_grad:
            x = x.view_as(x)  # a new tensor, so that hooks do not accumulate on the input
            x.register_hook(_channels_last)
        return super().forward(x)


def _trains_on_cpu(layer: nn.Module, x: Tensor) -> bool:
    """Whether to use this module's functions. Published and exported models use PyTorch's layers."""
    return layer.training and x.is_cpu and torch.is_grad_enabled()


def _cast_for_autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """If autocast is on, cast the tensors as autocast does before a PyTorch convolution."""
    if not torch.is_autocast_enabled("cpu") or x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype("cpu")
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


_thread = threading.local()


@contextmanager
def no_weight_gradients() -> Iterator[None]:
    """Inside this context, backward passes of this thread compute no gradients of weights.

    ``torch.autograd.grad`` with respect to images skips them in PyTorch's layers, but not in custom functions.
    """
    _thread.skip_weights = True
    try:
        yield
    finally:
        _thread.skip_weights = False


def _needs_weight_gradients() -> bool:
    return not getattr(_thread, "skip_weights", False)


# Below, x, y and weight are also the names of the gradients with respect to them, which have the same shapes.


class Halve(torch.autograd.Function):
    """``halve`` with arguments x, w, the bias, and the columns of x or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, known: Tensor | None) -> Tensor:
        if known is None and x.shape[1] == 1:
            known = columns(x)
        ctx.save_for_backward(x, weight, known if ctx.needs_input_grad[1] else None)
        return halve(x, weight, bias, known)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, known = ctx.saved_tensors
        x_needed, weight_needed, bias_needed, _ = ctx.needs_input_grad
        return (
            Double.apply(y, weight, None, x.shape[2:]) if x_needed else None,
            Correlate.apply(x, y, known) if weight_needed and _needs_weight_gradients() else None,
            y.sum((0, 2, 3)) if bias_needed and _needs_weight_gradients() else None,
            None,
        )


class Double(torch.autograd.Function):
    """``double`` with arguments y, w, the bias and the size of x."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, bias: Tensor | None, size: Sequence[int]) -> Tensor:
        ctx.save_for_backward(y, weight)
        return double(y, weight, bias, size)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, ...]:
        y, weight = ctx.saved_tensors
        y_needed, weight_needed, bias_needed, _ = ctx.needs_input_grad
        known = columns(x.detach()) if x.shape[1] == 1 else None  # both gradients use them
        return (
            Halve.apply(x, weight, None, known) if y_needed else None,
            Correlate.apply(x, y, known) if weight_needed and _needs_weight_gradients() else None,
            x.sum((0, 2, 3)) if bias_needed and _needs_weight_gradients() else None,
            None,
        )


class Correlate(torch.autograd.Function):
    """``correlate`` with arguments x, y, and the columns of x or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, known: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, y)
        return correlate(x, y, known)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        x_needed, y_needed, _ = ctx.needs_input_grad
        return (
            Double.apply(y, weight, None, x.shape[2:]) if x_needed else None,
            Halve.apply(x, weight, None, None) if y_needed else None,
            None,
        )


def halve(x: Tensor, weight: Tensor, bias: Tensor | None, known: Tensor | None) -> Tensor:
    """The convolution, (B, O, H // 2, W // 2). ``known``: the columns of x, if they are computed already."""
    if known is None:
        return F.conv2d(_channels_last(x), weight, bias, 2, 1)
    matrix = _matrix(weight).T
    product = known @ matrix if bias is None else torch.addmm(bias, known, matrix)
    return product.view(len(x), x.shape[2] // 2, x.shape[3] // 2, len(weight)).permute(0, 3, 1, 2)


def double(y: Tensor, weight: Tensor, bias: Tensor | None, size: Sequence[int]) -> Tensor:
    """The transposed convolution, (B, C, H, W). ``size`` is (H, W)."""
    channels = weight.shape[1]
    if channels > FEW_CHANNELS or y.dtype == torch.bfloat16:
        odd = (size[0] % 2, size[1] % 2)
        return F.conv_transpose2d(_channels_last(y), weight, bias, 2, 1, output_padding=odd)
    x = fold(_rows(y) @ _matrix(weight), (len(y), channels, *size))
    return _channels_last(x) if bias is None else x + bias.view(-1, 1, 1)


def correlate(x: Tensor, y: Tensor, known: Tensor | None) -> Tensor:
    """The gradient of the convolution with respect to its weight, (O, C, 4, 4)."""
    channels, features = x.shape[1], y.shape[1]
    if known is not None:
        product = (known.T @ _rows(y)).view(4, 4, channels, features).permute(3, 2, 0, 1)
    elif channels > FEW_CHANNELS and x.dtype == torch.bfloat16:
        product = (_rows(y).T @ columns(x)).view(features, 4, 4, channels).permute(0, 3, 1, 2)
    else:
        product = conv2d_weight(_channels_last(x), (features, channels, 4, 4), _channels_last(y), 2, 1)
    return product.contiguous()


def columns(x: Tensor) -> Tensor:
    """(B * H // 2 * W // 2, 16 C): the pixels under the kernel at each position, in the order of ``_matrix``."""
    count, channels, height, width = x.shape
    padded = x.new_empty(count, height + 2, width + 2, channels)
    for border in (padded[:, 0], padded[:, -1], padded[:, :, 0], padded[:, :, -1]):
        border.zero_()
    padded[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
    image, row, pixel, _ = padded.stride()
    windows = (count, height // 2, width // 2, 4, 4 * channels)
    return padded.as_strided(windows, (image, 2 * row, 2 * pixel, row, 1)).reshape(-1, 16 * channels)


def fold(values: Tensor, shape: Sequence[int]) -> Tensor:
    """The transpose of ``columns``: x (B, C, H, W). Each pixel is the sum of its values at all kernel positions."""
    count, channels, height, width = shape
    down, across = height // 2, width // 2
    # The padded image is divided into pairs of rows. Row 2 a + p of a kernel (a and p are 0 or 1) lies on row p of the
    # pair that is a pairs below the kernel's first pair. Columns are treated in the same way, with b. For each (a, b),
    # all values form one image of pairs.
    parts = values.view(count, down, across, 2, 2, 2, 2 * channels)  # (..., a, p, b, pixels of a pair)
    padded = values.new_zeros(count, down + 1, 2, across + 1, 2 * channels)
    for a in (0, 1):
        for b in (0, 1):
            padded[:, a : a + down, :, b : b + across] += parts[:, :, :, a, :, b].transpose(2, 3)
    image = padded.view(count, 2 * down + 2, 2 * across + 2, channels)
    return image[:, 1 : 1 + height, 1 : 1 + width].permute(0, 3, 1, 2)


def _matrix(weight: Tensor) -> Tensor:
    """(O, 16 C): the kernel row by row, channels last."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _rows(y: Tensor) -> Tensor:
    """(B * H * W, O)."""
    return y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
