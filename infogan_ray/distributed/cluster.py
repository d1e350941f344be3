"""The Ray cluster that work runs on: joining it, what it has room for, and whether its machines see the same files."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import torch
from ray._private.utils import get_num_cpus
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from infogan_ray.config import RunConfig
from infogan_ray.display import duration
from infogan_ray.distributed import embedded
from infogan_ray.storage import Storage
from infogan_ray.threads import VARIABLE, cores, limit

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report waits for this poll (2 s by default)
    # Of room for as many workers as before: where a machine has died, Ray learns late that there is less.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # a frozen worker would be waited for for ten minutes
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # of dead or frozen workers it would be waited for for 30 s
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
SETUP = "infogan_ray.distributed.network.choose_interface"
PROBE_S = 30.0  # for the other machines to say what they see
POLL_S = 2.0  # while a cluster grows
SAID_EVERY_S = 15.0


ASKED, LIMITED, SHARED_OUT = "as --threads says", f"as {VARIABLE} says", "the cores shared out; --threads sets it"


@dataclass(frozen=True)
class Resources:
    """What a run takes of the cluster: a fixed number of workers, or as many as there are between two."""

    workers: int | tuple[int, int]
    threads: int
    device: str
    gpus_per_worker: float = 1.0
    placement: str = "pack"
    threads_from: str = ASKED
    """Why so many threads."""

    @property
    def most(self) -> int:
        """The largest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def text(self) -> str:
        count = self.workers if isinstance(self.workers, int) else f"{self.workers[0]} to {self.workers[1]}"
        gpus = f" ({self.gpus_per_worker:g} GPU each)" if self.device == "cuda" and self.gpus_per_worker != 1 else ""
        return f"{count} worker(s) with {self.threads} thread(s) each on {self.device}{gpus}"

    @property
    def of_a_worker(self) -> dict[str, float]:
        return {"CPU": self.threads} | ({"GPU": self.gpus_per_worker} if self.device == "cuda" else {})


class TooMuch(ValueError):
    """More than there is; a cluster that grows may have it later."""


def connect(log: Path | None, dashboard: bool = False) -> None:
    """Join the cluster of $RAY_ADDRESS, or start an embedded one. Ray's own messages go to ``log``.

    ``dashboard``: of an embedded cluster. It costs a start of some seconds, and is needed only where Ray Train runs
    inside of Ray Tune: through it, what a killed trial's workers held is found and freed.
    """
    joined = bool(os.environ.get("RAY_ADDRESS"))
    variables = ENVIRONMENT if joined else ENVIRONMENT | embedded.ENVIRONMENT
    os.environ.update({name: os.environ.get(name, value) for name, value in variables.items()})
    if not ray.is_initialized():
        # What the raylet says of dead workers would land on stdout, between the lines of --json.
        ray._private.worker._worker_logs_enabled = False
        lean = contextlib.nullcontext() if joined or dashboard else embedded.without_services()
        try:
            with lean:
                ray.init(
                    # Without an address Ray would join any that somebody has started on this machine.
                    address=None if joined else "local",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    include_dashboard=None if joined else dashboard,
                    runtime_env={"worker_process_setup_hook": SETUP} if joined else None,
                )
        except ConnectionError as error:
            raise ValueError(
                f"RAY_ADDRESS is '{os.environ.get('RAY_ADDRESS')}', and no Ray cluster answers there ({error}); "
                "start one, or unset RAY_ADDRESS to use an embedded one"
            ) from None
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        for name in ("ray", "ray.train", "ray.tune"):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [logging.FileHandler(log)], False


