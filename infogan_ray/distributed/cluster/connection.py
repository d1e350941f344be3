"""Joining the Ray cluster that work runs on, or starting one. Imports no torch: that can come later."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import ray

from infogan_ray import UserError
from infogan_ray.training.heap import with_huge_pages

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report waits for this poll (2 s by default)
    # Of room for as many workers as before: where a machine has died, Ray learns late that there is less.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # a frozen worker would be waited for for ten minutes
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # of dead or frozen workers it would be waited for for 30 s
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}


def connect(log: Path | None, dashboard: bool = False) -> None:
    """Join the cluster of $RAY_ADDRESS, or start an embedded one. Ray's own messages go to ``log``.

    ``dashboard``: of an embedded cluster. It costs a start of some seconds, and is needed only where Ray Train runs
    inside of Ray Tune: through it, what a killed trial's workers held is found and freed.
    """
    joined = bool(os.environ.get("RAY_ADDRESS"))
    variables = ENVIRONMENT
    if not joined:
        from infogan_ray.distributed.train import (
            embedded,
        )

        variables = with_huge_pages(ENVIRONMENT | embedded.ENVIRONMENT)
    os.environ.update({name: os.environ.get(name, value) for name, value in variables.items()})
    if not ray.is_initialized():
        if joined:
            from infogan_ray.distributed.cluster import auth_check

            auth_check.see_that_we_get_in(os.environ["RAY_ADDRESS"])
        # What the raylet says of dead workers would land on stdout, between the lines of --json.
        ray._private.worker._worker_logs_enabled = False
        started = contextlib.ExitStack()
        if not joined:
            started.enter_context(embedded.out_of_the_terminal())
            if not dashboard:
                started.enter_context(embedded.without_services())
        try:
            with started:
                ray.init(
                    # Without an address Ray would join any that somebody has started on this machine.
                    address=None if joined else "local",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    include_dashboard=None if joined else dashboard,
                )
        except ConnectionError as error:
            address = os.environ.get("RAY_ADDRESS")
            raise UserError(auth_check.nobody(address, error) if joined else str(error)) from None
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        for name in ("ray", "ray.train", "ray.tune"):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [logging.FileHandler(log)], False


def machines_of_the_cluster() -> list[dict[str, float]]:
    """What each machine that is alive has, by Ray's names."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
