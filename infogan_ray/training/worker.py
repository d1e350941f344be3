"""One worker's part of a run: build or resume, train, evaluate, hand over checkpoints, publish. No Ray.

The same generator runs on every rank. Rank 0 owns all files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from infogan_ray import UserError
from infogan_ray.data.feeds.feed_policy import make_feed
from infogan_ray.data.image_set import ImageSet
from infogan_ray.evaluation.metrics import lower_is_better
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.networks import ModelSpec
from infogan_ray.models.precision import set_matrix_products
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.checkpoints import Checkpoint
from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.run_directory import RunDirectory, step_name
from infogan_ray.training.accumulation import train_on_batch
from infogan_ray.training.checkpoint_uploader import LAST_PATIENCE_S, CheckpointUploader, StorageFailed
from infogan_ray.training.checkpoint_writer import CheckpointWriter, Stopped
from infogan_ray.training.config import RunConfig
from infogan_ray.training.cuda_graph import GraphedStep
from infogan_ray.training.loop import Diverged, Update, never_stop, train
from infogan_ray.training.profiling import Profile
from infogan_ray.training.publish import model_files
from infogan_ray.training.run_evaluation import evaluate_checkpoint
from infogan_ray.training.run_logger import RunLogger
from infogan_ray.training.tracking.tracking import LAST_PATIENCE_S as TRACKERS_PATIENCE_S
from infogan_ray.training.train_state import TrainState

START_PATIENCE_S = 120.0  # a restart may fall into an outage
SHUTDOWN_GRACE_S = 7.0  # for the last checkpoint of a machine that will be gone in ten seconds
TRACKING_GRACE_S = 1.0  # likewise, for curves


@dataclass(frozen=True)
class Report:
    """What a worker reports at a step. ``due``: a checkpoint is due, on every rank alike. ``say``: for people."""

    metrics: dict[str, Any]
    due: bool = False
    phase: str = "training"
    say: str = ""

    def to_dict(self, restarts: int, world_size: int) -> dict[str, Any]:
        """What a driver's listener gets."""
        about = {"phase": self.phase, "say": self.say, "restarts": restarts, "world_size": world_size}
        return {**about, **self.metrics}


def run_worker(
    config: RunConfig, images: ImageSet, run: RunDirectory, *,
    device: torch.device, rank: int = 0, world_size: int = 1, wrap: Callable[[nn.Module], nn.Module] | None = None,
    stop: Callable[[], bool] = never_stop, restarts: int = 0,
) -> Generator[Report, None, None]:  # fmt: skip
    """Train to the configured step, from the last whole checkpoint if the run has one.

    When ``stop`` becomes true on rank 0, all ranks end at the same step and a last checkpoint is written. Raises
    Diverged on every rank that sees it, StorageFailed on rank 0, and on other ranks what storage raises.
    """
    set_matrix_products(config.precision)
    run, steps = run.with_retry_timeout(START_PATIENCE_S), config.total_steps(images.count)
    start = agree_on_start(config, run, steps, rank, world_size, device, restarts)
    if start is None:
        return
    with contextlib.ExitStack() as resources:
        if start.uploader is not None:
            resources.callback(start.uploader.close)
        state = make_state(config, images, start.checkpoint, device, wrap)
        feed = make_feed(images, config.batch_size, config.seed, rank, world_size, device)
        resources.enter_context(contextlib.closing(feed))
        loop: dict[str, Any] = {
            "steps": steps, "log_every": config.log_every, "checkpoint_every": config.checkpoint_every,
            "rank": rank, "world_size": world_size,
        }  # fmt: skip
        if start.uploader is None:
            for metrics in train(state, feed, **loop):
                yield Report(metrics, due=is_due(state, config, steps))
            return
        for line in start.warnings:
            yield Report({"step": state.step}, phase="resuming", say=line)
        duties = resources.enter_context(rank_zero_duties(config, images, run, state, start, stop, world_size))
        yield Report({"step": state.step}, say=resume_message(config, state, start, world_size))
        try:
            for metrics in train(
                state, feed, **loop, halt=duties.must_halt, on_step=duties.on_step, update=duties.update
            ):
                due = is_due(state, config, steps)
                if due:
                    yield Report(metrics, phase="evaluating")
                    metrics |= duties.writer.evaluate_and_write(metrics)
                else:
                    duties.log.log(metrics)
                yield Report(metrics, due, say=duties.log.pop_status())
                yield from duties.deliver_trace(due)
            yield from finish(duties, steps)
        except Diverged as error:
            yield Report(report_divergence(duties, error), phase="diverged")
            raise


@dataclass(frozen=True)
class Start:
    """What a rank starts with: a checkpoint or none; on rank 0 the uploader, and lines for people."""

    checkpoint: Checkpoint | None
    uploader: CheckpointUploader | None
    warnings: list[str]


