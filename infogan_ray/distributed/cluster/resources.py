"""Computes a run's workers, threads and GPUs, and checks that the machines have room for them. No Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from infogan_ray import UserError
from infogan_ray.data.feeds.feed_policy import MemoryBudget
from infogan_ray.data.progress import counted
from infogan_ray.distributed.cluster.control_groups import free_memory
from infogan_ray.distributed.cluster.threads import VARIABLE, cores
from infogan_ray.training.config import RunConfig

Machine = Mapping[str, float]
"""A machine's resources under Ray's names: CPU, GPU and, if known, memory in bytes."""

REQUESTED, LIMITED = "set by --threads", f"limited by {VARIABLE}"
DIVIDED = "the cores divided by the workers; --threads changes it"


@dataclass(frozen=True)
class Resources:
    """Resources of a run. ``workers`` is a fixed number, or (min, max) for an elastic run."""

    workers: int | tuple[int, int]
    threads: int
    device: str
    gpus_per_worker: float = 1.0
    placement: str = "pack"
    threads_from: str = REQUESTED
    """The reason for the number of threads: REQUESTED, LIMITED or DIVIDED."""

    @property
    def max_workers(self) -> int:
        """The largest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def text(self) -> str:
        workers = counted(self.max_workers, "worker")
        if not isinstance(self.workers, int):
            workers = f"{self.workers[0]} to {workers}"
        gpus = f" ({self.gpus_per_worker:g} GPU each)" if self.device == "cuda" and self.gpus_per_worker != 1 else ""
        return f"{workers} with {counted(self.threads, 'thread')} each on {self.device}{gpus}"

    @property
    def per_worker(self) -> dict[str, float]:
        return {"CPU": self.threads} | ({"GPU": self.gpus_per_worker} if self.device == "cuda" else {})


class InsufficientResources(UserError):
    """The machines do not have the requested resources. A cluster that grows may have them later."""


def this_machine() -> dict[str, float]:
    """The CPUs and GPUs that this process may use on its machine."""
    return {"CPU": cores(), "GPU": torch.cuda.device_count()}


