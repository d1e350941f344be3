"""Settings of the networks, and the image sizes and channel counts that they support."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from infogan_ray import UserError
from infogan_ray.models.priors.base import Sigma

Architecture = Literal["dcgan", "residual"]
SIZES = tuple(range(16, 257, 4))
LARGEST_WIDTH = 10**7  # the number of weights still fits in 64 bits


@dataclass(frozen=True)
class NetworkConfig:
    """Settings of the networks. The layout depends on the image size."""

    architecture: Architecture = "dcgan"
    """dcgan is the paper's: convolutions with stride 2. residual has residual blocks without normalisation. It is meant
    for GPUs: on a CPU a step takes many times as long."""
    plan: Literal["paper", "doubling"] = "paper"
    """The layers of dcgan. paper has those of the paper for its image sizes, and doubling for all others. doubling has
    twice the channels after each halving of the image. At 64 x 64 grey, its steps take two thirds of the time."""
    d_norm: Literal["batch", "none"] = "batch"
    """Normalisation in D and Q. Batch norm hides from D what real or generated images have in common, so that D
    recognises them by it. Without it, use stability.r1 and stability.r2."""
    output: Literal["tanh", "linear"] = "tanh"
    """G's last function. linear has the same gradient for all pixel values; images are limited to [-1, 1] after
    training."""
    width: int = 64
    """Channels of D's first convolution. All other layers scale with it. The paper uses 64."""
    leaky_slope: float = 0.1
    """Slope of leaky ReLU below 0, from 0 to 1."""
    sync_batchnorm: bool = False
    """Compute batch-norm statistics over all workers, not over each worker's part of the batch."""
    joint_batchnorm: bool = False
    """Compute D's and Q's batch-norm statistics over real and generated images together, also in G's step. Separate
    statistics hide from D what all generated images have in common, for example their brightness."""
    sigma_min: float = 0.1
    """Smallest standard deviation that Q can predict for continuous codes."""
    sigma_fixed: float | None = None
    """A constant standard deviation for continuous codes, in place of a learned one."""
    spectral_norm: bool = False
    """Divide each weight of the trunk and of D's head by its largest singular value. Q shares the trunk."""

    def __post_init__(self) -> None:
        if not 4 <= self.width <= LARGEST_WIDTH:
            raise UserError(
                f"network.width is {self.width}; it must be at least 4 (the paper's is 64) and at most {LARGEST_WIDTH}"
            )
        for name, valid in (
            ("architecture", get_args(Architecture)), ("plan", ("paper", "doubling")), ("d_norm", ("batch", "none")),
            ("output", ("tanh", "linear")),
        ):  # fmt: skip
            if getattr(self, name) not in valid:
                raise UserError(f"network.{name} is '{getattr(self, name)}'; valid are {', '.join(valid)}")
        if self.d_norm == "batch" and self.architecture == "residual":
            raise UserError("network.architecture is residual, which has no batch norm; set network.d_norm to none")
        if self.d_norm == "none" and self.joint_batchnorm:
            raise UserError(
                "network.joint_batchnorm is on and network.d_norm is none, so D has no batch norm; leave one out"
            )
        if not 0 <= self.leaky_slope <= 1:
            raise UserError(f"network.leaky_slope is {self.leaky_slope:g}; it must lie between 0 and 1")
        _ = self.sigma  # raises UserError for values that are not positive

    @property
    def sigma(self) -> Sigma:
        return Sigma(self.sigma_min, self.sigma_fixed)


def check_images(size: int, channels: int) -> None:
    """Raises UserError for an unsupported image size or channel count."""
    if size not in SIZES:
        raise UserError(f"image size is {size}; valid sizes are the multiples of 4 from {SIZES[0]} to {SIZES[-1]}")
    if channels not in (1, 3):
        raise UserError(f"channels is {channels}; valid are 1 (grey) and 3 (RGB)")


def halves(size: int, times: int | None = None) -> list[int]:
    """The image size after each of ``times`` halvings. None: as many as leave at least 4 pixels."""
    sizes: list[int] = []
    while len(sizes) < times if times is not None else size // 2 >= 4:
        size //= 2
        sizes.append(size)
    return sizes
