"""The training step as a CUDA graph: recorded once, then replayed by the GPU without Python.

A step of a small network is some hundred kernels of a few microseconds each. To launch them from Python takes longer
than to run them. What differs from step to step (images, the schedule's weights) is copied into tensors that keep their
addresses. Random numbers come from generators that are kept, too, and seeded for each step. The recording reads those,
and changes weights and moments in place. What follows both updates, the averaged generator above all, is not recorded:
it depends on the number of the step.

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

from infogan_ray.models.rng import RecordedGenerators
from infogan_ray.training.accumulation import train_on_batch
from infogan_ray.training.step import Metrics
from infogan_ray.training.step_inputs import Number, Schedule
from infogan_ray.training.train_state import TrainState

WARM_UP = 3
"""Steps of a kind that are made without a graph first: libraries choose kernels and optimisers make their state."""

Outputs = tuple[list[str], Tensor, Tensor]
"""The metrics' names, their values (M,), and Q's parameters for real images."""
Recorder = Callable[[Callable[[], Outputs], RecordedGenerators, "torch.cuda.Stream | None"],
                    tuple[Callable[[], None], Outputs]]  # fmt: skip


def record_cuda_graph(
    step: Callable[[], Outputs], generators: RecordedGenerators, stream: torch.cuda.Stream | None
) -> tuple[Callable[[], None], Outputs]:
    """What replays ``step``, and the tensors that every replay writes. Nothing is computed yet.

    Other threads may use the GPU meanwhile.
    """
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    for generator in generators.generators.values():
        graph.register_generator_state(generator)
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = step()
    finally:
        torch.cuda.set_stream(current)  # a recording that fails leaves another one current
    return graph.replay, outputs


class Recording:
    """One kind of step: the tensors that it reads, and what replays it."""

    def __init__(
        self, state: TrainState, images: Tensor, schedule: Schedule, batch_size: int, record: Recorder,
        stream: torch.cuda.Stream | None,
    ) -> None:  # fmt: skip
        self._images, self._generators = images.clone(), RecordedGenerators(state.rng)
        self._numbers = [torch.zeros((), device=state.device) for _ in numbers_of(schedule)]
        self._written: list[Number | None] = [None] * len(self._numbers)
        scalars = iter(self._numbers)
        own = Schedule(
            {name: next(scalars) for name in schedule.lambdas}, next(scalars),
            None if schedule.noise is None else next(scalars), None if schedule.gap is None else next(scalars),
            schedule.has_r1,
        )  # fmt: skip

        def step() -> Outputs:
            before, state.rng = state.rng, self._generators
            try:
                metrics, q_real = train_on_batch(state, self._images, own, batch_size)
            finally:
                state.rng = before
            return list(metrics), torch.stack([value.float() for value in metrics.values()]), q_real

        self._replay, self._outputs = record(step, self._generators, stream)

    def replay(self, images: Tensor, schedule: Schedule, step: int) -> tuple[Metrics, Tensor]:
        """As ``train_on_batch``; Q's parameters are overwritten by the next replay."""
        self._images.copy_(images, non_blocking=True)
        self._generators.seed_for(step)
        for index, number in enumerate(numbers_of(schedule)):
            if number != self._written[index]:
                self._numbers[index].fill_(number)
                self._written[index] = number
        self._replay()
        names, values, q_real = self._outputs
        return dict(zip(names, values.clone().unbind(), strict=True)), q_real


def numbers_of(schedule: Schedule) -> list[Number]:
    """All of a schedule that a recording reads anew at each replay."""
    optional = (schedule.consistency, schedule.noise, schedule.gap)
    return [*schedule.lambdas.values(), *(number for number in optional if number is not None)]


class GraphedStep:
    """``train_on_batch`` of a state, recorded after WARM_UP steps.

    Steps of another kind, as those with R1 beside those without, get a recording of their own. Where one cannot be
    recorded, training continues without a graph, no other recording is tried, and ``pop_status`` says why.
    """

    def __init__(self, state: TrainState, record: Recorder = record_cuda_graph) -> None:
        self.state, self._record = state, record
        self._recordings: dict[Any, Recording] = {}
        self.plain: Counter[Any] = Counter()
        """How many steps of each kind were made without a recording."""
        self._status: list[str] = []
        self.refused = False
        self.stream = torch.cuda.Stream() if state.device.type == "cuda" else None
        """On which steps are warmed up and recorded. They may be replayed on any."""

    @staticmethod
    def fits(state: TrainState, world_size: int) -> bool:
        """Whether steps of this state may be recorded."""
        return state.device.type == "cuda" and world_size == 1 and not state.prior.in_use

    def __call__(
        self, state: TrainState, images: Tensor, schedule: Schedule, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> tuple[Metrics, Tensor]:
        """As ``train_on_batch``."""
        assert state is self.state and world_size == 1
        kind = (images.shape, *(part is None for part in schedule), schedule.has_r1)
        if not self.refused and kind not in self._recordings and self.plain[kind] >= WARM_UP:
            self._try_to_record(kind, images, schedule, batch_size)
        if kind in self._recordings:
            return self._recordings[kind].replay(images, schedule, state.step)
        self.plain[kind] += 1
        return self._without_graph(images, schedule, batch_size)

    def pop_status(self) -> str:
        """What is to be said of recordings since this was last called; empty if nothing is."""
        status, self._status = "; ".join(self._status), []
        return status

    def _without_graph(self, images: Tensor, schedule: Schedule, batch_size: int) -> tuple[Metrics, Tensor]:
        if self.stream is None or self.refused:
            return train_on_batch(self.state, images, schedule, batch_size)
        # A weight's gradient is accumulated on the stream of its first use, so that must be the recording's stream.
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outputs = train_on_batch(self.state, images, schedule, batch_size)
        current.wait_stream(self.stream)
        return outputs

    def _try_to_record(self, kind: Any, images: Tensor, schedule: Schedule, batch_size: int) -> None:
        started = time.monotonic()
        try:
            recording = Recording(self.state, images, schedule, batch_size, self._record, self.stream)
        except RuntimeError as error:  # CUDA's own too: nothing was computed
            self.refused = True
            why = " ".join(str(error).split())[:200]
            self._status.append(f"the step cannot be recorded as a CUDA graph, and runs without one, slower: {why}")
            return
        self._recordings[kind] = recording
        if len(self._recordings) == 1:
            took = time.monotonic() - started
            self._status.append(
                f"the step runs as a CUDA graph, recorded in {took:.2f} s after {WARM_UP} steps (--no-cuda-graph: "
                "without)"
            )
