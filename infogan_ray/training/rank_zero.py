"""The tasks of rank 0 besides training: upload, logging, evaluation, profile, and the end of a run. No Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from infogan_ray.data.image_set import ImageSet
from infogan_ray.evaluation.metrics import lower_is_better
from infogan_ray.models.infogan import InfoGAN
from infogan_ray.models.networks import ModelSpec
from infogan_ray.storage import checkpoints, manifests
from infogan_ray.storage.file_system import StorageError
from infogan_ray.storage.run_directory import RunDirectory, step_name
from infogan_ray.training.accumulation import train_on_batch
from infogan_ray.training.checkpoint_uploader import LAST_TIMEOUT_S, CheckpointUploader, StorageFailed
from infogan_ray.training.checkpoint_writer import CheckpointWriter, Stopped
from infogan_ray.training.config import RunConfig
from infogan_ray.training.cuda_graph import GraphedStep
from infogan_ray.training.disk_room import with_advice
from infogan_ray.training.loop import Diverged, Update
from infogan_ray.training.profiling import Profile
from infogan_ray.training.publish import model_files
from infogan_ray.training.report import Report
from infogan_ray.training.run_evaluation import evaluate_checkpoint
from infogan_ray.training.run_logger import RunLogger
from infogan_ray.training.start import Start
from infogan_ray.training.tracking.tracking import LAST_TIMEOUT_S as TRACKERS_TIMEOUT_S
from infogan_ray.training.train_state import TrainState

UPLOAD_GRACE_S = 7.0  # for the last checkpoint, if the machine stops in ten seconds
TRACKING_GRACE_S = 1.0  # for the last curves, at the same time


@dataclass
class RankZeroTasks:
    """The other tasks of rank 0, each with its object: upload, logging, evaluation, profile and CUDA graph."""

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

    def store_trace(self, due: bool) -> Iterator[Report]:
        """Store the profile's trace and report where it is, once."""
        if self.profile is not None and (line := self.profile.store(self.run, retry=due)):
            yield Report({"step": self.state.step}, say=line)


@contextlib.contextmanager
def rank_zero_tasks(
    config: RunConfig, images: ImageSet, run: RunDirectory, state: TrainState, start: Start,
    stop: Callable[[], bool], world_size: int,
) -> Iterator[RankZeroTasks]:  # fmt: skip
    """A context with the objects of rank 0, which closes them at the end. Converts StorageError to StorageFailed."""
    uploader, checkpoint = start.uploader, start.checkpoint
    assert uploader is not None
    graphed = GraphedStep(state) if config.cuda_graph and GraphedStep.supports(state, world_size) else None
    log = RunLogger(config, run, state.step, uploader, graphed)
    evaluated = checkpoint is None or "mi_bound" in checkpoint.metrics
    writer = CheckpointWriter(config, images, run, state, uploader, log, stop, world_size, evaluated)
    profile = Profile(state.step, state.device) if config.profile else None
    try:
        yield RankZeroTasks(config, images, run, state, uploader, log, writer, profile, graphed, stop)
    except (Diverged, StorageFailed):
        raise
    except StorageError as error:
        raise StorageFailed(with_advice(error, run, config.keep, config.metric)) from None
    except (Exception, GeneratorExit):  # perhaps another rank has died. Finish the upload that is in flight.
        with contextlib.suppress(StorageFailed):
            uploader.flush(UPLOAD_GRACE_S)
        raise
    finally:
        if profile is not None:
            profile.close()
        log.tracking.close(state.step)
        uploader.close()


