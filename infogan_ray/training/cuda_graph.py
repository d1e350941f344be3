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
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from infogan_ray.models.rng import LastingStreams
from infogan_ray.training.step import draw_and_play
from infogan_ray.training.train_state import Course, Number, TrainState

WARM_UP = 3
"""Steps of a kind that are made plainly first: libraries choose kernels and optimisers make their state in them."""

Played = tuple[list[str], Tensor, Tensor]
"""The metrics' names, their values (M,), and what Q said of real images."""
Recorder = Callable[
    [Callable[[], Played], LastingStreams, "torch.cuda.Stream | None"], tuple[Callable[[], None], Played]
]
LIVE: weakref.WeakSet[GraphedStep] = weakref.WeakSet()


def cuda_graph(
    steps: Callable[[], Played], streams: LastingStreams, stream: torch.cuda.Stream | None
) -> tuple[Callable[[], None], Played]:
    """What plays ``steps`` again, and the tensors that every replay writes. Nothing is computed yet.

    Other threads may use the GPU meanwhile: checkpoints are on their way to storage.
    """
    graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    for generator in streams.generators.values():
        graph.register_generator_state(generator)
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            made = steps()
    finally:
        torch.cuda.set_stream(here)  # a recording that fails leaves another one current
    return graph.replay, made


def this_threads_stream() -> torch.cuda.Stream | None:
    """The stream that this thread has been given, as those that share a process are (``distributed/packing.py``)."""
    here = torch.cuda.current_stream()
    return None if here == torch.cuda.default_stream() else here


def own_stream() -> torch.cuda.Stream:
    """One that no other graphed step of this process has.

    PyTorch deals out 32, by turns. Matrix products have their scratch memory by stream, and a recording keeps that of
    the stream that it was made on: two that play at the same time must not have been made on the same one.
    """
    taken = {step.stream.cuda_stream for step in LIVE if step.stream is not None}
    for _ in range(32):
        stream = torch.cuda.Stream()
        if stream.cuda_stream not in taken:
            return stream
    raise RuntimeError("more than 31 steps are recorded in this process; PyTorch has no stream left for another")


class Recording:
    """Of one kind of step: the tensors that it reads, and what plays it."""

    def __init__(
        self, state: TrainState, images: Tensor, course: Course, batch_size: int, record: Recorder,
        stream: torch.cuda.Stream | None,
    ) -> None:  # fmt: skip
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

        self._replay, self._made = record(steps, self._streams, stream)

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

    Steps of another kind, as those with R1 beside those without, get a recording of their own. Where one cannot be
    recorded, steps of its kind go on plainly, no other recording is tried, and ``news`` says why.
    """

    stream: torch.cuda.Stream | None
    """On which steps are made plainly and recorded. They may be played on any."""

    def __init__(self, state: TrainState, record: Recorder = cuda_graph) -> None:
        self.state, self._record = state, record
        self._recordings: dict[Any, Recording] = {}
        self.plain: Counter[Any] = Counter()
        """How many steps of each kind were made without a recording."""
        self._news: list[str] = []
        self.refused = False
        self.stream = (this_threads_stream() or own_stream()) if state.device.type == "cuda" else None
        LIVE.add(self)

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
        if not self.refused and kind not in self._recordings and self.plain[kind] >= WARM_UP:
            self._take(kind, images, course, batch_size)
        if kind in self._recordings:
            metrics, q = self._recordings[kind].play(images, course, state.step)
        else:
            self.plain[kind] += 1
            metrics, q = self._plainly(images, course, batch_size)
        return metrics | state.after_step(q, 1.0)

    def news(self) -> str:
        """What is to be said of recordings since this was last asked; empty if nothing is."""
        news, self._news = "; ".join(self._news), []
        return news

    def _plainly(self, images: Tensor, course: Course, batch_size: int) -> tuple[dict[str, Tensor], Tensor]:
        if self.stream is None or self.refused:
            return draw_and_play(self.state, images, course, batch_size)
        # On the stream of the recording: where a weight's gradient is added up is decided by the stream of its first
        # use. What is made here is used up on the other stream before this one goes on, since it waits for that first.
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            made = draw_and_play(self.state, images, course, batch_size)
        here.wait_stream(self.stream)
        return made

    def _take(self, kind: Any, images: Tensor, course: Course, batch_size: int) -> None:
        begun = time.monotonic()
        try:
            recording = Recording(self.state, images, course, batch_size, self._record, self.stream)
        except RuntimeError as error:  # CUDA's own too: nothing was computed
            self.refused = True
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
