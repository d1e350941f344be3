"""The estimated time and memory of a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from infogan_ray.cli.main import main
from infogan_ray.data.feeds.memory import InMemoryFeed
from infogan_ray.training import run_estimate
from infogan_ray.training.config import RunConfig
from infogan_ray.training.loop import train
from infogan_ray.training.presets import PRESETS
from infogan_ray.training.run_estimate import StepCost, computed_cost, cost_text, cost_warnings, step_arithmetic
from infogan_ray.training.train_state import TrainState
from tests.conftest import tiny_config

SMALL = {"network": {"width": 8}, "batch_size": 8, "precision": "fp32"}
PHOTOS = RunConfig(preset="photos").override(SMALL, "test").override({"stability": {"r1": 0.0, "r2": 0.0}}, "test")
CONTRASTIVE = {"codes": "noise=4 uniform=3", "contrastive": {"weight": 1.0, "start": 0}}


@pytest.mark.parametrize(
    ("config", "size", "channels"),
    [
        (RunConfig(preset="mnist").override(SMALL, "test"), 28, 1),
        (PHOTOS, 32, 3),
        (PHOTOS.override({"stability": {"augment_q": True}}, "test"), 32, 3),
        (PHOTOS.override({"objective": {"game": "logistic"}}, "test"), 32, 3),
        (RunConfig(preset="mnist").override(SMALL | {"network": {"joint_batchnorm": True, "width": 8}}, "test"), 28, 1),
        (RunConfig(preset="mnist").override(SMALL | {"optimizer": {"accumulate": 2}}, "test"), 28, 1),
        (RunConfig(preset="mnist").override(SMALL | CONTRASTIVE, "test"), 28, 1),
        (PHOTOS.override({"consistency": {"weight": 1.0}}, "test"), 32, 3),
    ],
    ids=[
        "mnist",
        "photos",
        "Q reads D's images",
        "logistic",
        "joint batch norm",
        "in parts",
        "contrastive",
        "Q reads real images",
    ],
)
def test_the_arithmetic_is_that_of_a_real_step(config: RunConfig, size: int, channels: int) -> None:
    """Without penalties, since PyTorch's counter cannot count gradients of gradients."""
    images = torch.randint(0, 256, (16, channels, size, size), dtype=torch.uint8)
    state = TrainState(config, size, channels)
    loop = train(state, InMemoryFeed(images, 8, seed=0), steps=2, log_every=1, checkpoint_every=2)
    with FlopCounterMode(display=False) as counter:
        next(loop)
    computed = step_arithmetic(config, size, channels, 8).flop
    assert computed == pytest.approx(counter.get_total_flops(), rel=0.06)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "network",
    [
        {},
        {"spectral_norm": True},
        {"d_norm": "none"},
        {"architecture": "residual", "d_norm": "none", "spectral_norm": True, "output": "linear"},
        {"plan": "doubling", "sigma_fixed": 0.3},
    ],
    ids=lambda network: " ".join(map(str, network.values())) or "its own network",
)
def test_every_preset_has_an_estimate_with_every_network(preset: str, network: dict[str, Any]) -> None:
    config = RunConfig(preset=preset).override({"network": {**network, "width": 8}}, "test")
    cost = computed_cost(config, config.image_size or 32, config.channels or 3, "cpu", 1, 1)
    assert 0 < cost.seconds < 60 and 1e6 < cost.memory < 1e10


@pytest.mark.parametrize(
    ("preset", "settings", "size", "channels", "ms"),
    [
        ("photos", {"batch_size": 32}, 28, 3, 95),
        ("photos", {"batch_size": 32}, 128, 3, 2378),
        ("photos", {"batch_size": 32, "network": {"architecture": "residual"}}, 64, 3, 10_900),
        ("shapes", {"batch_size": 32, "network": {"width": 8, "plan": "doubling"}}, 64, 1, 70),
        ("mnist", {"batch_size": 256}, 28, 1, 2 * 376),  # two threads
    ],
)
def test_the_time_is_within_a_factor_of_two_of_measured_steps(
    preset: str, settings: dict[str, Any], size: int, channels: int, ms: float
) -> None:
    """The milliseconds of one thread in docs/speed.md and docs/images.md. They were measured once."""
    config = RunConfig(preset=preset).override({**settings, "precision": "fp32"}, "test")
    assert 0.5 < computed_cost(config, size, channels, "cpu", 1, 1).seconds * 1000 / ms < 2


