"""What this machine or a cluster can do, and what is wrong: a door that stands open, above all."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from infogan_ray.data.fetch import FILES, SOURCES, cache_folder
from infogan_ray.distributed.submission.dashboard import (
    TOKEN,
    TOKEN_PATH,
    WANTS_A_TOKEN,
    Dashboard,
    compare,
    find_token,
)
from infogan_ray.distributed.submission.submitter import SubmissionFailed
from infogan_ray.models.precision import resolve_precision

LEAST_DISK = 2 * 10**9


@dataclass(frozen=True)
class Finding:
    mark: Literal["ok", "note", "bad"]
    what: str
    finding: str


def examine() -> list[Finding]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "pyarrow", "safetensors"))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    findings = [
        Finding("ok", "python", platform.python_version()),
        Finding("ok", "packages", packages),
        Finding("ok", "cores", f"{os.cpu_count()}; one worker with all of them is the default"),
        Finding("ok" if gpus else "note", "GPUs", ", ".join(gpus) or "none: training runs on the CPU"),
        Finding("ok", "precision", f"auto is {resolve_precision('auto', device)} here"),
    ]
    free = shutil.disk_usage(Path.cwd()).free
    mark: Literal["ok", "bad"] = "ok" if free >= LEAST_DISK else "bad"
    findings.append(Finding(mark, "disk", f"{free / 1e9:.1f} GB free in {Path.cwd()}"))
    for name, source in SOURCES.items():
        folders = [cache_folder() / name, *([source.system_folder] if source.system_folder else [])]
        here = next((f for f in folders if any((f / (FILES[0] + end)).is_file() for end in ("", ".gz"))), None)
        where = str(here) if here else f"not fetched yet: infogan data fetch {name}"
        findings.append(Finding("ok" if here else "note", name, where))
    findings.append(_cluster())
    return findings


def examine_door(url: str) -> list[Finding]:
    """Of a cluster's dashboard. Raises SubmissionFailed if nobody answers, and UserError for what is no URL."""
    dashboard = Dashboard(url)
    status, _ = dashboard.ask("/api/version")
    findings = []
    if status == WANTS_A_TOKEN:
        findings.append(Finding("ok", "door", "closed: without the cluster's token it answers 401"))
    elif status == 200:
        reach = "all who are on the head's machine" if dashboard.is_loopback else f"everybody who can reach {url}"
        findings.append(
            Finding(
                "bad", "door",
                f"OPEN: it asks for no token. Submitting jobs is what this port is for, so {reach} can run any command "
                "as Ray's user, with its files, its GPUs and its cloud credentials (CVE-2023-48022 is no more than "
                "that). Restart Ray with RAY_AUTH_MODE=token; keep the port inside the cluster (cluster/README.md)",
            )
        )  # fmt: skip
    else:
        findings.append(Finding("bad", "door", f"answers HTTP {status}, which no Ray head does"))
    plain = url.startswith("http://")
    if plain and not dashboard.is_loopback:
        findings.append(
            Finding(
                "bad", "way", "unencrypted: tokens and code are seen on the way; go through a tunnel "
                "(ssh -L 8265:127.0.0.1:8265 HEAD, kubectl port-forward), or https",
            )
        )  # fmt: skip
    if status == WANTS_A_TOKEN and find_token() is None:
        findings.append(Finding("note", "token", f"none is set here: {TOKEN_PATH} or {TOKEN} would hold it"))
        return findings
    try:
        versions = dashboard.versions()
    except SubmissionFailed as error:
        return [*findings, Finding("bad", "token", str(error))]
    try:
        said = compare(versions)
    except SubmissionFailed as error:
        return [*findings, Finding("bad", "versions", str(error))]
    text = ", ".join(f"{name} {number}" for name, number in versions.items())
    return [*findings, Finding("note" if said else "ok", "versions", "; ".join([text, *said]))]


def _cluster() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Finding(
            "ok",
            "Ray cluster",
            "RAY_ADDRESS is not set: a run of one worker needs none, others start their own",
        )
    import ray

    from infogan_ray.distributed.cluster.connection import connect

    try:
        connect(None)
    except ValueError as error:
        return Finding("bad", "Ray cluster", str(error))
    total = ray.cluster_resources()
    alive = sum(node["Alive"] for node in ray.nodes())
    ray.shutdown()
    return Finding(
        "ok", "Ray cluster", f"{address}: {alive} nodes, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"
    )
