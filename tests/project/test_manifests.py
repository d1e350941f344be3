"""The files in cluster/ pass their validators and contain the access restrictions. Ray is not started."""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from infogan_ray.distributed.serve.proxy import (
    APPLICATION,
    CALLBACK,
    CALLBACK_VARIABLE,
    DEPLOYMENT,
    HEALTH_PERIOD_S,
    HEALTH_PERIOD_VARIABLE,
)
from infogan_ray.web.gateway import TOKEN

CLUSTER = Path(__file__).parents[2] / "cluster"
LAUNCHER = ["ray-aws.yaml", "ray-gcp.yaml", "ray-onprem.yaml"]
KUBERAY = ["raycluster.yaml", "rayjob.yaml", "rayjob-search.yaml", "rayservice.yaml"]
JOBS = ["rayjob.yaml", "rayjob-search.yaml"]
CERTIFICATES = CLUSTER / "tls" / "make-test-certificates.sh"


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())


def kuberay(name: str) -> dict[str, Any]:
    return load(f"kuberay/{name}")


def ray_cluster(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def groups(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = ray_cluster(manifest)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def code(path: Path) -> str:
    """The text of a file without comment lines."""
    return "".join(line for line in path.read_text().splitlines(True) if not line.lstrip().startswith("#"))


# Ray's launcher


@pytest.mark.parametrize("name", LAUNCHER)
def test_rays_validator_accepts_the_launcher_files(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load(name))
    validate_config(config)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    if name != "ray-onprem.yaml":  # on-premises Ray detects resources, and the head has --num-cpus=0
        assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
        gpu = config["available_node_types"]["gpu"]
        assert gpu["resources"]["GPU"] == 1 and gpu["min_workers"] == gpu["max_workers"] == config["max_workers"]


def test_rays_validator_refuses_an_injected_error() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError, match="planted"):
        validate_config(prepare_config(load("ray-aws.yaml") | {"planted": 1}))


# Every `ray start`


def ray_starts(path: Path) -> Iterator[str]:
    """Each `ray start` of a file, with its environment before it as NAME=value."""
    if path.name in LAUNCHER:
        config = load(path.name)
        for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
            if "ray start" in command:
                yield command
    elif path.name == "compose.yaml":
        for service in load(path.name)["services"].values():
            if "ray start" in str(service.get("command")):
                yield " ".join(f"{k}={v}" for k, v in service["environment"].items()) + "\n" + service["command"][-1]
    else:
        yield from (line for line in code(path).splitlines() if "ray start" in line)


FILES = sorted(p for p in CLUSTER.rglob("*") if p.suffix in {".yaml", ".sh", ".sbatch"} and "state" not in p.parts)
STARTERS = [path for path in FILES if "ray start" in code(path)]


def test_the_files_that_start_ray_are_known() -> None:
    assert [path.name for path in STARTERS] == ["compose.yaml", *LAUNCHER, "slurm.sbatch"]


@pytest.mark.parametrize("path", STARTERS, ids=lambda path: path.name)
def test_every_ray_start_requires_the_token(path: Path) -> None:
    starts = list(ray_starts(path))
    assert len(starts) == code(path).count("ray start")
    for start in starts:
        before = start[: start.index("ray start")]
        assert re.search(r"\bRAY_AUTH_MODE=token\b", before), start
    assert "RAY_AUTH_TOKEN_PATH" in code(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_dashboard_on_all_interfaces(path: Path) -> None:
    text = code(path)
    assert not re.search(r"dashboard-host\W{1,4}(0\.0\.0\.0|::|\*)", text)
    assert text.count("--head ") + text.count("--head)") == 0 or "--dashboard-host=" in text


@pytest.mark.parametrize("name", [*LAUNCHER, "compose.yaml"])
def test_ray_accepts_every_flag(name: str) -> None:
    from ray.scripts.scripts import start

    for command in ray_starts(CLUSTER / name):
        arguments = command[command.index("ray start") :].replace("\\\n", " ").replace("${INFOGAN_CPUS:-2}", "2")
        context = start.make_context("start", shlex.split(arguments)[2:])
        if context.params["head"]:
            assert context.params["port"] == 6379 and context.params["dashboard_host"] != "0.0.0.0"
        else:
            assert context.params["address"].endswith(":6379")
        # Ray refuses 0: its client server cannot be turned off.
        assert context.params["ray_client_server_port"] is None


def test_security_groups_are_given() -> None:
    """Ray's default group opens SSH to the whole internet."""
    for node in load("ray-aws.yaml")["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"]
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


# KubeRay


def unknown_keys(value: Any, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Keys that the schema does not name. A CRD drops them silently."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from unknown_keys(item, schema.get("items", {}), f"{path}[{i}]")
    elif isinstance(value, dict):
        named, others = schema.get("properties"), schema.get("additionalProperties")
        for key, item in value.items():
            if named and key in named:
                yield from unknown_keys(item, named[key], f"{path}.{key}")
            elif isinstance(others, dict):
                yield from unknown_keys(item, others, f"{path}.{key}")
            elif named and others is not True and not schema.get("x-kubernetes-preserve-unknown-fields"):
                yield f"{path}.{key}"


@pytest.fixture
def schemas(request: pytest.FixtureRequest) -> dict[str, Any]:
    folder = request.config.getoption("--kuberay-schemas", default=None)
    if not folder:
        pytest.skip("needs --kuberay-schemas DIR")
    return {path.stem: json.loads(path.read_text()) for path in Path(folder).glob("*.json")}


@pytest.mark.parametrize("name", KUBERAY)
def test_manifests_match_kuberays_schemas(name: str, schemas: dict[str, Any]) -> None:
    manifest = kuberay(name)
    schema = schemas[manifest["kind"]]
    assert [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest)] == []
    assert list(unknown_keys(manifest, schema)) == []


def test_injected_errors_in_manifests_are_found(schemas: dict[str, Any]) -> None:
    manifest = kuberay("rayjob.yaml")
    schema = schemas["RayJob"]
    wrong = copy.deepcopy(manifest)
    wrong["spec"]["backoffLimit"] = "three"
    wrong["spec"]["rayClusterSpec"]["authOptions"]["mode"] = "open"
    found = {error.json_path for error in jsonschema.Draft202012Validator(schema).iter_errors(wrong)}
    assert found == {"$.spec.backoffLimit", "$.spec.rayClusterSpec.authOptions.mode"}
    wrong = copy.deepcopy(manifest)
    wrong["spec"]["planted"] = 1
    groups(wrong)[1]["template"]["spec"]["containers"][0]["securityContext"]["planted"] = 1
    pod = ".spec.rayClusterSpec.workerGroupSpecs[0].template.spec"
    assert set(unknown_keys(wrong, schema)) == {".spec.planted", f"{pod}.containers[0].securityContext.planted"}


def test_unknown_keys_without_the_schemas() -> None:
    schema = {
        "properties": {
            "a": {"items": {"properties": {"b": {"type": "string"}}}},
            "labels": {"additionalProperties": {"type": "string"}},
            "free": {"properties": {"x": {}}, "x-kubernetes-preserve-unknown-fields": True},
            "any": {"type": "object"},
        }
    }
    good = {"a": [{"b": ""}], "labels": {"q": ""}, "free": {"y": {"z": 1}}, "any": {"y": 1}}
    assert list(unknown_keys(good, schema)) == []
    assert list(unknown_keys(good | {"a": [{"b": ""}, {"c": ""}], "d": 1}, schema)) == [".a[1].c", ".d"]


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_have_no_more_rights_than_they_need(name: str) -> None:
    for group in groups(kuberay(name)):
        pod = group["template"]["spec"]
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] == context["fsGroup"] == 1000
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["terminationGracePeriodSeconds"] == 30
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers", "serviceAccountName"}
        assert not any("hostPath" in volume for volume in pod["volumes"])
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}


