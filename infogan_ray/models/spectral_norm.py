"""Spectral normalisation: a layer whose weight is divided by an estimate of its largest singular value.

Miyato et al. 2018 (arXiv:1802.05957), section 2.1 and algorithm 1: W / sigma(W), with sigma from one power iteration
per forward pass in training. Convolutions are matrices of shape (out, in * height * width), as there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

FIRST_ITERATIONS = 15  # so that the first steps do not train against a poor estimate


class SpectralNorm(nn.Module):
    """W -> W / u'Wv; u and v are its leading singular vectors, found by power iteration.

    ``u`` is state: checkpoints and published models contain it. Every rank has the same weights, so u is the same
    without communication. torch's own parametrization iterates in the precision of an autocast; this one iterates in
    the precision of the weight.
    """

    u: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        if weight.is_meta:  # built to be counted; to draw nothing would load PyTorch's compiler (see ``initialise``)
            u = matrix.new_empty(len(matrix))
        else:
            u = F.normalize(torch.randn(len(matrix), device=weight.device), dim=0)
            for _ in range(FIRST_ITERATIONS):
                u = F.normalize(matrix @ F.normalize(matrix.mT @ u, dim=0), dim=0)
        self.register_buffer("u", u)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)
            v = F.normalize(matrix.detach().mT @ self.u, dim=0)
            image = matrix @ v
            if self.training:
                self.u.copy_(F.normalize(image.detach(), dim=0))
            # A copy, because another forward pass before the backward one would change what that gradient needs.
            return weight / torch.dot(self.u.clone(), image)


def normalise_spectrally(*modules: nn.Module) -> None:
    """Give every linear layer and convolution inside a weight of largest singular value 1, gradients included."""
    for module in modules:
        for layer in list(module.modules()):
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight), unsafe=True)
