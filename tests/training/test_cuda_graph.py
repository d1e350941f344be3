"""A recorded step equals a normal step. Run: pytest tests/training/test_cuda_graph.py

CUDA graphs need a GPU. Without one, a fake recorder computes the steps again at each replay, from the tensors that the
recording reads. It shows that everything that differs between steps is in those tensors. With a GPU, the same tests
also use the real recorder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from infogan_ray.data.feeds.memory import InMemoryFeed
from infogan_ray.data.image_set import ImageSet
from infogan_ray.training.accumulation import train_on_batch
from infogan_ray.training.cuda_graph import WARM_UP, GraphedStep, Outputs, record_cuda_graph
from infogan_ray.training.loop import run_step, train
from infogan_ray.training.train_state import TrainState
from tests.conftest import tiny_config
from tests.training.test_waiting import EVERYTHING, LEARNED, make_state

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SCHEDULES: dict[str, Any] = {  # all schedules: the weights of bound and terms, learning rates, noise, R1's steps
    "consistency": {"weight": 1.0, "start": 2, "full": 30},
    "optimizer": {"lr_decay": 0.8},
    "stability": {"r1": 1.0, "r1_every": 3, "instance_noise": 0.1, "lambda_warmup": 30, "restart_every": 4},
    "contrastive": {"weight": 1.0, "start": 5},
}
MICROBATCHES: dict[str, Any] = {name: part for name, part in SCHEDULES.items() if name != "contrastive"} | {
    "optimizer": {"lr_decay": 0.8, "accumulate": 3}
}
STEPS = 24


class FakeRecorder:
    """A fake recorder. A replay writes to the tensors of the first one.

    Python numbers, for example the step, keep their values from the recording.
    """

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self.recorded = self.replayed = 0

    def __call__(self, steps: Callable[[], Outputs], *_: object) -> tuple[Callable[[], None], Outputs]:
        self.recorded += 1
        made: list[Any] = [["?"], torch.zeros(64), torch.zeros(0)]
        recorded_at = self.state.step

        def replay() -> None:
            self.replayed += 1
            now, self.state.step = self.state.step, recorded_at
            made[0], values, q = steps()
            self.state.step = now
            made[1] = made[1].resize_(values.shape).copy_(values)
            made[2] = made[2].resize_(q.shape).copy_(q)

        return replay, made  # type: ignore[return-value]


def trained(state: TrainState, images: Tensor, update: Any, steps: int = STEPS) -> list[dict[str, float]]:
    rows = train(state, InMemoryFeed(images, 16, 0), steps=steps, log_every=1, checkpoint_every=8, update=update)
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.allow_tf32
    cudnn.deterministic, cudnn.allow_tf32 = True, False
    yield request.param
    cudnn.deterministic, cudnn.allow_tf32 = before


def tensors_of(state: TrainState) -> dict[str, Tensor]:
    """All tensors that a step changes."""
    modules = {"g": state.generator, "d": state.discriminator, "average": state.average}
    found = {f"{name}.{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()}
    return found | {name: tensor for name, tensor in state.training_tensors().items() if "generator" not in name}


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """The relative difference. A single ReLU that rounding switches on changes many gradients a little."""
    return float((found - wanted).float().norm() / wanted.float().norm().clamp(min=1e-6))


@pytest.mark.parametrize("changes", [{}, EVERYTHING, SCHEDULES, MICROBATCHES, {"network": {"spectral_norm": True}}])
def test_a_recorded_step_equals_one_without_a_graph(changes: dict[str, Any], device: str, image_set: ImageSet) -> None:
    """Each step starts from the same state, because this small network amplifies rounding over many steps."""
    config = tiny_config().override(changes, "test")
    plain, graphed = (make_state(config, device) for _ in range(2))
    step = GraphedStep(graphed, FakeRecorder(graphed) if device == "cpu" else record_cuda_graph)
    feed = InMemoryFeed(image_set.images.to(device), 16, 0)
    for number in range(STEPS):
        wanted = run_step(plain, feed.batch(number), 16, STEPS)
        found = run_step(graphed, feed.batch(number), 16, STEPS, update=step)
        assert wanted.keys() == found.keys() and plain.step == graphed.step == number + 1
        assert relative_difference(torch.stack([*found.values()]), torch.stack([*wanted.values()])) < 1e-3
        theirs = tensors_of(graphed)
        for name, tensor in tensors_of(plain).items():
            assert relative_difference(theirs[name], tensor) < 1e-2, f"{name} in step {number + 1}"
            theirs[name].copy_(tensor)
    assert "CUDA graph" in step.pop_status() and not step.recording_failed


def test_each_kind_of_step_is_recorded_once(image_set: ImageSet) -> None:
    config = tiny_config().override({"stability": {"r1": 1.0, "r1_every": 2}}, "test")
    state = make_state(config)
    recorder = FakeRecorder(state)
    step = GraphedStep(state, recorder)
    trained(state, image_set.images, step)
    assert recorder.recorded == 2 and recorder.replayed == STEPS - 2 * WARM_UP


def test_metrics_of_a_step_are_not_overwritten_by_the_next(image_set: ImageSet) -> None:
    state = make_state(tiny_config())
    step, feed = GraphedStep(state, FakeRecorder(state)), InMemoryFeed(image_set.images, 16, 0)
    rows = [run_step(state, feed.batch(state.step), 16, 100, update=step) for _ in range(WARM_UP + 3)]
    assert len({row["d_loss"].item() for row in rows}) == len(rows)


def test_a_step_that_cannot_be_recorded_continues_without_a_graph(image_set: ImageSet) -> None:
    def refuse(*_: object) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    plain, graphed = make_state(tiny_config()), make_state(tiny_config())
    step = GraphedStep(graphed, refuse)
    assert trained(plain, image_set.images, train_on_batch) == trained(graphed, image_set.images, step)
    assert "not permitted when stream is capturing" in step.pop_status() and not step.pop_status()


@GPU
def test_a_step_that_synchronises_is_not_recorded_and_training_continues(image_set: ImageSet) -> None:
    state = make_state(tiny_config(), "cuda")
    autocast, stream = state.autocast, torch.cuda.current_stream()
    state.autocast = lambda: (torch.ones(1, device="cuda").item(), autocast())[1]  # type: ignore[method-assign]
    step = GraphedStep(state)
    rows = trained(state, image_set.images.cuda(), step)
    assert step.recording_failed and "CUDA graph" in step.pop_status() and len(rows) == STEPS
    assert torch.cuda.current_stream() == stream


def test_which_steps_can_be_recorded() -> None:
    assert not GraphedStep.supports(make_state(tiny_config()), 1), "on a CPU"
    state = make_state(tiny_config())
    state.device = torch.device("cuda")
    assert GraphedStep.supports(state, 1) and not GraphedStep.supports(state, 2)
    learned = make_state(tiny_config().override(LEARNED, "test"))
    learned.device = torch.device("cuda")
    assert not GraphedStep.supports(learned, 1), "a learned prior changes constants of the bound"


@GPU
def test_replays_do_not_synchronise(image_set: ImageSet) -> None:
    state = make_state(tiny_config().override(SCHEDULES, "test"), "cuda", precision="bf16")
    step, images = GraphedStep(state), image_set.images.cuda()

    def watch() -> (
        None
    ):  # noise ends at step 30; recording synchronises, and by step 50 both kinds of step are recorded
        torch.cuda.set_sync_debug_mode("error" if state.step >= 50 and state.step % 10 else "default")

    feed = InMemoryFeed(images, 16, 0)
    try:
        rows = train(state, feed, steps=60, log_every=10, checkpoint_every=60, on_step=watch, update=step)
        assert len(list(rows)) == 6 and not step.recording_failed
        assert max(step.eager_steps.values()) == WARM_UP, "all others were replayed"
    finally:
        torch.cuda.set_sync_debug_mode("default")


@GPU
def test_the_average_is_recalibrated_on_a_gpu(image_set: ImageSet) -> None:
    """On a GPU PyTorch's version counter does not count every write to a tensor."""
    state = make_state(tiny_config(), "cuda")
    feed, name = InMemoryFeed(image_set.images.cuda(), 16, 0), "layers.1.running_mean"
    found = []
    for _ in range(3):
        run_step(state, feed.batch(state.step), 16, 10)
        found.append(state.averaged_generator().state_dict()[name].clone())
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])
