"""The training step never waits for the device. Tested on a CPU by the dispatched operators.
Run: pytest tests/training/test_waiting.py

On a GPU the host waits in three cases: it reads a value (``.item()``, ``bool``, ``tolist``), the shape of a result
depends on values (``nonzero``, a boolean mask), or pageable memory is copied to the device (``torch.tensor``, ``.to``).
PyTorch tags the operators of the first two cases. For the third case the step also runs on the device ``meta``, whose
operators accept no host tensor. According to their sources, two operators read nothing on CUDA: F.one_hot with a given
number of classes, and torch.multinomial with replacement and more than one sample. With a GPU, the last test also uses
``torch.cuda.set_sync_debug_mode("error")``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from infogan_ray.data.feeds.memory import InMemoryFeed
from infogan_ray.data.image_set import ImageSet
from infogan_ray.training.config import RunConfig
from infogan_ray.training.contrastive import Pairs
from infogan_ray.training.loop import train
from infogan_ray.training.step_inputs import StepNoise
from infogan_ray.training.train_state import TrainState
from tests.conftest import tiny_config
from tests.training.steps import step_on

READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__")
ON_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# Tagged, but they do not wait without a boolean mask.
INDEXING = ("aten::index.Tensor", "aten::index_put_", "aten::index_put")
EVERY_KIND = "noise=4 cat=3 cat=3@0.5:0.3:0.2 uniform=1 gaussian=1@0:2 bernoulli=1@0.3"
EVERYTHING: dict[str, Any] = {
    "codes": EVERY_KIND,
    "consistency": {"weight": 1.0, "continuous": 0.1, "start": 0, "full": 1, "flip": True},
    "contrastive": {"weight": 1.0, "start": 0},
    "stability": {
        "r1": 0.1, "instance_noise": 0.1, "label_smoothing": 0.1, "lambda_warmup": 50, "restart_every": 1,
        "augment_d": "colour translation cutout flip adaptive", "augment_d_images": 500, "augment_d_target": 0.1,
    },
    "augment": {"flip": True, "shift": 0.1, "degrees": 5.0, "scale": 0.1, "brightness": 0.1, "contrast": 0.1},
}  # fmt: skip
# A learned prior is read only when it changes.
LEARNED: dict[str, Any] = {"prior": {"learn": True, "start": 0, "every": 1000}}


class SyncDetector(TorchDispatchMode):
    """Records operations that would wait for a device, with the line of our code that calls them."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device, self.found, self.calls = torch.device(device), [], 0
        self._python = ReadDetector(self.note)

    def note(self, what: str) -> None:
        ours = [frame for frame in traceback.extract_stack() if "infogan_ray/" in frame.filename]
        self.found.append(f"{what} at {ours[-1].name}: {ours[-1].line}" if ours else what)

    def __enter__(self) -> SyncDetector:
        self._python.__enter__()
        return super().__enter__()

    def __exit__(self, *about: Any) -> None:
        super().__exit__(*about)
        self._python.__exit__(*about)

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        name, result = operator.name(), operator(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        masked = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in given[1:])
        if ON_VALUES & set(operator.tags) and (not name.startswith(INDEXING) or masked):
            self.note(name)
        if name == "aten::lift_fresh":  # the last operator of torch.tensor and similar functions
            self.note("a tensor made from Python numbers")
        made = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
        if foreign := {str(tensor.device) for tensor in given + made} - {str(self.device)}:
            self.note(f"{name} on {foreign.pop()}")
        return result


