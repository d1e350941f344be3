"""Gradients of two ranks, two processes connected by gloo, without Ray. Run: pytest tests/training/test_ddp.py"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from infogan_ray.cli.main import USAGE, main
from infogan_ray.data.feeds.memory import InMemoryFeed
from infogan_ray.training.config import RunConfig
from infogan_ray.training.contrastive import ContrastiveConfig, PairDiscriminator
from infogan_ray.training.ddp import distributed, gradient_bytes
from infogan_ray.training.optimizer import OptimizerConfig
from infogan_ray.training.run_cost import wire_plan
from infogan_ray.training.train_state import TrainState
from tests.conftest import make_image_set, tiny_config
from tests.training.steps import step_on

STEPS = 3
TRANSFORMED: dict[str, Any] = {
    "consistency": {"weight": 1.0, "start": 0, "full": 1},
    "objective": {"game": "relativistic"}, "network": {"d_norm": "none"},
    "stability": {"r1": 0.1, "r2": 0.1, "r1_every": 2, "augment_d": "colour translation cutout flip"},
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "fp32": {"network": {"sync_batchnorm": True}},
    "bf16": {"network": {"sync_batchnorm": True}, "optimizer": {"wire": "bf16"}},
    "transformed": TRANSFORMED,
    "adaptive": {
        "network": {"sync_batchnorm": True},
        "stability": {"augment_d": "translation adaptive", "augment_d_images": 200, "augment_d_target": 0.1},
    },
    "accumulated": {**TRANSFORMED, "optimizer": {"accumulate": 2}},
}


def run_steps(config: RunConfig, rank: int = 0, world_size: int = 1) -> tuple[TrainState, dict[str, Tensor], list[Any]]:
    """Run STEPS steps. Returns the state, Adam's first moments after step 1, and the last step's all_reduce shapes.

    The first moments after one step are proportional to the gradients.
    """
    state = TrainState(config, 16, 1)
    if state.adaptive is not None:
        state.adaptive.value.fill_(0.5)
    if world_size > 1:
        state.distribute(partial(distributed, wire=config.optimizer.wire))
    feed = InMemoryFeed(make_image_set().images, 16, 0, rank, world_size)

    def step() -> None:
        images, latents = feed.batch(state.step), state.latents(16, rank, world_size)
        step_on(state, images, latents, 1.0, state.step_noise(16, state.schedule(100), rank, world_size))

    step()
    first = {name: tensor.clone() for name, tensor in state.training_tensors().items() if name.endswith("exp_avg")}
    for _ in range(STEPS - 2):  # DDP rebuilds its buckets after the first step
        step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        step()
    return state, first, [event.input_shapes for event in recorded.events() if event.name == "gloo:all_reduce"]


def work(rank: int, folder: str) -> None:
    """The program of each of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for name, changes in CASES.items():
        state, first, reduced = run_steps(tiny_config().override(changes, "test"), rank, 2)
        first = {f"first.{key}": tensor for key, tensor in first.items()}
        save_file(state.training_tensors() | first, f"{folder}/{name}-{rank}.safetensors")
        about = [wrapped._get_ddp_logging_data() for wrapped in (state.generate, state.discriminate)]  # type: ignore[operator]
        Path(folder, f"{name}-{rank}.json").write_text(json.dumps({"reduced": reduced, "about": about}, default=str))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return folder


def tensors(ranks: Path, case: str, rank: int = 0) -> dict[str, Tensor]:
    return load_file(ranks / f"{case}-{rank}.safetensors")


@pytest.mark.parametrize("optimizer", ["opt_d", "opt_g"])
def test_two_ranks_have_the_gradients_of_one_rank(ranks: Path, optimizer: str) -> None:
    """Gradients of the first step. The difference is the relative norm over all gradients."""
    _, alone, _ = run_steps(tiny_config().override(CASES["fp32"], "test"))
    mine = {name: tensor for name, tensor in alone.items() if name.startswith(optimizer)}
    length = sum(float(tensor.square().sum()) for tensor in mine.values()) ** 0.5
    apart = {}
    for wire in ("fp32", "bf16"):
        theirs = tensors(ranks, wire)
        apart[wire] = sum(float((mine[n] - theirs[f"first.{n}"]).square().sum()) for n in mine) ** 0.5 / length
    assert apart["fp32"] < 1e-4 < apart["bf16"] < 2e-2, apart  # bf16 rounds by at most 2 ** -9 in each direction


