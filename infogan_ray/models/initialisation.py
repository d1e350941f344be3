"""The initial weights of the networks, from PyTorch's global random generator."""

from __future__ import annotations

from torch import nn

WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def initialise(module: nn.Module) -> None:
    """Initialise weights from N(0, 0.02), as in DCGAN (arXiv:1511.06434, section 3), and biases with 0."""
    for layer in module.modules():
        # Modules on the meta device only serve to count parameters. Sampling there would load PyTorch's compiler (2 s).
        if isinstance(layer, WEIGHTED) and not layer.weight.is_meta:
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def initialise_by_fan_in(module: nn.Module, leaky_slope: float) -> None:
    """Initialise weights for layers without normalisation, so that features keep their variance.

    He et al. 2015 (arXiv:1502.01852, equation 15): the variance is 2 / ((1 + slope^2) * fan-in). Biases do not change.
    """
    for layer in module.modules():
        if isinstance(layer, WEIGHTED) and not layer.weight.is_meta:
            nn.init.kaiming_normal_(layer.weight, leaky_slope)
