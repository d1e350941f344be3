"""The training step as a CUDA graph: recorded once, then replayed on the GPU without Python.

In a small network, a step has several hundred kernels of a few microseconds each. Launching them from Python takes
longer than running them. A recording reads its inputs (images, the schedule's numbers) from tensors with fixed
addresses, into which each step copies its own. It uses fixed random generators, which each step seeds. It changes
weights and Adam's moments in place. The work after both updates depends on the step number and is not recorded: for
example the update of the averaged generator.

Recording needs one rank on one GPU. With several ranks, DistributedDataParallel averages the gradients, which this
module does not record. A learned prior is not supported either, since it changes constants of the bound.
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
"""Steps without a graph before the recording. In them libraries choose kernels, and optimisers create their state."""

Outputs = tuple[list[str], Tensor, Tensor]
"""Names of the metrics, their values (M,), and Q's parameters (B, P) for real images."""
Recorder = Callable[[Callable[[], Outputs], RecordedGenerators, "torch.cuda.Stream | None"],
                    tuple[Callable[[], None], Outputs]]  # fmt: skip


def record_cuda_graph(
    step: Callable[[], Outputs], generators: RecordedGenerators, stream: torch.cuda.Stream | None
) -> tuple[Callable[[], None], Outputs]:
    """Record ``step`` without computing it. Returns a function that replays it, and the tensors that it writes.

    Other threads may use the GPU at the same time.
    """
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    for generator in generators.generators.values():
        graph.register_generator_state(generator)
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = step()
    finally:
        torch.cuda.set_stream(current)  # a failed recording leaves its own stream as the current one
    return graph.replay, outputs


class Recording:
    """A recorded step: the tensors that it reads, and the function that replays it."""

    def __init__(
        self, state: TrainState, images: Tensor, schedule: Schedule, batch_size: int, record: Recorder,
        stream: torch.cuda.Stream | None,
    ) -> None:  # fmt: skip
        self._images, self._generators = images.clone(), RecordedGenerators(state.rng)
        self._numbers = [torch.zeros((), device=state.device) for _ in schedule_numbers(schedule)]
        self._written: list[Number | None] = [None] * len(self._numbers)
        scalars = iter(self._numbers)
        recorded_schedule = Schedule(
            {name: next(scalars) for name in schedule.lambdas}, next(scalars),
            None if schedule.noise is None else next(scalars), None if schedule.gap is None else next(scalars),
            schedule.has_penalty,
        )  # fmt: skip

        def step() -> Outputs:
            previous, state.rng = state.rng, self._generators
            try:
                metrics, q_real = train_on_batch(state, self._images, recorded_schedule, batch_size)
            finally:
                state.rng = previous
            return list(metrics), torch.stack([value.float() for value in metrics.values()]), q_real

        self._replay, self._outputs = record(step, self._generators, stream)

    def replay(self, images: Tensor, schedule: Schedule, step: int) -> tuple[Metrics, Tensor]:
        """Make the step. Returns what ``train_on_batch`` returns; the next replay overwrites Q's parameters."""
        self._images.copy_(images, non_blocking=True)
        self._generators.seed_for(step)
        for index, number in enumerate(schedule_numbers(schedule)):
            if number != self._written[index]:
                self._numbers[index].fill_(number)
                self._written[index] = number
        self._replay()
        names, values, q_real = self._outputs
        return dict(zip(names, values.clone().unbind(), strict=True)), q_real


def schedule_numbers(schedule: Schedule) -> list[Number]:
    """The numbers of a schedule that a recording reads at each replay."""
    optional = (schedule.consistency, schedule.noise, schedule.gap)
    return [*schedule.lambdas.values(), *(number for number in optional if number is not None)]


class GraphedStep:
    """``train_on_batch`` for one state, recorded after WARM_UP steps.

    Each kind of step (for example with and without R1) gets its own recording. If a recording fails, training continues
    without graphs and tries no other recording. ``pop_status`` returns the reason.
    """

    def __init__(self, state: TrainState, record: Recorder = record_cuda_graph) -> None:
        self.state, self._record = state, record
        self._recordings: dict[Any, Recording] = {}
        self.eager_steps: Counter[Any] = Counter()
        """Number of steps without a recording, by kind."""
        self._status: list[str] = []
        self.recording_failed = False
        self.stream = torch.cuda.Stream() if state.device.type == "cuda" else None
        """The stream for warm-up and recording. A replay may use any stream."""

    @staticmethod
    def supports(state: TrainState, world_size: int) -> bool:
        """Whether steps of this state can be recorded."""
        return state.device.type == "cuda" and world_size == 1 and not state.prior.in_use

    def __call__(
        self, state: TrainState, images: Tensor, schedule: Schedule, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> tuple[Metrics, Tensor]:
        """The same as ``train_on_batch``."""
        assert state is self.state and world_size == 1
        kind = (images.shape, *(part is None for part in schedule), schedule.has_penalty)
        if not self.recording_failed and kind not in self._recordings and self.eager_steps[kind] >= WARM_UP:
            self._try_to_record(kind, images, schedule, batch_size)
        if kind in self._recordings:
            return self._recordings[kind].replay(images, schedule, state.step)
        self.eager_steps[kind] += 1
        return self._without_graph(images, schedule, batch_size)

    def pop_status(self) -> str:
        """Messages about recordings since the last call, in one line; empty if there are none."""
        status, self._status = "; ".join(self._status), []
        return status

    def _without_graph(self, images: Tensor, schedule: Schedule, batch_size: int) -> tuple[Metrics, Tensor]:
        if self.stream is None or self.recording_failed:
            return train_on_batch(self.state, images, schedule, batch_size)
        # A weight's gradient is accumulated on the stream of its first use, which must be the recording's stream.
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
        except RuntimeError as error:  # including CUDA errors. The step was not computed.
            self.recording_failed = True
            reason = " ".join(str(error).split())[:200]
            self._status.append(
                f"the step cannot be recorded as a CUDA graph, and training continues without one, slower: {reason}"
            )
            return
        self._recordings[kind] = recording
        if len(self._recordings) == 1:
            duration = time.monotonic() - started
            self._status.append(
                f"the step runs as a CUDA graph, recorded in {duration:.2f} s after {WARM_UP} steps "
                "(--no-cuda-graph turns this off)"
            )