def finish(tasks: RankZeroTasks, steps: int) -> Iterator[Report]:
    """End a run after the last step or a halt: store the last checkpoint, publish the best one, report the outcome."""
    state, uploader, writer, log = tasks.state, tasks.uploader, tasks.writer, tasks.log
    uploader.step = state.step
    stopped = tasks.stop()
    if not stopped:  # after a stop, the remaining seconds are for the last checkpoint
        yield from tasks.store_trace(due=True)
    if tasks.profile is not None and (line := tasks.profile.close(stopped)):
        yield Report({"step": state.step}, say=line)
    if writer.diverged is not None:
        raise writer.diverged
    if uploader.failure is None and state.step > writer.written_at:  # halted between two checkpoints
        writer.write({"step": state.step}, evaluated=False)
    try:
        if uploader.failure is not None or tasks.stop():
            raise Stopped
        if not writer.evaluated:  # the run resumed at the last step, whose evaluation had been interrupted
            yield Report({"step": steps}, phase="evaluating")
            writer.evaluate_last()
        if uploader.busy:
            yield Report({"step": steps}, phase="uploading the last checkpoint", say=log.pop_status())
        for _ in uploader.wait():
            writer.check_stop()
            if message := log.pop_status():  # an outage may begin or end now
                yield Report({"step": steps}, phase="uploading the last checkpoint", say=message)
        yield Report({"step": steps}, phase="evaluating the best checkpoint on all data")
        final = publish_best(tasks)
        uploader.close("finished", LAST_TIMEOUT_S, best=final["step"])
        log.tracking.end("finished", steps, final)
        log.tracking.close(steps, TRACKERS_TIMEOUT_S)
        yield Report({**final, "step": steps, "best_step": final["step"]}, phase="finished", say=log.pop_status())
    except Stopped:
        if uploader.failure is not None:
            raise uploader.failure from None
        yield Report({"step": state.step, "message": store_before_shutdown(tasks)}, phase="interrupted")


def publish_best(tasks: RankZeroTasks) -> dict[str, Any]:
    """Evaluate the best checkpoint on all data and write the folder ``model``. Returns its metrics and step."""
    run, config = tasks.run.with_retry_timeout(LAST_TIMEOUT_S), tasks.config
    better = lower_is_better(config.metric)
    chosen = checkpoints.choose(run.checkpoints, "best", config.metric, lower_is_better=better)
    model = InfoGAN.from_tensors(ModelSpec.from_dict(chosen.state["model"]), chosen.model_tensors(), chosen.folder)
    metrics = chosen.metrics | evaluate_checkpoint(
        model, tasks.images, config, tasks.state.device, tasks.writer.check_stop
    )
    # Replaces an earlier model. During the write, the model folder is incomplete.
    manifests.write_with_manifest(run.model, model_files(chosen, config, metrics))
    del metrics["categories"]
    return {**metrics, "step": chosen.step}


def store_before_shutdown(tasks: RankZeroTasks) -> str:
    """Store the last checkpoint, metrics and status within seconds. Returns a message about the result."""
    step = tasks.state.step
    stopped, failure = f"stopped at step {step:,}", ""
    try:
        tasks.uploader.flush(UPLOAD_GRACE_S)
    except StorageFailed as error:
        failure = str(error)
    tasks.log.tracking.close(step, TRACKING_GRACE_S)
    try:
        tasks.uploader.close("interrupted")
    except StorageError as error:
        failure = failure or str(error)
    if failure:
        return f"{stopped}, but {failure}"
    return f"{stopped}, which is stored" if step else f"{stopped}, before the first step was made"


def report_divergence(tasks: RankZeroTasks, error: Diverged) -> dict[str, Any]:
    """Write the divergence and the last good checkpoint to the run's status. Returns the fields for the report.

    Earlier checkpoints stay on storage.
    """
    with contextlib.suppress(StorageFailed):  # the divergence is more important; the status has the stored checkpoint
        tasks.uploader.flush()
    stored = tasks.uploader.stored
    fields: dict[str, Any] = {"quantity": error.quantity, "message": str(error)}
    fields |= {"last_good": step_name(stored)} if stored else {}
    tasks.uploader.step = error.step
    tasks.log.tracking.end("diverged", error.step, {})
    with contextlib.suppress(StorageError):
        tasks.uploader.close("diverged", **fields)
    return {"step": error.step, **fields}
