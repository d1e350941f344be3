"""One worker on a cluster: the plain process that it is on a laptop, beside a small actor that passes its reports on.

There is nobody it would have to agree with, so that nothing of Ray Train is needed; Ray finds it a machine and keeps
its CPUs and GPUs for it. What is promised is what ``solo.driver`` promises, for machines that die as well.
"""

from __future__ import annotations

from infogan_ray.distributed.cluster.connection import connect
from infogan_ray.distributed.cluster.machines import check, check_files, check_images, resources
from infogan_ray.distributed.solo import driver as solo
from infogan_ray.distributed.train import head_monitor, relay
from infogan_ray.storage.file_system import open_storage
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_outcome import HeadLost, Listener, RunResult, TrainingFailed, set_last_status
from infogan_ray.training.run_setup import begin, log_path
from infogan_ray.training.tracking.addresses import check_packages

__all__ = ["check", "train"]  # what ``launching.launcher`` asks for


def train(config: RunConfig, listen: Listener | None = None) -> RunResult:
    """Run a training job to its end on the connected cluster: one for several workers, which the cluster may decide
    where the configuration does not, under Ray Train.

    Raises what ``solo.driver.train`` does, and HeadLost when the cluster's head has died.
    """
    listen = listen or (lambda report: None)
    check_packages(config.mlflow, config.wandb)
    connect(None)
    wanted = resources(config, lambda line: listen({"phase": line}))
    if wanted.workers != 1:
        relay.discard()
        from infogan_ray.distributed.train import trainer

        return trainer.train(config, listen)
    head = head_monitor.HeadWatch()
    first = [relay.take(wanted.of_a_worker, head, listen)]  # its imports take as long as what is done here meanwhile
    last = first[0]

    def place() -> str:
        """Of the log. In a folder that all machines share it is where the run is."""
        log = log_path(run.folder, "worker.log")
        return str(log) if run.folder.is_local else f"{log} on {last.address or 'the machine of the worker'}"

    def take() -> relay.RemoteWorker:
        nonlocal last
        if first:
            return first.pop()
        try:  # the machine that it had may have died, and with it the room for so many threads
            # On the device that it has begun on: what had a GPU does not go on without one.
            here = config.override({"device": wanted.device}, "the run")
            now = resources(here, lambda line: listen({"phase": line}))
        except ValueError as error:
            set_last_status(run, "failed", driver.step)
            raise TrainingFailed(f"{error}; the log is {place()}") from None
        driver.job |= solo.job_of(config, run, now)
        last = relay.take(now.of_a_worker, head, listen)
        return last

    try:
        found = check_images(config, wanted, lambda line: listen({"phase": line}), sample=0)
        check_files(config, open_storage(config.storage))
        config, run = begin(config, found.images, found.room, listen)
        del found  # with its images, of which the worker has its own
        driver = solo.Driver(run, solo.job_of(config, run, wanted), listen, place, take)
        try:
            return solo.conclude_after(driver)
        except HeadLost:
            set_last_status(run, "failed", driver.step)
            raise HeadLost(f"{head.error(driver.step)}; the log is {place()}") from None
    finally:
        head.close()
        for worker in first:
            worker.kill()
