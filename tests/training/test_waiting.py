"""Nothing in the training step waits for the device: seen on a CPU, by what is dispatched.
Run: pytest tests/training/test_waiting.py

On a GPU the host waits wherever it reads a value (``.item()``, ``bool``, ``tolist``), where a result's shape depends on
values (``nonzero``, a boolean mask), and where ordinary memory is copied to the device (``torch.tensor``, ``.to``).
PyTorch tags operators of the first two kinds; for the third, the step is also run on the device ``meta``, which no
tensor of the host may touch. That F.one_hot with a given number of classes, and torch.multinomial with replacement of
more than one sample, read nothing on CUDA is known from their sources; PyTorch itself can be asked on a GPU, by
``torch.cuda.set_sync_debug_mode("error")``: the last test does, where there is one.
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
INDEXING = ("aten::index.Tensor", "aten::index_put_", "aten::index_put")  # tagged, and harmless without a boolean mask
EVERY_KIND = "noise=4 cat=3 cat=3@0.5:0.3:0.2 uniform=1 gaussian=1@0:2 bernoulli=1@0.3"
EVERYTHING: dict[str, Any] = {
    "codes": EVERY_KIND,
    "consistency": {"weight": 1.0, "continuous": 0.1, "start": 0, "full": 1, "flip": True},
    "contrastive": {"weight": 1.0, "start": 0},
    "stability": {"r1": 0.1, "instance_noise": 0.1, "label_smoothing": 0.1, "lambda_warmup": 50, "restart_every": 1},
    "augment": {"flip": True, "shift": 0.1, "degrees": 5.0, "scale": 0.1, "brightness": 0.1, "contrast": 0.1},
}
# A learned prior is read where it changes, and nowhere else.
LEARNED: dict[str, Any] = {"prior": {"learn": True, "start": 0, "every": 1000}}


class Watch(TorchDispatchMode):
    """Notes what would wait for a device, with the line of our code that asks for it."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device, self.found, self.calls = torch.device(device), [], 0
        self._python = Reads(self.note)

    def note(self, what: str) -> None:
        ours = [frame for frame in traceback.extract_stack() if "infogan_ray/" in frame.filename]
        self.found.append(f"{what} at {ours[-1].name}: {ours[-1].line}" if ours else what)

    def __enter__(self) -> Watch:
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
        if name == "aten::lift_fresh":  # what torch.tensor and its kin end with
            self.note("a tensor made of Python's numbers")
        made = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
        if foreign := {str(tensor.device) for tensor in given + made} - {str(self.device)}:
            self.note(f"{name} on {foreign.pop()}")
        return result


