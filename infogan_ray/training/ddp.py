"""Averages gradients over ranks with DistributedDataParallel (DDP), and computes how many bytes a step sends.

D's gradients are averaged once, in D's step, and G's once, in G's step. In G's step D's weights are frozen, and D runs
without its DDP wrapper. DDP reduces one bucket of gradients while backward computes the next one.
"""

import inspect
from typing import Any

import torch  # no ``from __future__ import annotations``: DDP requires classes as a hook's annotations
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from infogan_ray.models.networks import ModelSpec
from infogan_ray.training.contrastive import ContrastiveConfig, PairDiscriminator

BYTES = {"fp32": 4, "bf16": 2}
# PyTorch 2.13 renamed this argument.
PARAMETERS = inspect.signature(DistributedDataParallel).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in PARAMETERS else "broadcast_buffers"
NO_BUFFER_SYNC: dict[str, Any] = {SYNC_BUFFERS: False}


def distributed(module: nn.Module, wire: str = "fp32") -> DistributedDataParallel:
    """A module whose gradients are means over all ranks, sent as ``wire`` (fp32 or bf16). Needs a process group.

    All ranks get rank 0's weights once, here. Batch-norm buffers then differ between ranks, but training does not read
    them. Every parameter gets a gradient in every step. DDP therefore need not search for unused parameters, and
    ``static_graph`` would save nothing. Gradients are views of the buckets, so DDP does not copy them.
    """
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True, **NO_BUFFER_SYNC)
    if wire == "bf16":
        wrapped.register_comm_hook(None, mean_in_bf16)
    return wrapped


def mean_in_bf16(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A DDP hook: the mean of a bucket over ranks, sent in bf16, with half the bytes and 8 significant bits.

    PyTorch has a similar hook, which needs a build with CUDA. Weights, moments and the update stay in float32.
    """
    gradients = bucket.buffer()
    sent = (gradients / dist.get_world_size()).to(torch.bfloat16)
    future = dist.all_reduce(sent, async_op=True).get_future()
    return future.then(lambda done: gradients.copy_(done.value()[0]))


def gradient_bytes(spec: ModelSpec, wire: str, contrastive: ContrastiveConfig | None = None) -> dict[str, int]:
    """Bytes to send for all gradients, by network: G, D with Q and, if the contrastive term is on, H."""
    with torch.device("meta"):
        modules: dict[str, nn.Module] = dict(zip(("generator", "discriminator with Q"), spec.build(), strict=True))
        if contrastive is not None and contrastive.weight:
            modules["pair discriminator"] = PairDiscriminator(spec, len(contrastive.codes(spec.latents)))
    return {name: BYTES[wire] * sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
