"""Connects to a Ray cluster or starts one, and sends Ray's log lines to a file."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import ray

from infogan_ray.distributed import LOOPBACK_VARIABLE
from infogan_ray.distributed.cluster import auth_check, local_ray
from infogan_ray.distributed.cluster.threads import cores
from infogan_ray.storage import proxies
from infogan_ray.training.run_outcome import TrainingFailed

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report waits for this poll (2 s by default)
    # How long Ray Train waits for the resources of all workers. Ray still counts a dead machine for some seconds.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # for a frozen worker (ten minutes by default)
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # for dead or frozen workers (30 s by default)
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
# A local cluster has one machine, so there is no preemption to watch for.
LOCAL_CLUSTER_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
CONNECT_TRIES = "RAY_gcs_server_port_wait_time_s"  # one attempt a second; Ray makes 20, even if it is refused
Event = TypeVar("Event")
LIBRARIES = ("ray", "ray.data", "ray.train", "ray.tune", "mlflow", "alembic", "wandb", "py.warnings")


def connect(log: Path | None, dashboard: bool = False) -> None:
    """Connect to the cluster of $RAY_ADDRESS, or start a local one. Ray's own messages go to ``log``.

    ``dashboard``: start the dashboard of a local cluster, about ten processes. Only Ray Train inside Ray Tune needs it:
    Ray uses it to free the placement groups of killed trials.
    Raises UserError, in one line, if the cluster does not answer or refuses the connection, or if this machine's
    surroundings do not suit Ray. Raises TrainingFailed if the log cannot be written.
    """
    address = os.environ.get("RAY_ADDRESS")
    for name, value in (ENVIRONMENT if address else ENVIRONMENT | LOCAL_CLUSTER_ENVIRONMENT).items():
        os.environ.setdefault(name, value)
    if not ray.is_initialized():
        local_ray.check_command_line()
        if address:
            auth_check.check_address(address)
            _connect_to(address)
        else:
            local_ray.check_temporary_folder()
            proxies.bypass(*proxies.LOOPBACK)  # Ray's processes send the token to each other by HTTP
            local_ray.create_token()
            with contextlib.chdir(local_ray.START_FOLDER):
                # Without "local", Ray would connect to any cluster that runs on this machine.
                ray.init(
                    "local", num_cpus=cores(), include_dashboard=dashboard, log_to_driver=False,
                    logging_level=logging.ERROR,
                )  # fmt: skip
            if exposed := listens_to_others():
                warnings.warn(exposed, stacklevel=2)
    if log is not None:
        _send_logs_to(open_log(log))


def listens_to_others() -> str:
    """A line to say if a local cluster is not on loopback alone; else empty."""
    address = ray.util.get_node_ip_address()
    if proxies.is_loopback(address):
        return ""
    return (
        f"a local Ray has the address {address}: others on the network reach its ports, and its metrics without the "
        f"token. Unset {LOOPBACK_VARIABLE}, and import infogan_ray before ray"
    )


def _connect_to(address: str) -> None:
    before = os.environ.get(CONNECT_TRIES)
    os.environ[CONNECT_TRIES] = before or "5"
    try:
        with (
            explained_end(auth_check.no_node_message(address)), _discarded_stderr(),
            contextlib.chdir(local_ray.START_FOLDER),
        ):  # fmt: skip
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray has no exception class for a refused connection
        if (explained := auth_check.connection_error(address, error)) is None:
            raise
        raise explained from None
    finally:
        if before is None:
            del os.environ[CONNECT_TRIES]


@contextlib.contextmanager
def explained_end(message: str) -> Iterator[None]:
    """Print a line if this process ends inside the block. Ray's native code ends it without an exception.

    A shell waits for a word from this process, and prints the line if it gets none.
    """
    script = 'read -r word || printf "%s\\n" "$0" >&2'
    with subprocess.Popen(["sh", "-c", script, f"infogan: {message}"], stdin=subprocess.PIPE, text=True) as watcher:
        try:
            yield
        finally:
            watcher.communicate("connected\n")


@contextlib.contextmanager
def _discarded_stderr() -> Iterator[None]:
    """Discard what native code writes to this process's stderr: for each refused attempt Ray writes a line there."""
    try:
        saved = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextlib.contextmanager
def library_logs_in(log: Path) -> Iterator[None]:
    """Inside the block, other libraries write log lines and warnings to a file and not to the terminal.

    Raises TrainingFailed if the file cannot be written.
    """
    handler = open_log(log)
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


def open_log(log: Path) -> logging.FileHandler:
    """Open a log file, and create its folder. Raises TrainingFailed if it cannot be written."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return logging.FileHandler(log, encoding="utf-8", errors="backslashreplace")  # a name may be no valid text
    except OSError as error:
        raise TrainingFailed(f"the log {log} cannot be written: {error.strerror}") from None


def _settings(logger: logging.Logger) -> tuple[list[logging.Handler], bool]:
    return logger.handlers, logger.propagate


def _send_logs_to(handler: logging.Handler) -> None:
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False


class PrintedToLog(io.TextIOBase):
    """Replaces stdout: what Ray prints about dead workers goes to its log."""

    def write(self, text: str) -> int:
        if text.strip():
            logging.getLogger("ray").info(text.rstrip())
        return len(text)


@contextlib.contextmanager
def prints_in_log(listen: Callable[[Event], None]) -> Iterator[Callable[[Event], None]]:
    """Inside the block, what libraries print goes to Ray's log. Yields ``listen``, whose prints go where they did."""
    stdout = sys.stdout

    def listen_outside(event: Event) -> None:
        with contextlib.redirect_stdout(stdout):
            listen(event)

    with contextlib.redirect_stdout(PrintedToLog()):
        yield listen_outside


def machines_of_the_cluster() -> list[dict[str, float]]:
    """The resources of each living machine, under Ray's names."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