def resources(config: RunConfig, say: Callable[[str], None] = lambda line: None) -> Resources:
    """Resolve workers, threads and device. Raises ValueError for more than this machine or cluster has.

    With ``config.wait``, a cluster is asked to grow and given so many seconds for it; ``say`` hears of the waiting.
    """
    deadline, told = time.monotonic() + config.wait, -SAID_EVERY_S
    try:
        while True:
            try:
                # On a cluster the driver's variable says nothing of the workers, and in a job it is Ray's own doing.
                return fit(config, machines(), None if ray.is_initialized() else limit(os.environ))
            except TooMuch as error:
                left = deadline - time.monotonic()
                if not ray.is_initialized():  # this machine alone, which does not grow
                    raise ValueError(str(error)) from None
                if left <= 0:
                    raise ValueError(f"{error}{_after(config.wait)}") from None
                if told + SAID_EVERY_S <= time.monotonic():
                    told = time.monotonic()
                    request_resources(bundles=wish(config))
                    say(f"waiting for the cluster to grow, {duration(left)} at most: {error}")
            time.sleep(POLL_S)
    finally:
        if told > 0:
            request_resources(bundles=[])  # the workers' own request stands in its place now, or nobody's


def machines() -> list[dict[str, float]]:
    """The CPUs and GPUs of each machine."""
    if ray.is_initialized():
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # What an embedded Ray will find, which may be less than the machine has; less still where a scheduler pins us.
    return [{"CPU": min(get_num_cpus(True), cores()), "GPU": torch.cuda.device_count()}]


