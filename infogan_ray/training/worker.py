"""One worker's part of a run: build or resume, train, evaluate, hand checkpoints to the outbox, publish. No Ray.

The same generator runs under Ray Train on every rank, and in a process of its own without Ray. Rank 0 owns all files.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infogan_ray.data.datasets import ImageSet
from infogan_ray.data.feeds.feed_policy import make_feed
from infogan_ray.data.feeds.memory import Feed
from infogan_ray.evaluation.metrics import lower_is_better
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.networks import ModelSpec
from infogan_ray.models.precision import set_matrix_products
from infogan_ray.storage import checkpoints
from infogan_ray.storage.checkpoints import Checkpoint
from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.run_directory import RunDirectory, step_name
from infogan_ray.training.checkpoint_uploader import LAST_PATIENCE_S, Outbox, Parcel, StorageFailed
from infogan_ray.training.config import RunConfig
from infogan_ray.training.cuda_graph import GraphedStep
from infogan_ray.training.heap import keep_freed_memory
from infogan_ray.training.profiling import Profile
from infogan_ray.training.publish import model_files
from infogan_ray.training.run_evaluation import draw_pictures, evaluate_checkpoint, evaluate_state
from infogan_ray.training.step import Diverged, make_step, never, train
from infogan_ray.training.tracking.tracking import LAST_PATIENCE_S as TRACKERS_PATIENCE_S
from infogan_ray.training.tracking.tracking import Tracking
from infogan_ray.training.train_state import TrainState

START_PATIENCE_S = 120.0  # a restart may fall into an outage
LAST_WORDS_S = 7.0  # what a machine that is about to go leaves for the last checkpoint: ten seconds in all
LAST_TRACKING_S = 1.0  # likewise, for curves


@dataclass(frozen=True)
class Report:
    """What a worker has to say at a step. ``due``: a checkpoint is due, on every rank alike. ``say``: for people."""

    metrics: dict[str, Any]
    due: bool = False
    phase: str = "training"
    say: str = ""

    def told(self, restarts: int, world_size: int) -> dict[str, Any]:
        """As a driver's listener hears it."""
        about = {"phase": self.phase, "say": self.say, "restarts": restarts, "world_size": world_size}
        return {**about, **self.metrics}


NOT_BEGUN = object()


class Halted(Exception):
    """The run was asked to stop while something was being measured."""


def run_worker(
    config: RunConfig, images: ImageSet, run: RunDirectory, *,
    device: torch.device, rank: int = 0, world_size: int = 1, wrap: Callable[[nn.Module], nn.Module] | None = None,
    stop: Callable[[], bool] = never, restarts: int = 0,
    turn: Callable[[], AbstractContextManager[None]] = nullcontext, resident: Tensor | None = None,
) -> Generator[Report, None, None]:  # fmt: skip
    """Train to the configured step, from the last whole checkpoint if the run has one.

    When ``stop`` becomes true on rank 0, all ranks end at the same step and a last checkpoint is written. Of several
    runs that share a process, each with one rank, the one that has its ``turn`` computes. ``resident``: the images, on
    the device already. Raises Diverged on every rank that sees it, StorageFailed on rank 0, and on other ranks what
    storage raises.
    """
    keep_freed_memory()
    set_matrix_products(config.precision)
    run = run.patient(START_PATIENCE_S)
    steps = config.total_steps(images.count)
    start, outbox, said = begin(config, run, steps, rank, world_size, device, restarts)
    if start is NOT_BEGUN:
        return
    assert start is None or isinstance(start, Checkpoint)
    with contextlib.ExitStack() as over:
        if outbox is not None:
            over.callback(outbox.close)
        tensors = None if start is None else (start.model_tensors(), start.training_tensors())
        with turn():
            state = config.new_state(images.image_size, images.channels, device)
        if start is not None and tensors is not None:
            state.restore(start.step, *tensors)
        elif config.stability.mean_bias and len(images.images):  # streamed, ranks but the first have no sample
            state.begin_as_bright_as(images.images)
        del tensors
        if wrap is not None:
            state.distribute(wrap)
        loop: dict[str, Any] = {
            "steps": steps, "log_every": config.log_every, "checkpoint_every": config.checkpoint_every,
            "rank": rank, "world_size": world_size,
        }  # fmt: skip
        feed = make_feed(images, config.batch_size, config.seed, rank, world_size, device, resident)
        over.enter_context(contextlib.closing(feed))
        if outbox is None:
            for metrics in train(state, feed, **loop):
                yield Report(metrics, due=is_due(state, config, steps))
            return
        for line in said:
            yield Report({"step": state.step}, phase="resuming", say=line)
        first = FirstRank(config, images, run, state, start, outbox, stop, world_size, turn)
        yield from first.lead(feed, loop, start)


