"""Backend ``kuberay``: makes a RayJob from ``cluster/kuberay/rayjob.yaml`` and applies it with kubectl.

Operators edit that manifest. ``render`` sets only the fields that a job needs.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import yaml  # a requirement of ray

import infogan_ray
from infogan_ray import UserError
from infogan_ray.distributed.submission.backend import FINAL_STATES, Backend, Job, State, SubmissionFailed
from infogan_ray.distributed.submission.work import FILES, Work

LABEL = "app.kubernetes.io/managed-by"
MANAGER = "infogan-ray"
COMMAND = "infogan-ray/command"
MAX_NAME_LENGTH = 47  # KubeRay appends to the name
GPU = "nvidia.com/gpu"
TIMEOUT_S = 60.0
RAY = ("env", "no_proxy=*", "NO_PROXY=*", "ray")  # in the head's pod; it sends the token to the head by HTTP


@dataclass
class Flags:
    namespace: str | None = None
    """Kubernetes namespace; by default the manifest's."""


@dataclass
class SubmitFlags(Flags):
    image: str | None = None
    """Container image; by default the manifest's."""
    manifest: Path | None = None
    """RayJob file to use as a template; by default cluster/kuberay/rayjob.yaml."""
    replicas: int | None = None
    """Number of worker pods; by default the --workers of train, or else the manifest's."""


def default_manifest() -> Path:
    return Path(infogan_ray.__file__).parents[1] / "cluster" / "kuberay" / "rayjob.yaml"