class ReadDetector(TorchFunctionMode):
    """Records reads that access a tensor's memory without an operator on a CPU."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in READS:
            self._note(function.__name__)
        return function(*args, **(kwargs or {}))


def make_state(config: RunConfig, device: str = "cpu", precision: str = "fp32") -> TrainState:
    return TrainState(dataclasses.replace(config, precision=precision), 16, 1, device)


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(), lambda x: float(x[0]), lambda x: bool(x[0] > 0), lambda x: x.tolist(),
        lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x.numpy(), lambda x: x.unique(),
        lambda x: torch.tensor([1.0, 2.0]), lambda x: x.new_tensor([1.0]), lambda x: torch.equal(x, x),
        lambda x: x.to("meta"), lambda x: torch.randn(2, device="meta"), lambda x: x.masked_select(x > 0),
    ],
)  # fmt: skip
def test_the_detector_finds_operations_that_wait(waits: Callable[[Tensor], object]) -> None:
    x = torch.ones(4)
    with SyncDetector() as detector:
        waits(x)
    assert detector.found


def test_the_detector_ignores_operations_that_do_not_wait() -> None:
    x, rows = torch.ones(4, requires_grad=True), torch.arange(2)
    with SyncDetector() as detector:
        (2.0 * x[rows][:1].float().mean() + x.new_full((1,), 3)).backward()
        torch.where(x > 0, x, -x)
        assert len(x) == 4 and x.shape[0] == 4
    assert not detector.found and detector.calls > 5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("changes", [{}, EVERYTHING, {"network": {"sigma_fixed": 0.5}}, LEARNED])
def test_a_step_reads_no_tensor_values(changes: dict[str, Any], precision: str, image_set: ImageSet) -> None:
    """Includes everything that ``train`` does for a step: latents, transformations, augmentation, learning rates."""
    state = make_state(tiny_config().override(changes, "test"), precision=precision)
    feed = InMemoryFeed(image_set.images, 16, 0)

    def step() -> None:
        images = state.augment(feed.batch(state.step), 16)
        state.set_learning_rates(10)
        step_on(state, images, state.latents(16), noise=state.step_noise(16, state.schedule(1000)))

    step()  # the first step copies constants to the device and creates the state of the optimisers
    with SyncDetector() as detector:
        step()
    assert not detector.found and detector.calls > 100


@pytest.mark.parametrize("changes", [{}, EVERYTHING])
def test_a_step_uses_no_host_tensor(changes: dict[str, Any]) -> None:
    """On ``meta``, whose tensors have no values, the complete step runs, forward and backward."""
    config = tiny_config().override(changes, "test")
    config = dataclasses.replace(config, stability=dataclasses.replace(config.stability, restart_every=0))
    state = make_state(config, "meta")
    state.autocast = contextlib.nullcontext  # type: ignore[method-assign]  # meta has no autocast
    # meta has no fused Adam. The test above covers it, and restarts, which change Adam's moments.
    networks = (state.discriminator, state.generator)
    state.opt_d, state.opt_g = (torch.optim.SGD(p.parameters(), 0.1) for p in networks)  # type: ignore[assignment]
    images = torch.empty(16, 1, 16, 16, dtype=torch.uint8, device="meta")
    latents = torch.empty(16, state.spec.latents.dim, device="meta")
    given = StepNoise()
    if state.contrastive is not None:
        state.contrastive.adam = torch.optim.SGD(state.contrastive.discriminator.parameters(), 0.1)  # type: ignore[assignment]
        pairs = Pairs(latents, latents, torch.empty(16, dtype=torch.long, device="meta"))
        transformations, noise = (torch.empty(*shape, device="meta") for shape in ((16, 2, 3), (32, 1, 16, 16)))
        given = StepNoise(transformations, pairs, noise, signs=torch.empty(32, device="meta"))
    step_on(state, images, latents, noise=given)
    with SyncDetector("meta") as detector:
        step_on(state, images, latents, noise=given)
    assert not detector.found and detector.calls > 100


def test_training_reads_values_once_per_metrics_row(image_set: ImageSet) -> None:
    """Also at the end of an epoch, which has six steps."""
    config = tiny_config().override(EVERYTHING, "test")
    state, feed = make_state(config), InMemoryFeed(image_set.images, 16, 0)
    rows = train(state, feed, steps=14, log_every=4, checkpoint_every=14)
    next(rows)
    for step in (8, 12, 14):
        with SyncDetector() as detector:
            assert next(rows)["step"] == step
        (found,) = detector.found
        assert found.startswith("tolist at read_metrics: *step_rows, means"), found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("changes", [{}, EVERYTHING])
def test_pytorch_detects_no_wait_on_a_gpu(changes: dict[str, Any], image_set: ImageSet) -> None:
    config = tiny_config().override(changes, "test")
    state = make_state(config, "cuda", precision="bf16")
    feed = InMemoryFeed(image_set.images, 16, 0)  # images are on the host, so copies are tested, too

    def watch() -> None:  # from the second step on, except when metrics are read
        torch.cuda.set_sync_debug_mode("error" if state.step % 10 else "default")

    try:
        assert len(list(train(state, feed, steps=20, log_every=10, checkpoint_every=20, on_step=watch))) == 2
    finally:
        torch.cuda.set_sync_debug_mode("default")
