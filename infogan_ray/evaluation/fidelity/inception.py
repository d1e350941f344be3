"""Inception's features for FID and KID: torch-fidelity's network, with weights from a local file.

torch-fidelity (the extra ``fid``) has the network and the resizing of the paper's TensorFlow graph from 2015.
torchvision's Inception is a different network. This package may not distribute the weights, and downloads nothing here.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load
from torch import Tensor

from infogan_ray import UserError
from infogan_ray.data.progress import Pace

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
CONVERSION_HELP = (
    f"download {URL}, which is a pickle, and convert it to a .safetensors file once: "
    f"python -c \"import torch, safetensors.torch as s; s.save_file(torch.load('{FILE}', weights_only=True), "
    "'inception.safetensors')\""
)
BATCH = 32
PROGRESS_INTERVAL_S = 10.0


@dataclass(frozen=True)
class Inception:
    network: Any
    fingerprint: str
    """SHA-256 of the file of weights. Values of FID and KID can be compared only if it is equal."""

    @torch.inference_mode()
    def features(self, images: Tensor, say: Callable[[str], None] = print, name: str = "images") -> Tensor:
        """(N, 2048) of uint8 images (N, C, H, W). Grey images are repeated in three channels."""
        last_report, pace = time.monotonic(), Pace()
        pace.report(0)
        parts: list[Tensor] = []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            parts.append(self.network(part.expand(-1, 3, -1, -1))[0])
            now = time.monotonic()
            if now - last_report > PROGRESS_INTERVAL_S:
                last_report, done = now, start + len(part)
                pace.report(done)
                say(f"fid: Inception has processed {done:,} of {len(images):,} {name}, {pace.left(len(images))}")
        return torch.cat(parts)


def open_inception(path: str | Path) -> Inception:
    """The network with the weights of a .safetensors file.

    Raises UserError, with the command that converts the weights, if the file is missing or has other tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"fid is '{path}', which is not a file; it must be Inception's weights: {CONVERSION_HELP}")
    content = file.read_bytes()
    try:
        tensors = load(content)
    except safetensors.SafetensorError:
        raise UserError(f"fid is '{path}', which is not a .safetensors file; {CONVERSION_HELP}") from None
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The network's constructor loads its weights only from a pickle. So a pickle of plain tensors is made here, in
    # memory. The content of the file is never unpickled.
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer)
    buffer.seek(0)
    try:
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=buffer)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"fid is '{path}', whose tensors do not fit this network ({reason}...); {CONVERSION_HELP}"
        ) from None
    return Inception(network, hashlib.sha256(content).hexdigest())
