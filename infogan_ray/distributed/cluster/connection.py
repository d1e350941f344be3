"""Joining the Ray cluster that work runs on, or starting one, and where Ray's log lines go."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import ray

from infogan_ray.distributed.cluster import auth_check
from infogan_ray.distributed.cluster.threads import cores
from infogan_ray.training.run_outcome import TrainingFailed

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report waits for this poll (2 s by default)
    # For room for as many workers as before: where a machine has died, Ray learns late that there is less.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # for a frozen worker (ten minutes by default)
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # for dead or frozen workers (30 s by default)
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
# An embedded Ray lives on one machine, which is not taken away from under it.
ENVIRONMENT_OF_AN_EMBEDDED_RAY = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
LIBRARIES = ("ray", "ray.train", "ray.tune", "mlflow", "alembic", "wandb", "py.warnings")


def connect(log: Path | None, dashboard: bool = False) -> None:
    """Join the cluster of $RAY_ADDRESS, or start an embedded one. Ray's own messages go to ``log``.

    ``dashboard``: of an embedded cluster. It is some ten processes, and needed only for Ray Train inside of Ray Tune:
    through it Ray finds and frees the places of a killed trial's workers.
    Raises UserError, in one line, for a cluster that does not answer or refuses us.
    """
    address = os.environ.get("RAY_ADDRESS")
    for name, value in (ENVIRONMENT if address else ENVIRONMENT | ENVIRONMENT_OF_AN_EMBEDDED_RAY).items():
        os.environ.setdefault(name, value)
    if not ray.is_initialized():
        if address:
            auth_check.check_address(address)
            _join(address)
        else:
            # Without an address Ray would join any cluster that somebody has started on this machine.
            ray.init(
                "local", num_cpus=cores(), include_dashboard=dashboard, log_to_driver=False,
                logging_level=logging.ERROR,
            )  # fmt: skip
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        _send_logs_to(logging.FileHandler(log))


def _join(address: str) -> None:
    level = os.environ.get(LOG_LEVEL)
    os.environ[LOG_LEVEL] = level or "fatal"  # while it tries, Ray writes a line a second to the terminal
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray has no class of its own for a cluster that refuses
        if (refusal := auth_check.refusal(address, error)) is None:
            raise
        raise refusal from None
    finally:
        if level is None:
            del os.environ[LOG_LEVEL]


@contextlib.contextmanager
def library_logs_in(log: Path) -> Iterator[None]:
    """Inside the block, log lines and warnings of other libraries go to a file and not to the terminal."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(log)
    except OSError as error:
        raise TrainingFailed(f"the log {log} cannot be written: {error.strerror}") from None
    before = [(logging.getLogger(name), *_settings(logging.getLogger(name))) for name in LIBRARIES]
    logging.captureWarnings(True)
    _send_logs_to(handler)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()


def _settings(logger: logging.Logger) -> tuple[list[logging.Handler], bool]:
    return logger.handlers, logger.propagate


def _send_logs_to(handler: logging.Handler) -> None:
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False


class PrintedToLog(io.TextIOBase):
    """In place of stdout: what Ray prints there, of dead workers, becomes lines of its log."""

    def write(self, text: str) -> int:
        if text.strip():
            logging.getLogger("ray").info(text.rstrip())
        return len(text)


def machines_of_the_cluster() -> list[dict[str, float]]:
    """What each machine that is alive has, by Ray's names."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
