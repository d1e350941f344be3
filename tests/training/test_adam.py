"""Our Adam is PyTorch's, and no part of a training step loads the compiler."""

from __future__ import annotations

import subprocess
import sys

import torch

from infogan_ray.training.adam import Adam


def test_steps_and_state_are_those_of_torch() -> None:
    torch.manual_seed(0)
    start = [torch.randn(5, 3), torch.randn(7)]
    ours, theirs = ([p.clone().requires_grad_() for p in start] for _ in range(2))
    optimizers = Adam(ours, 0.01, (0.5, 0.999)), torch.optim.Adam(theirs, 0.01, (0.5, 0.999), fused=True)
    for index in range(3):
        for optimizer, parameters in zip(optimizers, (ours, theirs), strict=True):
            optimizer.zero_grad()
            sum((p * (index + 1)).sin().sum() for p in parameters).backward()
            optimizer.step()
        if index == 0:  # and from a state that was saved
            again = Adam(ours, 0.01, (0.5, 0.999))
            again.load_state_dict(optimizers[0].state_dict())
            optimizers = again, optimizers[1]
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=0)
    for mine, its in zip(optimizers[0].state.values(), optimizers[1].state.values(), strict=True):
        assert mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)
    assert optimizers[0].state_dict()["param_groups"] == optimizers[1].state_dict()["param_groups"]


TRAINING = """
import sys
import torch
from infogan_ray.training.config import RunConfig
from infogan_ray.models.latents import LatentSpec
from infogan_ray.models.networks import ModelSpec, NetworkConfig
from infogan_ray.models.losses import ObjectiveConfig
from infogan_ray.training.learned_prior import PriorConfig
from infogan_ray.training.train_state import OptimizerConfig, TrainState, checkpoint_bytes
from infogan_ray.training.consistency import ConsistencyConfig
from infogan_ray.training.contrastive import ContrastiveConfig
from infogan_ray.training.step import train_step

network = NetworkConfig(width=4, spectral_norm=True)
spec = ModelSpec(LatentSpec.parse("noise=4 cat=10 uniform=2"), 28, 1, network)
terms = {"consistency": ConsistencyConfig(weight=1.0), "contrastive": ContrastiveConfig(weight=1.0)}
terms |= {"prior": PriorConfig(learn=True, method="gumbel", every=1)}
checkpoint_bytes(spec)
state = TrainState(spec, ObjectiveConfig(), OptimizerConfig(lr_decay=0.5), **terms)
for _ in range(2):
    state.set_learning_rates(2)
    train_step(state, torch.zeros(8, 1, 28, 28, dtype=torch.uint8), state.latents(8), draws=state.draws(8, 2))
state.model_tensors(), state.training_tensors()
print("torch._dynamo" in sys.modules)
"""


def test_the_compiler_is_not_loaded() -> None:
    said = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True, timeout=120)
    assert said.stdout.split() == ["False"], said.stderr
