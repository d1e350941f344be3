"""KubeRay: a RayJob out of ``cluster/kuberay/rayjob.yaml``, applied with kubectl.

The manifest is a whole one that an operator edits; a few named fields are filled in, and nothing else is touched.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml  # comes with ray

import infogan_ray
from infogan_ray import UserError
from infogan_ray.distributed.submission.submitter import OVER, STATES, Job, SubmissionFailed
from infogan_ray.distributed.submission.work import FILES, Work

LABEL = "app.kubernetes.io/managed-by"
MANAGER = "infogan-ray"
COMMAND = "infogan-ray/command"
LONGEST_NAME = 47  # that KubeRay takes, which adds to it
GPU = "nvidia.com/gpu"
ASK_S = 60.0


@dataclass(frozen=True)
class Fields:
    """What is filled in; None leaves the manifest's own."""

    image: str | None = None
    namespace: str | None = None
    replicas: int | None = None
    least: int | None = None
    """Of an elastic run; by default as many as ``replicas``."""
    gpus: bool = True
    """Whether the workers ask for GPUs at all."""


def default_manifest() -> Path:
    return Path(infogan_ray.__file__).parents[1] / "cluster" / "kuberay" / "rayjob.yaml"


class KubeRay:
    """RayJobs of one namespace."""

    def __init__(self, manifest: Path | None = None, fields: Fields | None = None) -> None:
        self.manifest, self.fields = manifest or default_manifest(), fields or Fields()

    def plan(self, work: Work) -> str:
        return render(work, self._template(), self.fields)

    def submit(self, work: Work) -> str:
        said = self._kubectl("apply", "-f", "-", input=self.plan(work))
        if "rayjob" not in said:
            raise SubmissionFailed(f"kubectl did not say that a RayJob was made: {said.strip()}")
        return resource_name(work.name)

    def jobs(self) -> list[Job]:
        found = json.loads(self._kubectl("get", "rayjobs", "-l", f"{LABEL}={MANAGER}", "-o", "json"))
        return sorted(map(_job, found["items"]), key=lambda job: -(job.started or 0))

    def job(self, id: str) -> Job:
        return _job(self._get(id))

    def logs(self, id: str, follow: bool) -> Iterator[str]:
        while follow and self.job(id).state == "pending":  # there is nobody yet who could say anything
            time.sleep(2.0)
        words = ["ray", "job", "logs", *(["--follow"] if follow else [])]
        command = ["kubectl", *self._namespace, "exec", *self._on_the_head(self._get(id), words)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            yield from process.stdout
            error = process.stderr.read()
        if process.returncode and self.job(id).state not in OVER:
            raise SubmissionFailed(f"kubectl exec: {_last_line(error)}")

    def stop(self, id: str) -> None:
        found = self._get(id)
        if _job(found).state in OVER:
            return
        if not found.get("status", {}).get("jobId"):
            self._kubectl("delete", "rayjob", id, "--wait=false")  # it has not begun: there is nothing to save
            return
        # Through Ray, not by deleting: the driver gets the time for a last checkpoint.
        self._kubectl("exec", *self._on_the_head(found, ["ray", "job", "stop"]))

    def _on_the_head(self, found: dict[str, Any], words: list[str]) -> list[str]:
        """``kubectl exec``'s words for a command about the job, in the head's container, where the token is."""
        id, status = found["metadata"]["name"], found.get("status", {})
        selector = f"ray.io/cluster={status.get('rayClusterName', '')},ray.io/node-type=head"
        heads = json.loads(self._kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
        if not heads or not status.get("jobId"):
            raise SubmissionFailed(
                f"job {id}: its cluster is not there (state {_job(found).state}); runs and checkpoints are on storage: "
                "infogan runs STORAGE"
            )
        return [heads[0]["metadata"]["name"], "-c", "ray-head", "--", *words, status["jobId"]]

    def _get(self, id: str) -> dict[str, Any]:
        try:
            return json.loads(self._kubectl("get", "rayjob", id, "-o", "json"))
        except SubmissionFailed as error:
            if "NotFound" in str(error) or "not found" in str(error):
                raise UserError(f"job '{id}' is not known to kubectl; 'infogan jobs list --cluster kuberay'") from None
            raise

    def _template(self) -> str:
        try:
            return self.manifest.read_text()
        except OSError as error:
            raise UserError(
                f"manifest is {self.manifest}, which cannot be read ({error.strerror}); name a RayJob with --manifest, "
                "such as cluster/kuberay/rayjob.yaml of the project"
            ) from None

    @property
    def _namespace(self) -> list[str]:
        found = yaml.safe_load(self.manifest.read_text()) if self.manifest.is_file() else {}
        namespace = self.fields.namespace or found.get("metadata", {}).get("namespace")
        return ["--namespace", namespace] if namespace else []

    def _kubectl(self, *words: str, input: str | None = None) -> str:
        if shutil.which("kubectl") is None:
            raise SubmissionFailed("kubectl is not installed here; --dry-run prints the RayJob to apply elsewhere")
        try:
            done = subprocess.run(
                ["kubectl", *self._namespace, *words], input=input, capture_output=True, text=True, timeout=ASK_S
            )
        except subprocess.TimeoutExpired:
            raise SubmissionFailed(f"kubectl {words[0]}: no answer within {ASK_S:.0f} s") from None
        if done.returncode:
            raise SubmissionFailed(f"kubectl {words[0]}: {_last_line(done.stderr)}")
        return done.stdout


def render(work: Work, template: str, fields: Fields) -> str:
    """The manifest of a job, and before it a ConfigMap of the files that it needs. Raises UserError."""
    try:
        manifest = yaml.safe_load(template)
        spec = manifest["spec"]
        head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
        worker = group["template"]["spec"]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"manifest is not a RayJob with one group of workers ({why})") from None
    name = resource_name(work.name)
    about = manifest["metadata"]
    about["name"] = name
    about.setdefault("labels", {})[LABEL] = MANAGER
    about.setdefault("annotations", {})[COMMAND] = work.command
    # A retry after a lost head is the same command: it must go on, not refuse a name that is taken.
    spec["entrypoint"] = shlex.join(["infogan", *_with_start_or_resume(work.arguments)])
    if fields.namespace:
        about["namespace"] = fields.namespace
    containers = [*head["containers"], *worker["containers"]]
    for container in containers:
        if fields.image:
            container["image"] = fields.image
        known = {entry["name"]: entry for entry in container.setdefault("env", [])}
        container["env"] += [{"name": k, "value": v} for k, v in work.environment.items() if k not in known]
        for key, value in work.environment.items():
            if key in known:
                known[key].clear()
                known[key].update(name=key, value=value)
    if fields.replicas is not None:
        least = fields.replicas if fields.least is None else fields.least
        group |= {"replicas": least, "minReplicas": least, "maxReplicas": fields.replicas}
    if not fields.gpus:
        for container in worker["containers"]:
            for amounts in container.get("resources", {}).values():
                amounts.pop(GPU, None)
    documents = [manifest]
    if work.files:
        documents.insert(0, _mount_files(work, name, about.get("namespace"), head))
    return yaml.dump_all(documents, Dumper=_Readable, sort_keys=False, width=1000, allow_unicode=True)


class _Readable(yaml.SafeDumper):
    """Files as they are, instead of in one line of quotes."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)


def _mount_files(work: Work, name: str, namespace: str | None, head: dict[str, Any]) -> dict[str, Any]:
    """Recipes and configurations are read by the driver, which runs on the head."""
    about = {"name": f"{name}-files", "labels": {LABEL: MANAGER}} | ({"namespace": namespace} if namespace else {})
    head.setdefault("volumes", []).append({"name": "files", "configMap": {"name": f"{name}-files"}})
    [container] = [one for one in head["containers"] if one["name"] == "ray-head"]
    container.setdefault("volumeMounts", []).append({"name": "files", "mountPath": f"/{FILES}", "readOnly": True})
    content = {path.name: path.read_text() for path in work.files}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": content}


def _with_start_or_resume(arguments: tuple[str, ...]) -> list[str]:
    words = [word for word in arguments if word not in ("--resume", "--start-or-resume")]
    words = [f"/{word}" if word.startswith(f"{FILES}/") else word for word in words]
    return [*words, "--start-or-resume"]


def resource_name(name: str) -> str:
    """A name that Kubernetes takes: the run's own if it is one, else its like with a digest, so that none meet."""
    plain = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if plain == name and len(name) <= LONGEST_NAME and name[0].isalpha():
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"run-{plain}"[: LONGEST_NAME - 7].rstrip("-") + f"-{digest}"


def _job(found: dict[str, Any]) -> Job:
    status, about = found.get("status", {}), found["metadata"]
    state = STATES[status.get("jobStatus") or "PENDING"]
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
    return (text.strip().splitlines() or ["it failed without a word"])[-1]