class Reads(TorchFunctionMode):
    """On a CPU some reads reach a tensor's memory without any operator."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in READS:
            self._note(function.__name__)
        return function(*args, **(kwargs or {}))


def make_state(config: RunConfig, device: str = "cpu", precision: str = "fp32") -> TrainState:
    return dataclasses.replace(config, precision=precision).new_state(16, 1, device)


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(), lambda x: float(x[0]), lambda x: bool(x[0] > 0), lambda x: x.tolist(),
        lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x.numpy(), lambda x: x.unique(),
        lambda x: torch.tensor([1.0, 2.0]), lambda x: x.new_tensor([1.0]), lambda x: torch.equal(x, x),
        lambda x: x.to("meta"), lambda x: torch.randn(2, device="meta"), lambda x: x.masked_select(x > 0),
    ],
)  # fmt: skip
def test_the_watch_sees_what_waits(waits: Callable[[Tensor], object]) -> None:
    x = torch.ones(4)
    with Watch() as watch:
        waits(x)
    assert watch.found


def test_the_watch_lets_pass_what_does_not() -> None:
    x, rows = torch.ones(4, requires_grad=True), torch.arange(2)
    with Watch() as watch:
        (2.0 * x[rows][:1].float().mean() + x.new_full((1,), 3)).backward()
        torch.where(x > 0, x, -x)
        assert len(x) == 4 and x.shape[0] == 4
    assert not watch.found and watch.calls > 5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("changes", [{}, EVERYTHING, {"network": {"sigma_fixed": 0.5}}, LEARNED])
def test_a_step_reads_nothing(changes: dict[str, Any], precision: str, image_set: ImageSet) -> None:
    """With all that ``train`` does for it: latents, transformations, augmentation, learning rates."""
    state = make_state(tiny_config().override(changes, "test"), precision=precision)
    feed = InMemoryFeed(image_set.images, 16, 0)

    def step() -> None:
        images = state.augment(feed.batch(state.step), 16)
        state.set_learning_rates(10)
        step_on(state, images, state.latents(16), noise=state.step_noise(16, state.schedule(1000)))

    step()  # constants are copied to the device and optimisers make their state once, in the first
    with Watch() as watch:
        step()
    assert not watch.found and watch.calls > 100


@pytest.mark.parametrize("changes", [{}, EVERYTHING])
def test_a_step_touches_nothing_of_the_host(changes: dict[str, Any]) -> None:
    """On ``meta``, whose tensors have no values, everything of the step is there, forward and backward."""
    config = tiny_config().override(changes, "test")
    config = dataclasses.replace(config, stability=dataclasses.replace(config.stability, restart_every=0))
    state = make_state(config, "meta")
    state.autocast = contextlib.nullcontext  # type: ignore[method-assign]  # there is none for meta
    # Fused Adam, one operator for all parameters, is not made for meta; the test above sees it, and restarts, which
    # move Adam's moments.
    players = (state.discriminator, state.generator)
    state.opt_d, state.opt_g = (torch.optim.SGD(p.parameters(), 0.1) for p in players)  # type: ignore[assignment]
    images = torch.empty(16, 1, 16, 16, dtype=torch.uint8, device="meta")
    latents = torch.empty(16, state.spec.latents.dim, device="meta")
    given = StepNoise()
    if state.contrast is not None:
        state.contrast.adam = torch.optim.SGD(state.contrast.discriminator.parameters(), 0.1)  # type: ignore[assignment]
        pairs = Pairs(latents, latents, torch.empty(16, dtype=torch.long, device="meta"))
        transformations, noise = (torch.empty(*shape, device="meta") for shape in ((16, 2, 3), (32, 1, 16, 16)))
        given = StepNoise(transformations, pairs, noise, signs=torch.empty(16, device="meta"))
    step_on(state, images, latents, noise=given)
    with Watch("meta") as watch:
        step_on(state, images, latents, noise=given)
    assert not watch.found and watch.calls > 100


def test_training_reads_once_for_each_row_of_metrics(image_set: ImageSet) -> None:
    """Over the end of an epoch, too: six steps make one."""
    config = tiny_config().override(EVERYTHING, "test")
    state, feed = make_state(config), InMemoryFeed(image_set.images, 16, 0)
    rows = train(state, feed, steps=14, log_every=4, checkpoint_every=14)
    next(rows)
    for step in (8, 12, 14):
        with Watch() as watch:
            assert next(rows)["step"] == step
        (found,) = watch.found
        assert found.startswith("tolist at read_metrics: *each, means"), found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("changes", [{}, EVERYTHING])
def test_pytorch_itself_sees_no_wait_on_a_gpu(changes: dict[str, Any], image_set: ImageSet) -> None:
    config = tiny_config().override(changes, "test")
    state = make_state(config, "cuda", precision="bf16")
    feed = InMemoryFeed(image_set.images, 16, 0)  # on the host: the copies count as well

    def watch() -> None:  # from the second step on, but where metrics are read
        torch.cuda.set_sync_debug_mode("error" if state.step % 10 else "default")

    try:
        assert len(list(train(state, feed, steps=20, log_every=10, checkpoint_every=20, on_step=watch))) == 2
    finally:
        torch.cuda.set_sync_debug_mode("default")
