"""The training step as a CUDA graph: recorded once, and from then on played by the GPU, with no Python in between.

A step of a small network is some hundred kernels of a few microseconds each, and to launch them from Python takes
longer than to run them. What differs from step to step (images, latents, draws, the schedule's weights) is copied into
tensors that stay where they are; the recording reads those, and changes weights and moments in place. What follows both
updates, the averaged generator above all, is left out: it decides by the number of the step.

One rank on one GPU. Gradients of several ranks go through DistributedDataParallel, whose reductions are not recorded
here; a learned prior changes the bound's constants.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infogan_ray.state import Course, Draws, TrainState
from infogan_ray.training import play

WARM_UP = 3
"""Steps of a kind that are made plainly first: libraries choose kernels and optimisers make their state in them."""

Played = tuple[list[str], Tensor, Tensor]
"""The metrics' names, their values (M,), and what Q said of real images."""
Recorder = Callable[[Callable[[], Played]], tuple[Callable[[], None], Played]]


def cuda_graph(steps: Callable[[], Played]) -> tuple[Callable[[], None], Played]:
    """What plays ``steps`` again, and the tensors that every replay writes. Nothing is computed yet.

    Other threads may use the GPU meanwhile: checkpoints are on their way to storage.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        made = steps()
    return graph.replay, made


class Inputs(NamedTuple):
    images: Tensor
    latents: Tensor
    draws: Draws


class Recording:
    """Of one kind of step: tensors that it reads, and what plays it."""

    def __init__(self, state: TrainState, given: Inputs, weight: float, record: Recorder) -> None:
        self._inputs: Inputs = cloned(given)
        self._names = [*state.course().lambdas]
        self._numbers = [torch.zeros((), device=state.device) for _ in range(len(self._names) + 1)]
        self._written: list[float | None] = [None] * len(self._numbers)
        *lambdas, consistency = self._numbers
        course = Course(dict(zip(self._names, lambdas, strict=True)), consistency)

        def steps() -> Played:
            metrics, q = play(state, self._inputs.images, self._inputs.latents, course, weight, self._inputs.draws)
            return list(metrics), torch.stack([value.float() for value in metrics.values()]), q

        self._replay, self._made = record(steps)

    def play(self, given: Inputs, course: Course) -> tuple[dict[str, Tensor], Tensor]:
        """As ``training.play``; what Q said is overwritten by the next replay."""
        fill(self._inputs, given)
        for index, number in enumerate((*course.lambdas.values(), course.consistency)):
            if number != self._written[index]:
                self._numbers[index].fill_(number)
                self._written[index] = float(number)
        self._replay()
        names, values, q = self._made
        return dict(zip(names, values.clone().unbind(), strict=True)), q


class GraphedStep:
    """``train_step`` of a state, recorded once it has been made a few times.

    Steps of another kind, as one with R1 beside those without, get a recording of their own. Where a step cannot be
    recorded, all go on plainly, and ``news`` says why.
    """

    def __init__(self, state: TrainState, record: Recorder = cuda_graph) -> None:
        self.state, self._record = state, record
        self._recordings: dict[Any, Recording] = {}
        self._plain: Counter[Any] = Counter()
        self._news: list[str] = []
        self.refused = False

    @staticmethod
    def fits(state: TrainState, world_size: int) -> bool:
        """Whether steps of this state may be recorded."""
        return state.device.type == "cuda" and world_size == 1 and not state.prior.in_use

    def __call__(
        self, state: TrainState, images: Tensor, latents: Tensor, weight: float = 1.0, draws: Draws | None = None
    ) -> dict[str, Tensor]:
        """As ``train_step``."""
        assert state is self.state
        given = Inputs(images, latents, draws or Draws())
        kind = (images.shape, weight, *(part is None for part in given.draws))
        if not self.refused and kind not in self._recordings and self._plain[kind] >= WARM_UP:
            self._take(kind, given, weight)
        if kind in self._recordings:
            metrics, q = self._recordings[kind].play(given, state.course())
        else:
            self._plain[kind] += 1
            metrics, q = self._plainly(given, weight)
        return metrics | state.after_step(q, weight)

    def news(self) -> str:
        """What is to be said of recordings since this was last asked; empty if nothing is."""
        news, self._news = "; ".join(self._news), []
        return news

    def _plainly(self, given: Inputs, weight: float) -> tuple[dict[str, Tensor], Tensor]:
        if self.state.device.type != "cuda":
            return play(self.state, given.images, given.latents, self.state.course(), weight, given.draws)
        # On a stream of its own, as the recording will be: where a weight's gradient is added up is decided by the
        # stream of its first use.
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            made = play(self.state, given.images, given.latents, self.state.course(), weight, given.draws)
        here.wait_stream(aside)
        return made

    def _take(self, kind: Any, given: Inputs, weight: float) -> None:
        begun = time.monotonic()
        try:
            recording = Recording(self.state, given, weight, self._record)
        except RuntimeError as error:  # CUDA's own too; nothing was computed, and nothing is lost but speed
            self.refused = True
            self._recordings.clear()
            why = " ".join(str(error).split())[:200]
            self._news.append(f"the step cannot be recorded as a CUDA graph, and runs without one, slower: {why}")
            return
        self._recordings[kind] = recording
        if len(self._recordings) == 1:
            took = time.monotonic() - begun
            self._news.append(
                f"the step plays as a CUDA graph, recorded in {took:.2f} s after {WARM_UP} steps (--no-cuda-graph: "
                "without)"
            )


def cloned(value: Any) -> Any:
    """Tensors in tuples, in memory of their own."""
    if isinstance(value, tuple):
        return type(value)(*map(cloned, value))
    return value.clone() if isinstance(value, Tensor) else value


def fill(own: Any, given: Any) -> None:
    """Write tensors in tuples into those of another of the same form."""
    if isinstance(own, tuple):
        for one, other in zip(own, given, strict=True):
            fill(one, other)
    elif isinstance(own, Tensor):
        own.copy_(given, non_blocking=True)
