"""The training step as a CUDA graph: recorded once, and from then on played by the GPU, with no Python in between.

A step of a small network is some hundred kernels of a few microseconds each, and to launch them from Python takes
longer than to run them. What differs from step to step (images, the schedule's weights) is copied into tensors that
stay where they are; what is drawn comes from generators that stay, too, and are seeded for the step; the recording
reads those, and changes weights and moments in place. What follows both updates, the averaged generator above all, is
left out: it decides by the number of the step.

One rank on one GPU. Gradients of several ranks go through DistributedDataParallel, whose reductions are not recorded
here; a learned prior changes the bound's constants.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from infogan_ray.state import Course, Number, TrainState
from infogan_ray.streams import LastingStreams
from infogan_ray.training import draw_and_play

WARM_UP = 3
"""Steps of a kind that are made plainly first: libraries choose kernels and optimisers make their state in them."""

Played = tuple[list[str], Tensor, Tensor]
"""The metrics' names, their values (M,), and what Q said of real images."""
Recorder = Callable[[Callable[[], Played], LastingStreams], tuple[Callable[[], None], Played]]


def cuda_graph(steps: Callable[[], Played], streams: LastingStreams) -> tuple[Callable[[], None], Played]:
    """What plays ``steps`` again, and the tensors that every replay writes. Nothing is computed yet.

    Other threads may use the GPU meanwhile: checkpoints are on their way to storage.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in streams.generators.values():
        graph.register_generator_state(generator)
    # On a stream of its own: matrix products have scratch memory by stream, and recordings may play at the same time.
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
        made = steps()
    return graph.replay, made


class Recording:
    """Of one kind of step: the tensors that it reads, and what plays it."""

    def __init__(self, state: TrainState, images: Tensor, course: Course, batch_size: int, record: Recorder) -> None:
        self._images, self._streams = images.clone(), LastingStreams(state.streams)
        self._numbers = [torch.zeros((), device=state.device) for _ in numbers_of(course)]
        self._written: list[Number | None] = [None] * len(self._numbers)
        scalars = iter(self._numbers)
        own = Course(
            {name: next(scalars) for name in course.lambdas}, next(scalars),
            None if course.noise is None else next(scalars), None if course.gap is None else next(scalars),
            course.penalised,
        )  # fmt: skip

        def steps() -> Played:
            before, state.streams = state.streams, self._streams
            try:
                metrics, q = draw_and_play(state, self._images, own, batch_size)
            finally:
                state.streams = before
            return list(metrics), torch.stack([value.float() for value in metrics.values()]), q

        self._replay, self._made = record(steps, self._streams)

    def play(self, images: Tensor, course: Course, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """As ``training.play``; what Q said is overwritten by the next replay."""
        self._images.copy_(images, non_blocking=True)
        self._streams.seek(step)
        for index, number in enumerate(numbers_of(course)):
            if number != self._written[index]:
                self._numbers[index].fill_(number)
                self._written[index] = number
        self._replay()
        names, values, q = self._made
        return dict(zip(names, values.clone().unbind(), strict=True)), q


def numbers_of(course: Course) -> list[Number]:
    """All of a course that a recording reads anew at each replay."""
    return [*course.lambdas.values(), *(part for part in course[1:4] if part is not None)]


class GraphedStep:
    """``make_step`` of a state, recorded once it has been made a few times.

    Steps of another kind, as those with R1 beside those without, get a recording of their own. Where a step cannot be
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
        self, state: TrainState, images: Tensor, batch_size: int, steps: int, rank: int = 0, world_size: int = 1
    ) -> dict[str, Tensor]:
        """As ``make_step``."""
        assert state is self.state and world_size == 1
        state.set_learning_rates(steps)
        course = state.course(steps)
        kind = (images.shape, *(part is None for part in course), course.penalised)
        if not self.refused and kind not in self._recordings and self._plain[kind] >= WARM_UP:
            self._take(kind, images, course, batch_size)
        if kind in self._recordings:
            metrics, q = self._recordings[kind].play(images, course, state.step)
        else:
            self._plain[kind] += 1
            metrics, q = self._plainly(images, course, batch_size)
        return metrics | state.after_step(q, 1.0)

    def news(self) -> str:
        """What is to be said of recordings since this was last asked; empty if nothing is."""
        news, self._news = "; ".join(self._news), []
        return news

    def _plainly(self, images: Tensor, course: Course, batch_size: int) -> tuple[dict[str, Tensor], Tensor]:
        if self.state.device.type != "cuda":
            return draw_and_play(self.state, images, course, batch_size)
        # On a stream of its own, as the recording will be: where a weight's gradient is added up is decided by the
        # stream of its first use.
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            made = draw_and_play(self.state, images, course, batch_size)
        here.wait_stream(aside)
        return made

    def _take(self, kind: Any, images: Tensor, course: Course, batch_size: int) -> None:
        begun = time.monotonic()
        try:
            recording = Recording(self.state, images, course, batch_size, self._record)
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