class KubeRay(Backend):
    """RayJobs of one namespace."""

    NAME = CLUSTER = "kuberay"
    FLAGS, SUBMIT_FLAGS = Flags, SubmitFlags

    def __init__(self, cluster: str, flags: Flags, warn: Callable[[str], None]) -> None:
        self.flags = flags if isinstance(flags, SubmitFlags) else SubmitFlags(flags.namespace)
        self.manifest = self.flags.manifest or default_manifest()

    @classmethod
    def accepts(cls, cluster: str) -> bool:
        return cluster == cls.NAME

    def plan(self, work: Work) -> str:
        return render(work, self._template(), self.flags)

    def submit(self, work: Work) -> str:
        answer = self._kubectl("apply", "-f", "-", input=self.plan(work))
        if "rayjob" not in answer:
            raise SubmissionFailed(f"kubectl did not create a RayJob; it said: {answer.strip()}")
        return resource_name(work.name)

    def jobs(self) -> list[Job]:
        found = json.loads(self._kubectl("get", "rayjobs", "-l", f"{LABEL}={MANAGER}", "-o", "json"))
        return sorted(map(_job, found["items"]), key=lambda job: -(job.started or 0))

    def job(self, id: str) -> Job:
        return _job(self._get(id))

    def logs(self, id: str, follow: bool) -> Iterator[str]:
        while follow and self.job(id).state == "pending":  # there is no driver yet
            time.sleep(2.0)
        words = [*RAY, "job", "logs", *(["--follow"] if follow else [])]
        command = ["kubectl", *self._namespace, "exec", *self._on_the_head(self._get(id), words)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            yield from process.stdout
            error = process.stderr.read()
        if process.returncode and self.job(id).state not in FINAL_STATES:
            raise SubmissionFailed(f"kubectl exec: {_last_line(error)}")

    def stop(self, id: str) -> None:
        found = self._get(id)
        if _job(found).state in FINAL_STATES:
            return
        if not found.get("status", {}).get("jobId"):
            self._kubectl("delete", "rayjob", id, "--wait=false")  # it has not started: no checkpoint to write
            return
        # Ray stops the job, so that the driver has time for a last checkpoint.
        self._kubectl("exec", *self._on_the_head(found, [*RAY, "job", "stop"]))

    def _on_the_head(self, found: dict[str, Any], words: list[str]) -> list[str]:
        """Arguments of ``kubectl exec`` for a command in the head's container, which has the token."""
        id, status = found["metadata"]["name"], found.get("status", {})
        selector = f"ray.io/cluster={status.get('rayClusterName', '')},ray.io/node-type=head"
        heads = json.loads(self._kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
        if not heads or not status.get("jobId"):
            raise SubmissionFailed(
                f"job {id}: its cluster does not exist (state {_job(found).state}); list its stored results with: "
                "infogan runs STORAGE"
            )
        return [heads[0]["metadata"]["name"], "-c", "ray-head", "--", *words, status["jobId"]]

    def _get(self, id: str) -> dict[str, Any]:
        try:
            return json.loads(self._kubectl("get", "rayjob", id, "-o", "json"))
        except SubmissionFailed as error:
            if "NotFound" in str(error) or "not found" in str(error):
                raise UserError(f"there is no job '{id}'; 'infogan jobs list --cluster kuberay' lists them") from None
            raise

    def _template(self) -> str:
        try:
            return self.manifest.read_text()
        except OSError as error:
            raise UserError(
                f"manifest is {self.manifest}, which cannot be read ({error.strerror}); name a RayJob with --manifest, "
                "for example the project's cluster/kuberay/rayjob.yaml"
            ) from None

    @property
    def _namespace(self) -> list[str]:
        found = yaml.safe_load(self.manifest.read_text()) if self.manifest.is_file() else {}
        namespace = self.flags.namespace or found.get("metadata", {}).get("namespace")
        return ["--namespace", namespace] if namespace else []

    def _kubectl(self, *words: str, input: str | None = None) -> str:
        if shutil.which("kubectl") is None:
            raise SubmissionFailed("kubectl is not installed; --dry-run prints the RayJob, for use on another machine")
        try:
            done = subprocess.run(
                ["kubectl", *self._namespace, *words], input=input, capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise SubmissionFailed(f"kubectl {words[0]}: no answer within {TIMEOUT_S:.0f} s") from None
        if done.returncode:
            raise SubmissionFailed(f"kubectl {words[0]}: {_last_line(done.stderr)}")
        return done.stdout


def render(work: Work, template: str, flags: SubmitFlags) -> str:
    """The manifest of a job, after a ConfigMap with its files, if any. Raises UserError for an unusable template."""
    try:
        manifest = yaml.safe_load(template)
        spec = manifest["spec"]
        head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
        worker = group["template"]["spec"]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"manifest is not a RayJob with one group of workers ({reason})") from None
    name = resource_name(work.name)
    about = manifest["metadata"]
    about["name"] = name
    about.setdefault("labels", {})[LABEL] = MANAGER
    about.setdefault("annotations", {})[COMMAND] = work.command
    # KubeRay runs the same command again after the head is lost.
    words = [f"/{word}" if word.startswith(f"{FILES}/") else word for word in work.restartable]
    spec["entrypoint"] = shlex.join(["infogan", *words])
    if flags.namespace:
        about["namespace"] = flags.namespace
    containers = [*head["containers"], *worker["containers"]]
    for container in containers:
        if flags.image:
            container["image"] = flags.image
        known = {entry["name"]: entry for entry in container.setdefault("env", [])}
        container["env"] += [{"name": k, "value": v} for k, v in work.environment.items() if k not in known]
        for key, value in work.environment.items():
            if key in known:
                known[key].clear()
                known[key].update(name=key, value=value)
    min_pods, max_pods = work.workers if work.workers and flags.replicas is None else (flags.replicas, flags.replicas)
    if max_pods is not None:
        group |= {"replicas": min_pods, "minReplicas": min_pods, "maxReplicas": max_pods}
    if not work.gpus:
        for container in worker["containers"]:
            for quantities in container.get("resources", {}).values():
                quantities.pop(GPU, None)
    documents = [manifest]
    if work.files:
        documents.insert(0, _mount_files(work, name, about.get("namespace"), head))
    return yaml.dump_all(documents, Dumper=_Readable, sort_keys=False, width=1000, allow_unicode=True)


class _Readable(yaml.SafeDumper):
    """Writes strings with several lines as YAML blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)


def _mount_files(work: Work, name: str, namespace: str | None, head: dict[str, Any]) -> dict[str, Any]:
    """Mount the work's files on the head, where the driver runs. Returns their ConfigMap."""
    about = {"name": f"{name}-files", "labels": {LABEL: MANAGER}} | ({"namespace": namespace} if namespace else {})
    head.setdefault("volumes", []).append({"name": "files", "configMap": {"name": f"{name}-files"}})
    [container] = [entry for entry in head["containers"] if entry["name"] == "ray-head"]
    container.setdefault("volumeMounts", []).append({"name": "files", "mountPath": f"/{FILES}", "readOnly": True})
    content = {path.name: path.read_text() for path in work.files}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": content}


def resource_name(name: str) -> str:
    """A valid Kubernetes name: the run's name, or a similar one with a digest that makes it unique."""
    plain = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if plain == name and len(name) <= MAX_NAME_LENGTH and name[0].isalpha():
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"run-{plain}"[: MAX_NAME_LENGTH - 7].rstrip("-") + f"-{digest}"


def _job(found: dict[str, Any]) -> Job:
    status, about = found.get("status", {}), found["metadata"]
    state = cast(State, (status.get("jobStatus") or "PENDING").lower())
    if status.get("jobDeploymentStatus") == "Failed":
        state = "failed"
    return Job(
        id=about["name"],
        state=state,
        command=about.get("annotations", {}).get(COMMAND, found["spec"]["entrypoint"]),
        started=_time(status.get("startTime")),
        ended=_time(status.get("endTime")),
        message=status.get("message", "") or status.get("reason", ""),
    )


def _time(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it failed without a message"])[-1]