@pytest.mark.parametrize("name", KUBERAY)
def test_shared_memory_stays_within_the_memory_limit(name: str) -> None:
    for group in groups(kuberay(name)):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm"]
        (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
        assert volume["emptyDir"]["medium"] == "Memory"
        size = int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi"))
        assert int(group["rayStartParams"]["object-store-memory"]) < size * 2**30
        assert size <= int(container["resources"]["limits"]["memory"].removesuffix("Gi")) / 2


@pytest.mark.parametrize("name", KUBERAY)
def test_token_authentication_is_on_and_secrets_are_references(name: str) -> None:
    manifest = kuberay(name)
    cluster = ray_cluster(manifest)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == "2.60.0"
    assert cluster["gcsFaultToleranceOptions"]["redisPassword"].keys() == {"valueFrom"}
    for group in groups(manifest):
        (container,) = group["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "infogan-storage"}}]
        literal = {variable["name"] for variable in container["env"] if "value" in variable}
        assert literal - {CALLBACK_VARIABLE, HEALTH_PERIOD_VARIABLE} == {"RAY_JOB_STOP_WAIT_TIME_S", "XDG_CACHE_HOME"}
    head = cluster["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP" and not head.get("enableIngress")
    assert head["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("name", KUBERAY)
def test_manifests_have_the_fields_that_programs_edit(name: str) -> None:
    manifest = kuberay(name)
    head, workers = groups(manifest)
    assert workers["groupName"] == "workers"
    assert [c["name"] for c in head["template"]["spec"]["containers"]] == ["ray-head"]
    assert [c["name"] for c in workers["template"]["spec"]["containers"]] == ["ray-worker"]
    assert {"replicas", "minReplicas", "maxReplicas"} <= workers.keys()
    assert {"name", "namespace"} <= manifest["metadata"].keys()
    gpus = workers["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus == (None if name == "rayservice.yaml" else "1")
    # YAML anchors become shared objects in Python: editing one would edit the other.
    assert not re.search(r"[&*][a-z]+$", (CLUSTER / "kuberay" / name).read_text(), re.MULTILINE)


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")  # Ray Serve gives it at import
def test_the_service_has_token_and_gateway_on_every_node_and_valid_imports() -> None:
    manifest = kuberay("rayservice.yaml")
    for group in groups(manifest):
        (container,) = group["template"]["spec"]["containers"]
        environment = {variable["name"]: variable for variable in container["env"]}
        assert (
            environment[CALLBACK_VARIABLE]["value"] == CALLBACK
            and environment[HEALTH_PERIOD_VARIABLE]["value"] == HEALTH_PERIOD_S
        )
        assert environment[TOKEN]["valueFrom"] == {"secretKeyRef": {"name": "infogan-token", "key": "token"}}
    (application,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    assert application["name"] == APPLICATION and application["route_prefix"] == "/"
    assert [deployment["name"] for deployment in application["deployments"]] == [DEPLOYMENT]
    assert list(application["runtime_env"]["env_vars"]) == ["INFOGAN_MODEL"]
    for path in (application["import_path"].replace(":", "."), CALLBACK):
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", JOBS)
def test_jobs_end_resume_and_clean_up(name: str) -> None:
    spec = kuberay(name)["spec"]
    assert spec["entrypoint"].startswith("infogan ") and "--start-or-resume" in spec["entrypoint"]
    assert spec["shutdownAfterJobFinishes"] is True and spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] > 0 and spec["activeDeadlineSeconds"] > 0
    assert spec["submissionMode"] == "HTTPMode"  # other modes start a pod whose permissions are not set here


def test_the_network_policy_allows_the_cluster_and_the_operator() -> None:
    documents = list(yaml.safe_load_all((CLUSTER / "kuberay" / "networkpolicy.yaml").read_text()))
    nodes, operator, clients = documents
    own = {"podSelector": {"matchExpressions": [{"key": "ray.io/cluster", "operator": "Exists"}]}}
    assert nodes["spec"]["podSelector"] == own["podSelector"]
    assert nodes["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert nodes["spec"]["ingress"] == [{"from": [own]}]
    for document in documents:
        for rule in document["spec"]["ingress"]:
            assert rule["from"] and all("podSelector" in peer for peer in rule["from"])
    (rule,) = operator["spec"]["ingress"]
    assert rule["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/component": "kuberay-operator"}
    assert {port["port"] for port in rule["ports"]} == {8265, 8000}
    assert {port["port"] for rule in clients["spec"]["ingress"] for port in rule["ports"]} == {8000}
    assert {port["port"] for rule in nodes["spec"]["egress"] for port in rule.get("ports", [])} == {53, 6379, 443}
    (world,) = [peer["ipBlock"] for rule in nodes["spec"]["egress"] for peer in rule["to"] if "ipBlock" in peer]
    assert world["except"] == ["169.254.0.0/16"]


# Compose


def test_compose_publishes_the_dashboard_only_on_loopback() -> None:
    compose = load("compose.yaml")
    published = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert published == {"head": ["127.0.0.1:8265:8265"], "worker": [], "s3": []}
    assert compose["services"]["worker"]["deploy"]["replicas"] == 2
    assert compose["secrets"] == {"ray_token": {"file": "./state/ray-token"}}
    for service in compose["services"].values():
        assert not service.get("privileged") and not service.keys() & {"network_mode", "pid", "ipc", "cap_add"}
        assert not service["user"].startswith(("0", "root"))
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert service["healthcheck"]["test"]
        assert service["networks"] == ["cluster"]
    for name in ["head", "worker"]:
        service = compose["services"][name]
        assert service["shm_size"] and service["secrets"] == ["ray_token"]
        assert not any(re.search("SECRET|ACCESS_KEY|AUTH_TOKEN$", key) for key in service["environment"])


# Shell


@pytest.mark.parametrize("path", [CLUSTER / "slurm.sbatch", CERTIFICATES], ids=lambda path: path.name)
def test_shell_scripts_pass_bash_and_shellcheck(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("no shellcheck here")
    done = subprocess.run([shellcheck, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_slurm_script_ends_only_its_own_processes() -> None:
    text = code(CLUSTER / "slurm.sbatch")
    assert not re.search(r"ray stop|pkill|killall", text)
    assert {"#SBATCH --requeue", "#SBATCH --signal=B:TERM@60"} <= set(
        (CLUSTER / "slurm.sbatch").read_text().splitlines()
    )
    assert "umask 077" in text and "--start-or-resume" in text


# TLS


def make_certificates(folder: Path, *nodes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CERTIFICATES, folder, *nodes], capture_output=True, text=True, timeout=60)


def tls_handshake(server: Path, client: Path, name: str) -> str:
    """A TLS handshake over loopback with certificates of both sides. Returns what the client read."""
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=server / "ca.crt")
    server_context.load_cert_chain(server / "head.example.crt", server / "head.example.key")
    server_context.verify_mode = ssl.CERT_REQUIRED
    client_context = ssl.create_default_context(cafile=client / "ca.crt")
    client_context.load_cert_chain(client / "10.0.0.2.crt", client / "10.0.0.2.key")

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            try:
                with server_context.wrap_socket(connection, server_side=True) as secured:
                    secured.sendall(b"hello")
            except OSError:
                pass  # the test checks the client's error

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as connection,
                client_context.wrap_socket(connection, server_hostname=name) as secured,
            ):
                return secured.recv(5).decode()
        finally:
            thread.join()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_certificates_are_valid_and_private(tmp_path: Path) -> None:
    folder, other = tmp_path / "certificates", tmp_path / "other"
    for path in [folder, other]:
        made = make_certificates(path, "head.example,10.0.0.1", "10.0.0.2")
        assert made.returncode == 0, made.stderr
    names = {"ca.crt", "head.example.crt", "head.example.key", "10.0.0.2.crt", "10.0.0.2.key"}
    assert {path.name for path in folder.iterdir()} == names
    assert all(path.stat().st_mode & 0o077 == 0 for path in [folder, *folder.iterdir()])
    for node in ["head.example", "10.0.0.2"]:
        for purpose in ["sslserver", "sslclient"]:
            verify = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile"]
            subprocess.run([*verify, folder / "ca.crt", folder / f"{node}.crt"], check=True, capture_output=True)
            strange = subprocess.run([*verify, other / "ca.crt", folder / f"{node}.crt"], capture_output=True)
            assert strange.returncode != 0
    for name in ["head.example", "10.0.0.1", "127.0.0.1", "localhost"]:
        assert tls_handshake(folder, folder, name) == "hello"
    with pytest.raises(ssl.SSLCertVerificationError, match="match"):
        tls_handshake(folder, folder, "10.0.0.2")
    with pytest.raises(ssl.SSLCertVerificationError):
        tls_handshake(other, folder, "head.example")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_certificates_are_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    folder.mkdir()
    (folder / "mine").write_text("kept")
    made = make_certificates(folder, "10.0.0.1")
    assert made.returncode == 1 and "exists" in made.stderr
    assert [path.name for path in folder.iterdir()] == ["mine"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert make_certificates(empty, "10.0.0.1").returncode == 1 and not list(empty.iterdir())
    assert make_certificates(tmp_path / "new", "a/b").returncode == 2
    assert not (tmp_path / "new").exists()