def agree_on_start(
    config: RunConfig, run: RunDirectory, steps: int, rank: int, world_size: int, device: torch.device, restarts: int
) -> Start | None:
    """Choose the checkpoint to start from, the same on all ranks.

    Rank 0 chooses it and takes the run over, then sends the others a step, none, or that the run cannot start. They
    must not wait for a rank that has left. Raises StorageFailed on rank 0 where it cannot; others get None.
    """
    chosen, uploader, failure = None, None, ""
    warnings: list[str] = []
    if rank == 0:
        try:
            chosen = checkpoints.last_valid(run.checkpoints, warnings.append)
            if chosen is not None and chosen.step > steps:
                raise StorageFailed(f"steps is {steps:,}, and the run is at step {chosen.step:,}; give --steps more")
            uploader = CheckpointUploader(
                run, step=chosen.step if chosen else 0, keep=config.keep, metric=config.metric,
                max_misses=config.max_missed_checkpoints, restarts=restarts,
            )  # fmt: skip
        except (StorageError, StorageFailed, UserError) as error:
            failure = str(error)
    if world_size > 1:
        message = torch.tensor([-2 if failure else chosen.step if chosen else -1], device=device)
        dist.broadcast(message, src=0)
        if rank > 0 and message.item() == -2:
            return None
        if rank > 0 and message.item() >= 0:
            chosen = checkpoints.open_checkpoint(run.checkpoints / step_name(int(message.item())))
    if failure:
        raise StorageFailed(failure)
    return Start(chosen, uploader, warnings)


def make_state(
    config: RunConfig, images: ImageSet, start: Checkpoint | None, device: torch.device,
    wrap: Callable[[nn.Module], nn.Module] | None,
) -> TrainState:  # fmt: skip
    """The training state of a checkpoint, or that before the first step."""
    tensors = None if start is None else (start.model_tensors(), start.training_tensors())
    state = config.new_state(images.image_size, images.channels, device)
    if start is not None and tensors is not None:
        state.restore(start.step, *tensors)
    elif config.stability.mean_bias and len(images.images):  # streamed, ranks but the first have no sample
        state.set_mean_bias(images.images)
    if wrap is not None:
        state.distribute(wrap)
    return state


def is_due(state: TrainState, config: RunConfig, steps: int) -> bool:
    """Whether a checkpoint is due."""
    return state.step % config.checkpoint_every == 0 or state.step == steps


def resume_message(config: RunConfig, state: TrainState, start: Start, world_size: int) -> str:
    """Where training starts, for people; empty for a new run."""
    assert start.uploader is not None
    restarts = start.uploader.restarts
    why = f" after restart {restarts} of the workers" if restarts else ""
    if start.checkpoint is None:
        again = bool(restarts) or config.resume
        return f"started again from step 0{why}: no checkpoint had been finished" if again else ""
    before = start.checkpoint.state.get("world_size", world_size)
    workers = f"; world size {world_size}, before {before}" if before != world_size else ""
    return f"resumed from step {state.step:,}{why}{workers}"


@dataclass
class RankZeroDuties:
    """What rank 0 does beside training, each by an object of its own."""

    config: RunConfig
    images: ImageSet
    run: RunDirectory
    state: TrainState
    uploader: CheckpointUploader
    log: RunLogger
    writer: CheckpointWriter
    profile: Profile | None
    graphed: GraphedStep | None
    stop: Callable[[], bool]

    @property
    def update(self) -> Update:
        return self.graphed or train_on_batch

    @property
    def on_step(self) -> Callable[[], None] | None:
        return self.profile.step if self.profile is not None else None

    def must_halt(self) -> bool:
        self.uploader.step = self.state.step
        return self.stop() or self.uploader.failure is not None or self.writer.diverged is not None

    def deliver_trace(self, due: bool) -> Iterator[Report]:
        """Where the profile's trace is, once."""
        if self.profile is not None and (line := self.profile.deliver(self.run, again=due)):
            yield Report({"step": self.state.step}, say=line)


@contextlib.contextmanager
def rank_zero_duties(
    config: RunConfig, images: ImageSet, run: RunDirectory, state: TrainState, start: Start,
    stop: Callable[[], bool], world_size: int,
) -> Iterator[RankZeroDuties]:  # fmt: skip
    """Rank 0's duties, which are closed in the end. What storage raises inside becomes StorageFailed."""
    uploader, checkpoint = start.uploader, start.checkpoint
    assert uploader is not None
    graphed = GraphedStep(state) if config.cuda_graph and GraphedStep.fits(state, world_size) else None
    log = RunLogger(config, run, state.step, uploader, graphed)
    evaluated = checkpoint is None or "mi_bound" in checkpoint.metrics
    writer = CheckpointWriter(config, images, run, state, uploader, log, stop, world_size, evaluated)
    profile = Profile(state.step, state.device) if config.profile else None
    try:
        yield RankZeroDuties(config, images, run, state, uploader, log, writer, profile, graphed, stop)
    except (Diverged, StorageFailed):
        raise
    except StorageError as error:
        raise StorageFailed(str(error)) from None
    except (Exception, GeneratorExit):  # perhaps another rank has died: a checkpoint in flight should still arrive
        with contextlib.suppress(StorageFailed):
            uploader.flush(SHUTDOWN_GRACE_S)
        raise
    finally:
        if profile is not None:
            profile.close()
        log.tracking.close(state.step)
        uploader.close()


