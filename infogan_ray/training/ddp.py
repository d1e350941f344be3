"""Gradients over ranks: DistributedDataParallel as this training needs it, and what that sends at each step.

D's gradients are averaged in D's step and G's in G's, each once: G's step passes through D itself, whose weights are
frozen then, and not through what wraps it. All reductions of a bucket run while backward goes on to the next one.
"""

import inspect
from typing import Any

import torch  # without annotations from __future__: DDP looks at those of its hooks, which must be classes
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from infogan_ray.models.networks import ModelSpec
from infogan_ray.training.contrastive import ContrastiveConfig, PairDiscriminator

BYTES = {"fp32": 4, "bf16": 2}
# PyTorch 2.13 gave the switch another name.
NAMES = inspect.signature(DistributedDataParallel).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in NAMES else "broadcast_buffers"
BUFFERS_APART: dict[str, Any] = {SYNC_BUFFERS: False}


def distributed(module: nn.Module, wire: str = "fp32") -> DistributedDataParallel:
    """A module whose gradients are means over all ranks, sent as ``wire`` (fp32 or bf16). A process group is needed.

    Weights are made equal here, once. Batch-norm buffers are each rank's own from then on: training does not read
    them. Every parameter gets a gradient in every step, so DDP need not look for those that do not, and
    ``static_graph`` would have nothing to save. Gradients lie in the buckets that are sent, and are not copied there.
    """
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True, **BUFFERS_APART)
    if wire == "bf16":
        wrapped.register_comm_hook(None, mean_in_bf16)
    return wrapped


def mean_in_bf16(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A bucket's mean over ranks, sent in half the bytes: each gradient keeps 8 significant bits.

    PyTorch's own hook of this kind refuses a build without CUDA. Weights, moments and the update stay in float32.
    """
    gradients = bucket.buffer()
    sent = (gradients / dist.get_world_size()).to(torch.bfloat16)
    future = dist.all_reduce(sent, async_op=True).get_future()
    return future.then(lambda done: gradients.copy_(done.value()[0]))


def gradient_bytes(spec: ModelSpec, wire: str, contrastive: ContrastiveConfig | None = None) -> dict[str, int]:
    """Of all gradients of G, of D with Q and, where the contrastive term is on, of H, as they are sent."""
    with torch.device("meta"):
        modules: dict[str, nn.Module] = dict(zip(("generator", "discriminator with Q"), spec.build(), strict=True))
        if contrastive is not None and contrastive.weight:
            modules["pair discriminator"] = PairDiscriminator(spec, len(contrastive.codes(spec.latents)))
    return {name: BYTES[wire] * sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