def begin(
    config: RunConfig, run: RunDirectory, steps: int, rank: int, world_size: int, device: torch.device, restarts: int
) -> tuple[Checkpoint | object | None, Outbox | None, list[str]]:
    """The checkpoint to start from, the same on all ranks; on rank 0 the outbox, and what is to be said.

    Rank 0 chooses and takes the run over, then tells the others: a step, none, or that the run cannot begin; they
    must not wait for a rank that has left. Raises StorageFailed on rank 0 where it cannot; others get NOT_BEGUN.
    """
    chosen, outbox, failure = None, None, ""
    said: list[str] = []
    if rank == 0:
        try:
            chosen = checkpoints.last_whole(run.checkpoints, said.append)
            if chosen is not None and chosen.step > steps:
                raise StorageFailed(f"steps is {steps:,}, and the run is at step {chosen.step:,}; give --steps more")
            outbox = Outbox(
                run, step=chosen.step if chosen else 0, keep=config.keep, metric=config.metric,
                max_misses=config.max_missed_checkpoints, restarts=restarts,
            )  # fmt: skip
        except (StorageError, StorageFailed, ValueError) as error:
            failure = str(error)
    if world_size > 1:
        word = torch.tensor([-2 if failure else chosen.step if chosen else -1], device=device)
        dist.broadcast(word, src=0)
        if rank > 0 and word.item() == -2:
            return NOT_BEGUN, None, said
        if rank > 0 and word.item() >= 0:
            chosen = checkpoints.open_checkpoint(run.checkpoints / step_name(int(word.item())))
    if failure:
        raise StorageFailed(failure)
    return chosen, outbox, said


def is_due(state: TrainState, config: RunConfig, steps: int) -> bool:
    return state.step % config.checkpoint_every == 0 or state.step == steps


