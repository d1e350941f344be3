"""The Ray cluster that work runs on: what it has room for, and whether its machines see the same files."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray._private.utils import get_num_cpus
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from infogan_ray import UserError
from infogan_ray.cli.display import duration
from infogan_ray.data.shards.sampling import SAMPLE
from infogan_ray.distributed.cluster.connection import machines_of_the_cluster
from infogan_ray.distributed.cluster.resources import Resources, TooMuch, fit, room_for_images, this_machine
from infogan_ray.distributed.cluster.threads import limit
from infogan_ray.storage.file_system import Storage
from infogan_ray.training.config import RunConfig
from infogan_ray.training.run_setup import Checked, check_data
from infogan_ray.training.tracking.addresses import check_packages

PROBE_S = 30.0  # for the other machines to say what they see
POLL_S = 2.0  # while a cluster grows
COUNT_S = 5.0  # for Ray's coordinator, which counts in milliseconds
SAID_EVERY_S = 15.0


def resources(config: RunConfig, say: Callable[[str], None] = lambda line: None) -> Resources:
    """Resolve workers, threads and device. Raises UserError for more than this machine or cluster has.

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
                    raise UserError(str(error)) from None
                if left <= 0:
                    raise UserError(f"{error}{_after(config.wait)}") from None
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
        return machines_of_the_cluster()
    # What an embedded Ray will find, which may be less than the machine has; less still where a scheduler pins us.
    here = this_machine()
    return [here | {"CPU": min(get_num_cpus(True), here["CPU"])}]


def count_machines_again() -> None:
    """Have Ray's coordinator look at the machines now: how many workers an elastic run begins with is its last count,
    of up to 20 s ago, and a machine that has come since would be left out. It outlives jobs; a new one has just looked.
    """
    # ValueError: there is none yet. AttributeError: another Ray, whose coordinator's own business this is.
    with contextlib.suppress(ray.exceptions.RayError, ValueError, AttributeError):
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        ray.get(coordinator._tick.remote(), timeout=COUNT_S)


def wish(config: RunConfig) -> list[dict[str, float]]:
    """What an autoscaler is asked for: one bundle for each worker."""
    least, _ = config.worker_range or (1, 1)
    gpus = {"GPU": config.gpus_per_worker} if config.device == "cuda" else {}
    return [{"CPU": config.threads or 1, **gpus}] * least


def check(config: RunConfig, say: Callable[[str], None] = print, sample: int = SAMPLE) -> Checked:
    """All that can be refused before a worker starts. Raises UserError, in one line; see ``check_data``."""
    check_packages(config.mlflow, config.wandb)
    wanted = resources(config, say)
    return check_images(config, wanted, say, sample)


def check_images(config: RunConfig, wanted: Resources, say: Callable[[str], None], sample: int) -> Checked:
    """What is left to be refused of a run for which there is room."""
    room = room_for_images(wanted, machines())
    return Checked(wanted, room, check_data(config, room, say, sample))


def check_files(config: RunConfig, storage: Storage) -> bool:
    """See that all machines that may get a worker see the same folders as this one. Raises UserError for those that do
    not, before any training: each would otherwise write to, or miss, a folder of its own.

    Returns whether all were there to be asked: Ray counts a machine that has just died for some seconds more."""
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU") and node["NodeID"] != here]
    given = (config.data, config.data_dir, config.labels)
    data = [path for path in given if path and Path(path).expanduser().exists()]
    if not others or not (storage.is_local or data):
        return True
    sees = ray.remote(num_cpus=0, max_retries=0)(_sees)
    probe = f"probe-{uuid.uuid4().hex[:8]}"
    if storage.is_local:
        storage.write(probe, b"written to see whether all machines of a cluster share this folder")
    paths = [str(Path(path).expanduser().absolute()) for path in data]
    try:
        asked = {
            node["NodeID"]: sees.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote([*paths, *([f"{storage.path}/{probe}"] if storage.is_local else [])])
            for node in others
        }
        _, late = ray.wait(list(asked.values()), num_returns=len(asked), timeout=PROBE_S)
        answers = {}
        for node in others:
            id, machine = node["NodeID"], node["NodeManagerAddress"]
            try:
                if asked[id] in late:
                    raise UserError(f"machine {machine} does not say within {PROBE_S:.0f} s which files it sees")
                answers[machine] = _answer(asked[id], machine)
            except ValueError:
                if any(other["NodeID"] == id and other["Alive"] for other in ray.nodes()):
                    raise
                # It has died, before the question or since: no worker will be there.
    finally:
        if storage.is_local:
            with contextlib.suppress(FileNotFoundError):
                storage.delete(probe)
    for place, path in enumerate(paths):
        if lacking := [machine for machine, seen in answers.items() if not seen[place]]:
            raise UserError(
                f"data is '{path}', and {_count(lacking, answers)} not see it; give a named dataset, or a folder "
                "that all machines share"
            )
    if storage.is_local and (lacking := [machine for machine, seen in answers.items() if not seen[-1]]):
        raise UserError(
            f"storage is '{storage}', and {_count(lacking, answers)} not see it; give --storage s3://bucket/prefix, "
            "or a folder that all machines share (NFS)"
        )
    return len(answers) == len(others)


def _sees(paths: list[str]) -> list[bool]:
    return [os.path.exists(path) for path in paths]


def _answer(asked: Any, machine: str) -> list[bool]:
    try:
        return ray.get(asked)
    except ray.exceptions.RayError as error:
        if "No module named" in str(error):
            raise UserError(
                f"machine {machine} does not have this code; send it along with infogan submit, or install it there"
            ) from None
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"machine {machine} cannot run a task: {last}") from None


def _count(lacking: list[str], all_others: Mapping[str, Any]) -> str:
    named = ", ".join(lacking[:3]) + (" and others" if len(lacking) > 3 else "")
    return f"{len(lacking)} of the {len(all_others)} other machine(s) ({named}) do{'es' if len(lacking) == 1 else ''}"


def _after(waited: float) -> str:
    return f" (waited {duration(waited)})" if waited else "; --wait SECONDS gives an autoscaling cluster time to grow"
