"""Gradients over ranks: DistributedDataParallel as this training needs it, and what that sends at each step.

D's gradients are averaged in D's step and G's in G's, each once. G's step uses D itself, with frozen weights, and not
its DistributedDataParallel wrapper. The reduction of a bucket runs while backward computes the next one.
"""

import inspect
from typing import Any

import torch  # no annotations from __future__: DDP checks those of its hooks, which must be classes
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from infogan_ray.models.networks import ModelSpec
from infogan_ray.training.contrastive import ContrastiveConfig, PairDiscriminator

BYTES = {"fp32": 4, "bf16": 2}
# PyTorch 2.13 gave the switch another name.
PARAMETERS = inspect.signature(DistributedDataParallel).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in PARAMETERS else "broadcast_buffers"
NO_BUFFER_SYNC: dict[str, Any] = {SYNC_BUFFERS: False}


def distributed(module: nn.Module, wire: str = "fp32") -> DistributedDataParallel:
    """A module whose gradients are means over all ranks, sent as ``wire`` (fp32 or bf16). A process group is needed.

    Weights are made equal here, once. Batch-norm buffers differ between ranks from then on; training does not read
    them. Every parameter gets a gradient in every step, so DDP need not search for others, and ``static_graph`` would
    save nothing. Gradients are views of the buckets that are sent, and are not copied there.
    """
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True, **NO_BUFFER_SYNC)
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
    """Bytes that all gradients of each network take as they are sent: G, D with Q and, if it is on, H."""
    with torch.device("meta"):
        modules: dict[str, nn.Module] = dict(zip(("generator", "discriminator with Q"), spec.build(), strict=True))
        if contrastive is not None and contrastive.weight:
            modules["pair discriminator"] = PairDiscriminator(spec, len(contrastive.codes(spec.latents)))
    return {name: BYTES[wire] * sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