class FirstRank:
    """What rank 0 does beside training: evaluate, hand over checkpoints, bring the run to its end."""

    def __init__(
        self, config: RunConfig, images: ImageSet, run: RunDirectory, state: TrainState, start: Checkpoint | None,
        outbox: Outbox, stop: Callable[[], bool], world_size: int, turn: Callable[[], AbstractContextManager[None]],
    ) -> None:  # fmt: skip
        self.config, self.images, self.run, self.state = config, images, run, state
        self.outbox, self.stop, self.world_size, self.turn = outbox, stop, world_size, turn
        self.tracking = Tracking(config, run, state.step)
        outbox.before_each = self.tracking.settle
        self.saved_at = state.step
        self.evaluated = start is None or "mi_bound" in start.metrics
        self.diverged: Diverged | None = None
        self.profile = Profile(state.step, state.device) if config.profile else None
        self.stepped = self.profile.step if self.profile is not None else None
        self.graphed = GraphedStep(state) if config.cuda_graph and GraphedStep.fits(state, world_size) else None
        self._told = (False, 0)

    def lead(self, feed: Feed, loop: dict[str, Any], start: Checkpoint | None) -> Iterator[Report]:
        """Train with all that rank 0 does beside it, from the greeting to the last word."""
        state, outbox, steps = self.state, self.outbox, loop["steps"]
        loop = loop | {"step_with": self.step}
        yield Report({"step": state.step}, say=self.greeting(start))
        try:
            for metrics in train(state, feed, **loop, halt=self.must_halt, stepped=self.stepped):
                due = is_due(state, self.config, steps)
                if due:
                    yield Report(metrics, phase="evaluating")
                    metrics |= self.checkpoint(metrics)
                else:
                    self.log(metrics)
                yield Report(metrics, due, say=self.news())
                yield from self.traced(due)
            yield from self.finish(steps)
        except Diverged as error:
            yield Report(self.give_up_as_diverged(error), phase="diverged")
            raise
        except StorageFailed:
            raise
        except StorageError as error:
            raise StorageFailed(str(error)) from None
        except (
            Exception,
            GeneratorExit,
        ):  # another rank has died, perhaps: a checkpoint on its way should still arrive
            with contextlib.suppress(StorageFailed):
                outbox.flush(LAST_WORDS_S)
            raise
        finally:
            if self.profile is not None:
                self.profile.close()
            self.tracking.close(state.step)
            outbox.close()
            with self.turn():  # nobody records meanwhile
                self.graphed = None

    def step(self, *about: Any) -> dict[str, Tensor]:
        """As ``make_step``."""
        with self.turn():
            return (self.graphed or make_step)(*about)

    def greeting(self, start: Checkpoint | None) -> str:
        restarts = self.outbox.restarts
        why = f" after restart {restarts} of the workers" if restarts else ""
        if start is None:
            again = bool(restarts) or self.config.resume
            return f"started again from step 0{why}: no checkpoint had been finished" if again else ""
        before = start.state.get("world_size", self.world_size)
        workers = f"; world size {self.world_size}, before {before}" if before != self.world_size else ""
        return f"resumed from step {self.state.step:,}{why}{workers}"

    def must_halt(self) -> bool:
        self.outbox.step = self.state.step
        return self.stop() or self.outbox.failure is not None or self.diverged is not None

    def log(self, metrics: dict[str, Any]) -> None:
        self.outbox.log(metrics)
        self.tracking.log(metrics)

    def news(self) -> str:
        """What changed about storage since it was last told; else of the step's recording, or of a tracker."""
        now = (bool(self.outbox.trouble), self.outbox.missed)
        if now == self._told:
            recorded = self.graphed.news() if self.graphed is not None else ""
            return recorded or self.tracking.news()
        self._told = now
        return self.outbox.lag or f"storage is well again; step {self.outbox.stored:,} is stored"

    def traced(self, due: bool) -> Iterator[Report]:
        """Where the trace is, once."""
        if self.profile is not None and (said := self.profile.deliver(self.run, again=due)):
            yield Report({"step": self.state.step}, say=said)

    def checkpoint(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Evaluate, log and hand the checkpoint over; returns what was measured, nothing if asked to stop meanwhile."""
        measured = self._measure()
        self.log({**metrics, **measured})  # before the checkpoint is on its way: no line before it can be lost then
        if self.diverged is None:
            self.evaluated = bool(measured)
            self._put({**metrics, **measured})
        return measured

    def _measure(self) -> dict[str, Any]:
        measured: dict[str, Any] = {}
        with contextlib.suppress(Halted), self.turn():
            measured = evaluate_state(self.state, self.images, self.config, self._unless_stopped)
        for name, value in measured.items():
            if isinstance(value, float) and not math.isfinite(value):
                self.diverged = Diverged(self.state.step, name, value)  # raised when all ranks have halted
                return {}
        return measured

    def _put(self, metrics: dict[str, Any]) -> None:
        state = self.state
        about = {
            "model": state.spec.to_dict(), "metrics": metrics, "seed": self.config.seed, "world_size": self.world_size
        }  # fmt: skip
        with self.turn():
            files = checkpoints.pack(state.step, state.model_tensors(), state.training_tensors(), about)
            pictures = {} if self.stop() else draw_pictures(state, self.run)
        self.tracking.show(state.step, pictures)
        self.outbox.put(Parcel(state.step, files, pictures), hurry=self.stop)
        self.saved_at = state.step

    def finish(self, steps: int) -> Iterator[Report]:
        """After the last step, or the halt: bring everything to storage and say how the run ended."""
        self.outbox.step = self.state.step
        halted = self.stop()
        if not halted:  # else the seconds that are left belong to the last checkpoint
            yield from self.traced(due=True)
        if self.profile is not None and (said := self.profile.close(halted)):
            yield Report({"step": self.state.step}, say=said)
        if self.diverged is not None:
            raise self.diverged
        if self.outbox.failure is None and self.state.step > self.saved_at:  # halted between two checkpoints
            self._put({"step": self.state.step})
            self.evaluated = False
        try:
            if self.outbox.failure is not None or self.stop():
                raise Halted
            if not self.evaluated:  # resumed at the last step, whose evaluation had been cut short
                yield Report({"step": steps}, phase="evaluating")
                self._measure_last()
            if self.outbox.busy:
                yield Report({"step": steps}, phase="uploading the last checkpoint", say=self.news())
            self.outbox.flush(LAST_PATIENCE_S, self._unless_stopped)
            yield Report({"step": steps}, phase="evaluating the best checkpoint on all data")
            final = self._publish_best()
            self.outbox.close("finished", LAST_PATIENCE_S, best=final["step"])
            self.tracking.end("finished", steps, final)
            self.tracking.close(steps, TRACKERS_PATIENCE_S)
            yield Report({**final, "step": steps, "best_step": final["step"]}, phase="finished", say=self.news())
        except Halted:
            if self.outbox.failure is not None:
                raise self.outbox.failure from None
            yield Report({"step": self.state.step, "message": self._last_words()}, phase="interrupted")

    def _measure_last(self) -> None:
        """The last checkpoint is whole, and stays so: its measurement is added to it."""
        measured = self._measure()
        if self.diverged is not None:
            raise self.diverged
        if not measured:
            raise Halted
        folder = self.run.patient(LAST_PATIENCE_S).checkpoints / step_name(self.state.step)
        checkpoints.amend(checkpoints.open_checkpoint(folder, thorough=False), measured)

    def _last_words(self) -> str:
        """Store what can be stored in the seconds that are left."""
        stopped, failure = f"stopped at step {self.state.step:,}", ""
        try:
            self.outbox.flush(LAST_WORDS_S)
        except StorageFailed as error:
            failure = str(error)
        self.tracking.close(self.state.step, LAST_TRACKING_S)
        try:
            self.outbox.close("interrupted")
        except StorageError as error:
            failure = failure or str(error)
        if failure:
            return f"{stopped}, but {failure}"
        return f"{stopped}, which is stored" if self.state.step else f"{stopped}, before there was anything to store"

    def _publish_best(self) -> dict[str, Any]:
        patient = self.run.patient(LAST_PATIENCE_S)
        metric = self.config.metric
        chosen = checkpoints.choose(patient.checkpoints, "best", metric, lower_is_better=lower_is_better(metric))
        spec, tensors = ModelSpec.from_dict(chosen.state["model"]), chosen.model_tensors()
        with self.turn():  # to build a model draws from torch's one generator, and another run may be about to begin
            model = InfoGAN.from_tensors(spec, tensors, chosen.folder)
            full = chosen.metrics | evaluate_checkpoint(
                model, self.images, self.config, self.state.device, self._unless_stopped
            )
            files = model_files(chosen, self.config, full)
        checkpoints.seal(patient.model, files)  # one that is there is replaced, and is unfinished in between
        del full["categories"]
        return {**full, "step": chosen.step}

    def give_up_as_diverged(self, error: Diverged) -> dict[str, Any]:
        """What was good before stays, and the status says which checkpoint that is; returns what it says."""
        with contextlib.suppress(StorageFailed):  # the divergence is the news; the status names what is stored
            self.outbox.flush()
        stored = self.outbox.stored
        about: dict[str, Any] = {"quantity": error.quantity, "message": str(error)}
        about |= {"last_good": step_name(stored)} if stored else {}
        self.outbox.step = error.step
        self.tracking.end("diverged", error.step, {})
        with contextlib.suppress(StorageError):
            self.outbox.close("diverged", **about)
        return {"step": error.step, **about}

    def _unless_stopped(self) -> None:
        if self.stop():
            raise Halted