def fit(config: RunConfig, nodes: list[dict[str, float]], max_threads: int | None = None) -> Resources:
    """The resources that a configuration uses on machines with the resources ``nodes``.

    ``max_threads`` limits the default number of threads per worker.
    Raises InsufficientResources, and UserError for an invalid combination of settings.
    """
    gpus, cpus = (int(sum(node.get(name, 0) for node in nodes)) for name in ("GPU", "CPU"))
    if config.device == "cuda" and gpus == 0:
        raise InsufficientResources("device is 'cuda', but no GPU was found; use --device cpu (or auto)")
    device = "cuda" if gpus and config.device != "cpu" else "cpu"
    if config.precision == "tf32" and device == "cpu":
        raise UserError("precision is 'tf32', which needs a GPU, but device is 'cpu'; use auto, fp32 or bf16")
    default = gpus if device == "cuda" else 1
    min_workers, max_workers = config.worker_range or (default, default)
    share = config.gpus_per_worker
    available = _times({"GPU": gpus}, "GPU", share) if device == "cuda" else cpus
    if min_workers > available:
        unit = "CPUs" if device == "cpu" else "GPUs" if share == 1 else f"workers with {share:g} GPU"
        raise InsufficientResources(
            f"workers is {min_workers}, more than the {available} available {unit}; use 1 to {available}"
        )
    if min_workers == max_workers and config.batch_size % max_workers:
        raise UserError(f"batch_size is {config.batch_size}, which is not divisible by {max_workers} workers")
    gpus_per_worker = {"GPU": share} if device == "cuda" else {}
    divided = _divided_cores(cpus // max_workers, max_workers, gpus_per_worker, nodes, config.placement)
    threads = config.threads or min(divided, max_threads or divided)
    reason = REQUESTED if config.threads else LIMITED if threads < divided else DIVIDED
    if threads * min_workers > cpus:
        raise InsufficientResources(
            f"threads is {threads} for {counted(min_workers, 'worker')}, which is {threads * min_workers} CPUs; "
            f"there are {cpus}"
        )
    workers = min_workers if min_workers == max_workers else (min_workers, max_workers)
    wanted = Resources(workers, threads, device, share, config.placement, reason)
    fitting = room(wanted.per_worker, nodes, config.placement)
    if fitting < min_workers:
        amounts = " and ".join(f"{amount:g} {name}" for name, amount in wanted.per_worker.items())
        have = ", ".join(sorted(_text(node) for node in nodes))
        machines = f"{counted(len(nodes), 'machine')} with {have} {'has' if len(nodes) == 1 else 'have'}"
        raise InsufficientResources(
            f"workers is {min_workers} with {amounts} each, placement '{config.placement}': {machines} room for "
            f"{fitting}; use fewer workers or --threads, or another --placement"
        )
    return wanted


def _divided_cores(
    max_threads: int, workers: int, gpus: Mapping[str, float], nodes: list[dict[str, float]], placement: str
) -> int:
    """The largest number of CPUs per worker, at most ``max_threads``, with room for all workers on these machines."""
    largest = int(max(node.get("CPU", 0) for node in nodes))
    for threads in range(min(max_threads, largest), 1, -1):
        if room({"CPU": threads, **gpus}, nodes, placement) >= workers:
            return threads
    return 1


def room(bundle: Mapping[str, float], nodes: Iterable[Mapping[str, float]], placement: str) -> int:
    """Number of workers with the resources ``bundle`` that fit on the machines.

    strict_spread allows one worker per machine; strict_pack needs all workers on one machine.
    """
    counts = _workers_per_machine(bundle, nodes)
    if placement == "strict_pack":
        return max(counts, default=0)
    return sum(min(count, 1) for count in counts) if placement == "strict_spread" else sum(counts)


def max_concurrent_runs(wanted: Resources, nodes: Iterable[Mapping[str, float]]) -> int:
    """Number of runs with these resources that fit on the machines together; at least 1, which ``fit`` has checked."""
    counts, workers = _workers_per_machine(wanted.per_worker, nodes), wanted.max_workers
    if wanted.placement == "strict_pack":
        return max(1, sum(count // workers for count in counts))
    runs = sum(counts) // workers
    if wanted.placement == "strict_spread":  # a machine has at most one worker of each run
        while runs > 1 and sum(min(count, runs) for count in counts) < runs * workers:
            runs -= 1
    return max(1, runs)


def _workers_per_machine(bundle: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> list[int]:
    """For each machine, the number of workers with the resources ``bundle`` that fit on it."""
    return [min(_times(node, name, amount) for name, amount in bundle.items()) for node in nodes]


def _times(node: Mapping[str, float], name: str, amount: float) -> int:
    """How many times a machine has this amount. A share cannot span two GPUs: three shares of 0.6 need three GPUs."""
    if name == "GPU" and amount < 1:
        return int(node.get(name, 0)) * int(1 / amount + 1e-9)
    return int(node.get(name, 0) / amount + 1e-9)


def image_memory_budget(wanted: Resources, machines: Iterable[Machine]) -> MemoryBudget:
    """The smallest free memory of any machine (bytes), and the largest number of workers on one machine."""
    nodes = [node for node in machines if node.get("CPU")]
    counts = [min(node.get(name, 0) / amount for name, amount in wanted.per_worker.items() if amount) for node in nodes]
    copies = max(1, min(wanted.max_workers, int(max(counts, default=1))))
    free = [int(node["memory"]) for node in nodes if "memory" in node]  # as Ray found it on each machine
    return MemoryBudget(min(free, default=free_memory()), copies)


def _text(node: Mapping[str, float]) -> str:
    gpus = f" + {node['GPU']:g} GPUs" if node.get("GPU") else ""
    return f"{node.get('CPU', 0):g} CPUs{gpus}"
