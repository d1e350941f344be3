"""Spectral normalisation: divide a layer's weight by an estimate of its largest singular value.

Miyato et al. 2018 (arXiv:1802.05957), section 2.1 and algorithm 1: W / sigma(W). Each forward pass in training updates
sigma by one power iteration. A convolution is a matrix of shape (out, in * height * width), as in the paper.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

FIRST_ITERATIONS = 15  # so that the estimate is good from the first step


class SpectralNorm(nn.Module):
    """W -> W / u'Wv. Power iteration finds u and v, the leading singular vectors of W.

    Checkpoints and published models contain ``u``. All ranks have the same weights, so u is equal without
    communication. PyTorch's parametrization iterates in the precision of autocast. This class iterates in the
    precision of the weight.
    """

    u: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        if weight.is_meta:  # only counts parameters; sampling would load PyTorch's compiler (see ``initialise``)
            u = matrix.new_empty(len(matrix))
        else:
            u = F.normalize(torch.randn(len(matrix), device=weight.device), dim=0)
            for _ in range(FIRST_ITERATIONS):
                u = F.normalize(matrix @ F.normalize(matrix.mT @ u, dim=0), dim=0)
        self.register_buffer("u", u)

    def forward(self, weight: Tensor) -> Tensor:
        device = "cpu" if weight.is_meta else weight.device.type  # autocast does not know the meta device
        with torch.autocast(device, enabled=False):
            matrix = weight.flatten(1)
            v = F.normalize(matrix.detach().mT @ self.u, dim=0)
            image = matrix @ v
            if self.training:
                self.u.copy_(F.normalize(image.detach(), dim=0))
            # A copy: another forward pass before the backward pass would change u, which the gradient needs.
            return weight / torch.dot(self.u.clone(), image)


def normalise_spectrally(*modules: nn.Module) -> None:
    """Add spectral normalisation to every linear layer and convolution in these modules."""
    for module in modules:
        for layer in list(module.modules()):
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight), unsafe=True)