def test_penalties_workers_and_size_change_the_cost() -> None:
    config = PHOTOS.override({"batch_size": 64}, "test")
    penalised = config.override({"stability": {"r1": 0.1, "r2": 0.1, "r1_every": 1}}, "test")

    def cost(config: RunConfig, size: int = 32, workers: int = 1) -> StepCost:
        return computed_cost(config, size, 3, "cpu", 1, workers)

    assert 1.3 < cost(penalised).seconds / cost(config).seconds < 2.5
    assert cost(penalised).memory > cost(config).memory
    assert 0.5 < cost(config, workers=2).seconds / cost(config).seconds < 0.6, "each updates all weights"
    assert 3 < cost(config, 128).seconds / cost(config, 64).seconds < 6
    parts = config.override({"optimizer": {"accumulate": 8}}, "test")
    assert cost(parts, 128).memory < 0.5 * cost(config, 128).memory
    on_gpu, without_graph = (
        computed_cost(config.override({"cuda_graph": graph}, "test"), 64, 3, "cuda", 1, 1).seconds
        for graph in (True, False)
    )
    assert on_gpu < without_graph < 0.1 * cost(config, 64).seconds


def test_long_runs_and_few_images_are_said() -> None:
    config = tiny_config(batch_size=64)
    text = cost_text(StepCost(0.25, 1.26e9, "on a test"), 1000)
    assert text == "time: about 4m10s, 0.25 s a step on a test; memory: about 1.3 GB in each worker, without its images"
    for seconds, each in [(0.0412, "41 ms"), (0.0996, "0.1 s"), (12.3, "12 s"), (123.0, "2m03s")]:
        assert f", {each} a step on" in cost_text(StepCost(seconds, 4.2e7, "on"), 1)
    assert "memory: about 42.0 MB in" in cost_text(StepCost(1.0, 4.2e7, "on"), 1)
    assert cost_warnings(config, StepCost(10.0, 1e9, ""), 8000, 60_000) == []
    (days,) = cost_warnings(config, StepCost(10.0, 1e9, ""), 20_000, 60_000)
    assert days.startswith("the run takes about 2.3 days; ")
    assert cost_warnings(config, StepCost(10.0, 1e9, ""), 20_000, 60_000, left=100) == [], "a resumed run"
    (few,) = cost_warnings(config, StepCost(0.1, 1e9, ""), 20_000, 100)
    assert few.startswith("G and D see each of 100 images 12,800 times; ") and "--stability.augment-d" in few
    photos = dataclasses.replace(PHOTOS, batch_size=64)
    (few,) = cost_warnings(photos, StepCost(0.1, 1e9, ""), 20_000, 100)
    assert few.endswith("use fewer --steps"), "the augmentation is on already"


def test_a_measurement_below_an_earlier_peak_has_the_estimated_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_estimate, "MEASURED_S", 0.1)
    large = torch.zeros(10**8)
    large.add_(1)  # touches the memory
    del large
    config = RunConfig(preset="mnist").override(SMALL, "test")
    estimated = step_arithmetic(config, 28, 1, 8).memory
    assert run_estimate.measured_cost(config, 28, 1, "cpu", 1, 1).memory == estimated


def test_a_dry_run_estimates_or_measures_the_cost(
    npz: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_estimate, "MEASURED_S", 0.0)
    words = ["train", "--data", str(npz), "--steps", "50", "--batch-size", "16", "--network.width", "8"]
    words += ["--threads", "1", "--precision", "fp32", "--device", "cpu"]
    assert main([*words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("run: ") and lines[3].startswith("time: about 0m0")
    assert "on 1 CPU thread of an idle machine, within a factor of about two; memory: about " in lines[3]
    assert main([*words, "--dry-run", "--json", "--measure"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cost_from"] == "measured here on 1 CPU thread"
    assert found["seconds"] == pytest.approx(50 * found["seconds_per_step"])
    assert found["seconds_per_step"] > 0 and found["memory_bytes"] > 0 and found["config"]["network"]["width"] == 8
    assert main([*words, "--measure"]) == 2
    assert "--measure times steps for --dry-run; give both" in capsys.readouterr().err