def fit(config: RunConfig, nodes: list[dict[str, float]], most_threads: int | None = None) -> Resources:
    """What a configuration takes of machines with these resources. Raises TooMuch, and ValueError.

    ``most_threads``: a limit on what each worker gets by default.
    """
    gpus, cpus = (int(sum(node.get(name, 0) for node in nodes)) for name in ("GPU", "CPU"))
    if config.device == "cuda" and gpus == 0:
        raise TooMuch("device is 'cuda', and no GPU is to be seen; take --device cpu (or auto)")
    device = "cuda" if gpus and config.device != "cpu" else "cpu"
    default = gpus if device == "cuda" else 1
    least, most = config.worker_range or (default, default)
    share = config.gpus_per_worker
    available = int(gpus / share) if device == "cuda" else cpus
    if least > available:
        unit = "CPUs" if device == "cpu" else "GPUs" if share == 1 else f"workers with {share:g} GPU"
        raise TooMuch(f"workers is {least}, more than the {available} {unit} there are; take 1 to {available}")
    if least == most and config.batch_size % most:
        raise ValueError(f"batch_size is {config.batch_size}, which {most} workers cannot share equally")
    shared = _shared_out(cpus // most, most, {"GPU": share} if device == "cuda" else {}, nodes, config.placement)
    threads = config.threads or min(shared, most_threads or shared)
    reason = ASKED if config.threads else LIMITED if threads < shared else SHARED_OUT
    if threads * least > cpus:
        raise TooMuch(f"threads is {threads}: {least} workers would take {threads * least} of {cpus} CPUs")
    wanted = Resources(least if least == most else (least, most), threads, device, share, config.placement, reason)
    places = room(wanted.of_a_worker, nodes, config.placement)
    if places < least:
        amounts = " and ".join(f"{amount:g} {name}" for name, amount in wanted.of_a_worker.items())
        have = ", ".join(sorted(_text(node) for node in nodes))
        raise TooMuch(
            f"workers is {least} with {amounts} each, placement '{config.placement}': {len(nodes)} machine(s) with "
            f"{have} have room for {places}; take fewer workers or --threads, or another --placement"
        )
    return wanted


def _shared_out(
    most: int, workers: int, gpus: Mapping[str, float], nodes: list[dict[str, float]], placement: str
) -> int:
    """The most CPUs for each of so many workers that machines, which need not be alike, have room for."""
    largest = int(max(node.get("CPU", 0) for node in nodes))
    for threads in range(min(most, largest), 1, -1):
        if room({"CPU": threads, **gpus}, nodes, placement) >= workers:
            return threads
    return 1


def room(bundle: Mapping[str, float], nodes: Iterable[Mapping[str, float]], placement: str) -> int:
    """How many workers of such a size machines have room for: one on each (strict_spread), all on one (strict_pack)."""
    each = _each(bundle, nodes)
    if placement == "strict_pack":
        return max(each, default=0)
    return sum(min(count, 1) for count in each) if placement == "strict_spread" else sum(each)


def at_once(wanted: Resources, nodes: Iterable[Mapping[str, float]]) -> int:
    """How many runs with these resources machines have room for beside one another; at least 1, as has been checked."""
    each, workers = _each(wanted.of_a_worker, nodes), wanted.most
    if wanted.placement == "strict_pack":
        return max(1, sum(count // workers for count in each))
    runs = sum(each) // workers
    if wanted.placement == "strict_spread":  # a machine has one worker of each run at most
        while runs > 1 and sum(min(count, runs) for count in each) < runs * workers:
            runs -= 1
    return max(1, runs)


def _each(bundle: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> list[int]:
    """How many such bundles each machine has room for."""
    return [int(min(node.get(name, 0) / amount + 1e-9 for name, amount in bundle.items())) for node in nodes]


def wish(config: RunConfig) -> list[dict[str, float]]:
    """What an autoscaler is asked for: one bundle for each worker."""
    least, _ = config.worker_range or (1, 1)
    gpus = {"GPU": config.gpus_per_worker} if config.device == "cuda" else {}
    return [{"CPU": config.threads or 1, **gpus}] * least


def check_files(config: RunConfig, storage: Storage) -> None:
    """See that all machines that may get a worker see the same folders as this one. Raises ValueError for those that do
    not, before any training: each would otherwise write to, or miss, a folder of its own."""
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU") and node["NodeID"] != here]
    given = (config.data, config.data_dir, config.labels)
    data = [path for path in given if path and Path(path).expanduser().exists()]
    if not others or not (storage.is_local or data):
        return
    sees = ray.remote(num_cpus=0, max_retries=0)(_sees)
    probe = f"probe-{uuid.uuid4().hex[:8]}"
    if storage.is_local:
        storage.write(probe, b"written to see whether all machines of a cluster share this folder")
    paths = [str(Path(path).expanduser().absolute()) for path in data]
    try:
        asked = {
            sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                [*paths, *([f"{storage.path}/{probe}"] if storage.is_local else [])]
            ): node["NodeManagerAddress"]
            for node in others
        }
        ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_S)
        if late:
            raise ValueError(f"machine {asked[late[0]]} does not say within {PROBE_S:.0f} s which files it sees")
        answers = {asked[answer]: _answer(answer, asked[answer]) for answer in ready}
    finally:
        if storage.is_local:
            with contextlib.suppress(FileNotFoundError):
                storage.delete(probe)
    for place, path in enumerate(paths):
        if lacking := [machine for machine, seen in answers.items() if not seen[place]]:
            raise ValueError(
                f"data is '{path}', and {_count(lacking, answers)} not see it; give a named dataset, or a folder "
                "that all machines share"
            )
    if storage.is_local and (lacking := [machine for machine, seen in answers.items() if not seen[-1]]):
        raise ValueError(
            f"storage is '{storage}', and {_count(lacking, answers)} not see it; give --storage s3://bucket/prefix, "
            "or a folder that all machines share (NFS)"
        )


def _sees(paths: list[str]) -> list[bool]:
    return [os.path.exists(path) for path in paths]


def _answer(asked: Any, machine: str) -> list[bool]:
    try:
        return ray.get(asked)
    except ray.exceptions.RayError as error:
        if "No module named" in str(error):
            raise ValueError(
                f"machine {machine} does not have this code; send it along with infogan submit, or install it there"
            ) from None
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ValueError(f"machine {machine} cannot run a task: {last}") from None


def _count(lacking: list[str], all_others: Mapping[str, Any]) -> str:
    named = ", ".join(lacking[:3]) + (" and others" if len(lacking) > 3 else "")
    return f"{len(lacking)} of the {len(all_others)} other machine(s) ({named}) do{'es' if len(lacking) == 1 else ''}"


def _text(node: Mapping[str, float]) -> str:
    gpus = f" + {node['GPU']:g} GPUs" if node.get("GPU") else ""
    return f"{node.get('CPU', 0):g} CPUs{gpus}"


def _after(waited: float) -> str:
    return f" (waited {duration(waited)})" if waited else "; --wait SECONDS gives an autoscaling cluster time to grow"