@pytest.mark.parametrize("case", CASES)
def test_ranks_stay_equal(ranks: Path, case: str) -> None:
    """Bit-equal, although only gradients are sent: each rank rounds the same mean."""
    first, second = tensors(ranks, case), tensors(ranks, case, 1)
    local = ("running_mean", "running_var")  # statistics of each rank's part of the batch
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items() if not name.endswith(local))
    same = torch.equal(first["generator.layers.1.running_mean"], second["generator.layers.1.running_mean"])
    assert same is (case not in ("transformed", "accumulated"))
    if case == "adaptive":
        assert 0 < float(first["augment_d.probability"]) != 0.5


@pytest.mark.parametrize(("case", "parts"), [("transformed", 2), ("accumulated", 4)])
def test_microbatches_equal_the_same_number_of_ranks(ranks: Path, case: str, parts: int) -> None:
    """Two ranks with one or two microbatches each, and one rank with the same total number of microbatches.

    The gradients are equal up to the order of additions.
    """
    alone = run_steps(tiny_config().override(CASES["transformed"] | {"optimizer": {"accumulate": parts}}, "test"))[1]
    theirs = tensors(ranks, case)
    assert len(alone) > 10
    for name, tensor in alone.items():
        assert torch.allclose(tensor, theirs[f"first.{name}"], atol=2e-6), name
    whole = run_steps(tiny_config().override(CASES["transformed"], "test"))[1]
    assert not all(torch.allclose(t, whole[name], atol=2e-5) for name, t in alone.items()), (
        "a single microbatch gives another result"
    )


@pytest.mark.parametrize("case", ["transformed", "accumulated"])
def test_each_gradient_is_sent_once_a_step(case: str, ranks: Path) -> None:
    config = tiny_config().override(CASES[case], "test")
    found = json.loads((ranks / f"{case}-0.json").read_text())
    sent = sum(torch.Size(shape).numel() for shapes in found["reduced"] for shape in shapes if shape)
    assert 4 * sent == sum(gradient_bytes(config.model_spec(16, 1), "fp32").values()), found["reduced"]
    for about in found["about"]:
        assert not int(about["find_unused_parameters"]) and not int(about["broadcast_buffers"]), about
        assert int(about["gradient_as_bucket_view"])


def test_the_bytes_per_step_are_reported() -> None:
    config = tiny_config()
    spec = config.model_spec(16, 1)
    generator, discriminator = (sum(p.numel() for p in module.parameters()) for module in spec.build())
    full, half = gradient_bytes(spec, "fp32"), gradient_bytes(spec, "bf16")
    assert full == {"generator": 4 * generator, "discriminator with Q": 4 * discriminator}
    assert half == {name: count // 2 for name, count in full.items()}
    four = {"generator": 30_000_000, "discriminator with Q": 10_000_000}
    assert wire_plan(four, config, 4) == (
        "gradients in fp32: generator 30.0 MB, discriminator with Q 10.0 MB; each of 4 workers sends 60.0 MB a step"
    )
    assert wire_plan(four, config, 1).endswith("10.0 MB; one worker sends nothing")
    synchronised = config.override({"network": {"sync_batchnorm": True}}, "test")
    assert wire_plan(four, synchronised, 2).endswith("sends 40.0 MB a step, and batch-norm statistics")


def test_dry_run_reports_the_bytes_and_an_unknown_wire_is_refused(
    npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", str(npz), "--steps", "5", "--batch-size", "16"]
    assert main([*words, "--optimizer.wire", "bf16", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "\ngradients in bf16: generator " in output and "one worker sends nothing\n" in output
    assert main([*words, "--optimizer.wire", "fp8"]) == USAGE
    assert "optimizer.wire is 'fp8'; valid are fp32, bf16" in capsys.readouterr().err
    with pytest.raises(ValueError, match="optimizer.wire is 'int8'"):
        OptimizerConfig(wire="int8")


def test_the_bytes_per_step_include_the_pair_discriminator() -> None:
    spec, on = tiny_config(codes="noise=4 uniform=2").model_spec(16, 1), ContrastiveConfig(weight=1.0)
    counted = gradient_bytes(spec, "fp32", on)
    h = sum(p.numel() for p in PairDiscriminator(spec, 2).parameters())
    assert counted == gradient_bytes(spec, "fp32") | {"pair discriminator": 4 * h}
