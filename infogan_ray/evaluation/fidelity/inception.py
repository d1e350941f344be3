"""Inception's features, which FID and KID are defined on: torch-fidelity's network, with weights from a local file.

torch-fidelity (the extra ``fid``) has the network of the paper's 2015 TensorFlow graph, which is not torchvision's, and
its way of resizing. The weights cannot be passed on with this package and nothing is fetched here.
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
from infogan_ray.evaluation.progress import duration

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
HOW = (
    f"fetch {URL}, which is a pickle, and make a .safetensors file of it once: "
    f"python -c \"import torch, safetensors.torch as s; s.save_file(torch.load('{FILE}', weights_only=True), "
    "'inception.safetensors')\""
)
BATCH = 32
EVERY_S = 10.0  # between lines of progress


@dataclass(frozen=True)
class Inception:
    network: Any
    fingerprint: str
    """SHA-256 of the file with its weights, by which two figures can be told to be of the same ones."""

    @torch.inference_mode()
    def features(self, images: Tensor, say: Callable[[str], None] = print, what: str = "images") -> Tensor:
        """(N, 2048) of uint8 images (N, C, H, W); grey ones are shown in three channels."""
        began = said = time.monotonic()
        parts: list[Tensor] = []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            parts.append(self.network(part.expand(-1, 3, -1, -1))[0])
            now = time.monotonic()
            if now - said > EVERY_S:
                said, done = now, start + len(part)
                left = duration((now - began) / done * (len(images) - done))
                say(f"fid: {done:,} of {len(images):,} {what} through Inception, {left} left")
        return torch.cat(parts)


def open_inception(path: str | Path) -> Inception:
    """Raises UserError, in one line that says where to get the weights, for a file that is missing or has others."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"fid is '{path}', which is not a file; it takes Inception's weights: {HOW}")
    content = file.read_bytes()
    try:
        tensors = load(content)
    except safetensors.SafetensorError:
        raise UserError(f"fid is '{path}', which is not a .safetensors file; {HOW}") from None
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The network reads its weights in its constructor, and in one way only: as a pickle. So it gets one that is made
    # here, in memory, of plain tensors; nothing that lies in the file is ever unpickled.
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer)
    buffer.seek(0)
    try:
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=buffer)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"fid is '{path}', whose tensors are not those of this network ({reason}...); {HOW}") from None
    return Inception(network, hashlib.sha256(content).hexdigest())
