"""What a run takes of machines: workers, their threads and GPUs, and whether there is room for them. No Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from infogan_ray import UserError
from infogan_ray.data.feeds.feed_policy import MemoryBudget
from infogan_ray.distributed.cluster.control_groups import free_memory
from infogan_ray.distributed.cluster.threads import VARIABLE, cores
from infogan_ray.training.config import RunConfig

Machine = Mapping[str, float]
"""What a machine has, by Ray's names: CPU, GPU and, where it is known, memory in bytes."""

ASKED, LIMITED, SHARED_OUT = "as --threads says", f"as {VARIABLE} says", "the cores shared out; --threads sets it"


@dataclass(frozen=True)
class Resources:
    """What a run takes of the machines there are: a fixed number of workers, or as many as there are between two."""

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


class TooMuch(UserError):
    """More than there is; a cluster that grows may have it later."""


def this_machine() -> dict[str, float]:
    """What this process may use of the machine that it runs on."""
    return {"CPU": cores(), "GPU": torch.cuda.device_count()}


def fit(config: RunConfig, nodes: list[dict[str, float]], most_threads: int | None = None) -> Resources:
    """What a configuration takes of machines with these resources. Raises TooMuch, and ValueError.

    ``most_threads``: a limit on what each worker gets by default.
    """
    gpus, cpus = (int(sum(node.get(name, 0) for node in nodes)) for name in ("GPU", "CPU"))
    if config.device == "cuda" and gpus == 0:
        raise TooMuch("device is 'cuda', and no GPU is to be seen; take --device cpu (or auto)")
    device = "cuda" if gpus and config.device != "cpu" else "cpu"
    if config.precision == "tf32" and device == "cpu":
        raise UserError("precision is 'tf32', which only GPUs have, and device is 'cpu'; take auto, fp32 or bf16")
    default = gpus if device == "cuda" else 1
    least, most = config.worker_range or (default, default)
    share = config.gpus_per_worker
    available = _fold({"GPU": gpus}, "GPU", share) if device == "cuda" else cpus
    if least > available:
        unit = "CPUs" if device == "cpu" else "GPUs" if share == 1 else f"workers with {share:g} GPU"
        raise TooMuch(f"workers is {least}, more than the {available} {unit} there are; take 1 to {available}")
    if least == most and config.batch_size % most:
        raise UserError(f"batch_size is {config.batch_size}, which {most} workers cannot share equally")
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
    return [min(_fold(node, name, amount) for name, amount in bundle.items()) for node in nodes]


def _fold(node: Mapping[str, float], name: str, amount: float) -> int:
    """How often so much of it is there. A share of a GPU is one of a single GPU: three of 0.6 take three."""
    if name == "GPU" and amount < 1:
        return int(node.get(name, 0)) * int(1 / amount + 1e-9)
    return int(node.get(name, 0) / amount + 1e-9)


def room_for_images(wanted: Resources, machines: Iterable[Machine]) -> MemoryBudget:
    """The least that any machine has free, and the most workers that one machine may get."""
    nodes = [node for node in machines if node.get("CPU")]
    each = [min(node.get(name, 0) / amount for name, amount in wanted.of_a_worker.items() if amount) for node in nodes]
    copies = max(1, min(wanted.most, int(max(each, default=1))))
    free = [int(node["memory"]) for node in nodes if "memory" in node]  # as Ray found it on each machine
    return MemoryBudget(min(free, default=free_memory()), copies)


def _text(node: Mapping[str, float]) -> str:
    gpus = f" + {node['GPU']:g} GPUs" if node.get("GPU") else ""
    return f"{node.get('CPU', 0):g} CPUs{gpus}"
