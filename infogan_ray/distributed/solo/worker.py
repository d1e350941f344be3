"""The worker's side: reads its job from stdin, trains, and reports through a pipe, a line of JSON each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from infogan_ray.data.datasets import load_images
from infogan_ray.data.shards.sampling import SAMPLE
from infogan_ray.distributed.cluster.resources import ASKED
from infogan_ray.distributed.cluster.threads import use
from infogan_ray.distributed.solo.process import STOP
from infogan_ray.distributed.solo.reports import Reports
from infogan_ray.storage.file_system import open_storage
from infogan_ray.storage.run_directory import RunDirectory
from infogan_ray.training.checkpoint_uploader import StorageFailed
from infogan_ray.training.config import RunConfig
from infogan_ray.training.loop import Diverged
from infogan_ray.training.run_outcome import LAST_WORDS_S, failed
from infogan_ray.training.run_setup import log_path
from infogan_ray.training.worker import run_worker


def main(told: Reports) -> None:
    """Wait for a job and do it. Of what it raises the driver hears (``process.PROGRAM``), and starts another worker."""
    given = sys.stdin.readline()
    if not given:  # the driver has no use for this worker, or is gone
        return
    job = json.loads(given)
    with contextlib.suppress(OSError):  # the driver has looked at its own; a cluster's machine may have no home
        say_to(log_path(open_storage(job["run"]), "worker.log"))
    stop = Stop()
    signal.signal(signal.SIGTERM, lambda *_: stop.now())
    threading.Thread(target=stop.listen, name="driver-watch", daemon=True).start()
    work(job, told, stop)


def work(job: dict[str, Any], told: Reports, stop: Stop) -> None:
    """Train as the job says, to the end or until told to stop."""
    line = use(job["threads"], job["threads_from"], asked=job["threads_from"] == ASKED)
    told.write({"phase": "starting workers", "say": line})
    config = RunConfig().override(job["config"], "the driver")
    assert config.data is not None
    images = load_images(config.data, config.data_config, lambda line: None, feed=config.feed, sample=SAMPLE)
    run, restarts = RunDirectory(open_storage(job["run"])), job["restarts"]
    device = torch.device(job["device"])
    try:
        for report in run_worker(config, images, run, device=device, stop=stop, restarts=restarts):
            told.write(report.to_dict(restarts, world_size=1))
    except Diverged:  # which has been reported; to start again would end the same way
        pass
    except StorageFailed as error:
        told.write(failed(error))


class Stop:
    """Whether it is time to stop: the driver says so, or a scheduler does (SIGTERM), or the driver is gone."""

    def __init__(self) -> None:
        self._stopping = False

    def __call__(self) -> bool:
        return self._stopping

    def now(self) -> None:
        self._stopping = True

    def listen(self) -> None:
        for line in sys.stdin:
            if line.strip() == STOP:
                self.now()
        # Nobody is there any more to end this process if it hangs; a last checkpoint has as long as with a driver.
        self.now()
        threading.Event().wait(LAST_WORDS_S)
        os._exit(1)


def say_to(log: Path) -> None:
    """Whatever this process prints from now on goes there."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
