"""Examines this machine and the Ray cluster."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from infogan_ray import UserError
from infogan_ray.data.fetch import FILES, SOURCES, cache_folder
from infogan_ray.data.progress import counted
from infogan_ray.distributed.cluster import local_ray
from infogan_ray.distributed.submission.backend import Finding
from infogan_ray.distributed.submission.dashboard import readable_token
from infogan_ray.models.precision import resolve_precision

MIN_FREE_DISK_BYTES = 2 * 10**9
MIN_SHARED_MEMORY_BYTES = 10**9
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def examine() -> list[Finding]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "pyarrow", "safetensors"))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    findings = [
        Finding("ok", "python", platform.python_version()),
        Finding("ok", "packages", packages),
        Finding("ok", "cores", f"{os.cpu_count()}; by default one worker uses all of them"),
        Finding("ok" if gpus else "note", "GPUs", ", ".join(gpus) or "none: training runs on the CPU"),
        Finding("ok", "precision", f"auto means {resolve_precision('auto', device)} on this machine"),
    ]
    free = shutil.disk_usage(Path.cwd()).free
    mark: Literal["ok", "bad"] = "ok" if free >= MIN_FREE_DISK_BYTES else "bad"
    advice = "" if mark == "ok" else "; delete files, or give runs another disk with --storage"
    findings.append(Finding(mark, "disk", f"{free / 1e9:.1f} GB free in {Path.cwd()}{advice}"))
    findings += [shared_memory(), _temporary_folder(), _home_folder(), _current_folder()]
    for name, source in SOURCES.items():
        folders = [cache_folder() / name, *([source.system_folder] if source.system_folder else [])]
        found = next((f for f in folders if any((f / (FILES[0] + end)).is_file() for end in ("", ".gz"))), None)
        where = str(found) if found else f"not fetched yet: infogan data fetch {name}"
        findings.append(Finding("ok" if found else "note", name, where))
    return [*findings, *findings_of_the_network(), _cluster()]


def shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """NCCL exchanges gradients between GPUs of one machine there. Ray's objects use another folder if it is small."""
    if not folder.is_dir():
        return Finding("note", "shared memory", f"there is no {folder}; Ray uses the temporary folder, which is slower")
    size = shutil.disk_usage(folder).total
    text = f"{size / 1e9:.2f} GB in {folder}"
    if size >= MIN_SHARED_MEMORY_BYTES:
        return Finding("ok", "shared memory", text)
    advice = "several workers on GPUs of one machine can fail; start the container with --shm-size=2g"
    return Finding("note", "shared memory", f"{text}: {advice}")


def findings_of_the_network() -> list[Finding]:
    """The proxies that the environment names, without their passwords, and a token file that others can read."""
    named = [(name, os.environ.get(name) or os.environ.get(name.upper())) for name in PROXY_VARIABLES]
    shown = [f"{name}={value.rpartition('@')[2].rpartition('://')[2]}" for name, value in named if value]
    text = "for downloads and https; loopback, http addresses with a token, s3:// and Ray are reached directly"
    proxies = [Finding("note", "proxies", f"{', '.join(shown)}; {text}")] if shown else []
    return [*proxies, *filter(None, [readable_token()])]


def _temporary_folder() -> Finding:
    try:
        local_ray.check_temporary_folder()
    except UserError as error:
        return Finding("bad", "temporary folder", f"several workers cannot start: {error}")
    return Finding("ok", "temporary folder", "can be written, and short enough for Ray's sockets")


def _home_folder() -> Finding:
    if (problem := local_ray.home_problem()) is None:
        return Finding("ok", "home folder", "can be written")
    text = f"{problem}; for fetched datasets and the logs of runs in buckets, set INFOGAN_DATA to another folder"
    return Finding("note", "home folder", text)


def _current_folder() -> Finding:
    """``python -m`` imports from the current folder before all others. Ray's workers do not."""
    other = Path.cwd() / "infogan_ray"
    if not other.exists() or other.resolve() == Path(local_ray.package_folder()):
        return Finding("ok", "current folder", "has no other infogan_ray")
    text = f"{other} is not the package that runs now; use the command infogan here, not python -m infogan_ray"
    return Finding("note", "current folder", text)


def _cluster() -> Finding:
    from infogan_ray.distributed.cluster.connection import connect, listens_to_others

    address = os.environ.get("RAY_ADDRESS")
    if not address:
        text = "RAY_ADDRESS is not set: one worker runs without a cluster; for several, Ray starts on this machine"
        exposed = listens_to_others()
        where = f". {exposed}" if exposed else ", on 127.0.0.1 alone"
        return Finding("note" if exposed else "ok", "Ray cluster", text + where)
    import ray

    try:
        connect(None)
    except UserError as error:
        return Finding("bad", "Ray cluster", str(error))
    total = ray.cluster_resources()
    alive = sum(node["Alive"] for node in ray.nodes())
    ray.shutdown()
    amounts = [counted(int(total.get(name, 0)), name) for name in ("CPU", "GPU")]
    found = f"{address}: {', '.join([counted(alive, 'node'), *amounts])}"
    return Finding("ok", "Ray cluster", found)
