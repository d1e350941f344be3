"""Resources of the machines of a Ray cluster, and a check that all of them see the same files."""

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
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from infogan_ray import UserError
from infogan_ray.data.progress import duration
from infogan_ray.distributed.cluster.connection import machines_of_the_cluster
from infogan_ray.distributed.cluster.resources import InsufficientResources, Resources, fit, this_machine
from infogan_ray.distributed.cluster.threads import thread_limit
from infogan_ray.storage.file_system import Storage
from infogan_ray.training.config import RunConfig

PROBE_TIMEOUT_S = 30.0  # for the other machines to report which files they see
POLL_S = 2.0  # while a cluster grows
MESSAGE_INTERVAL_S = 15.0


def resources(config: RunConfig, say: Callable[[str], None] = lambda line: None) -> Resources:
    """Resolve workers, threads and device. Raises UserError for more than this machine or cluster has.

    With ``config.wait`` > 0, request resources from the cluster's autoscaler and wait up to that many seconds. ``say``
    receives a line about the waiting every MESSAGE_INTERVAL_S.
    """
    deadline, last_request = time.monotonic() + config.wait, -MESSAGE_INTERVAL_S
    try:
        while True:
            try:
                # On a cluster the driver's variable does not apply to the workers; in a job, Ray sets it.
                return fit(config, machines(), None if ray.is_initialized() else thread_limit(os.environ))
            except InsufficientResources as error:
                left = deadline - time.monotonic()
                if not ray.is_initialized():  # one machine cannot grow
                    raise UserError(str(error)) from None
                if left <= 0:
                    raise UserError(f"{error}{_wait_hint(config.wait)}") from None
                if last_request + MESSAGE_INTERVAL_S <= time.monotonic():
                    last_request = time.monotonic()
                    request_resources(bundles=requested_bundles(config))
                    say(f"waiting for the cluster to grow, {duration(left)} at most: {error}")
            time.sleep(POLL_S)
    finally:
        if last_request > 0:
            request_resources(bundles=[])  # the workers make their own request


def machines() -> list[dict[str, float]]:
    """The CPUs and GPUs of each machine."""
    if ray.is_initialized():
        return machines_of_the_cluster()
    return [this_machine()]


def requested_bundles(config: RunConfig) -> list[dict[str, float]]:
    """The request to an autoscaler: one bundle for each worker of the smallest allowed number."""
    min_workers, _ = config.worker_range or (1, 1)
    gpus = {"GPU": config.gpus_per_worker} if config.device == "cuda" else {}
    return [{"CPU": config.threads or 1, **gpus}] * min_workers


def check_files(config: RunConfig, storage: Storage) -> bool:
    """Check before training that all machines that may get a worker see the data and storage folders of this one.

    Returns False if a machine died: Ray still counts a dead machine for some seconds. Raises UserError if a machine
    does not see a folder or does not answer within PROBE_TIMEOUT_S.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU") and node["NodeID"] != here]
    given = (config.data, config.data_dir, config.labels)
    data = [path for path in given if path and Path(path).expanduser().exists()]
    if not others or not (storage.is_local or data):
        return True
    probe_paths = ray.remote(num_cpus=0, max_retries=0)(_paths_exist)
    probe = f"probe-{uuid.uuid4().hex[:8]}"
    if storage.is_local:
        storage.write(probe, b"written to check that all machines of a cluster share this folder")
    paths = [str(Path(path).expanduser().absolute()) for path in data]
    try:
        requests = {
            node["NodeID"]: probe_paths.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote([*paths, *([f"{storage.path}/{probe}"] if storage.is_local else [])])
            for node in others
        }
        _, late = ray.wait(list(requests.values()), num_returns=len(requests), timeout=PROBE_TIMEOUT_S)
        answers = {}
        for node in others:
            id, machine = node["NodeID"], node["NodeManagerAddress"]
            try:
                if requests[id] in late:
                    raise UserError(f"machine {machine} did not answer the file check in {PROBE_TIMEOUT_S:.0f} s")
                answers[machine] = _answer(requests[id], machine)
            except UserError:
                if any(other["NodeID"] == id and other["Alive"] for other in ray.nodes()):
                    raise
                # The machine has died, so no worker will run there.
    finally:
        if storage.is_local:
            with contextlib.suppress(FileNotFoundError):
                storage.delete(probe)
    for index, path in enumerate(paths):
        if missing := [machine for machine, seen in answers.items() if not seen[index]]:
            raise UserError(
                f"data is '{path}', but {_count(missing, answers)} not see it; give a named dataset, or a folder "
                "that all machines share"
            )
    if storage.is_local and (missing := [machine for machine, seen in answers.items() if not seen[-1]]):
        raise UserError(
            f"storage is '{storage}', but {_count(missing, answers)} not see it; give --storage s3://bucket/prefix, "
            "or a folder that all machines share (NFS)"
        )
    return len(answers) == len(others)


def _paths_exist(paths: list[str]) -> list[bool]:
    return [os.path.exists(path) for path in paths]


def _answer(request: Any, machine: str) -> list[bool]:
    try:
        return ray.get(request)
    except ray.exceptions.RayError as error:
        if "No module named" in str(error):
            raise UserError(
                f"machine {machine} does not have this code; install it there, or use infogan submit, which sends it"
            ) from None
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"machine {machine} cannot run a task: {last}") from None


def _count(missing: list[str], all_others: Mapping[str, Any]) -> str:
    named = ", ".join(missing[:3]) + (" and others" if len(missing) > 3 else "")
    if len(all_others) == 1:
        return f"the other machine ({named}) does"
    return f"{len(missing)} of the {len(all_others)} other machines ({named}) do{'es' if len(missing) == 1 else ''}"


def _wait_hint(waited: float) -> str:
    return f" (waited {duration(waited)})" if waited else "; --wait SECONDS gives an autoscaling cluster time to grow"