def finish(duties: RankZeroDuties, steps: int) -> Iterator[Report]:
    """After the last step, or a halt: store the last checkpoint, publish the best one, and report how the run ended."""
    state, uploader, writer, log = duties.state, duties.uploader, duties.writer, duties.log
    uploader.step = state.step
    stopped = duties.stop()
    if not stopped:  # else the seconds that are left belong to the last checkpoint
        yield from duties.deliver_trace(due=True)
    if duties.profile is not None and (line := duties.profile.close(stopped)):
        yield Report({"step": state.step}, say=line)
    if writer.diverged is not None:
        raise writer.diverged
    if uploader.failure is None and state.step > writer.written_at:  # halted between two checkpoints
        writer.write({"step": state.step}, evaluated=False)
    try:
        if uploader.failure is not None or duties.stop():
            raise Stopped
        if not writer.evaluated:  # resumed at the last step, whose evaluation had been cut short
            yield Report({"step": steps}, phase="evaluating")
            writer.evaluate_last()
        if uploader.busy:
            yield Report({"step": steps}, phase="uploading the last checkpoint", say=log.pop_status())
        uploader.flush(LAST_PATIENCE_S, writer.check_stop)
        yield Report({"step": steps}, phase="evaluating the best checkpoint on all data")
        final = publish_best(duties)
        uploader.close("finished", LAST_PATIENCE_S, best=final["step"])
        log.tracking.end("finished", steps, final)
        log.tracking.close(steps, TRACKERS_PATIENCE_S)
        yield Report({**final, "step": steps, "best_step": final["step"]}, phase="finished", say=log.pop_status())
    except Stopped:
        if uploader.failure is not None:
            raise uploader.failure from None
        yield Report({"step": state.step, "message": store_before_shutdown(duties)}, phase="interrupted")


def publish_best(duties: RankZeroDuties) -> dict[str, Any]:
    """Evaluate the best checkpoint on all data and write the folder ``model``. Returns its metrics and step."""
    run, config = duties.run.with_retry_timeout(LAST_PATIENCE_S), duties.config
    better = lower_is_better(config.metric)
    chosen = checkpoints.choose(run.checkpoints, "best", config.metric, lower_is_better=better)
    model = InfoGAN.from_tensors(ModelSpec.from_dict(chosen.state["model"]), chosen.model_tensors(), chosen.folder)
    metrics = chosen.metrics | evaluate_checkpoint(
        model, duties.images, config, duties.state.device, duties.writer.check_stop
    )
    # A model that is there is replaced; in between it is unfinished.
    manifests.write_with_manifest(run.model, model_files(chosen, config, metrics))
    del metrics["categories"]
    return {**metrics, "step": chosen.step}


def store_before_shutdown(duties: RankZeroDuties) -> str:
    """Store what can be stored in the seconds that are left; returns what became of it."""
    step = duties.state.step
    stopped, failure = f"stopped at step {step:,}", ""
    try:
        duties.uploader.flush(SHUTDOWN_GRACE_S)
    except StorageFailed as error:
        failure = str(error)
    duties.log.tracking.close(step, TRACKING_GRACE_S)
    try:
        duties.uploader.close("interrupted")
    except StorageError as error:
        failure = failure or str(error)
    if failure:
        return f"{stopped}, but {failure}"
    return f"{stopped}, which is stored" if step else f"{stopped}, before there was anything to store"


def report_divergence(duties: RankZeroDuties, error: Diverged) -> dict[str, Any]:
    """Earlier checkpoints stay, and the run's status names the last good one. Returns what the status says."""
    with contextlib.suppress(StorageFailed):  # the divergence is what matters; the status names what is stored
        duties.uploader.flush()
    stored = duties.uploader.stored
    about: dict[str, Any] = {"quantity": error.quantity, "message": str(error)}
    about |= {"last_good": step_name(stored)} if stored else {}
    duties.uploader.step = error.step
    duties.log.tracking.end("diverged", error.step, {})
    with contextlib.suppress(StorageError):
        duties.uploader.close("diverged", **about)
    return {"step": error.step, **about}
